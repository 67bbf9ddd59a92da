# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""transformers' handlers of the endpoints, with a budget per request.

An endpoint reads and checks the fields of a request, and gives it to a handler of transformers that is made for this
one request: it has the request's row as its generation manager, and adds `metrics.sol` to what it answers.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import GenerationState

from ..controllers.base import Controller
from ..modeling_sol import SOLForCausalLM
from .batcher import Batcher
from .errors import RequestRefusedError
from .fields import CHAT, COMPLETION, check_names, read_settings
from .limits import ServeLimits
from .messages import check_messages
from .row_manager import RowManager


ERROR_EVENT = 'data: {"error": "'
"""How transformers begins the event of an error."""


@dataclass(frozen=True)
class Served:
    """What a server has.

    Args:
        model ([`SOLForCausalLM`]): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        name (`str`): What clients call it.
        batcher ([`Batcher`]): Its queue.
        limits ([`ServeLimits`]): What it takes on.
        manager (`ModelManager`): What transformers' handlers ask for models.
        controller ([`Controller`], *optional*): What spends budgets; the policy by default.
    """

    model: SOLForCausalLM
    tokenizer: PreTrainedTokenizerBase
    name: str
    batcher: Batcher
    limits: ServeLimits
    manager: Any
    controller: Controller | None = None

    def row_manager(self, body: dict, carried_out: tuple[str, ...]) -> RowManager:
        """The generation manager of a request, whose fields are checked.

        Raises:
            RequestRefusedError: for a request that cannot be served.
        """
        check_names(body, carried_out)
        asked = body.get("model")
        if asked not in (None, self.name):
            raise RequestRefusedError(f"This server has the model {self.name!r}, not {asked!r}.", "model", 404)
        if not isinstance(body.get("stream"), bool | None):
            raise RequestRefusedError("`stream` must be true or false.", "stream")
        settings = read_settings(body, self.model.config, self.model.generation_config, self.controller)
        self._check_bias(settings.sampling.logit_bias)
        self.batcher.check_room()
        return RowManager(self.model, self.batcher, self.limits, settings)

    def _check_bias(self, pairs: tuple[tuple[int, float], ...]) -> None:
        vocabulary = self.model.base.get_input_embeddings().weight.shape[0]
        strange = [token for token, _ in pairs if token >= vocabulary]
        if strange:
            raise RequestRefusedError(
                f"`logit_bias` has the id {strange[0]}, but the model's ids are 0..{vocabulary - 1}.", "logit_bias"
            )


class _State(GenerationState):
    """The generation state of one request."""

    def __init__(self, manager: RowManager):
        super().__init__()
        self._manager = manager

    def use_continuous_batching(self, *_) -> bool:
        return False

    def get_manager(self, *_, **__) -> RowManager:
        return self._manager


class _OneRequest:
    """Mixin of transformers' handlers, for one request."""

    def __init__(self, served: Served, manager: RowManager):
        super().__init__(served.manager, _State(manager))  # type: ignore[call-arg]
        self._served, self._manager = served, manager

    def _validate_request(self, body: dict) -> None:
        """Fields were checked when the request came in."""

    def _resolve_model(self, body: dict) -> tuple[str, SOLForCausalLM, PreTrainedTokenizerBase]:
        return self._served.name, self._served.model, self._served.tokenizer

    def _build_generation_config(self, *_, **__) -> GenerationConfig:
        return GenerationConfig()  # the row has its settings; its length is set once the prompt is known

    def _build_chunk_sse(self, *args, **kwargs) -> str:
        line = super()._build_chunk_sse(*args, **kwargs)  # type: ignore[misc]
        if kwargs.get("usage") is None:
            return line
        return f"data: {json.dumps(self._with_metrics(json.loads(line.removeprefix('data: '))))}\n\n"

    async def answer(self, body: dict, request_id: str) -> Any:
        """The response to the request."""
        response = await self.handle_request(body, request_id)  # type: ignore[attr-defined]
        if isinstance(response, JSONResponse):
            return JSONResponse(self._with_metrics(json.loads(bytes(response.body))))
        response.body_iterator = _as_openai_ends(response.body_iterator)
        return response

    def _with_metrics(self, answer: dict) -> dict:
        row = self._manager.row
        assert row is not None, "an answer has a row"
        for choice in answer["choices"]:
            if choice.get("finish_reason") in ("stop", "length"):
                choice["finish_reason"] = row.finish_reason
        return answer | {"metrics": {"sol": row.metrics}}


async def _as_openai_ends(texts: AsyncIterable[str]) -> AsyncIterator[str]:
    """The events of a stream, with an error in the form of OpenAI's API, or with its last event."""
    async for text in texts:
        *events, error = text.removesuffix("\n\n").split("\n\n")
        if not error.startswith(ERROR_EVENT):
            yield text
            continue
        message = json.loads(error.removeprefix("data: "))["error"]
        told = json.dumps(RequestRefusedError(message, status=500).body())
        yield "".join(f"{event}\n\n" for event in [*events, f"data: {told}"])
        return
    yield "data: [DONE]\n\n"


class _OneChat(_OneRequest, ChatCompletionHandler):
    """A chat."""

    def _build_completion(self, request_id: str, content: str, *args, **kwargs) -> dict:
        places = [place for stop in self._manager.stops if (place := content.find(stop)) >= 0]
        content = content[: min(places)] if places else content
        return super()._build_completion(request_id, content, *args, **kwargs)


class _OneCompletion(_OneRequest, CompletionHandler):
    """A text to be continued."""


class ChatEndpoint:
    """`/v1/chat/completions`.

    Args:
        served ([`Served`]): The model.
    """

    def __init__(self, served: Served):
        self._served = served

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """The response to a request."""
        manager = self._served.row_manager(body, CHAT)
        check_messages(body.get("messages"))
        for name, kind in (("tools", list), ("chat_template_kwargs", dict)):
            if not isinstance(body.get(name), kind | None):
                raise RequestRefusedError(f"`{name}` must be a {kind.__name__}.", name)
        if not self._served.tokenizer.chat_template:
            raise RequestRefusedError(
                "The tokenizer of this model has no chat template: use /v1/completions with a `prompt`."
            )
        body = {name: value for name, value in body.items() if value is not None}
        return await _OneChat(self._served, manager).answer(body, request_id)


class CompletionEndpoint:
    """`/v1/completions`.

    Args:
        served ([`Served`]): The model.
    """

    def __init__(self, served: Served):
        self._served = served

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """The response to a request."""
        manager = self._served.row_manager(body, COMPLETION)
        for name in ("prompt", "suffix"):
            if not isinstance(body.get(name), str | None):
                raise RequestRefusedError(f"`{name}` must be a text.", name)
        if body.get("prompt") is None:
            raise RequestRefusedError("`prompt` is needed.", "prompt")
        return await _OneCompletion(self._served, manager).answer(body, request_id)
