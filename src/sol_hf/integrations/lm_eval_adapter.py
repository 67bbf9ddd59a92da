# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""EleutherAI's lm-evaluation-harness under a budget: `--model sol`.

    python -m sol_hf.integrations.lm_eval_adapter --model sol \
        --model_args pretrained=FOLDER,token_keep=0.5,mlp_keep=0.7,bits=8 --tasks hellaswag --batch_size 16

is lm-eval's own command line with one more model. A request is computed in the same way as during generation:

    context        c c c c | x | . . .        c: one dense forward, shared by the requests that begin with it
    continuation               | a a a l      x, a: a decode step each, scored on the token after it;  l: label only

Everything else is inherited from `HFLM`, whose model is the base: with a budget of (1, 1, 16) the results are those of
`--model hf`. `HFLM` scores in one parallel forward, which cannot run under a budget. Under a budget that forward
raises, so that nothing is scored densely by mistake.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator, find_executable_batch_size
from tqdm import tqdm
from transformers import GenerationConfig

from ..controllers.base import Controller
from ..controllers.fixed import FixedController
from ..controllers.names import DENSE, make_controller, parse_controller
from ..controllers.registry import CONTROLLERS
from ..costs.row_shares import RowShares
from ..decoding.options import DecodeOptions, resolve_options
from ..errors import missing_extra
from ..hub.loading import stored_config
from ..modeling_sol import SOLForCausalLM
from .cpu_batches import rows_for_cpu


try:
    from lm_eval import utils
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook, hash_args
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM

    from .lm_eval_arguments import find_base, refuse_misspelt
    from .lm_eval_command import REPORTS, run_command
    from .lm_eval_help import model_options
    from .lm_eval_responses import CountingHook, ResponseCache
    from .lm_eval_settings import cache_fingerprint, harness_settings, option_settings, policy_settings
    from .lm_eval_spending import Spending
except ModuleNotFoundError as error:
    raise missing_extra("`--model sol`", error, preferred="eval") from error


Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""The strings, or `None` for a part of a longer text; token ids of the context; token ids of the continuation."""


@register_model("sol")
class SOLLM(HFLM):
    """`HFLM` with requests that run step by step under a budget, and a report of the levels that they realised.

    Args:
        pretrained (`str` or [`SOLForCausalLM`]): Folder or Hub id of a policy, or a loaded model.
        base (`str`, *optional*): Folder or Hub id of the base, or `smollm2-135m`, which needs no Hub. By default the
            one that the policy's config names.
        controller (`str`, *optional*, defaults to `"policy"`): The name of a registered controller, see
            [`make_controller`].
        seed (`int`, *optional*, defaults to 0): Seed of a controller whose number is a seed, such as `random`.
        policy_revision (`str`, *optional*, defaults to `"main"`): Revision of the policy's repository.
        kwargs: The budget options of [`SOLForCausalLM.generate`] (`token_keep`, `mlp_keep`, `bits`, `compute`,
            `budget_mode`, `kv_refresh`, ...), and `HFLM`'s arguments, which apply to the base. With `lossless=True`
            texts are drafted and checked, and all answers are those of the base.

    Raises:
        ValueError: for an unknown controller, a missing budget, one that cannot be met, or a misspelt argument.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike | SOLForCausalLM,
        base: str | None = None,
        controller: str = "policy",
        seed: int = 0,
        policy_revision: str = "main",
        **kwargs,
    ):
        self._generating, self.drafts = False, dict[str, Any]()
        name, number = parse_controller(str(controller))
        takes_seed = name != DENSE and CONTROLLERS[name].number == "seed"
        self.seed = number if takes_seed and ":" in str(controller) else int(seed)
        self.controller_name = name if takes_seed else str(controller).strip()
        self.controller_spec = f"{name}:{self.seed}" if takes_seed else self.controller_name
        self.given = {name: kwargs.pop(name) for name in model_options() if name in kwargs}
        if "measure_agreement" in kwargs:
            raise ValueError("lm-eval has no place for the agreement of a text: leave out `measure_agreement`.")
        refuse_misspelt(kwargs, SOLLM)
        if isinstance(pretrained, SOLForCausalLM):
            self.harness_arguments = dict(kwargs)
            super().__init__(pretrained=pretrained.base, **kwargs)
            self.sol = pretrained
        else:
            self._load(os.fspath(pretrained), base, policy_revision, kwargs)
        self.policy_name = self.sol.name_or_path if pretrained is self.sol else os.fspath(pretrained)
        self.options = self._check_options()
        resolved = self._resolve(self.given | {"controller": self._make_controller()})
        shares = RowShares.of(self.sol, resolved)
        self.spending = Spending(resolved.spending(self.sol.action_space), self.sol.config.selection_rule, shares)
        self.all_spending: Sequence | None = None
        self.responses: ResponseCache | None = None
        self.task = ""
        self.set_cache_hook(self.cache_hook)

    def _load(self, policy: str, base: str | None, revision: str, kwargs: dict[str, Any]) -> None:
        """Load the base as `HFLM` does, then the policy; wrong options are reported before that."""
        config = stored_config(policy, {"revision": revision})
        resolve_options(self.given, None, GenerationConfig(), config)
        source, kwargs = find_base(config, policy, base, kwargs)
        self.harness_arguments = dict(kwargs)
        super().__init__(pretrained=source, **kwargs)
        self.sol = SOLForCausalLM.from_pretrained(policy, revision=revision, base=self.model)
        self._share_out()

    def _share_out(self) -> None:
        """Divide the documents among processes on CPUs, too; `HFLM` does so only for several GPUs."""
        accelerator: Accelerator | None = getattr(self, "accelerator", None)
        if accelerator is not None and self.world_size == 1 and accelerator.num_processes > 1:
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def _check_options(self) -> dict[str, Any]:
        """The options of every `generate` and `score` call; empty if all answers are those of the base."""
        given = self.given | {"controller": self._make_controller()}
        resolved = self._resolve(given)
        if resolved.lossless:
            self.drafts = given
            return {}
        if self.controller_name == DENSE and resolved.asks_kv_dtype:
            raise ValueError("`kv_dtype` needs a cache of ours; `controller=dense` runs the base: leave one out.")
        if self.controller_name == DENSE or (resolved.budget is not None and resolved.runs_dense):
            return {}
        if resolved.budget is None:
            raise ValueError(
                "There is no budget: give `token_keep`, `mlp_keep` and `bits`, or `compute`, in the model arguments, "
                "or `controller=dense` for the base itself."
            )
        resolved.budget.check(resolved.spending(self.sol.action_space), 1)
        return given

    def _make_controller(self) -> Controller | None:
        if self.controller_name == "fixed":  # a request's result must not depend on its batch
            return FixedController(carry=self.sol.action_space.axis_names, across_rows=False)
        return None if self.controller_name == "policy" else make_controller(self.controller_spec, self.sol)

    @property
    def is_dense(self) -> bool:
        """Whether all steps are dense, so that the base itself is evaluated."""
        return not self.options

    def _resolve(self, given: Mapping[str, Any]) -> DecodeOptions:
        return resolve_options(given, None, self.sol.generation_config, self.sol.config)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the responses depend on, for the results and for response caches.

        It is computed anew each time, in about a second per GB of weights. Kept from an earlier time it could be of
        other weights: torch does not report that a weight was changed, as by a training or a merged adapter, and no
        sample of the weights is sure to show it. An evaluation asks once, with a response cache twice.
        """
        options = option_settings(self._resolve(self.given), self.sol.action_space.axis_names)
        return {
            "policy": self.policy_name,
            "base": self.sol.base.name_or_path,
            "controller": DENSE if self.is_dense else self.controller_name,
            "seed": self.seed,
            **options,
            "budget": None if self.is_dense else options["budget"],
            **policy_settings(self.sol),
            **harness_settings(self, self.harness_arguments),
        }

    def get_model_info(self) -> dict:
        """`HFLM`'s info, and under `sol` the settings and the means over controllable steps of every task."""
        realised = self.spending.report(self.all_spending or self._spent())
        info = {**self.settings, "realised": realised}
        REPORTS.append(info)
        return super().get_model_info() | {"sol": info}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse a response cache that was filled under other settings, since its keys contain the requests only."""
        super().set_cache_hook(CountingHook(cache_hook, self._note))
        if cache_hook.dbdict is None:
            return
        fingerprint = cache_fingerprint(self.settings, self.is_dense)
        self.responses = ResponseCache(cache_hook.dbdict, fingerprint)

    def _note(self, key: str, spent: torch.Tensor) -> None:
        """Note what the request with a key has spent; with a response cache, beside its response."""
        self.spending.put(self.task, key, spent)
        if self.responses is not None:
            self.responses.keep(self.task, key, spent)

    def barrier(self) -> None:
        """`HFLM`'s barrier, at which the processes also exchange their sums of spent compute."""
        super().barrier()
        if self.world_size > 1:
            gathered = self.gather_object(self._spent())
            self.all_spending = None if gathered is None else [part for parts in gathered for part in parts]

    def _spent(self) -> list[dict[str, torch.Tensor]]:
        """The sums of this process: of what it computed, and of what its response cache gave."""
        served = [] if self.responses is None else [self.responses.served(self.spending).sums]
        return [self.spending.sums, *served]

    @property
    def model(self) -> torch.nn.Module:
        """The base; while text is generated under a budget, base and policy."""
        return self.sol if self._generating else super().model

    def _model_call(self, inps: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if not self.is_dense:
            raise RuntimeError(
                "A parallel forward cannot run under a budget; it would be the dense model's. Use `loglikelihood`, "
                "`loglikelihood_rolling` or `generate_until`, or `controller=dense`."
            )
        return super()._model_call(inps, *args, **kwargs)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._by_task(super().loglikelihood, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._by_task(super().generate_until, requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        if self.is_dense:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        return self._by_task(self._score_texts, requests, disable_tqdm)

    def _by_task(self, method, requests: list[Instance], disable_tqdm: bool) -> list:
        """Run a method on the requests of one task after the other, so that compute is counted per task."""
        if self.is_dense:
            return method(requests, disable_tqdm=disable_tqdm)
        answers: list = [None] * len(requests)
        for task in dict.fromkeys(request.task_name for request in requests):
            places = [place for place, request in enumerate(requests) if request.task_name == task]
            self.task = task or ""
            found = method([requests[place] for place in places], disable_tqdm=disable_tqdm)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    def _score_texts(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, cut into windows as `HFLM` does."""
        windows: list[Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            cuts = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            own = [(None, *utils.make_disjoint_window(cut)) for cut in cuts]
            windows += own
            owners += [owner] * len(own)
        totals, spent = [0.0] * len(requests), [torch.zeros(())] * len(requests)

        def add(place: int, answer: tuple[float, bool], row: torch.Tensor) -> None:
            totals[owners[place]] += answer[0]
            spent[owners[place]] = spent[owners[place]] + row

        self._score_rows(windows, add, disable_tqdm)
        for request, total, row in zip(requests, totals, spent, strict=True):
            self._note(hash_args("loglikelihood_rolling", request.args), row)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self.is_dense:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)

        def keep(place: int, answer: tuple[float, bool], spent: torch.Tensor) -> None:
            answers[place], strings = answer, requests[place][0]
            self._note(hash_args("loglikelihood", strings or requests[place][1:]), spent)
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, answer)

        self._score_rows(requests, keep, disable_tqdm, override_bs)
        return answers

    def _score_rows(
        self,
        requests: list[Request],
        done: Callable[[int, tuple[float, bool], torch.Tensor], None],
        disable_tqdm: bool,
        override_bs: int | None = None,
    ) -> None:
        """Score requests in batches, equal ones once; `done` gets the place of each, its answer and what it spent."""
        unique: dict[tuple, list[int]] = {}
        for place, (_, context, continuation) in enumerate(requests):
            row = tuple((context + continuation)[-(self.max_length + 1) :])
            unique.setdefault((row, len(continuation)), []).append(place)
        progress = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="loglikelihood, by steps")
        for batch in self._batches(sorted(unique, key=_by_cost), override_bs):
            for key, answer, spent in zip(batch, *self._score_batch(batch), strict=True):
                for place in unique[key]:
                    done(place, answer, spent)
                progress.update(len(unique[key]))
        progress.close()

    def _batches(self, rows: list[tuple], override_bs: int | None) -> Iterator[list[tuple]]:
        size = override_bs or self.batch_size
        if size == "auto" and rows:
            size = self._detect_batch_size([(None, list(row[:-length]), list(row[-length:])) for row, length in rows])
            self.batch_sizes[len(self.batch_sizes)] = size
        for begin in range(0, len(rows), int(size or 1) if rows else 1):
            yield rows[begin : begin + int(size)]

    @torch.no_grad()
    def _score_batch(self, batch: list[tuple]) -> tuple[list[tuple[float, bool]], torch.Tensor]:
        """Log-likelihood of the last tokens of every row, whether they are the greedy ones, and what the rows spent.

        Args:
            batch (`list[tuple]`): Pairs of a row's token ids and the number of its last tokens that count.
        """
        width = max(len(row) for row, _ in batch)
        device, output = self.sol.device, None  # type: torch.device, Any
        ids: Any = torch.tensor([[*row, *[0] * (width - len(row))] for row, _ in batch], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in batch], device=device)
        contexts = [len(row) - length - 1 for row, length in batch]
        with self._autocast():
            output = self.sol.score(ids, mask, contexts, **self.options)
        greedy = (output.greedy | ~output.step_mask).all(dim=1)
        answers = list(zip(output.logprobs.sum(dim=1).tolist(), greedy.tolist(), strict=True))
        return answers, self.spending.of_rows(output.actions, contexts)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self.mixed_precision_dtype, enabled=self.mixed_precision_dtype is not None
        )

    def _detect_batch_size(self, requests: Sequence | None = None, pos: int = 0) -> int:
        """The largest batch size that fits into memory, tried with the longest row; on a CPU it is counted."""
        length = self.max_length if not requests else max(len(context) + len(rest) for _, context, rest in requests)
        length = min(length, self.max_length)
        if self.device.type == "cpu":
            return rows_for_cpu(self.sol.base, length, self.max_batch_size, all_logits=self.is_dense)
        if self.is_dense:
            return super()._detect_batch_size(requests, pos)

        @find_executable_batch_size(starting_batch_size=self.max_batch_size)
        def largest(batch_size: int) -> int:
            rows = [(tuple([row % self.vocab_size, *[0] * (length - 1)]), 2) for row in range(batch_size)]
            self._score_batch(rows)
            return batch_size

        return largest()

    def _model_generate(self, context, max_length: int, stop: list[str], **generation_kwargs) -> torch.Tensor:
        if self.is_dense and not self.drafts:
            return super()._model_generate(context, max_length, stop, **generation_kwargs)
        self._generating = True
        try:
            options = self.drafts or {**self.options, "return_dict_in_generate": True}
            output: Any = super()._model_generate(context, max_length, stop, **generation_kwargs, **options)
        finally:
            self._generating = False
        if self.drafts:
            return output
        mask = generation_kwargs.get("attention_mask", torch.ones_like(context))
        before = mask.sum(dim=1).cpu() - 1
        repeats = len(output.actions) // len(before)
        spent = self.spending.of_rows(output.actions, before.repeat_interleave(repeats))
        self.cache_hook.generated = list(spent.view(len(before), repeats, -1).sum(dim=1))
        return output.sequences


def _by_cost(row: tuple) -> tuple:
    """Sort key: longest contexts first, equal contexts together, and for each the longest continuations first."""
    tokens, length = row
    context = tokens[: len(tokens) - length]
    return -len(context), context, -length, tokens


def main(arguments: Sequence[str] | None = None) -> None:
    """lm-eval's command line with the model `sol`; see [`run_command`].

    Args:
        arguments (`Sequence[str]`, *optional*): Arguments to use instead of `sys.argv[1:]`.
    """
    run_command(cli_evaluate, arguments)


if __name__ == "__main__":
    main()
