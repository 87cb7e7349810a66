"""How a row is asked. One wording for training, baselines and the final score, so that only the weights differ.

``VERSION`` is part of the key under which baselines are cached: raise it with every change of wording.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.inference import end_ids as end_ids
from fulltune.inference import start_ids as start_ids
from fulltune.inference import text_ids as text_ids
from fulltune.model import Bundle
from fulltune.tasks.base import Example, Features

VERSION = 1


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
    """

    instruction: str = ""
    question: str = ""
    answer: str = ""
    chat: bool = False


def wants_chat(bundle: Bundle, setting: str) -> bool:
    """Whether prompts go through the tokenizer's chat template (``auto``: if it has one)."""
    has_template = bool(getattr(bundle.tokenizer, "chat_template", None))
    return bundle.family == "decoder" and (setting == "on" or (setting == "auto" and has_template))


def prompt_ids(bundle: Bundle, wording: Wording, question: str, shots: Sequence[Shot] = ()) -> list[int]:
    """Token ids of a prompt, ready for the answer's first token."""
    if wording.chat:
        return _chat_ids(bundle, wording, question, shots)
    blocks = [wording.instruction] if wording.instruction else []
    blocks += [_block(wording, shot.input, shot.answer) for shot in shots]
    blocks.append(_block(wording, question, ""))
    text = "\n\n".join(blocks)
    if bundle.family == "decoder":
        return start_ids(bundle) + text_ids(bundle, text)
    return list(bundle.tokenizer(text, truncation=False).input_ids)


def answer_ids(bundle: Bundle, answer: str, wording: Wording | None = None) -> list[int]:
    """Token ids of an answer with the token that ends it."""
    if bundle.family != "decoder":
        return list(bundle.tokenizer(text_target=answer, truncation=False).input_ids)
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
    if wording.instruction:
        turns[0] = ("user", f"{wording.instruction}\n\n{turns[0][1]}")
    messages = [{"role": role, "content": content} for role, content in turns]
    ids: Any = bundle.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [int(token) for token in ids]


def fit_shots(
    bundle: Bundle, wording: Wording, question: str, shots: Sequence[Shot], room: int
) -> tuple[list[int], int]:
    """The prompt with as many of the shots as fit into ``room`` tokens, and how many those are.

    A decoder's prompt that is too long even without shots loses its beginning: the end of it holds the question.
    """
    for count in range(len(shots), -1, -1):
        ids = prompt_ids(bundle, wording, question, shots[:count])
        if len(ids) <= room:
            return ids, count
    return (cut(ids, room) if bundle.family == "encoder-decoder" else ids[-room:]), 0


def cut(ids: list[int], room: int) -> list[int]:
    """An encoder's input cut to ``room`` tokens, its closing token kept."""
    return ids if len(ids) <= room else [*ids[: room - 1], ids[-1]]


class ShotCount:
    """Counts the rows whose context had no room for all shots, to warn once instead of once a row."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.short, self.rows = wanted, 0, 0

    def ids(self, fitted: tuple[list[int], int]) -> list[int]:
        ids, count = fitted
        self.rows += 1
        self.short += count < self.wanted
        return ids

    def warn(self) -> None:
        if self.short:
            warnings.warn(
                f"{self.short} of {self.rows} rows had no room for all {self.wanted} shots in the model's window: "
                "they got as many as fit",
                stacklevel=2,
            )


def prompt_features(bundle: Bundle, prompt: list[int], example: Example, wording: Wording, window: int) -> Features:
    """A decoder's training sequence: prompt and answer, with the loss on the answer only.

    What does not fit into the window is cut from the beginning of the prompt, then from the end of the answer.
    """
    answer = answer_ids(bundle, example.answer, wording)
    kept_answer = answer[:window]
    kept_prompt = prompt[max(0, len(prompt) + len(kept_answer) - window) :]
    return Features(
        kept_prompt + kept_answer,
        [-100] * len(kept_prompt) + kept_answer,
        example.id,
        truncated=len(prompt) + len(answer) - len(kept_prompt) - len(kept_answer),
    )
