"""Refuse requests before anything reads them: by host, token, content type and size; count and time all of them."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fulltune.errors import Problem
from fulltune.serve.access import is_loopback
from fulltune.serve.limits import Limits
from fulltune.serve.metrics import Metrics
from fulltune.serve.refusals import Refusal

_log = logging.getLogger(__name__)

#: Paths that need no token: whether the server is ready, and how it is used.
OPEN = frozenset({"/health", "/docs", "/openapi.json"})


class Guard:
    """An ASGI application around another one.

    Args:
        app: The application.
        limits: Limits of a request.
        metrics: Counts the requests.
        paths: Paths that metrics name; others are counted as ``other``.
        token: Token that requests must carry; without one, only requests that name this machine as their host are
            answered, so that a page in a browser cannot reach the server under a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, paths: Iterable[str], token: str = "") -> None:
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.paths = frozenset(paths)
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response = _Response(scope, send)
        started = time.perf_counter()
        try:
            await self._answer(scope, receive, response)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, response.status).inc()
            self.metrics.latency.labels(path).observe(time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, response: _Response) -> None:
        try:
            headers = Headers(scope=scope)
            self._check(scope, headers)
            body = await self._body(receive, headers) if scope["method"] in ("POST", "PUT", "PATCH") else b""
            if body is not None:  # otherwise the client has gone
                await self.app(scope, _replayed(body, receive), response.send)
        except Refusal as refusal:
            await response.refuse(refusal)
        except Exception:  # noqa: BLE001 - the log has it, the client a response
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not response.is_started:
                await response.refuse(Refusal(500, Problem("the server failed", fix="its log has the reason")))

    def _check(self, scope: Scope, headers: Headers) -> None:
        if not self.token:
            self._check_host(headers.get("host", ""))
        elif scope["path"] not in OPEN:
            self._check_token(headers.get("authorization", ""))

    def _check_host(self, host: str) -> None:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not is_loopback(name):
            fix = "ask http://127.0.0.1, or start the server with --token-file"
            raise Refusal(403, Problem(f"the host {host[:80]!r}", "a name of this machine", fix, where="header Host"))

    def _check_token(self, header: str) -> None:
        scheme, _, given = header.partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token):
            return
        found = "another token" if header else "no token"
        fix = "send the token of the server's --token-file"
        problem = Problem(found, "Authorization: Bearer …", fix, where="header Authorization")
        raise Refusal(401, problem, headers={"WWW-Authenticate": "Bearer"})

    async def _body(self, receive: Receive, headers: Headers) -> bytes | None:
        """Return the body of a request; None if the client has gone."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            found = f"the content type {kind[:80]!r}" if kind else "no content type"
            problem = Problem(found, "application/json", "send JSON, and the header Content-Type: application/json")
            raise Refusal(415, problem)
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise Refusal(415, Problem(f"a body encoded as {encoding[:80]!r}", "a plain one", "send it uncompressed"))
        declared = headers.get("content-length", "")
        self._check_size(int(declared) if declared.isdecimal() else 0)
        try:
            body = await asyncio.wait_for(self._received(receive), self.limits.seconds)
        except asyncio.TimeoutError:
            problem = Problem(f"an incomplete body after {self.limits.seconds:g} s", "all of it", "send it again")
            raise Refusal(408, problem, headers={"Connection": "close"}) from None
        if body is not None:
            _check_text(body)
        return body

    async def _received(self, receive: Receive) -> bytes | None:
        parts, size = list[bytes](), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part: bytes = message.get("body", b"")
            size += len(part)
            self._check_size(size)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _check_size(self, size: int) -> None:
        most = self.limits.body_mb << 20
        if size > most:
            found = f"a body of at least {size:,} bytes"
            problem = Problem(found, f"at most {self.limits.body_mb} MiB", "send several smaller requests")
            raise Refusal(413, problem, headers={"Connection": "close"})


class _Response:
    """The response to a request, with its status once it has begun."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.path: str = scope["path"]
        self.status = 499  # the client has gone before there was a response
        self.is_started = False
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a message of the application."""
        if message["type"] == "http.response.start":
            self.is_started = True
            self.status = message["status"]
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Send the response of a refusal."""
        body = refusal.body(self.path)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        status = refusal.status_at(self.path)
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _check_text(body: bytes) -> None:
    if not body.strip():
        raise Refusal(400, Problem("an empty body", "a JSON object", 'such as {"inputs": ["a text"]}'))
    try:
        body.decode()
    except UnicodeDecodeError as error:
        found = f"the byte 0x{body[error.start]:02X}, which is not UTF-8, at position {error.start}"
        raise Refusal(400, Problem(found, "UTF-8", "encode the body as UTF-8", "body")) from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a function that yields a body that was read already, then what follows."""
    messages: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
