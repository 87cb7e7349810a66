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
    """The shape of ``/v1/completions``; a chunk has the fields of a complete answer."""

    prefix = "cmpl"

    def complete(self, answers: Sequence[Answer]) -> Completion:
        choices = [self._choice(index, answer.text, answer) for index, answer in enumerate(answers)]
        return self._made(choices, _usage(answers))

    def chunk(self, index: int, text: str) -> Completion:
        return self._made([self._choice(index, text)])

    def closing(self, index: int, answer: Answer) -> Completion:
        return self._made([self._choice(index, "", answer)])

    def usage(self, answers: Sequence[Answer]) -> Completion:
        return self._made([], _usage(answers))

    def _choice(self, index: int, text: str, ended: Answer | None = None) -> CompletionChoice:
        return CompletionChoice(index=index, text=text, finish_reason=_finish(ended))

    def _made(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(choices=choices, usage=usage, **self.facts)


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
            yield self._made(index, Delta(role="assistant", content=""))

    def chunk(self, index: int, text: str) -> ChatChunk:
        return self._made(index, Delta(content=text))

    def closing(self, index: int, answer: Answer) -> ChatChunk:
        return self._made(index, Delta(), answer)

    def usage(self, answers: Sequence[Answer]) -> ChatChunk:
        return ChatChunk(choices=[], usage=_usage(answers), **self.facts)

    def _made(self, index: int, delta: Delta, ended: Answer | None = None) -> ChatChunk:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=_finish(ended))
        return ChatChunk(choices=[choice], **self.facts)


def _finish(answer: Answer | None) -> Literal["stop", "length"] | None:
    """Return why a complete answer ended; None for one that grows."""
    if answer is None:
        return None
    return "length" if answer.is_capped else "stop"


def _usage(answers: Sequence[Answer]) -> Usage:
    read, new = sum(answer.prompt_tokens for answer in answers), sum(answer.new_tokens for answer in answers)
    return Usage(prompt_tokens=read, completion_tokens=new, total_tokens=read + new)
