# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The application of a server: transformers' own, with our endpoints.

app.py, whole_requests.py    transformers' FastAPI app; sizes of requests, clients that leave
handlers.py, fields.py       transformers' handlers; the fields of a request, checked before any compute
batcher.py, turns.py         a bounded queue; batches that take turns, step by step
batch.py, row.py             one call of `generate` for the rows of a batch; each has its own text and end
"""

import inspect
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

from ..controllers.base import Controller
from ..modeling_sol import SOLForCausalLM
from .batcher import Batcher
from .errors import RequestRefusedError
from .handlers import ChatEndpoint, CompletionEndpoint, Served
from .limits import ServeLimits
from .whole_requests import WholeRequests


ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health")
"""What is served of transformers' routes. The others load or unload models, or need models of other kinds."""


class OneModel(ModelManager):
    """transformers' model manager, for one model that is there already.

    Args:
        model ([`SOLForCausalLM`]): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        name (`str`): What clients call it.
        batcher ([`Batcher`]): Its queue.
    """

    def __init__(self, model: SOLForCausalLM, tokenizer: PreTrainedTokenizerBase, name: str, batcher: Batcher):
        super().__init__()
        self._model, self._tokenizer, self._name, self._batcher = model, tokenizer, name, batcher

    def load_model_and_processor(self, model_id_and_revision: str, **kwargs) -> Any:
        """The model and its tokenizer, whatever name is given."""
        return self._model, self._tokenizer

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict]:
        """The model, as OpenAI's API lists it."""
        return [{"id": self._name, "object": "model", "created": 0, "owned_by": "sol_hf"}]

    def shutdown(self) -> None:
        """The server ends: so do all rows."""
        self._batcher.stop()


def build_app(
    model: SOLForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    limits: ServeLimits | None = None,
    controller: Controller | None = None,
) -> FastAPI:
    """The application of a server for a policy on its base.

    Args:
        model ([`SOLForCausalLM`]): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        name (`str`): What clients call it.
        limits ([`ServeLimits`], *optional*): What it takes on.
        controller ([`Controller`], *optional*): What spends budgets; the policy by default.

    Returns:
        `FastAPI`: An ASGI application; `app.state.served` has the queue.
    """
    limits = limits or ServeLimits()
    batcher = Batcher(model, limits)
    manager = OneModel(model, tokenizer, name, batcher)
    served = Served(model, tokenizer, name, batcher, limits, manager, controller)
    handlers: dict[str, Any] = {each: None for each in inspect.signature(build_server).parameters}
    handlers |= dict(model_manager=manager, generation_state=GenerationState(), enable_cors=False)
    handlers |= dict(chat_handler=ChatEndpoint(served), completion_handler=CompletionEndpoint(served))
    app = build_server(**handlers)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ROUTES]
    app.state.served = served
    app.add_exception_handler(RequestRefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_middleware(WholeRequests, most_bytes=limits.max_body_bytes)
    return app


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestRefusedError), "registered for it"
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return JSONResponse(error.body(), error.status, headers)


async def _malformed(_: Request, error: Exception) -> JSONResponse:
    refused = RequestRefusedError("The body of the request must be a JSON object.")
    return JSONResponse(refused.body(), refused.status)
