"""Build prompts. Training, baselines and final score use the same wording, so that only the weights differ.

A prompt that is too long is cut in the same way everywhere: shots are removed one at a time, then the row's own text is
truncated. The instruction, the words around the text and the chat template always stay.

``VERSION`` is part of the cache key of baselines: increment it with every change of wording.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any

from fulltune.data.chats import MESSAGES, Turn
from fulltune.errors import ConfigError
from fulltune.models.token_ids import end_ids as end_ids
from fulltune.models.token_ids import opening_ids as opening_ids
from fulltune.models.token_ids import start_ids as start_ids
from fulltune.models.token_ids import text_ids as text_ids
from fulltune.models.tokenizing import tokenizer_sha256
from fulltune.store.cache import cache_key
from fulltune.tasks.base import Example, Features
from fulltune.tasks.chat import SAMPLES, chat_ids, chat_text
from fulltune.tasks.chat import wants_chat as wants_chat

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

VERSION = 3

#: A decoder's window holds the prompt and the answer; at most one part in this many is reserved for the answer.
ANSWER_PART = 3

#: Replacement for the removed middle of a text.
GAP = " ... "

#: Text whose token ids are part of the fingerprint of a tokenizer.
_SAMPLE = "The fox said: naïve №5, 東京! "

#: Maximum number of attempts to determine the longest text that fits; each tokenizes the prompt.
_ATTEMPTS = 12


@dataclass(frozen=True)
class Shot:
    """An example in the context: an input and its reference answer."""

    input: str
    answer: str


@dataclass(frozen=True)
class Wording:
    """Words around a question.

    Attributes:
        instruction: Text at the top, written once; may be empty.
        question: Label before an input, e.g. ``Question``; if empty, the input is written as it is.
        answer: Label before an answer, e.g. ``SQL``; if empty, the answer directly continues the input.
        chat: Use the tokenizer's chat template.
        schema: Schema of the database, written below the instruction and truncated before the question.
        keeps_end: A question that is too long loses its middle, not its end.
        turns: Turns of a chat before the question, for a chat template; the first of them may be the system's.
        day: Today's date for the chat template.
    """

    instruction: str = ""
    question: str = ""
    answer: str = ""
    chat: bool = False
    schema: str = ""
    keeps_end: bool = False
    turns: tuple[Turn, ...] = ()
    day: date | None = None

    @property
    def top(self) -> str:
        """Text above all examples."""
        schema = f"Schema: {self.schema}" if self.schema else ""
        return "\n".join(part for part in (self.instruction, schema) if part)


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits into the window.

    Attributes:
        ids: Token ids, up to the answer's first token.
        shots: Number of shots it contains.
        removed: Number of truncated tokens of the row's own text, by part (``schema``, ``earlier turns``, ``input``).
    """

    ids: list[int]
    shots: int = 0
    removed: Mapping[str, int] = field(default_factory=dict)

    def values(self, shots: int = 0) -> dict[str, Any]:
        """Return values for a prediction: the shots that were used if ``shots`` is not 0, and the truncated tokens."""
        used: dict[str, Any] = {"shots": self.shots} if shots else {}
        if self.removed:
            used |= {"removed_tokens": sum(self.removed.values()), "removed_parts": ", ".join(self.removed)}
        return used


def truncated(values: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of tokens that an answer was given without, if there are any, from the values of its prompt."""
    return {"truncated": values["removed_tokens"]} if values.get("removed_tokens") else {}


def fingerprint(bundle: Bundle, chat: str, day: date) -> str:
    """Return a hash of what prompts and answers depend on, besides rows and config.

    It covers the tokenizer, its languages, and the rendering of conversations by the chat template on that day.
    """
    tokenizer = bundle.tokenizer
    texts = [chat_text(bundle, messages, day) for messages in SAMPLES] if wants_chat(bundle, chat) else []
    ids = [tokenizer(_SAMPLE).input_ids, tokenizer(text_target=_SAMPLE).input_ids]
    return cache_key({"tokenizer": tokenizer_sha256(tokenizer), "ids": ids, "chat": texts})


def prompt_ids(bundle: Bundle, wording: Wording, question: str, shots: Sequence[Shot] = ()) -> list[int]:
    """Return the token ids of a prompt, up to the answer's first token."""
    if wording.chat:
        return _chat_ids(bundle, wording, question, shots)
    blocks = [wording.top] if wording.top else []
    blocks += [_block(wording, shot.input, shot.answer) for shot in shots]
    blocks.append(_block(wording, question, ""))
    return list(bundle.tokenizer("\n\n".join(blocks), truncation=False, verbose=False).input_ids)


def answer_ids(bundle: Bundle, answer: str, wording: Wording | None = None) -> list[int]:
    """Return the token ids of an answer with its end token."""
    if bundle.family != "decoder":
        ids = bundle.tokenizer(text_target=answer, truncation=False, verbose=False).input_ids
        ends = end_ids(bundle)
        # Some tokenizers add no end token, or a language code after it.
        return list(ids) if set(ends) & set(ids[-2:]) else [*ids, *ends]
    # After "SQL:" the answer starts a new word: most vocabularies store words with the preceding space.
    spaced = f" {answer}" if wording and wording.answer and not wording.chat else answer
    return text_ids(bundle, spaced) + end_ids(bundle)


def chat_turns(fields: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Return the turns of a prompt that has several, from the fields of a row or the ``meta`` of its example."""
    return tuple((role, text) for role, text in fields.get(MESSAGES, ()))


def chat_meta(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``meta`` of the example of a row, which has the turns of a prompt that has several."""
    return {MESSAGES: fields[MESSAGES]} if MESSAGES in fields else {}


def _block(wording: Wording, question: str, answer: str) -> str:
    text = f"{wording.question}: {question}" if wording.question else question
    if not wording.answer:
        return f"{text}{answer}"
    return f"{text}\n{wording.answer}:" + (f" {answer}" if answer else "")


def _chat_ids(bundle: Bundle, wording: Wording, question: str, shots: Sequence[Shot]) -> list[int]:
    turns: list[Turn] = []
    for shot in shots:
        turns += [("user", shot.input), ("assistant", shot.answer)]
    system, earlier = _without_system(wording.turns)
    turns += [*earlier, ("user", question)]
    if wording.top:
        first = next(number for number, (role, _) in enumerate(turns) if role == "user")
        turns[first] = ("user", f"{wording.top}\n\n{turns[first][1]}")
    turns = [*system, *turns]
    return chat_ids(bundle, [{"role": role, "content": content} for role, content in turns], wording.day)


def _without_system(turns: Sequence[Turn]) -> tuple[Sequence[Turn], Sequence[Turn]]:
    """Return the turn of the system, if there is one, and the others."""
    size = int(bool(turns) and turns[0][0] == "system")
    return turns[:size], turns[size:]


def worded(wording: Wording, example: Example) -> tuple[Wording, str]:
    """Return the wording and the question of a row: of a chat, also the turns before its last one.

    Without a chat template they are a part of the text, below that of the system.
    """
    turns = chat_turns(example.meta)
    if not turns:
        return wording, example.input
    if wording.chat:
        return replace(wording, turns=turns[:-1], keeps_end=True), turns[-1][1]
    system, _ = _without_system(turns)
    top = "\n\n".join(part for part in (wording.instruction, *(text for _, text in system)) if part)
    return replace(wording, instruction=top, keeps_end=True), example.input


def prompt_room(window: int, max_target_length: int) -> int:
    """Return how many of a decoder's ``window`` tokens a prompt may use; the rest is reserved for the answer."""
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
    """Return a row's prompt in at most ``room`` tokens, with as many shots as fit into ``shots_room`` tokens in total.

    Args:
        bundle: Model and tokenizer.
        wording: Words around the row's text.
        question: The row's text.
        room: Maximum tokens of the prompt without shots.
        shots: Examples to show before it.
        shots_room: Maximum tokens of the prompt with shots.
        shots_wording: Wording if there are shots; by default ``wording``.

    Raises:
        ConfigError: The words around the row's text leave no room for it.
    """
    wording, question, plain = _shortened(bundle, wording, question, room)
    shown = replace(shots_wording or wording, schema=wording.schema, turns=wording.turns)
    for count in range(len(shots), 0, -1):
        ids = prompt_ids(bundle, shown, question, shots[:count])
        if len(ids) <= shots_room:
            return replace(plain, ids=ids, shots=count)
    return plain


def _shortened(bundle: Bundle, wording: Wording, question: str, room: int) -> tuple[Wording, str, Fitted]:
    """Return the truncated wording and question, and the prompt without shots: first the schema is truncated."""
    ids = prompt_ids(bundle, wording, question)
    removed = dict[str, int]()
    if len(ids) > room and wording.schema:

        def with_schema(text: str) -> list[int]:
            return prompt_ids(bundle, replace(wording, schema=text), question)

        schema, kept = _longest(len(ids), room, wording.schema, _beginning, with_schema)
        wording, ids, removed = replace(wording, schema=schema), kept, {"schema": len(ids) - len(kept)}
    if len(ids) > room and wording.turns:
        wording, kept = _later_turns(bundle, wording, question, room)
        removed |= {"earlier turns": len(ids) - len(kept)} if len(kept) < len(ids) else {}
        ids = kept
    if len(ids) > room:
        shorten = _ends if wording.keeps_end else _beginning
        question, kept = _longest(len(ids), room, question, shorten, lambda text: prompt_ids(bundle, wording, text))
        ids, removed = kept, removed | {"input": len(ids) - len(kept)}
    if len(ids) > room:
        raise ConfigError(
            f"the instruction and the words around a row's text take {len(ids)} tokens",
            expected=f"at most {room}, so that the text fits too",
            fix="shorten data.instruction, raise data.max_length, or choose a model with more positions",
            field="data.max_length",
        )
    return wording, question, Fitted(ids, removed=removed)


def _later_turns(bundle: Bundle, wording: Wording, question: str, room: int) -> tuple[Wording, list[int]]:
    """Return the wording with as many of the last turns as fit, from a user's on, and the ids of its prompt."""
    system, earlier = _without_system(wording.turns)
    starts = [number for number, (role, _) in enumerate(earlier) if number and role == "user"]

    def beginning_at(start: int) -> tuple[Wording, list[int]]:
        shorter = replace(wording, turns=(*system, *earlier[start:]))
        return shorter, prompt_ids(bundle, shorter, question)

    fitting = bisect_left(starts, True, key=lambda start: len(beginning_at(start)[1]) <= room)
    return beginning_at(starts[fitting] if fitting < len(starts) else len(earlier))


def _longest(
    most: int, room: int, text: str, shorten: Callable[[str, int], str], ids_of: Callable[[str], list[int]]
) -> tuple[str, list[int]]:
    """Return the longest part of a text whose prompt fits and the ids of that prompt; the empty text if none fits.

    Args:
        most: Tokens of the prompt with the complete text.
        room: Maximum tokens of the prompt.
        text: The text to shorten.
        shorten: Function that shortens a text to a number of characters.
        ids_of: Function from a text to the ids of its prompt.
    """
    low = 0
    high = len(text)
    fitting = ids_of("")
    for _ in range(_ATTEMPTS):
        if len(fitting) >= room or high - low < 2:
            break
        # Interpolate linearly: in most texts, tokens are evenly distributed.
        step = (high - low) * (room - len(fitting)) // (most - len(fitting))
        middle = low + min(max(1, step), high - low - 1)
        ids = ids_of(shorten(text, middle))
        if len(ids) <= room:
            low, fitting = middle, ids
        else:
            high = middle
            most = len(ids)
    return shorten(text, low), fitting


def _beginning(text: str, size: int) -> str:
    return text[:size]


def _ends(text: str, size: int) -> str:
    """Return ``size`` characters of a text, half of them from its end."""
    half = size // 2
    return f"{text[: size - half]}{GAP}{text[len(text) - half :]}" if size else ""


def keep_ends(ids: list[int], room: int) -> list[int]:
    """Truncate an encoder's input to ``room`` tokens, keeping its last token."""
    return ids if len(ids) <= room else [*ids[: room - 1], ids[-1]]


def prompt_features(bundle: Bundle, prompt: Fitted, example: Example, wording: Wording, window: int) -> Features:
    """Return a decoder's training sequence: prompt and answer, with the loss on the answer only.

    The prompt is the same as in evaluation; an answer that does not fit into the rest of the window is truncated.
    """
    answer = answer_ids(bundle, example.answer, wording)
    kept = answer[: window - len(prompt.ids)]
    lost = {"answer": len(answer) - len(kept)} if len(kept) < len(answer) else {}
    return Features(prompt.ids + kept, [-100] * len(prompt.ids) + kept, example.id, {**prompt.removed, **lost})
