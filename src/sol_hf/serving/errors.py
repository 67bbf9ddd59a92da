# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a client is told in place of an answer."""


class RequestRefusedError(ValueError):
    """A request that is not served; the message says what to change.

    Args:
        message (`str`): For the client.
        field (`str`, *optional*): The field of the request that is at fault.
        status (`int`, *optional*, defaults to 422): HTTP status.
        retry_after (`int`, *optional*): Seconds after which it makes sense to try again.
    """

    def __init__(self, message: str, field: str | None = None, status: int = 422, retry_after: int | None = None):
        super().__init__(message)
        self.field, self.status, self.retry_after = field, status, retry_after

    def body(self) -> dict:
        """The answer, in the form of OpenAI's API."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.field, "code": self.status}}
