# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Serves a policy until it is stopped."""

import ipaddress
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI


SECONDS_TO_END = 5
"""How long answers that are under way may take once the server is stopped."""


def make_server(app: FastAPI, host: str = "127.0.0.1", port: int = 8000, log_level: str = "warning") -> uvicorn.Server:
    """A server that is ready to run.

    Args:
        app (`FastAPI`): Of [`build_app`].
        host (`str`, *optional*, defaults to `"127.0.0.1"`): Address to listen on.
        port (`int`, *optional*, defaults to 8000): Port to listen on; 0 takes a free one.
        log_level (`str`, *optional*, defaults to `"warning"`): Of the server.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_level=log_level, timeout_graceful_shutdown=SECONDS_TO_END, lifespan="on"
    )
    return uvicorn.Server(config)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run_server(server: uvicorn.Server, on_start: Callable[[str], bool]) -> None:
    """Run a server until it is stopped, by Ctrl-C for example.

    Args:
        server (`uvicorn.Server`): Of [`make_server`].
        on_start (`Callable`): Called with host and port once it listens; the server stops if it returns `False`.

    Raises:
        OSError: if it cannot listen there.
    """
    host, port = server.config.host, server.config.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(f"Nothing can listen on {host}:{port}: {error.strerror}. Give another --port.") from error
        shown = f"[{host}]" if ":" in host else host
        server.should_exit = not on_start(f"{shown}:{listener.getsockname()[1]}")
        if not server.should_exit:
            server.run(sockets=[listener])
        else:
            server.config.app.state.served.batcher.stop()  # type: ignore[union-attr]
