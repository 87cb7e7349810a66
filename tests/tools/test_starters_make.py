"""The recipe of the starters, on a small text folder with small windows and the real architectures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matrix import often
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from demo.contracts import make_contracts
from fulltune.data.probe import builtin_probe
from fulltune.errors import DataError
from fulltune.models import load
from starters import corpus, make
from starters.families import FAMILIES, WORDS
from starters.positions import OFFSETS, attend_to_neighbors

#: Loss of an untrained model, for which all tokens are equally likely.
UNTRAINED = np.log(6144)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    clauses = [row["text"] for row in make_contracts(240)]
    russian = [row["text"] for row in builtin_probe("ru")]
    for name, texts in {"ru.train": russian[:12], "en.train": clauses[:160], "en.valid": clauses[160:]}.items():
        (folder / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {name: replace(family, window=64, batch=2) for name, family in FAMILIES.items()}
    monkeypatch.setattr(make, "FAMILIES", small)
    monkeypatch.setattr(make, "HELD_OUT_WINDOWS", 6)
    monkeypatch.setattr(make, "SQL_WEIGHT", 1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("name", often(FAMILIES, lambda name: name == "t5"))
def test_a_starter_is_a_checkpoint_that_learned(name: str, books: Path, tmp_path: Path) -> None:
    folder = make.make_starter(name, books, tmp_path / "out", epochs=0.4, bf16=False)
    record = json.loads((folder / "training.json").read_text())
    assert record["untrained_loss"] == pytest.approx(UNTRAINED, abs=1.0)
    assert record["trained_loss"] < record["untrained_loss"] - 0.2
    assert [step for step, _ in record["curve"]] == list(range(20, record["steps"] + 1, 20))
    bundle = load.load(str(folder))
    assert bundle.family == {"gpt2": "decoder", "bert": "encoder", "t5": "encoder-decoder"}[name]
    assert bundle.has_lm_head
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float16}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10.6e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{record['trained_loss']:.3f}" in card
    assert str(tmp_path) not in card + (folder / "training.json").read_text()


@pytest.mark.slow  # tests/pipeline/test_resumed_runs.py kills a run in make test
@pytest.mark.parametrize("name", FAMILIES)
def test_a_killed_run_ends_like_an_uninterrupted_one(
    name: str, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 0.1, "save_steps": 3, "bf16": False}
    whole = weights(make.make_starter(name, books, tmp_path / "whole", **options))

    class Killed(make.Progress):
        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            if state.global_step == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(make, "Progress", Killed)
        with pytest.raises(KeyboardInterrupt):
            make.make_starter(name, books, tmp_path / "killed", **options)
    resumed = weights(make.make_starter(name, books, tmp_path / "killed", **options))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow  # test_a_starter_is_a_checkpoint_that_learned trains one in make test
def test_a_starter_can_be_trained_further(books: Path, tmp_path: Path) -> None:
    first = make.make_starter("bert", books, tmp_path / "first", epochs=0.1, bf16=False)
    second = make.make_starter("bert", books, tmp_path / "second", epochs=0.1, bf16=False, start=first)
    before, after = (json.loads((folder / "training.json").read_text()) for folder in (first, second))
    assert after["before"] == before
    assert after["untrained_loss"] == pytest.approx(before["trained_loss"], abs=0.2)
    assert after["trained_loss"] < before["trained_loss"]
    assert (first / "tokenizer.json").read_text() == (second / "tokenizer.json").read_text()
    card = (second / "README.md").read_text(encoding="utf-8")
    assert card.count("**Training.**") == card.count("**Training, continued.**") == 1


@pytest.mark.filterwarnings("ignore:.*output_attentions")
def test_the_first_layer_attends_to_neighbors() -> None:
    model = FAMILIES["bert"].build(PreTrainedTokenizerFast.from_pretrained(make.folder("bert"))).eval()
    attend_to_neighbors(model, torch.ones(6144))
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 6000, (4, 60), generator=torch.Generator().manual_seed(1))
    attention = model(input_ids=ids, output_attentions=True).attentions[0].mean(dim=0).detach()
    for head, offsets in enumerate(OFFSETS):
        weight = sum(float(attention[head].diagonal(offset)[6:48].mean()) for offset in offsets)
        assert weight > 0.7


@pytest.mark.parametrize("name", FAMILIES)
def test_every_text_survives_tokenization(name: str, books: Path, tmp_path: Path) -> None:
    tokenizer = FAMILIES[name].tokenizer(make.shared_tokenizer(corpus.find(books), tmp_path))
    tokenizer.save_pretrained(tmp_path / name)
    loaded = AutoTokenizer.from_pretrained(tmp_path / name)
    texts = ["SELECT a FROM t\nWHERE b < 10 AND c = '{x}'", "Жили-были  старик\tсо старухой…\n\n", " à ß 漢字 🦊", ""]
    for text in texts:
        assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == text
    assert loaded.tokenize("1905") == ["1", "9", "0", "5"]
    assert len(loaded) <= 6144


def test_windows_cover_the_text_in_order() -> None:
    array = np.arange(100, dtype=np.uint16)
    windows = corpus.Windows(array, 12, before=[500], after=[501])
    rows = [windows[index]["input_ids"] for index in range(len(windows))]
    assert [token for row in rows for token in row[1:-1]] == list(range(100))
    assert all(row[0] == 500 and row[-1] == 501 and len(row) == 12 for row in rows)
    assert [row["input_ids"][1] for row in windows.spread(5)] == [0, 20, 40, 60, 80]


def test_tokens_per_byte_is_correct(books: Path, tmp_path: Path) -> None:
    tokenizer = make.shared_tokenizer(corpus.find(books), tmp_path)
    text = (books / "en.valid.txt").read_text(encoding="utf-8")
    ids = np.array(tokenizer.encode(text).ids, dtype=np.uint16)
    windows = corpus.Windows(ids, len(ids))
    assert windows.tokens_per_byte(tokenizer) == pytest.approx(len(ids) / len(text.encode("utf-8")))
    assert tokenizer.get_vocab_size() <= WORDS


def test_a_folder_without_held_out_text_is_refused(books: Path, tmp_path: Path) -> None:
    (books / "en.valid.txt").unlink()
    with pytest.raises(DataError, match="2 text files to learn from and 0 held out"):
        make.make_starter("gpt2", books, tmp_path / "out")
    result = CliRunner().invoke(make.app, [str(books), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
