"""Pass generated answers on while they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.serve.batching import Answer, Job, Wishes
from fulltune.tasks.base import Example


@dataclass(frozen=True)
class Piece:
    """The next part of an answer."""

    index: int
    text: str


class Stream:
    """The answers of a job, piece by piece.

    Args:
        model, examples, wishes, stops: As of a :class:`Job`.
    """

    def __init__(self, model: LoadedModel, examples: Sequence[Example], wishes: Wishes, stops: Sequence[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._grown: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()
        self._sent = [""] * len(examples)
        self._stops = stops
        self.job = Job(model, examples, wishes, stops, self._listen)
        self.job.future.add_done_callback(lambda _: self._put(None))

    async def begun(self) -> None:
        """Wait until the first answer begins to be generated, or all are done.

        Raises:
            FulltuneError: A prompt cannot be answered.
        """
        first = await self._grown.get()
        if first is None:
            self.job.future.result()
        self._grown.put_nowait(first)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces of all answers as they come.

        Raises:
            Exception: The model failed.
        """
        while (grown := await self._grown.get()) is not None:
            index, text = grown
            if piece := self._news(index, _without_begun_stop(text, self._stops)):
                yield piece
        for index, answer in enumerate(self.job.future.result()):
            if piece := self._news(index, answer.text):
                yield piece

    @property
    def answers(self) -> list[Answer]:
        """The complete answers, once all pieces were yielded."""
        return self.job.future.result()

    def _news(self, index: int, text: str) -> Piece | None:
        """Return what a text adds to what was sent; a row that is computed again starts from the beginning."""
        sent = self._sent[index]
        if len(text) <= len(sent):
            return None
        if not text.startswith(sent):
            raise RuntimeError(f"the answer changed after a part of it was sent: {sent[-40:]!r}, {text[:400]!r}")
        self._sent[index] = text
        return Piece(index, text[len(sent) :])

    def _listen(self, index: int, text: str) -> None:
        self._put((index, text))

    def _put(self, item: tuple[int, str] | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._grown.put_nowait, item)


def _without_begun_stop(text: str, stops: Sequence[str]) -> str:
    """Return a text without an end that may become a stop text."""
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(begun, default=0)]
