# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of `sol-hf train` other than those of the trainer: base, texts, policy, adapter.

Every argument is an entry of the YAML file and an option of the command line, which has precedence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import datasets
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_sol import SOLConfig
from ..episodes.text_blocks import load_text
from ..integrations.packaged_bases import NEED_NO_HUB, PACKAGED_BASES, base_source
from ..integrations.smollm2 import SMOLLM2
from ..modeling_sol import SOLForCausalLM


def share(text: str) -> tuple[str, float]:
    """A source and its share, from `name=0.5`."""
    name, equals, number = text.rpartition("=")
    if not equals or not name:
        raise ValueError(f"{text!r} is not a share of a source: write e.g. name=0.5.")
    return name, float(number)


def mix_sources(
    texts: Dataset | IterableDataset, column: str, shares: dict[str, float], seed: int = 42
) -> Dataset | IterableDataset:
    """Draw texts such that sources have these shares, until one part of the mixture is exhausted.

    Args:
        texts (`Dataset` or `IterableDataset`): Texts with the column `column`.
        column (`str`): Column with the name of the source of each text.
        shares (`dict[str, float]`): Share of each named source; all others together have the rest.
        seed (`int`, *optional*, defaults to 42): Seed of the draws.

    Raises:
        ValueError: if shares are not positive, or leave nothing for the others.
    """
    rest = 1 - sum(shares.values())
    if rest <= 0 or min(shares.values()) <= 0:
        raise ValueError(f"Shares of sources must be positive and add up to less than 1, got {shares}.")
    parts = [texts.filter(lambda row, name=name: row[column] == name) for name in shares]
    parts.append(texts.filter(lambda row: row[column] not in shares))
    return datasets.interleave_datasets(parts, probabilities=[*shares.values(), rest], seed=seed)


@dataclass
class ScriptArguments:
    """The base, the texts, and whether to resume from a checkpoint."""

    base: str = field(default=SMOLLM2, metadata={"help": f"Hub id or folder of the base; or {NEED_NO_HUB}."})
    dtype: str = field(default="float32", metadata={"help": "Of the base: auto, float32, bfloat16 or float16."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "Attention of the base: sdpa or eager."})
    train_file: str | None = field(default=None, metadata={"help": "Texts: .jsonl, .txt, .csv, also .gz; .parquet."})
    valid_file: str | None = field(default=None, metadata={"help": "Texts to evaluate on, as above."})
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub, where no file is given."})
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_split: str = field(default="train", metadata={"help": "Its split, also as train[:1%%]."})
    dataset_eval_split: str | None = field(default=None, metadata={"help": "Its split to evaluate on."})
    streaming: bool = field(default=False, metadata={"help": "Read texts while training; needs max_steps."})
    shuffle_texts_seed: int | None = field(
        default=None, metadata={"help": "Shuffle texts before they are cut into blocks. Blocks are always shuffled."}
    )
    source_column: str = field(default="source", metadata={"help": "Column that tells sources of texts apart."})
    source_shares: list[str] | None = field(
        default=None,
        metadata={"help": "Share of texts from some sources, as name=0.5; the others keep their proportions."},
    )
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in output_dir, if any."})

    def __post_init__(self):
        if self.train_file is None and self.dataset_name is None:
            raise ValueError("Texts come from `train_file` or from `dataset_name`: give one of them.")
        if self.dataset_name is None and self.dataset_eval_split is not None:
            raise ValueError("`dataset_eval_split` belongs to `dataset_name`: with files, give `valid_file`.")

    def load_base(self, revision: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base, on the CPU, and its tokenizer."""
        source, revision = base_source(self.base), revision or "main"
        base = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=self.dtype, attn_implementation=self.attn_implementation
        )
        if packaged := PACKAGED_BASES.get(self.base):
            base.config.name_or_path = packaged.hub_id  # so that the policy names it, and no folder of this machine
        return base, AutoTokenizer.from_pretrained(source, revision=revision)

    def load_texts(self) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
        """Texts to train on, and to evaluate on if there are any."""
        train = self._texts(self.train_file, self.dataset_split)
        if self.source_shares:
            train = mix_sources(train, self.source_column, dict(map(share, self.source_shares)))
        if self.shuffle_texts_seed is not None:
            train = train.shuffle(seed=self.shuffle_texts_seed)
        if self.valid_file is None and self.dataset_eval_split is None:
            return train, None
        return train, self._texts(self.valid_file, self.dataset_eval_split)

    def _texts(self, file: str | None, split: str | None) -> Dataset | IterableDataset:
        if file is not None:
            return load_text(file, streaming=self.streaming)
        return datasets.load_dataset(self.dataset_name, self.dataset_config, split=split, streaming=self.streaming)


@dataclass
class PolicyArguments:
    """A fresh policy, whose fields are those of [`SOLConfig`], or a released one; with an adapter or without."""

    policy: str | None = field(default=None, metadata={"help": "Folder or Hub id of a policy to go on from."})
    policy_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of that policy."})
    base_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Name of the base in the policy's config, if it is not the one it loads from."}
    )
    base_model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the base."})
    token_keep: list[float] | None = field(default=None, metadata={"help": "Levels of token_keep; the full grid."})
    mlp_keep: list[float] | None = field(default=None, metadata={"help": "Levels of mlp_keep; the full grid."})
    bits: list[int] | None = field(default=None, metadata={"help": "Levels of bits; the full grid."})
    neuron_keep: list[float] | None = field(
        default=None, metadata={"help": "Levels of neuron_keep, which is then a further axis."}
    )
    criterion: str = field(default="quest", metadata={"help": "quest, sketch, relevancy or recency."})
    page_size: int = field(default=8, metadata={"help": "Keys in a page."})
    selection: str = field(default="head", metadata={"help": "head, group, or with sketch layer."})
    sink_tokens: int = field(default=4, metadata={"help": "First tokens that are always kept."})
    window_tokens: int = field(default=2, metadata={"help": "Recent tokens that are always kept."})
    anchor_pages: bool = field(default=False, metadata={"help": "Always read the first and the last pages."})
    index_bits: int = field(default=4, metadata={"help": "Bits of a channel in the index of sketch."})
    short_text_tokens: int = field(default=0, metadata={"help": "Texts of up to so many tokens are read in full."})
    bits_backend: str | None = field(
        default=None,
        metadata={"help": "How bits are computed: fake, int8 or nested. It is stored with the policy."},
    )
    episode_length: int = field(default=16, metadata={"help": "Steps of an episode."})
    policy_hidden_size: int = field(default=512, metadata={"help": "Width of the policy."})
    policy_num_layers: int = field(default=1, metadata={"help": "Its transformer blocks."})
    policy_num_heads: int = field(default=4, metadata={"help": "Its attention heads."})
    policy_mlp_ratio: float = field(default=4.0, metadata={"help": "Width of its MLP over its own."})
    action_embedding_size: int = field(default=32, metadata={"help": "Size of the previous action's embedding."})
    action_head: str = field(default="joint", metadata={"help": "joint or factored."})
    budget_prior: bool = field(default=False, metadata={"help": "Learn the difference to the budget's own schedule."})
    observe_page_fill: bool = field(default=False, metadata={"help": "Tell the policy how full its token's page is."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA on the policy instead of the policy."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the LoRA."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the LoRA."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"], metadata={"help": "Modules that get one."}
    )

    def check_belongs_to_base(self, arguments: Sequence[str]) -> None:
        """Raise an error if the command names another base than the file, whose name and revision would be stored.

        Args:
            arguments (`Sequence[str]`): Arguments of the command line.
        """
        given = {text.partition("=")[0].lstrip("-").replace("-", "_") for text in arguments if text.startswith("--")}
        for name in ("base_model_name_or_path", "base_model_revision"):
            value = getattr(self, name)
            if "base" in given and "config" in given and name not in given and value is not None:
                raise ValueError(
                    f"`--base` is given, but `{name}` {value!r} in the file belongs to the base of the file: give "
                    f"`--{name}` too, or remove it from the file."
                )

    def load_model(self, base: PreTrainedModel) -> SOLForCausalLM:
        """A policy on `base`: a fresh one, or the released one; its steps are computed by `bits_backend`.

        Raises:
            ValueError: if the config of a released policy differs from the arguments.
        """
        if self.policy is None:
            model = SOLForCausalLM.from_base(base, SOLConfig(**self._settings(changed_only=False)))
        else:
            model = SOLForCausalLM.from_pretrained(self.policy, revision=self.policy_revision, base=base)
            for name, wanted in self._settings(changed_only=True).items():
                found = getattr(model.config, name, None)
                if found != wanted:
                    raise ValueError(
                        f"`{name}` is {found} in the policy {self.policy}, but {wanted} in the arguments."
                    )
        if self.bits_backend is not None:
            model.generation_config.bits_backend = self.bits_backend
        return model

    def peft_config(self) -> LoraConfig | None:
        """The adapter to train, if one is requested."""
        if not self.use_peft:
            return None
        return LoraConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.lora_target_modules,
        )

    def _settings(self, changed_only: bool) -> dict:
        names = [f.name for f in fields(self) if f.name in SOLConfig.known_keys()]
        values = {name: getattr(self, name) for name in names}
        fresh = PolicyArguments()
        return {name: value for name, value in values.items() if not changed_only or value != getattr(fresh, name)}
