# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How a model is made: from a base with a fresh policy, or from a stored policy and the base that it names."""

import copy
import os
from pathlib import Path
from typing import Any, Self

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, logging

from ..configuration_sol import SOLConfig
from ..modeling_sol_policy import SOLPolicyModel
from ..stored.files import find_file
from ..stored.hub_names import hub_id
from .base_loading import SHARED, BaseAccess, load_base, refuse_policy_as_base
from .base_model import commit_at, describe_base, without_wrapper
from .fingerprint import fingerprint_of
from .loading import load_policy


logger = logging.get_logger(__name__)


class PolicyLoading(PreTrainedModel):
    """Mixin of [`SOLForCausalLM`]: its two constructors."""

    base: PreTrainedModel

    @classmethod
    def from_base(cls, base: PreTrainedModel, config: SOLConfig | None = None) -> Self:
        """Put a fresh policy on a loaded base.

        A fresh policy chooses at random, and says so at its first use: train it, or pass a controller.

        Args:
            base (`PreTrainedModel`): A causal LM. Its parameters no longer require gradients afterwards.
            config ([`SOLConfig`], *optional*): Sizes and settings. Values that depend on the base are filled
                in on a copy: sizes, fingerprint, and, for a base from the Hub, its id and commit.

        Raises:
            ValueError: for a name instead of a loaded model, or a model that cannot be a base.
        """
        model = without_wrapper(base)
        if config is not None and not isinstance(config, SOLConfig):
            raise ValueError(f"`config` must be a SOLConfig, got {type(config).__name__}.")
        config = copy.deepcopy(config) if config is not None else SOLConfig()
        describe_base(config, base, model)
        policy = SOLPolicyModel(config).to(cls.policy_device(model)).eval()
        policy.mark_fresh()
        return cls(config, base, policy)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: SOLConfig | None = None,
        base: PreTrainedModel | None = None,
        revision: str = "main",
        subfolder: str = "",
        base_revision: str | None = None,
        base_token: str | bool | None = None,
        base_trust_remote_code: bool | None = False,
        check_base: bool = True,
        output_loading_info: bool = False,
        **kwargs,
    ) -> Self:
        """Load a trained policy, and the base that its config names.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Repository or folder of a policy, or of an adapter
                on one.
            config ([`SOLConfig`], *optional*): Instead of the stored one.
            base (`PreTrainedModel`, *optional*): An already loaded base, instead of the one that the config names.
            revision (`str`, *optional*, defaults to `"main"`): Of the policy repository.
            subfolder (`str`, *optional*): Of the policy repository.
            base_revision (`str`, *optional*): Of the base, instead of the one that the config names.
            base_token (`str` or `bool`, *optional*): For the repository of the base.
            base_trust_remote_code (`bool`, *optional*, defaults to `False`): Let code in the base's repository run.
            check_base (`bool`, *optional*, defaults to `True`): Refuse a base that is another model than the one that
                the policy was made for, by its sizes. A difference in the weights is a warning.
            output_loading_info (`bool`, *optional*, defaults to `False`): Also return transformers' info on the
                loading of the policy.
            kwargs: `token` and `trust_remote_code` are for the policy and do not reach the base; no code of a policy's
                repository is run. `cache_dir`, `local_files_only`, `force_download` and `proxies` serve both. All
                others (`dtype`, `device_map`, `attn_implementation`, ...) load the base.

        Raises:
            ValueError: if a file is damaged, the policy does not fit the base, or the base is missing.
            OSError: if a repository cannot be read.
        """
        refuse_policy_as_base(pretrained_model_name_or_path)
        for name in ("trust_remote_code", "_from_auto", "_from_pipeline"):  # no code is run, nothing is reported
            kwargs.pop(name, None)
        shared = {name: kwargs.pop(name) for name in SHARED if name in kwargs}
        location = dict(revision=revision, subfolder=subfolder, token=kwargs.pop("token", None), **shared)
        for name in ("attn_implementation", "experts_implementation"):  # the Auto classes move them to the config
            if name not in kwargs and getattr(config, f"_{name}", None) is not None:
                kwargs[name] = getattr(config, f"_{name}")
        adapter = kwargs.pop("adapter_kwargs", None)
        policy, info, source = load_policy(pretrained_model_name_or_path, config, location, adapter)
        access = BaseAccess(base_revision, base_token, base_trust_remote_code)
        if base is None:
            base = load_base(policy.config, source.name_or_path, access, **shared, **kwargs)
            _note_base(policy.config, base, access, shared.get("cache_dir"))
        else:
            _refuse_what_loads_a_base(access, kwargs)
        model = cls(policy.config, base, policy.to(cls.policy_device(without_wrapper(base))), check_base=check_base)
        path = find_file(source.name_or_path, GENERATION_CONFIG_NAME, source.location)
        if path is not None:
            model.generation_config = model.with_stored_options(path)
        return (model.eval(), info) if output_loading_info else model.eval()  # type: ignore[return-value]

    @staticmethod
    def policy_device(base: PreTrainedModel) -> torch.device:
        """Where the policy of a base belongs."""
        raise NotImplementedError

    def with_stored_options(self, path: Path) -> GenerationConfig:
        """The generation config of this model, from its base's and from the policy's file."""
        raise NotImplementedError


def _note_base(config: SOLConfig, base: PreTrainedModel, access: BaseAccess, cache_dir: str | None) -> None:
    """Fill in commit and fingerprint of a base that was loaded by its name, where the config has none."""
    repo_id, wanted = hub_id(config.base_model_name_or_path), access.revision or config.base_model_revision or "main"
    if repo_id is not None and config.base_model_revision is None:
        config.base_model_revision = commit_at(repo_id, wanted, cache_dir)
    if config.base_fingerprint is None:
        config.base_fingerprint = fingerprint_of(base)


def _refuse_what_loads_a_base(access: BaseAccess, kwargs: dict[str, Any]) -> None:
    given = {"base_revision": access.revision, "base_token": access.token}
    given |= {"base_trust_remote_code": access.trust_remote_code or None, **kwargs}
    without_effect = [f"`{name}`" for name, value in given.items() if value is not None and value != "auto"]
    if without_effect:
        raise ValueError(
            f"The base is loaded already, so {', '.join(sorted(without_effect))} would have no effect: pass this "
            "where the base is loaded."
        )
