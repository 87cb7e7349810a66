"""Base of tasks whose plain answers are generated texts."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import TYPE_CHECKING, Any, ClassVar

from fulltune.errors import DataError
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Task
from fulltune.tasks.prompts import Fitted

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

#: Turns of a chat with ``role`` and ``content``.
Messages = Sequence[Mapping[str, str]]

#: Called before each new token of an answer with the number of the example, the length of its prompt in tokens, and
#: those new tokens that are certain; it may raise an exception to end decoding.
Watch = Callable[[int, int, Sequence[int]], None]


@dataclass(frozen=True)
class Generation:
    """A generated answer.

    Attributes:
        text: The answer.
        fields: The plain answer, as :meth:`Task.answers` yields it.
        prompt_tokens: Number of tokens of the prompt.
        new_tokens: Number of generated tokens.
        is_capped: True if it was ended at the maximum number of new tokens.
    """

    text: str
    fields: dict[str, Any]
    prompt_tokens: int
    new_tokens: int
    is_capped: bool


class Generating(Task):
    """Base of tasks that answer with a generated text."""

    #: Name of the answer in plain results.
    answer_name: ClassVar[str] = "text"

    #: True if the answer of the first tokens is the beginning of the answer.
    streams: ClassVar[bool] = True

    @abstractmethod
    def prompt(self, example: Example, bundle: Bundle) -> Fitted:
        """Return the prompt of an input without a target."""

    def answer_text(self, text: str) -> str:
        """Return the answer in a generated text."""
        return text

    def continuation(self, text: str, place: str = "") -> Example:
        """Return the example of a text without turns: here the input.

        Raises:
            ConfigError: There is no such place, or the place must be named.
        """
        return self.request({self.inputs[0]: text}, place)

    def conversation(self, messages: Messages, bundle: Bundle, place: str = "") -> Example:
        """Return the example of a chat: here of a single message, which is the input.

        Raises:
            DataError: The chat has another form.
            ConfigError: There is no such place, or the place must be named.
        """
        if [message["role"] for message in messages] != ["user"]:
            roles = ", ".join(message["role"] for message in messages[:10]) or "no message"
            fix = "send the input as the only message"
            raise DataError(roles, expected="one message of the role user", fix=fix, field="messages")
        return self.request({self.inputs[0]: messages[0]["content"]}, place)

    def answers(self, bundle: Bundle, system: str, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        """Yield the generated text, as ``prediction`` and under :attr:`answer_name`."""
        return (generation.fields for generation in self.generations(bundle, examples))

    def generations(
        self,
        bundle: Bundle,
        examples: Sequence[Example],
        max_new_tokens: int | None = None,
        watch: Watch | None = None,
        *,
        is_strict: bool = False,
    ) -> Iterator[Generation]:
        """Yield the answers with their numbers of tokens.

        Args:
            bundle: The model.
            examples: The inputs.
            max_new_tokens: Maximum number of new tokens; by default that of the config.
            watch: Receives the tokens as they are generated.
            is_strict: Refuse a prompt that is too long; by default it is cut as in the evaluation.

        Raises:
            DataError: A prompt is too long.
        """
        from fulltune.models import inference

        settings = self.config.evaluation
        numbers = defaultdict[tuple[int, ...], list[int]](list)

        def asked() -> Iterator[Fitted]:
            for number, example in enumerate(examples):
                prompt = self.prompt(example, bundle)
                if is_strict and prompt.removed:
                    raise _too_long(prompt)
                if watch is not None:
                    numbers[tuple(prompt.ids)].append(number)
                yield prompt

        def follow(ids: Sequence[int], new: Sequence[int]) -> None:
            if watch is not None:
                for number in numbers[tuple(ids)]:
                    watch(number, len(ids), new)

        now, later = tee(asked())
        cap = max_new_tokens or settings.max_new_tokens
        ids = (prompt.ids for prompt in now)
        if self.config.generation.temperature > 0:
            found = inference.drawn(bundle, ids, cap, self.config.generation)
        else:
            found = inference.generate(bundle, ids, settings.batch_size, cap, follow if watch else None)
        for prompt, generated in zip(later, found, strict=True):
            text = self.answer_text(generated.text)
            fields = {"prediction": text, self.answer_name: text} | prompts.truncated(prompt.values())
            yield Generation(text, fields, len(prompt.ids), generated.tokens, generated.capped)

    def beginning(self, bundle: Bundle, tokens: Sequence[int]) -> str:
        """Return the beginning of an answer that its first tokens determine."""
        from fulltune.models import inference

        # The bytes of a character may be spread over several tokens.
        return self.answer_text(inference.text_of(bundle, tokens).rstrip("\ufffd")) if self.streams else ""


def _too_long(prompt: Fitted) -> DataError:
    lost = sum(prompt.removed.values())
    return DataError(
        f"a prompt that is {lost} tokens too long",
        expected=f"at most {len(prompt.ids)} tokens",
        fix="shorten it",
    )
