"""Chats: the last answer is learned, what precedes it is the prompt, and what cannot be read is named by its turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fulltune.config import Config
from fulltune.data.chats import asked, complete_text, trained
from fulltune.errors import DataError, Problem
from fulltune.tasks.causal_lm import CausalLM
from fulltune.tasks.dataset import prepare
from fulltune.tasks.seq2seq import Seq2Seq

CHAT = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "A fox.")]
TURNS = [{"role": role, "content": text} for role, text in CHAT]
SHARED = {"system": "system", "user": "human", "assistant": "gpt"}


@pytest.mark.parametrize(
    "value",
    [
        TURNS,
        json.dumps(TURNS),
        [{"from": SHARED[role], "value": text} for role, text in CHAT],
        [{"role": role, "content": [{"type": "text", "text": text}], "name": None} for role, text in CHAT],
        [*TURNS, {"role": "user", "content": "Thanks!"}],
    ],
)
def test_the_last_answer_is_the_completion(value: Any) -> None:
    fields = trained(value)
    assert fields == {
        "prompt": "User: Hi.\nAssistant: Hello.\n\nUser: Who?",
        "completion": "A fox.",
        "messages": [list(turn) for turn in CHAT[:-1]],
    }
    assert complete_text(fields) == "Be brief.\n\nUser: Hi.\nAssistant: Hello.\n\nUser: Who?\nAssistant:"


def test_a_single_question_is_a_prompt_with_its_completion() -> None:
    assert trained([TURNS[3], TURNS[4]]) == {"prompt": "Who?", "completion": "A fox."}
    assert asked([TURNS[3]]) == asked([TURNS[3], TURNS[4]]) == {"prompt": "Who?"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hi", "text ('hi')"),
        ([], "a chat without turns"),
        (["hi"], "turn 1 has text ('hi')"),
        ([{"content": "hi"}], "turn 1 has no role"),
        ([{"role": "tool", "content": "hi"}], "turn 1 has the role 'tool'"),
        ([TURNS[1], TURNS[0]], "turn 2 has the role system"),
        ([TURNS[1], {"role": "assistant", "content": None, "tool_calls": [{}]}], "turn 2 has calls of tools"),
        ([TURNS[1], {"role": "assistant", "content": " "}], "turn 2 has text of whitespace only"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "turn 1 has a list of 1"),
        (TURNS[:2], "a chat without a turn of the assistant"),
        (TURNS[2:3], "no turn before the answer"),
        ([TURNS[0], TURNS[2]], "a turn of the role system before the answer"),
    ],
)
def test_chats_that_cannot_be_learned_are_problems(value: Any, words: str) -> None:
    problem = trained(value)
    assert isinstance(problem, Problem)
    assert problem.found == words


def config(tmp_path: Path, rows: list[dict[str, Any]], task: str, **data: Any) -> Config:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Config(model="m", task=task, data={"train": str(file), "eval": str(file), **data})


def chats(n: int = 4, name: str = "messages", **more: Any) -> list[dict[str, Any]]:
    return [{name: [*TURNS[:3], {"role": "user", "content": f"Who is {i}?"}, TURNS[4]], **more} for i in range(n)]


@pytest.mark.parametrize("kind", [CausalLM, Seq2Seq])
def test_chats_are_rows_of_tasks_that_generate_text(kind: type[CausalLM | Seq2Seq], tmp_path: Path) -> None:
    made = config(tmp_path, chats(), kind.name)
    _, data = prepare(made, kind(made))
    example = data.train.examples[0]
    assert example.input.startswith("User: Hi.\nAssistant: Hello.\n\nUser: Who is ")
    assert example.answer == "A fox."
    assert len(example.meta["messages"]) == 4


def test_a_text_is_read_unless_the_config_names_the_chats(tmp_path: Path) -> None:
    rows = [row | {"text": f"text {i}"} for i, row in enumerate(chats())]
    made = config(tmp_path, rows, "causal-lm")
    assert prepare(made, CausalLM(made))[1].train.examples[0].answer.startswith("text")
    made = config(tmp_path, rows, "causal-lm", messages="messages")
    assert prepare(made, CausalLM(made))[1].train.examples[0].answer == "A fox."
    assert made.data.columns_of(CausalLM.inputs, rows[0]) == {"messages": "messages"}


@pytest.mark.parametrize("kind", [CausalLM, Seq2Seq])
def test_chats_under_another_name_are_pointed_out(kind: type[CausalLM | Seq2Seq], tmp_path: Path) -> None:
    made = config(tmp_path, chats(name="conversations"), kind.name)
    with pytest.raises(DataError, match=r"conversations holds chats: to read them set data\.messages: conversations"):
        prepare(made, kind(made))
