# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Loading the base that a policy names.

Trust ends at the policy: its repository is somebody's, and the base that it names may be somebody else's. So
`trust_remote_code`, `token` and `revision` are those of the policy, and the base has its own.
"""

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from ..configuration_sol import SOLConfig
from ..stored.hub_names import hub_id


SHARED = ("cache_dir", "force_download", "local_files_only", "proxies")
"""Hub arguments that say how files are fetched, and serve both repositories."""

_LOADING: ContextVar[str | None] = ContextVar("the policy whose base is being loaded", default=None)


@dataclass(frozen=True)
class BaseAccess:
    """How the base is fetched.

    Args:
        revision (`str`, *optional*): Instead of the one that the policy's config names.
        token (`str` or `bool`, *optional*): For the base's repository.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code in the base's repository may run.
    """

    revision: str | None = None
    token: str | bool | None = None
    trust_remote_code: bool | None = False


class BaseNotNamedError(ValueError):
    """The config of a policy names no base, or a folder that is not here.

    Args:
        message (`str`): With a way out for those who load the policy from Python.
        problem (`str`): Without a way out.
    """

    def __init__(self, message: str, problem: str):
        super().__init__(message)
        self.problem = problem


def base_of(config: SOLConfig, policy: str, revision: str | None = None) -> tuple[str, str]:
    """The base that a policy's config names: its repository or folder, and its revision.

    Args:
        config ([`SOLConfig`]): The policy's config.
        policy (`str`): Where the policy is from, for messages.
        revision (`str`, *optional*): What the caller asks for instead of the revision in the config.

    Raises:
        BaseNotNamedError: if it names none, or a folder that is not here.
        ValueError: if it names a pull request, which only the caller may ask for.
    """
    name, stored = _name_of_base(config, policy), config.base_model_revision or "main"
    if not revision and stored.startswith("refs/pr/"):
        raise ValueError(
            f"The policy in {policy} asks for its base {name} at {stored}. Anybody can open such a pull request: "
            "pass `base_revision=` (with lm-eval, `revision=`) if you know what is in it, or `base=`."
        )
    return name, revision or stored


def _name_of_base(config: SOLConfig, policy: str) -> str:
    name = config.base_model_name_or_path
    if not name:
        raise BaseNotNamedError(
            f"The base of the policy in {policy} is missing. The config names no base model: pass `base=` (on the "
            "command line, `--base`), loaded with AutoModelForCausalLM. A base that was a local folder or had an "
            "adapter is not named.",
            problem="its config names no base model",
        )
    if not os.path.isdir(name) and hub_id(name) is None:
        raise BaseNotNamedError(
            f"The base of the policy in {policy} is missing: its config names the folder {name}, which is not here. "
            "Load the base with AutoModelForCausalLM and pass it with `base=` (on the command line, `--base`).",
            problem=f"its config names the folder {name}, which is not here",
        )
    return name


def load_base(config: SOLConfig, policy: str, access: BaseAccess, **kwargs) -> PreTrainedModel:
    """Load the base that a policy's config names.

    Args:
        config ([`SOLConfig`]): The policy's config.
        policy (`str`): Where the policy is from, for messages.
        access ([`BaseAccess`]): Revision, token and trust of the base.
        kwargs: For `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: if there is no base to load, it is itself a policy, or it needs code from its repository.
        OSError: if it cannot be fetched.
    """
    name, revision = base_of(config, policy, access.revision)
    arguments: dict[str, Any] = {"token": access.token} if access.token is not None else {}
    try:
        with _loading_base_of(policy):
            return AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                trust_remote_code=bool(access.trust_remote_code),
                **arguments,
                **kwargs,
            )
    except OSError as error:
        raise OSError(
            f"The base {name} of the policy in {policy} could not be loaded: {error}\nIf it is private or gated, pass "
            "`base_token=`; the token of the policy is not used for it. An already loaded base is passed with `base=`."
        ) from error
    except ValueError as error:
        if access.trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"The base {name} of the policy in {policy} needs code from its own repository. `trust_remote_code` is "
            "for the policy and does not reach the base: read that code, and pass `base_trust_remote_code=True`."
        ) from error


def refuse_policy_as_base(name_or_path: str | os.PathLike) -> None:
    """Raise a ValueError if a policy is loaded as the base of another policy, or of itself."""
    policy = _LOADING.get()
    if policy is not None:
        raise ValueError(
            f"The base that the policy in {policy} names is itself a policy ({name_or_path}): its config is damaged. "
            "Load the causal LM with AutoModelForCausalLM and pass it with `base=` (on the command line, `--base`)."
        )


@contextlib.contextmanager
def _loading_base_of(policy: str) -> Iterator[None]:
    token = _LOADING.set(policy)
    try:
        yield
    finally:
        _LOADING.reset(token)
