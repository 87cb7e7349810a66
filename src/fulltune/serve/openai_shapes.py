"""Write answers in the shapes of OpenAI's two kinds of completions, complete and in chunks."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from fulltune.serve.batching import Answer
from fulltune.serve.openai_bodies import (
    AnswerMessage,
    Chat,
    ChatChoice,
    ChatChunk,
    ChunkChoice,
    Completion,
    CompletionChoice,
    Delta,
    Usage,
)


class Shape(ABC):
    """The shape of one response.

    Args:
        model: The run or version that answers.
    """

    prefix: ClassVar[str]

    def __init__(self, model: str) -> None:
        self.facts: dict[str, Any] = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    @abstractmethod
    def complete(self, answers: Sequence[Answer]) -> BaseModel:
        """Return the body of a response that is not streamed."""

    def opening(self, count: int) -> Iterator[BaseModel]:
        """Yield the chunks before the first text of ``count`` answers."""
        yield from ()

    @abstractmethod
    def chunk(self, index: int, text: str) -> BaseModel:
        """Return the next part of an answer."""

    @abstractmethod
    def closing(self, index: int, answer: Answer) -> BaseModel:
        """Return the end of an answer."""

    @abstractmethod
    def usage(self, answers: Sequence[Answer]) -> BaseModel:
        """Return the last chunk of a stream, with the numbers of tokens."""


class CompletionShape(Shape):
    """The shape of ``/v1/completions``."""

    prefix = "cmpl"

    def complete(self, answers: Sequence[Answer]) -> Completion:
        choices = [
            CompletionChoice(index=index, text=answer.text, finish_reason=_finish(answer))
            for index, answer in enumerate(answers)
        ]
        return self._made(choices, usage=_usage(answers))

    def chunk(self, index: int, text: str) -> Completion:
        return self._made([CompletionChoice(index=index, text=text, finish_reason=None)])

    def closing(self, index: int, answer: Answer) -> Completion:
        return self._made([CompletionChoice(index=index, text="", finish_reason=_finish(answer))])

    def usage(self, answers: Sequence[Answer]) -> Completion:
        return self._made([], usage=_usage(answers))

    def _made(self, choices: list[CompletionChoice], **more: Any) -> Completion:
        return Completion(object="text_completion", choices=choices, **self.facts, **more)


class ChatShape(Shape):
    """The shape of ``/v1/chat/completions``."""

    prefix = "chatcmpl"

    def complete(self, answers: Sequence[Answer]) -> Chat:
        choices = [
            ChatChoice(index=index, message=AnswerMessage(content=answer.text), finish_reason=_finish(answer))
            for index, answer in enumerate(answers)
        ]
        return Chat(choices=choices, usage=_usage(answers), **self.facts)

    def opening(self, count: int) -> Iterator[ChatChunk]:
        for index in range(count):
            yield self._made([ChunkChoice(index=index, delta=Delta(role="assistant", content=""), finish_reason=None)])

    def chunk(self, index: int, text: str) -> ChatChunk:
        return self._made([ChunkChoice(index=index, delta=Delta(content=text), finish_reason=None)])

    def closing(self, index: int, answer: Answer) -> ChatChunk:
        return self._made([ChunkChoice(index=index, delta=Delta(), finish_reason=_finish(answer))])

    def usage(self, answers: Sequence[Answer]) -> ChatChunk:
        return self._made([], usage=_usage(answers))

    def _made(self, choices: list[ChunkChoice], **more: Any) -> ChatChunk:
        return ChatChunk(object="chat.completion.chunk", choices=choices, **self.facts, **more)


def _finish(answer: Answer) -> Literal["stop", "length"]:
    return "length" if answer.is_capped else "stop"


def _usage(answers: Sequence[Answer]) -> Usage:
    read, new = sum(answer.prompt_tokens for answer in answers), sum(answer.new_tokens for answer in answers)
    return Usage(prompt_tokens=read, completion_tokens=new, total_tokens=read + new)
