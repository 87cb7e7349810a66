"""Sample of the architecture matrix (benchmarks/architectures): each kind of cache, mask and head once."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matrix import often

from fulltune.errors import ModelError
from fulltune.models import inference, load

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

#: Model types and task columns; the comments name what is special about each.
SAMPLE = (
    ("big_bird", "cls"),  # attention in blocks, whatever the padding
    ("llama", "pc"),  # grouped heads, rotary positions
    ("mistral", "lm"),  # a sliding window
    ("llama4_text", "lm"),  # chunks
    ("gpt_neo", "lm"),  # a local layer and learned positions
    ("mpt", "lm"),  # ALiBi
    ("bamba", "lm"),  # attention and a state space
    ("mamba", "lm"),  # a state space alone
    ("mixtral (auxiliary loss)", "lm"),  # mixture of experts
    ("m2m_100", "lm"),  # no prepare_decoder_input_ids_from_labels
    ("bigbird_pegasus", "lm"),  # attention that depends on the width
    ("trocr", "pc"),  # a loss that does not shift its labels
    ("modernbert", "cls"),  # local attention in an encoder
    ("t5", "sql"),  # relative positions in two stacks
)

#: Cells of ``make test``; tests/models/test_plain_answers.py covers more types.
OFTEN = {("gpt_neo", "lm"), ("mixtral (auxiliary loss)", "lm"), ("m2m_100", "lm")}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"architectures.{name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "column"),
    often(SAMPLE, OFTEN.__contains__),
    ids=["-".join(cell) for cell in SAMPLE],
)
def test_an_architecture_answers_as_plain_transformers_does(
    model_type: str, column: str, script: Any, tmp_path: Path
) -> None:
    checkpoint = script("checkpoints").save(model_type, tmp_path / "base")
    cell = script("cells").measure(checkpoint, column, tmp_path)
    assert (cell.status, cell.detail) == ("ok", "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["xlnet", "cpmant"])
def test_a_decoder_that_reads_ahead_is_refused(model_type: str, script: Any, tmp_path: Path) -> None:
    checkpoint = script("checkpoints").save(model_type, tmp_path / "base")
    cell = script("cells").measure(checkpoint, "pc", tmp_path)
    assert cell.status == "refused"
    assert "attends to later tokens" in cell.detail
    assert "expected a decoder with causal attention" in cell.detail


def test_a_different_number_is_wrong_an_exception_is_a_crash_and_an_own_error_is_a_refusal(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = script("cells")
    checkpoint = script("checkpoints").save("llama", tmp_path / "base")
    likelihoods = cells.inference.likelihoods

    def off_by_a_little(*asked: Any) -> Iterator[Any]:
        return (type(one)(one.nll * 1.001, one.tokens) for one in likelihoods(*asked))

    def refuse(*asked: Any) -> Iterator[Any]:
        raise ModelError("no such cache", expected="another one", fix="choose another model")

    def fail(*asked: Any) -> Iterator[Any]:
        raise KeyError("cache")

    outcomes = {}
    for stub in (off_by_a_little, refuse, fail):
        monkeypatch.setattr(cells.inference, "likelihoods", stub)
        outcomes[stub.__name__] = cells.measure(checkpoint, "lm", tmp_path)
    assert [cell.status for cell in outcomes.values()] == ["wrong", "refused", "crash"]
    assert "nll" in outcomes["off_by_a_little"].detail
    assert outcomes["refuse"].detail == "no such cache; expected another one. Choose another model."
    assert outcomes["fail"].detail.startswith("KeyError: 'cache' @ ")
    assert cells.measure(checkpoint, "pc", tmp_path / "elsewhere").status == "crash"


def test_a_type_that_hangs_dies_or_cannot_be_built_does_not_stop_the_others(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, results = script("matrix"), tmp_path / "results.jsonl"

    def save(model_type: str, folder: Path) -> str:
        if model_type == "gemma3n":
            raise ImportError("needs an\nimage tower")
        return model_type

    def measure(checkpoint: str, column: str, folder: Path) -> Any:
        if column == "pc":
            os.kill(os.getpid(), {"bert": signal.SIGALRM, "t5": signal.SIGKILL}.get(checkpoint, 0))
        return matrix.Cell(checkpoint, column, "refused" if column == "sql" else "ok", "why" if column == "sql" else "")

    monkeypatch.setattr(matrix.checkpoints, "save", save)
    monkeypatch.setattr(matrix.cells, "measure", measure)
    arguments = ["--only", "bert", "t5", "gemma3n", "--tasks", "lm", "pc", "sql", "--results", str(results)]
    matrix.main(arguments)
    cells = {(cell.model_type, cell.task): (cell.status, cell.detail) for cell in matrix.read(results)}
    assert cells["bert", "pc"] == ("crash", "no result within the time limit")
    assert cells["t5", "pc"] == ("crash", "killed by signal 9")
    assert cells["bert", "sql"] == cells["t5", "sql"] == ("refused", "why")
    assert cells["gemma3n", "lm"] == ("not built", "ImportError: needs an image tower")
    before = results.read_text()
    matrix.main(arguments)
    assert results.read_text() == before
    matrix.main([*arguments, "--again", "crash"])
    assert results.read_text() != before
    assert sorted(results.read_text().splitlines()) == sorted(before.splitlines())

    page = script("page").text(matrix.read(results))
    assert "| bert | ✓ | ! |  | **R** |  |  |" in page
    assert "- bert (sql), t5 (sql): why" in page
    assert "- gemma3n: ImportError: needs an image tower" in page
    assert json.loads(before.splitlines()[0])["model_type"] == "bert"


def test_every_model_type_has_a_head_and_most_can_be_built(script: Any) -> None:
    checkpoints = script("checkpoints")
    types = checkpoints.model_types()
    assert len(types) > 200
    assert all(types.values())
    config = checkpoints.make_config("mistral")
    assert (config.num_hidden_layers, config.hidden_size, config.sliding_window) == (2, 32, 16)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["big_bird", "bigbird_pegasus"])
def test_the_answer_to_a_long_text_does_not_depend_on_short_texts_before_it(
    model_type: str, script: Any, tmp_path: Path
) -> None:
    script("checkpoints").save(model_type, tmp_path)
    bundle = load.load(str(tmp_path), "classification", labels=("no", "yes"))
    texts = [[0, *range(10, 60), 2], [0, 9, 2]]
    [fresh] = inference.class_logits(bundle, texts[:1], 1)
    list(inference.class_logits(bundle, texts[1:], 1))
    [again] = inference.class_logits(bundle, texts[:1], 1)
    assert again == fresh
