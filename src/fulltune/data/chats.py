"""Read chats: lists of turns, written as ``{role, content}`` or, as ShareGPT does, as ``{from, value}``.

The last turn of the assistant is the completion, and what precedes it the prompt. Later turns are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fulltune.data.label_values import parse_list
from fulltune.data.values import clean_text, describe
from fulltune.errors import Problem, shortened

#: Role of the column with chats.
MESSAGES = "messages"

#: A turn: its role and its text.
Turn = tuple[str, str]

#: Names of the roles.
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bing", "bard"), "assistant"),
}

#: Keys of the role and of the text of a turn.
_KEYS = (("role", "content"), ("from", "value"))

_EXPECTED = "a list of turns such as {role: user, content: …}"


def trained(value: Any) -> dict[str, Any] | Problem:
    """Return the fields of a chat to train on, or a :class:`Problem` without a position.

    Returns:
        ``prompt`` and ``completion``; and the turns of the prompt as ``messages``, unless it is a single turn.
    """
    turns = _turns(value)
    if isinstance(turns, Problem):
        return turns
    last = max((number for number, (role, _) in enumerate(turns) if role == "assistant"), default=None)
    if last is None:
        return Problem("a chat without a turn of the assistant", "an answer to learn", "add it, or remove the row")
    fields = _prompt(turns[:last])
    return fields if isinstance(fields, Problem) else {**fields, "completion": turns[last][1]}


def asked(value: Any) -> dict[str, Any] | Problem:
    """Return the fields of a chat to answer: as in training, without a last turn of the assistant."""
    turns = _turns(value)
    if isinstance(turns, Problem):
        return turns
    return _prompt(turns[:-1] if turns and turns[-1][0] == "assistant" else turns)


def _prompt(turns: Sequence[Turn]) -> dict[str, Any] | Problem:
    """Return the fields of the turns before an answer."""
    if not turns or turns[-1][0] != "user":
        found = f"a turn of the role {turns[-1][0]}" if turns else "no turn"
        return Problem(f"{found} before the answer", "a turn of the user", "correct the chat, or remove the row")
    fields: dict[str, Any] = {"prompt": text_of(turns)}
    return fields if len(turns) == 1 else {**fields, MESSAGES: [list(turn) for turn in turns]}


def text_of(turns: Sequence[Sequence[str]]) -> str:
    """Return the turns of a prompt as plain text, without the system's; a single one as it is."""
    spoken = [turn for turn in turns if turn[0] != "system"]
    if len(spoken) == 1:
        return spoken[0][1]
    blocks = [f"{role.capitalize()}: {text}" for role, text in spoken]
    gaps = ["" if not number else "\n\n" if role == "user" else "\n" for number, (role, _) in enumerate(spoken)]
    return "".join(gap + block for gap, block in zip(gaps, blocks, strict=True))


def complete_text(fields: Mapping[str, Any]) -> str:
    """Return the text that a model without a chat template reads of a prompt, with that of the system."""
    turns = fields.get(MESSAGES, ())
    system = [text for role, text in turns if role == "system"]
    return "\n\n".join([*system, fields["prompt"]]) + ("\nAssistant:" if len(turns) > 1 + len(system) else "")


def _turns(value: Any) -> list[Turn] | Problem:
    """Return the role and the text of every turn."""
    items = parse_list(value) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not items:
        return Problem(describe(value) if value != [] else "a chat without turns", _EXPECTED, "correct the row")
    turns = list[Turn]()
    for number, item in enumerate(items, start=1):
        turn = _turn(item)
        if isinstance(turn, Problem):
            return Problem(
                f"turn {number} has {turn.found}", turn.expected, turn.fix or "correct it, or remove the row"
            )
        if turn[0] == "system" and number > 1:
            fix = "write its text into the first turn, or remove the row"
            return Problem(f"turn {number} has the role system", "system as the first turn only", fix)
        if turn[1] or turn[0] != "system":
            turns.append(turn)
    return turns


def _turn(item: Any) -> Turn | Problem:
    keys = next((keys for keys in _KEYS if isinstance(item, Mapping) and item.get(keys[0]) is not None), None)
    if keys is None:
        return Problem(describe(item) if not isinstance(item, Mapping) else "no role", "a role and a text")
    name = item[keys[0]]
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        return Problem(f"the role {shortened(name, 40)}", "system, user or assistant")
    if item.get("tool_calls") or item.get("function_call"):
        return Problem("calls of tools", "text: chats with tools are not supported")
    text = clean_text(_joined(item.get(keys[1])), may_be_empty=role == "system")
    return text if isinstance(text, Problem) else (role, text)


def _joined(content: Any) -> Any:
    """Return the text of a content that is written as a list of parts, if all of them are texts."""
    if not isinstance(content, (list, tuple)) or not content:
        return content
    texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    strings = [text for text in texts if isinstance(text, str)]
    return "".join(strings) if len(strings) == len(content) else content
