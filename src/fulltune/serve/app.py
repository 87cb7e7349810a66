"""The HTTP application: its routes, and how it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from fulltune.errors import Problem, shortened
from fulltune.pipeline.output_file import json_line
from fulltune.runtime.version import __version__
from fulltune.serve import openai
from fulltune.serve.batching import Job
from fulltune.serve.bodies import ErrorBody, Health, OpenAIError, PredictRequest, PredictResponse
from fulltune.serve.execution import described
from fulltune.serve.guard import Guard
from fulltune.serve.inputs import database_of, examples_of
from fulltune.serve.refusals import Refusal
from fulltune.serve.service import Service

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

#: Refusals that every route may answer with.
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The body is not JSON in UTF-8.",
        401: "The token is missing or wrong.",
        413: "The body, an input or the number of inputs is too large.",
        415: "The body is not declared as JSON.",
        422: "An input is not one of the task.",
        429: "The queue is full; the header Retry-After says when to try again.",
        503: "The model is being loaded.",
        504: "There was no answer within the time limit.",
    }.items()
}

routes = APIRouter()


def create_app(service: Service, token: str = "", lifespan: Lifespan | None = None) -> ASGIApp:
    """Return the application.

    Args:
        service: The parts of the server.
        token: Token that requests must carry; empty for a server that this machine alone can reach.
        lifespan: The work that is started before the first request and ended after the last one.
    """
    app = FastAPI(
        title="fulltune",
        version=__version__,
        description=f"Answers of {service.models.name}.",
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(routes)
    app.include_router(openai.routes, responses={status: {"model": OpenAIError} for status in (400, 401, 404, 429)})
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _failed)
    paths = [str(path) for path in app.openapi()["paths"]]
    return Guard(app, service.limits, service.metrics, [*paths, "/docs", "/openapi.json"], token)


@routes.post("/predict", response_model=PredictResponse, responses=_REFUSALS)
async def predict(body: PredictRequest, request: Request) -> Response:
    """Answer inputs as the evaluation of the run does."""
    service = _service(request)

    async def work() -> Response:
        model = service.models.current
        database = database_of(model, body.database) or service.database
        examples = await asyncio.to_thread(examples_of, model, body.inputs, database, service.limits)
        outputs = [answer.fields for answer in await service.answers(Job(model, examples))]
        if model.task.name == "text2sql":
            outputs = await described(model, examples, outputs, service.limits, execute=service.execute)
        return _json({"model": model.name, "outputs": outputs})

    return await service.in_time(request, work()) or Response(status_code=499)


@routes.get("/health", response_model=Health, responses={503: {"model": Health, "description": "Not ready."}})
async def health(request: Request) -> Response:
    """Return whether the server answers, and with which model."""
    models = _service(request).models
    known = {"name": models.name, "fulltune": __version__, "trouble": models.trouble}
    try:
        model = models.current
    except Refusal as refusal:
        return _json({"status": "loading", **known}, refusal.status)
    return _json({"status": "ready", "model": model.name, "task": model.task.name, **known})


@routes.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the metrics in the text format of Prometheus."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _json(value: object, status: int = 200) -> Response:
    return Response(json_line(value), status, media_type="application/json")


def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    path = request.url.path
    status = refusal.status_at(path)
    return Response(refusal.body(path), status, refusal.headers, media_type="application/json")


def _failed(request: Request, error: Exception) -> Response:
    return _refused(request, Refusal(500, Problem("the server failed", fix="its log has the reason")))


def _not_routed(request: Request, error: Exception) -> Response:
    """Refuse a path or a method that does not exist, and a body that cannot be parsed."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        problem = Problem("a body that cannot be parsed", "a JSON object", "correct its syntax, nesting and numbers")
    elif error.status_code == 404:
        problem = Problem(f"the path {request.url.path[:80]!r}", "a path of this server", "see /docs")
    else:
        problem = Problem(f"{request.method} {request.url.path[:80]}: {HTTPStatus(error.status_code).phrase}")
    return _refused(request, Refusal(error.status_code, problem, headers=error.headers))


def _not_valid(request: Request, error: Exception) -> Response:
    """Refuse a body that is not JSON, or has wrong fields."""
    assert isinstance(error, RequestValidationError)
    problems = [_problem(one) for one in error.errors()]
    is_json = all(one["type"] != "json_invalid" for one in error.errors())
    return _refused(request, Refusal(422 if is_json else 400, problems))


def _problem(error: dict[str, Any]) -> Problem:
    place = [str(part) for part in error["loc"] if part != "body"]
    if error["type"] == "json_invalid":
        reason = error["ctx"]["error"]
        return Problem(f"not valid JSON ({reason} at position {place[0]})", "a JSON object", "correct it", "body")
    where = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in place).lstrip(".")
    expected = str(error["msg"])
    expected = expected[:1].lower() + expected[1:]
    found = {"missing": "missing", "extra_forbidden": "an unknown field"}.get(error["type"])
    return Problem(found or shortened(error["input"]), expected, "see /docs", where or "body")
