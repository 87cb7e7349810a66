"""Refuse a request: a status, what was found, what was expected, and how to fix it, as the client expects it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fulltune.errors import FulltuneError, Problem

#: Beginning of the paths that follow OpenAI's conventions.
OPENAI = "/v1/"

#: Names of the statuses that a client may want to tell apart.
KINDS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_input",
    429: "queue_full",
    500: "internal_error",
    503: "not_ready",
    504: "timeout",
}


class Refusal(Exception):
    """The reason why a request has no answer.

    Args:
        status: Status of the response.
        problems: What was found and expected, and the fix.
        code: Name of the reason, for programs; by default that of the status.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        problems: Problem | Sequence[Problem],
        *,
        code: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.code = code or KINDS.get(status, "error")
        self.headers = dict(headers or {})
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """All problems as one text."""
        return FulltuneError(self.problems).message()

    def body(self, path: str) -> bytes:
        """Return the body of the response, as JSON, in the shape of the interface that a path belongs to."""
        return json.dumps({"error": self._error(path)}, ensure_ascii=False).encode("utf-8", "backslashreplace")

    def status_at(self, path: str) -> int:
        """Return the status in the interface that a path belongs to: OpenAI's has 400 for every invalid input."""
        return 400 if path.startswith(OPENAI) and self.status == 422 else self.status

    def _error(self, path: str) -> dict[str, Any]:
        if not path.startswith(OPENAI):
            problems = [problem.to_dict() for problem in self.problems]
            return {"type": self.code, "message": self.message, "problems": problems}
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        fields = (problem.field or problem.where for problem in self.problems)
        field = next(fields) or None if self.status in (400, 404, 422) else None
        return {"message": self.message, "type": kind, "param": field, "code": self.code}


def invalid(error: FulltuneError) -> Refusal:
    """Return the refusal of an input that an error of fulltune is about."""
    return Refusal(422, error.problems)
