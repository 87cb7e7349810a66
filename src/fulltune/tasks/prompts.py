"""How a row is asked. One wording for training, baselines and the final score, so that only the weights differ.

A prompt that is too long is cut in the same way wherever it is used: shots are left out one by one, then the row's own
text is shortened. The instruction, the words around the text and the chat template always stay.

``VERSION`` is part of the key under which baselines are cached: raise it with every change of wording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from fulltune.errors import ConfigError
from fulltune.models.bundle import Bundle
from fulltune.models.inference import end_ids as end_ids
from fulltune.models.inference import opening_ids as opening_ids
from fulltune.models.inference import start_ids as start_ids
from fulltune.models.inference import text_ids as text_ids
from fulltune.models.tokenizing import tokenizer_sha256
from fulltune.store.cache import cache_key
from fulltune.tasks.base import Example, Features
from fulltune.tasks.chat import SAMPLES, chat_ids, chat_text
from fulltune.tasks.chat import wants_chat as wants_chat

VERSION = 3

#: A decoder's window holds the prompt and the answer; one part in this many, at most, is kept free for the answer.
ANSWER_PART = 3

#: Stands where the middle of a text was cut out.
GAP = " ... "

#: Text whose token ids are part of the fingerprint of a tokenizer.
_SAMPLE = "The fox said: naïve №5, 東京! "

#: Attempts to find the longest text that fits; each tokenizes the prompt.
_ATTEMPTS = 12


@dataclass(frozen=True)
class Shot:
    """An example in the context: what was asked and what the right answer is."""

    input: str
    answer: str


@dataclass(frozen=True)
class Wording:
    """Words around a question.

    Attributes:
        instruction: Said once, at the top; may be empty.
        question: What introduces an input, e.g. ``Question``; empty writes the input as it is.
        answer: What introduces an answer, e.g. ``SQL``; empty writes nothing, so that the answer continues the input.
        chat: Use the tokenizer's chat template.
        schema: Of the database; written below the instruction, and cut before the question.
        keeps_end: A question that is too long loses its middle, not its end.
        day: What the chat template is told is today.
    """

    instruction: str = ""
    question: str = ""
    answer: str = ""
    chat: bool = False
    schema: str = ""
    keeps_end: bool = False
    day: date | None = None

    @property
    def top(self) -> str:
        """The text above all examples."""
        schema = f"Schema: {self.schema}" if self.schema else ""
        return "\n".join(part for part in (self.instruction, schema) if part)


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits.

    Attributes:
        ids: Token ids, ready for the answer's first token.
        shots: How many shots it holds.
        cut: Tokens that the row's own text lost, by part (``schema``, ``input``).
    """

    ids: list[int]
    shots: int = 0
    cut: Mapping[str, int] = field(default_factory=dict)

    def values(self, shots: int = 0) -> dict[str, Any]:
        """Return what a prediction records: the shots that were used of ``shots``, and the tokens that were cut."""
        used = {"shots": self.shots} if shots else {}
        return used | ({"cut_tokens": sum(self.cut.values()), "cut": ", ".join(self.cut)} if self.cut else {})


def fingerprint(bundle: Bundle, chat: str, day: date) -> str:
    """Return a hash of what prompts and answers depend on beside the rows and the config: the tokenizer, the languages
    it is set to, and what the chat template makes of a conversation on that day, here.
    """
    tokenizer = bundle.tokenizer
    texts = [chat_text(bundle, messages, day) for messages in SAMPLES] if wants_chat(bundle, chat) else []
    ids = [tokenizer(_SAMPLE).input_ids, tokenizer(text_target=_SAMPLE).input_ids]
    return cache_key({"tokenizer": tokenizer_sha256(tokenizer), "ids": ids, "chat": texts})


def prompt_ids(bundle: Bundle, wording: Wording, question: str, shots: Sequence[Shot] = ()) -> list[int]:
    """Token ids of a prompt, ready for the answer's first token."""
    if wording.chat:
        return _chat_ids(bundle, wording, question, shots)
    blocks = [wording.top] if wording.top else []
    blocks += [_block(wording, shot.input, shot.answer) for shot in shots]
    blocks.append(_block(wording, question, ""))
    return list(bundle.tokenizer("\n\n".join(blocks), truncation=False, verbose=False).input_ids)


def answer_ids(bundle: Bundle, answer: str, wording: Wording | None = None) -> list[int]:
    """Token ids of an answer with the token that ends it."""
    if bundle.family != "decoder":
        ids, ends = bundle.tokenizer(text_target=answer, truncation=False, verbose=False).input_ids, end_ids(bundle)
        # A tokenizer may add no end, or a language after it.
        return list(ids) if set(ends) & set(ids[-2:]) else [*ids, *ends]
    # After "SQL:" the answer is a new word: most vocabularies hold it with the space before it.
    spaced = f" {answer}" if wording and wording.answer and not wording.chat else answer
    return text_ids(bundle, spaced) + end_ids(bundle)


def _block(wording: Wording, question: str, answer: str) -> str:
    asked = f"{wording.question}: {question}" if wording.question else question
    if not wording.answer:
        return f"{asked}{answer}"
    return f"{asked}\n{wording.answer}:" + (f" {answer}" if answer else "")


def _chat_ids(bundle: Bundle, wording: Wording, question: str, shots: Sequence[Shot]) -> list[int]:
    turns: list[tuple[str, str]] = []
    for shot in shots:
        turns += [("user", shot.input), ("assistant", shot.answer)]
    turns.append(("user", question))
    if wording.top:
        turns[0] = ("user", f"{wording.top}\n\n{turns[0][1]}")
    return chat_ids(bundle, [{"role": role, "content": content} for role, content in turns], wording.day)


def prompt_room(window: int, max_target_length: int) -> int:
    """Return how many of a decoder's ``window`` tokens a prompt may take; the rest is kept free for the answer."""
    return window - min(max_target_length, window // ANSWER_PART)


def fit(
    bundle: Bundle,
    wording: Wording,
    question: str,
    room: int,
    shots: Sequence[Shot] = (),
    shots_room: int = 0,
    shots_wording: Wording | None = None,
) -> Fitted:
    """Return a row's prompt in at most ``room`` tokens, with as many of the shots as ``shots_room`` tokens hold in all.

    Args:
        bundle: Whose tokenizer is used.
        wording: The words around the row's text.
        question: The row's text.
        room: Tokens of the prompt without shots.
        shots: Examples to show before it.
        shots_room: Tokens of the prompt with them.
        shots_wording: The words where there are shots, if other than ``wording``.

    Raises:
        ConfigError: The words around the row's text leave no room for it.
    """
    wording, question, plain = _shortened(bundle, wording, question, room)
    shown = replace(shots_wording or wording, schema=wording.schema)
    for count in range(len(shots), 0, -1):
        ids = prompt_ids(bundle, shown, question, shots[:count])
        if len(ids) <= shots_room:
            return replace(plain, ids=ids, shots=count)
    return plain


def _shortened(bundle: Bundle, wording: Wording, question: str, room: int) -> tuple[Wording, str, Fitted]:
    """Return wording and question as they fit, and the prompt without shots: the schema is cut, then the question."""
    ids, cut = prompt_ids(bundle, wording, question), {}
    if len(ids) > room and wording.schema:

        def with_schema(text: str) -> list[int]:
            return prompt_ids(bundle, replace(wording, schema=text), question)

        schema, kept = _longest(len(ids), room, wording.schema, _beginning, with_schema)
        wording, ids, cut = replace(wording, schema=schema), kept, {"schema": len(ids) - len(kept)}
    if len(ids) > room:
        shorten = _ends if wording.keeps_end else _beginning
        question, kept = _longest(len(ids), room, question, shorten, lambda text: prompt_ids(bundle, wording, text))
        ids, cut = kept, cut | {"input": len(ids) - len(kept)}
    if len(ids) > room:
        raise ConfigError(
            f"the instruction and the words around a row's text take {len(ids)} tokens",
            expected=f"at most {room}, and room for the text",
            fix="shorten data.instruction, raise data.max_length, or choose a model with more positions",
            field="data.max_length",
        )
    return wording, question, Fitted(ids, cut=cut)


def _longest(
    most: int, room: int, text: str, shorten: Callable[[str, int], str], ids_of: Callable[[str], list[int]]
) -> tuple[str, list[int]]:
    """Return the longest part of a text whose prompt fits, and the prompt's ids; the empty text where none does.

    Args:
        most: Tokens of the prompt with the whole text.
        room: Tokens that it may have.
        text: What is shortened.
        shorten: A text and a number of characters → that much of it.
        ids_of: A text → the ids of its prompt.
    """
    low, high, fitting = 0, len(text), ids_of("")
    for _ in range(_ATTEMPTS):
        if len(fitting) >= room or high - low < 2:
            break
        # Where a line through both ends meets the room: tokens are spread evenly over most texts.
        step = (high - low) * (room - len(fitting)) // (most - len(fitting))
        middle = low + min(max(1, step), high - low - 1)
        ids = ids_of(shorten(text, middle))
        if len(ids) <= room:
            low, fitting = middle, ids
        else:
            high, most = middle, len(ids)
    return shorten(text, low), fitting


def _beginning(text: str, size: int) -> str:
    return text[:size]


def _ends(text: str, size: int) -> str:
    """Return ``size`` characters of a text, half of them from its end."""
    half = size // 2
    return f"{text[: size - half]}{GAP}{text[len(text) - half :]}" if size else ""


def cut(ids: list[int], room: int) -> list[int]:
    """An encoder's input cut to ``room`` tokens, its closing token kept."""
    return ids if len(ids) <= room else [*ids[: room - 1], ids[-1]]


def prompt_features(bundle: Bundle, prompt: Fitted, example: Example, wording: Wording, window: int) -> Features:
    """A decoder's training sequence: prompt and answer, with the loss on the answer only.

    The prompt is the one that is asked at evaluation; an answer that does not fit into the rest of the window loses
    its end.
    """
    answer = answer_ids(bundle, example.answer, wording)
    kept = answer[: window - len(prompt.ids)]
    lost = {"answer": len(answer) - len(kept)} if len(kept) < len(answer) else {}
    return Features(prompt.ids + kept, [-100] * len(prompt.ids) + kept, example.id, {**prompt.cut, **lost})
