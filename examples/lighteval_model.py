# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A model of lighteval: texts are generated and scored under the budget of a policy, token by token.

    pip install lighteval 'sol_hf[fast]'
    SOL_BUDGET='{"token_keep": 0.5, "bits": 8}' \
        lighteval custom my-policy examples/lighteval_model.py "lighteval|gsm8k|0"

Without `SOL_BUDGET` it is the budget that the policy has stored in its `generation_config.json`. `SOL_BASE` names
another base than the one in the policy's config, `SOL_CHAT=1` puts prompts into the tokenizer's chat template.
"""

import json
import os

import torch
from lighteval.models.abstract_model import LightevalModel
from lighteval.models.custom.custom_model import CustomModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import SOLForCausalLM


class SOLLightevalModel(LightevalModel):
    """A policy and its base.

    Args:
        config (`CustomModelConfig`): Its `model_name` is the folder or Hub id of the policy.
    """

    def __init__(self, config: CustomModelConfig):
        self.config = config
        base = os.environ.get("SOL_BASE")
        loaded = None if base is None else AutoModelForCausalLM.from_pretrained(base)
        self.model = SOLForCausalLM.from_pretrained(config.model_name, base=loaded)
        self.budget = json.loads(os.environ.get("SOL_BUDGET", "{}"))
        self._tokenizer = AutoTokenizer.from_pretrained(base or self.model.config.base_model_name_or_path)
        chat = os.environ.get("SOL_CHAT") == "1"
        self.prompts = PromptManager(chat, self._tokenizer, config.system_prompt)

    @property
    def tokenizer(self):
        """The tokenizer of the base."""
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        """A chat template writes special tokens itself."""
        return not self.prompts.use_chat_template

    @property
    def max_length(self) -> int:
        """Positions of the base."""
        return self.model.config.base_max_position_embeddings

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Continue every prompt, up to a stop sequence or the number of tokens of the task."""
        return [self._continued(doc) for doc in docs]

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Score the choices of every prompt, which is processed densely."""
        return [self._chosen(doc) for doc in docs]

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        """Score whole texts, all tokens but the first."""
        answers = []
        for doc in docs:
            tokens = self.tok_encode(doc.query)
            scored = self.model.score(torch.tensor([tokens]), context_length=0, **self.budget)
            answers.append(ModelResponse(input=doc.query, input_tokens=tokens, logprobs=scored.logprobs[0].tolist()))
        return answers

    def _continued(self, doc: Doc) -> ModelResponse:
        prompt = self.prompts.prepare_prompt(doc)
        tokens = self.tok_encode(prompt)
        settings = self.config.generation_parameters.to_transformers_dict()
        temperature = settings.pop("temperature", None)
        settings |= dict(do_sample=True, temperature=temperature) if temperature else dict(do_sample=False)
        room = doc.generation_size or settings.get("max_new_tokens") or 256
        settings |= dict(max_new_tokens=min(room, self.max_length - len(tokens)), return_dict_in_generate=True)
        if doc.stop_sequences:
            settings |= dict(stop_strings=list(doc.stop_sequences), tokenizer=self.tokenizer)
        output = self.model.generate(torch.tensor([tokens]), **settings, **self.budget)
        written = output.sequences[0, len(tokens) :].tolist()
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        for stop in doc.stop_sequences or ():
            text = text.split(stop)[0]
        return ModelResponse(input=prompt, input_tokens=tokens, text=[text], output_tokens=[written])

    def _chosen(self, doc: Doc) -> ModelResponse:
        prompt = self.prompts.prepare_prompt(doc)
        contexts, endings = self.tok_encode_pair(prompt, doc.choices, pairwise=True)
        logprobs, best = [], []
        for context, ending in zip(contexts, endings, strict=True):
            tokens = torch.tensor([context + ending])
            scored = self.model.score(tokens, context_length=len(context) - 1, **self.budget)
            logprobs.append(float(scored.logprobs.sum()))
            best.append(bool(scored.greedy.all()))
        return ModelResponse(
            input=prompt,
            input_tokens=contexts[0],
            output_tokens=endings,
            logprobs=logprobs,
            argmax_logits_eq_gold=best,
        )
