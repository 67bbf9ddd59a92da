# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The tokenizer of a policy's repository: its own files, or else the base's tokenizer."""

import os

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..configuration_sol import SOLConfig
from .base_loading import SHARED, BaseNotNamedError, base_of


class SOLTokenizer(PreTrainedTokenizerFast):
    """What `AutoTokenizer` loads for a policy's repository without tokenizer files: the base's tokenizer."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args,
        base_revision: str | None = None,
        base_token: str | bool | None = None,
        base_trust_remote_code: bool | None = False,
        **kwargs,
    ):
        """Load the tokenizer of the base that a policy names.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Repository or folder of the policy.
            args: Not used.
            base_revision (`str`, *optional*): Of the base, instead of the one that the policy's config names.
            base_token (`str` or `bool`, *optional*): For the base's repository.
            base_trust_remote_code (`bool`, *optional*, defaults to `False`): For the base's repository.
            kwargs: Arguments of `AutoTokenizer.from_pretrained`.

        Raises:
            ValueError: if the policy names no base, in which case the message says how to save a tokenizer with it, or
                a pull request of one.
        """
        shared = {name: kwargs.pop(name) for name in SHARED if name in kwargs}
        own = {name: kwargs.pop(name) for name in ("revision", "subfolder", "token") if name in kwargs}
        for name in ("_from_auto", "_from_pipeline", "_commit_hash", "base", "check_base", "trust_remote_code"):
            kwargs.pop(name, None)  # who trusts the policy's repository does not thereby trust the base's
        config = SOLConfig.from_pretrained(
            pretrained_model_name_or_path, **shared, **{key: value for key, value in own.items() if value is not None}
        )
        try:
            base, revision = base_of(config, str(pretrained_model_name_or_path), base_revision)
        except BaseNotNamedError as error:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no tokenizer, and the base from which to take one is not known. "
                "Load the tokenizer from the base's own folder, with AutoTokenizer.from_pretrained(base_folder). To "
                "store one with the policy, use model.save_pretrained(folder, tokenizer=tokenizer)."
            ) from error
        if base_token is not None:
            kwargs["token"] = base_token
        return AutoTokenizer.from_pretrained(
            base, revision=revision, trust_remote_code=bool(base_trust_remote_code), **shared, **kwargs
        )
