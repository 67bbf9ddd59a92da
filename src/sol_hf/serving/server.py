# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Serves a policy until it is stopped."""

import ipaddress
import logging

import uvicorn
from fastapi import FastAPI


logger = logging.getLogger(__name__)
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
