# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Model cards and uploads: a policy repository as it stands on the Hub."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import torch
import transformers
from huggingface_hub import HfApi, ModelCard, ModelCardData

from .configuration_sol import SOLConfig
from .version import __version__


if TYPE_CHECKING:
    from .modeling_sol import SOLForCausalLM


CARD_NAME = "README.md"
CARD_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
TAGS = ("sol", "self-optimizing-language-model", "adaptive-compute", "sol_hf")
REMOTE_CODE_NAME = "sol_remote.py"
REMOTE_CODE = '''"""Where the Auto classes find this repository's classes; needs `pip install sol_hf`."""

from sol_hf import SOLConfig, SOLForCausalLM, SOLPolicyModel
'''
AUTO_MAP = {
    "AutoConfig": "sol_remote.SOLConfig",
    "AutoModel": "sol_remote.SOLPolicyModel",
    "AutoModelForCausalLM": "sol_remote.SOLForCausalLM",
}


def build_card(config: SOLConfig, repo_id: str | None = None, tags: list[str] | None = None) -> ModelCard:
    """The model card of a policy, from the template.

    Args:
        config ([`SOLConfig`]): The policy's config.
        repo_id (`str`, *optional*): Where the policy will live; used in the snippet.
        tags (`list[str]`, *optional*): Further tags.
    """
    base = config.base_model_name_or_path
    on_hub = base if base and not os.path.isabs(base) and not os.path.isdir(base) else None
    data = ModelCardData(
        base_model=on_hub,
        base_model_relation="adapter" if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license="apache-2.0",
        tags=[*TAGS, *(tag for tag in tags or [] if tag not in TAGS)],
    )
    levels = {
        name: f"{values[0]:g} … {values[-1]:g} ({len(values)})" for name, values in config.action_space.levels.items()
    }
    return ModelCard.from_template(
        data,
        template_path=str(CARD_TEMPLATE),
        repo_id=repo_id or "path/to/this/folder",
        base_name=on_hub or "the base model",
        needs_base=on_hub is None,
        revision=config.base_model_revision,
        levels=levels,
        n_actions=len(config.action_space),
        config=config,
        versions={
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "huggingface_hub": huggingface_hub.__version__,
        },
    )


def save_policy(model: "SOLForCausalLM", folder: str | os.PathLike, repo_id: str | None, **kwargs) -> None:
    """Write what a policy repository holds; a card that is already in the folder stays.

    Of a policy with an adapter (PEFT), only the adapter is written: it names the policy that it belongs to.

    Args:
        model ([`SOLForCausalLM`]): Its policy, configs and card are written, its base is not.
        folder (`str` or `os.PathLike`): Where to.
        repo_id (`str`, *optional*): Where the policy will live, for the card's snippet.
        kwargs: For `PreTrainedModel.save_pretrained`.
    """
    if hasattr(model.policy, "peft_config"):
        return model.policy.save_pretrained(folder)
    config = model.policy.config
    config.sol_hf_version, config.auto_map = __version__, dict(AUTO_MAP)
    model.policy.save_pretrained(folder, **kwargs)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    Path(folder, REMOTE_CODE_NAME).write_text(REMOTE_CODE, encoding="utf-8")
    card = Path(folder, CARD_NAME)
    if not card.exists():
        build_card(model.config, repo_id).save(card)


def push_policy(
    model: "SOLForCausalLM",
    repo_id: str,
    *,
    commit_message: str | None,
    commit_description: str | None,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
    tags: list[str] | None,
) -> str:
    """Create the repository if need be and upload what `save_pretrained` writes.

    A card that already stands in the repository keeps its text and gains the new tags.

    Returns:
        `str`: Address of the commit.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        card = build_card(model.config, repo_id, tags)
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
        )
