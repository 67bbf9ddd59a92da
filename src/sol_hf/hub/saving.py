# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Saving and uploading of a policy repository."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME, logging

from ..configuration_sol import AUTO_MAP
from ..version import __version__
from .adapter_saving import save_adapter
from .model_card import CARD_NAME, build_card
from .owned_files import owned_files
from .remote_code.files import write_code
from .staging import staged
from .stored_tokenizer import TOKENIZER_CONFIG, store_tokenizer, tokenizer_to_store


logger = logging.get_logger(__name__)


def save_whole_policy(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    repo_id: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **kwargs,
) -> None:
    """[`save_policy`], of which all files are written or none; until then the folder has what it had.

    What an earlier save has left of another policy or adapter is removed. A tokenizer that is in the folder stays.
    """
    keep = (CARD_NAME,) if tokenizer is not None else (CARD_NAME, TOKENIZER_CONFIG)
    with staged(folder, owned_files(kwargs.get("variant")), keep=keep) as stage:
        save_policy(model, stage, repo_id, tokenizer, **kwargs)


def save_policy(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    repo_id: str | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    **kwargs,
) -> None:
    """Write the files of a policy repository; a model card that is already in the folder is kept.

    Of a policy with an adapter (PEFT), the adapter is written. If the policy beneath it is in a repository on the Hub,
    the adapter names that one; otherwise the policy is written to the same folder, too.

    Args:
        model (`PreTrainedModel`): A [`SOLForCausalLM`]; its policy, configs and card are written, its base is not.
        folder (`str` or `os.PathLike`): Folder to write to.
        repo_id (`str`, *optional*): Repository of the policy, for the code example in the card.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): To be written, too.
        state_dict (`Mapping[str, torch.Tensor]`, *optional*): Weights of the policy, or of the whole model, instead of
            those that the model has now.
        kwargs: For `PreTrainedModel.save_pretrained`.
    """
    policy, given = model.policy, None
    if hasattr(policy, "peft_config"):
        policy = save_adapter(policy, folder, repo_id, state_dict)
        if policy is None:
            return None if tokenizer is None else store_tokenizer(tokenizer, folder)
    else:
        given = _policy_weights(policy, state_dict)
    config = policy.config
    config.sol_hf_version, config.auto_map = __version__, dict(AUTO_MAP)
    policy.save_pretrained(folder, state_dict=given, **kwargs)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    save_generation_config(model.generation_config, folder)
    write_code(folder)
    store_tokenizer(tokenizer, folder)
    card = Path(folder, CARD_NAME)
    if not card.exists():
        has_tokenizer = tokenizer is not None
        stored = dict(recipe=model.training_recipe, bits_backend=_bits_backend(model))
        build_card(model.config, repo_id, has_tokenizer=has_tokenizer, **stored).save(card)


def _bits_backend(model: PreTrainedModel) -> str | None:
    """How `bits` is computed where a call does not say so."""
    return getattr(model.generation_config, "bits_backend", None)


def save_generation_config(config: GenerationConfig, folder: str | os.PathLike) -> None:
    """Write `generation_config.json`.

    Its options are mostly the base's, which may contradict each other (a temperature without sampling, for example).
    transformers warns of such options when it loads them, but does not save them. Here they are saved as they are.
    """
    try:
        config.save_pretrained(folder)
    except ValueError as error:
        logger.warning(f"The generation config is saved as it is, though transformers objects to it: {error}")
        config.to_json_file(os.path.join(folder, GENERATION_CONFIG_NAME), use_diff=True)


def _policy_weights(
    policy: PreTrainedModel, state_dict: Mapping[str, torch.Tensor] | None
) -> dict[str, torch.Tensor] | None:
    """The policy's part of a state dict of the policy or of the whole model."""
    if state_dict is None:
        return None
    own = set(policy.state_dict())
    found = {name.removeprefix("policy."): tensor for name, tensor in state_dict.items() if name.startswith("policy.")}
    found = found or dict(state_dict)
    if set(found) != own:
        missing, strange = sorted(own - set(found)), sorted(set(found) - own)
        raise ValueError(
            "`state_dict` must hold the weights of the policy, alone or in the whole model; "
            f"missing: {missing[:5]}, unknown: {strange[:5]}."
        )
    return found


def push_policy(
    model: PreTrainedModel,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    commit_message: str | None,
    commit_description: str | None,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
    tags: list[str] | None,
) -> str:
    """Create the repository if it does not exist, and upload what `save_pretrained` writes.

    Without a `tokenizer`, one that is in the repository stays, and otherwise the base's is stored, if its licence
    allows that. A model card that is already in the repository keeps its text and gets the new tags. Files of another
    policy or adapter that was there before are removed.

    Returns:
        `str`: Address of the commit.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    has_tokenizer = api.file_exists(repo_id, TOKENIZER_CONFIG, revision=revision)
    if tokenizer is None and not has_tokenizer:
        tokenizer = tokenizer_to_store(model.config)
    with tempfile.TemporaryDirectory() as folder:
        save_policy(model, folder, repo_id, tokenizer)
        if tokenizer is None and has_tokenizer:
            Path(folder, TOKENIZER_CONFIG).unlink(missing_ok=True)
        card = build_card(
            model.config,
            repo_id,
            tags,
            recipe=model.training_recipe,
            ask_hub=True,
            has_tokenizer=tokenizer is not None,
            bits_backend=_bits_backend(model),
        )
        if api.file_exists(repo_id, CARD_NAME, revision=revision):
            card = ModelCard.load(api.hf_hub_download(repo_id, CARD_NAME, revision=revision))
            card.data.tags = [*(card.data.tags or []), *(tag for tag in tags or [] if tag not in card.data.tags)]
        card.save(os.path.join(folder, CARD_NAME))
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload SOL policy",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=list(owned_files()),
        )
