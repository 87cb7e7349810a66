"""Completions as OpenAI's clients ask for them: ``/v1/completions``, ``/v1/chat/completions``, ``/v1/models``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from fulltune.data.values import clean_text
from fulltune.errors import FulltuneError, Problem, did_you_mean, shortened
from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.serve.batching import Job, Wishes
from fulltune.serve.inputs import check_lengths, database_of, too_many
from fulltune.serve.openai_bodies import (
    Chat,
    ChatRequest,
    Common,
    Completion,
    CompletionRequest,
    ModelCard,
    ModelList,
)
from fulltune.serve.openai_shapes import ChatShape, CompletionShape, Shape
from fulltune.serve.refusals import OPENAI, Refusal, invalid
from fulltune.serve.service import Service
from fulltune.serve.streaming import Stream
from fulltune.tasks.base import Example

_log = logging.getLogger(__name__)

routes = APIRouter(prefix="/v1")

#: Values of fields that ask for nothing but the one greedy answer.
_NEUTRAL: dict[str, Any] = {
    "temperature": 0,
    "top_p": 1,
    "n": 1,
    "best_of": 1,
    "echo": False,
    "logprobs": False,
    "top_logprobs": 0,
    "suffix": "",
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
}

#: Most texts at which an answer ends.
_STOPS = 4

#: Makes the inputs of a model; the second argument is the database of text2sql.
Examples = Callable[[LoadedModel, str], list[Example]]


@routes.get("/models", response_model=ModelList)
async def models(request: Request) -> ModelList:
    """List the names under which the model may be asked."""
    found = _service(request).models
    version = found.current.name
    return ModelList(data=[ModelCard(id=name, created=found.since, version=version) for name in found.names])


@routes.post("/completions", response_model=Completion)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue texts, or answer inputs of the task; greedily, as in the evaluation."""
    service = _service(request)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) > service.limits.inputs:
        raise too_many(len(prompts), service.limits)
    check_lengths(prompts, service.limits)

    def examples(model: LoadedModel, database: str) -> list[Example]:
        _check_texts([("prompt", f"prompt[{number}]", text, False) for number, text in enumerate(prompts)])
        return [model.continuation(text, database) for text in prompts]

    return await _answered(service, request, body, body.max_tokens, CompletionShape, examples)


@routes.post("/chat/completions", response_model=Chat)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a chat; greedily, as in the evaluation."""
    service = _service(request)
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    turns = [(("system" if one.role == "developer" else one.role), one.text) for one in body.messages]
    check_lengths([text for _, text in turns], service.limits)

    def examples(model: LoadedModel, database: str) -> list[Example]:
        checked = enumerate(turns)
        _check_texts([("messages", f"messages[{n}]", text, role != "user") for n, (role, text) in checked])
        return [model.conversation([{"role": role, "content": text} for role, text in turns], database)]

    return await _answered(service, request, body, most, ChatShape, examples)


async def _answered(
    service: Service, request: Request, body: Common, most: int | None, kind: type[Shape], examples: Examples
) -> Response:
    """Answer a request, at once or as a stream."""
    model = _model(service, body.model)
    _check_neutral(body)
    wishes = Wishes(_most_tokens(service, model, most), is_strict=True)
    stops = _checked_stops(body)
    database = database_of(model, body.database) or service.database
    shape = kind(model.name)
    end = asyncio.get_running_loop().time() + service.limits.seconds

    async def complete() -> Response:
        job = Job(model, await _made(examples, model, database), wishes, stops)
        return _json(shape.complete(await service.answers(job)))

    async def begun() -> Stream:
        stream = Stream(model, await _made(examples, model, database), wishes, stops)
        service.batcher.submit(stream.job)
        try:
            await stream.begun()
        except FulltuneError as error:
            raise invalid(error) from error
        except BaseException:
            stream.job.future.cancel()
            raise
        return stream

    if not body.stream:
        return await service.in_time(request, complete()) or Response(status_code=499)
    stream = await service.in_time(request, begun())
    if stream is None:
        return Response(status_code=499)
    has_usage = body.stream_options is not None and body.stream_options.include_usage
    return StreamingResponse(_events(stream, shape, end, has_usage), media_type="text/event-stream")


async def _made(examples: Examples, model: LoadedModel, database: str) -> list[Example]:
    try:
        return await asyncio.to_thread(examples, model, database)
    except FulltuneError as error:
        raise invalid(error) from error


async def _events(stream: Stream, shape: Shape, end: float, has_usage: bool) -> AsyncIterator[str]:
    """Yield the server-sent events of a stream that has begun."""
    clock = asyncio.get_running_loop().time
    pieces = stream.pieces()
    try:
        for chunk in shape.opening(len(stream.job.examples)):
            yield _event(chunk)
        while (piece := await asyncio.wait_for(anext(pieces, None), max(0.0, end - clock()))) is not None:
            yield _event(shape.chunk(piece.index, piece.text))
        for index, answer in enumerate(stream.answers):
            yield _event(shape.closing(index, answer))
        if has_usage:
            yield _event(shape.usage(stream.answers))
        yield "data: [DONE]\n\n"
    except asyncio.TimeoutError:
        yield _error_event(Refusal(504, Problem("the answer is not complete", "an answer within the time limit")))
    except Exception:  # noqa: BLE001 - the status was sent: the client gets an event, the log the reason
        _log.exception("a stream failed")
        yield _error_event(Refusal(500, Problem("the server failed", fix="its log has the reason")))
    finally:
        stream.job.future.cancel()


def _event(chunk: BaseModel) -> str:
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"


def _error_event(refusal: Refusal) -> str:
    return f"data: {refusal.body(OPENAI).decode()}\n\n"


def _json(value: BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _model(service: Service, name: str) -> LoadedModel:
    """Return the model that a request names.

    Raises:
        Refusal: It names another one, or the model does not generate text.
    """
    model, known = service.models.current, service.models.names
    if name not in known:
        fix = did_you_mean(name, known) or "list the names with GET /v1/models"
        expected = " or ".join(map(repr, known))
        raise Refusal(404, Problem(shortened(name), expected, fix, field="model"), code="model_not_found")
    if not model.generates:
        problem = Problem(
            f"the task {model.task.name}", "a task that generates text", "use POST /predict", field="model"
        )
        raise Refusal(400, problem)
    return model


def _check_neutral(body: Common) -> None:
    """Check that no field asks for more than the one greedy answer.

    Raises:
        Refusal: Fields do; lists all of them.
    """
    asked = {name: value for name in _NEUTRAL if (value := getattr(body, name, None)) is not None}
    fix = "leave it out: decoding is greedy, as in the evaluation, and gives one text"
    problems = [
        Problem(shortened(value), repr(_NEUTRAL[name]), fix, field=name)
        for name, value in asked.items()
        if value != _NEUTRAL[name]
    ]
    if problems:
        raise Refusal(400, problems, code="unsupported_value")


def _most_tokens(service: Service, model: LoadedModel, asked: int | None) -> int:
    """Return the maximum number of new tokens.

    Raises:
        Refusal: More are asked for than the server allows, or none.
    """
    limit = service.limits.tokens
    if asked is None:
        return min(model.config.evaluation.max_new_tokens, limit)
    if not 0 < asked <= limit:
        fix = "ask for fewer, or raise the limit of the server (--max-tokens)" if asked > limit else "ask for some"
        raise Refusal(400, Problem(f"{asked:,} tokens", f"1 to {limit:,}", fix, field="max_tokens"))
    return asked


def _checked_stops(body: Common) -> list[str]:
    stops = body.stops
    if len(stops) > _STOPS or not all(stops):
        found = f"{len(stops)} texts" if len(stops) > _STOPS else "an empty text"
        raise Refusal(400, Problem(found, f"at most {_STOPS} texts that are not empty", field="stop"))
    return stops


def _check_texts(texts: list[tuple[str, str, str, bool]]) -> None:
    """Check texts: field, place, text, and whether it may be empty.

    Raises:
        Refusal: Some are blank or not well-formed; lists all of them.
    """
    problems = [
        Problem(checked.found, checked.expected, checked.fix, where, field)
        for field, where, text, may_be_empty in texts
        if isinstance(checked := clean_text(text, may_be_empty=may_be_empty), Problem)
    ]
    if problems:
        raise Refusal(400, problems)
