# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Reads requests as a whole, up to a size, and ends what is computed for clients that have left."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from .errors import RequestRefusedError


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class WholeRequests:
    """An ASGI middleware.

    Args:
        app (`Callable`): The application.
        most_bytes (`int`): Of the body of a request; a longer one is refused (413).
    """

    def __init__(self, app: Callable, most_bytes: int):
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Run the application for one request; if its client leaves, it is cancelled."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            body = await self._read(scope, receive)
        except RequestRefusedError as error:
            headers = {"connection": "close"}
            return await JSONResponse(error.body(), error.status, headers)(scope, receive, send)
        if body is not None:
            await self._run(scope, body, receive, send)

    async def _read(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes | None:
        """The body of a request; `None` if its client leaves before its end."""
        given = dict(scope["headers"]).get(b"content-length", b"0")
        size, parts, more = int(given) if given.isdigit() else 0, list[bytes](), True
        while more:
            if size > self._most_bytes:
                raise RequestRefusedError(f"A request can have at most {self._most_bytes} bytes.", status=413)
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size, more = max(size, sum(map(len, parts))), message.get("more_body", False)
        if size > self._most_bytes:
            raise RequestRefusedError(f"A request can have at most {self._most_bytes} bytes.", status=413)
        return b"".join(parts)

    async def _run(self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        gone, messages = asyncio.Event(), [{"type": "http.request", "body": body, "more_body": False}]

        async def give() -> Message:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        run = asyncio.ensure_future(self._app(scope, give, send))
        leaves = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((run, leaves), return_when=asyncio.FIRST_COMPLETED)
            if run.done():
                run.result()
        finally:
            gone.set()
            for task in (run, leaves):
                task.cancel()
            await asyncio.gather(run, leaves, return_exceptions=True)
