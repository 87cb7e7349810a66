"""Cross-validation: every row is answered once by a model that has not seen it, and the final model sees all."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import fakes
import pytest
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.config import load_config
from fulltune.data.load import Row, Table
from fulltune.data.split import fold_tables
from fulltune.errors import ConfigError, DataError
from fulltune.pipeline import run as pipeline
from fulltune.records.run import Record, read_record
from fulltune.runtime.config_file import to_yaml
from fulltune.store.registry.registry import Registry

WORDS = ("court", "state", "party", "good", "great", "red", "blue", "green")


def rows(count: int = 36, seed: int = 1) -> list[dict[str, Any]]:
    drawn = random.Random(seed)
    return [
        {
            "text": f"{' '.join(drawn.choice(WORDS[index % 2 :: 2]) for _ in range(6))} {index}",
            "label": "ab"[index % 2],
            "firm": f"firm {index // 3}",
        }
        for index in range(count)
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a config of three folds."""
    place = tmp_path_factory.mktemp("folds")
    fakes.save("bert", place / "bert")
    config: dict[str, Any] = {
        "model": str(place / "bert"),
        "task": "classification",
        "data": {"train": write(place / "rows.jsonl", rows()), "folds": 3, "group": "firm"},
        "train": {"batch_size": 12, "epochs": 1, "evaluations": 0},
        "baselines": {"few_shot": 1, "skip": ["linear_probe"]},
        "evaluation": {"resamples": 100},
        "guards": {"forgetting": None},
    }
    (place / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def record(place: Path) -> Record:
    """Return the record of a run that was interrupted in its second fold, and resumed."""
    trained = list[int | None]()
    whole = pipeline.run

    def interrupted(config: Any, **options: Any) -> Record:
        trained.append(config.data.fold)
        if trained == [1, 2]:
            raise KeyboardInterrupt
        return whole(config, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_train_fold", lambda out, progress, config, resume: interrupted(config, out=out))
        with pytest.raises(KeyboardInterrupt, match="fulltune run --resume"):
            whole(place / "config.yaml", out=place / "runs", progress=False)
        found = whole(resume="latest", out=place / "runs", progress=False)
    assert trained == [1, 2, 2, 3]
    return found


pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_row_is_answered_once_by_a_model_that_has_not_seen_it(record: Record) -> None:
    lines = [json.loads(line) for line in (record.folder / "predictions.jsonl").read_text().splitlines()]
    for system in record.scores:
        assert Counter(Counter(line["id"] for line in lines if line["system"] == system).values()) == {1: 36}
    assert record.scores["tuned"][record.metric].n == 36
    assert {one.n for one in record.comparison.values()} == {36}
    assert {one.groups for one in record.comparison.values()} == {12}
    assert [fold.fold for fold in record.folds] == [1, 2, 3]
    assert sum(fold.score.n for fold in record.folds) == 36
    for fold in record.folds:
        part = read_record(record.folder.parent / fold.run_id)
        own = {json.loads(line)["id"] for line in (part.folder / "predictions.jsonl").read_text().splitlines()}
        groups = {line["group"] for line in lines if line["id"] in own}
        assert not groups & {line["group"] for line in lines if line["id"] not in own}
        assert fold.train_rows == 36 - len(own)
        assert not (part.folder / "model").exists()


def test_the_final_model_is_trained_on_all_rows(record: Record, place: Path) -> None:
    assert (record.data.train.rows, record.training.rows) == (36, 36)
    assert (record.folder / "model" / "config.json").exists()
    assert [version.lineage.source for version in Registry(place / "runs").versions()] == [record.run_id]
    assert fulltune.load(record, out=place / "runs")(["court party red"])


def test_record_report_and_terminal_show_the_folds(record: Record, place: Path) -> None:
    page = (record.folder / "report.html").read_text(encoding="utf-8")
    assert all(fold.run_id in page for fold in record.folds)
    assert "Cross-validation" in page
    assert json.loads((record.folder / "record.json").read_text())["folds"][2]["fold"] == 3
    from rich.console import Console

    from fulltune.cli.render import runs

    console = Console(width=200)
    with console.capture() as captured:
        console.print(runs.record(record, record.folder))
    assert "Folds: " in captured.get()


def test_the_same_rows_cannot_score_the_model_again(record: Record, place: Path) -> None:
    with pytest.raises(ConfigError, match="cross-validation"):
        fulltune.evaluate(record, out=place / "runs")


def test_the_plan_counts_all_trainings(place: Path) -> None:
    plan = fulltune.plan(place / "config.yaml", out=place / "runs", quick=True)
    assert (plan.folds, plan.trainings) == (3, 4)
    assert plan.rows == {"train": 36, "eval": 36}
    shown = CliRunner().invoke(app, ["plan", str(place / "config.yaml"), "--quick", "--out", str(place / "runs")])
    assert "3 folds, and the final model on all rows" in shown.output
    measured = fulltune.plan(place / "config.yaml", out=place / "runs")
    assert (measured.trainings, measured.total_steps, measured.is_measured) == (4, 3, True)
    assert measured.memory
    assert measured.seconds["train"] > 0


# ---- Configs ----


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"folds": 3, "eval": 0.1}, "data.eval would select others. Remove it"),
        ({"folds": 3, "split": "part", "eval_limit": 5}, "data.split and data.eval_limit would select others"),
        ({"fold": 1}, "data.folds, which is not set"),
        ({"folds": 3, "fold": 4}, "at most data.folds, 3"),
        ({"eval": None}, "expected rows that decide"),
        ({"folds": 1}, "at least 2"),
    ],
)
def test_keys_that_contradict_folds_are_explained(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config({"model": "m", "task": "classification", "data": {"train": "t.jsonl", **data}})
    assert message in str(error.value)


def test_folds_and_seeds_exclude_each_other(place: Path) -> None:
    with pytest.raises(ConfigError, match="3 × 2 trainings"):
        load_config(place / "config.yaml", ["train.seeds=2"])
    with pytest.raises(ConfigError, match="in a run of several seeds"):
        fulltune.run_seeds(place / "config.yaml", seeds=2, out=place / "none")
    with pytest.raises(ConfigError, match="in a search"):
        fulltune.sweep(place / "config.yaml", over=["train.epochs=1,2"], out=place / "none")


def test_more_folds_than_groups_are_an_error_before_any_training(place: Path) -> None:
    with pytest.raises(DataError, match=r"12 values of the group column for 20 folds.*Lower data.folds to 12"):
        fulltune.run(place / "config.yaml", out=place / "none", overrides=["data.folds=20"])
    assert not list((place / "none").glob("*/status.json"))


# ---- The division ----


def table(labels: list[str], groups: list[int]) -> Table:
    drawn = random.Random(0)
    texts = [" ".join(drawn.choice("abcdefghijklmnopqrstuvwxyz") * 5 for _ in range(9)) for _ in labels]
    return Table(
        "rows",
        tuple(
            Row(str(number), f"rows:{number}", {"text": text, "label": label, "group": group})
            for number, (text, label, group) in enumerate(zip(texts, labels, groups, strict=True))
        ),
    )


@pytest.mark.parametrize("groups", [None, "group"])
def test_folds_are_stratified_disjoint_and_complete(groups: str | None) -> None:
    labels = ["common"] * 60 + ["rare"] * 12
    found = fold_tables(table(labels, [index // 2 for index in range(72)]), 4, groups=groups, stratify="label")
    assert sorted(row.id for _, fold in found for row in fold) == sorted(map(str, range(72)))
    for rest, fold in found:
        assert not {row.id for row in rest} & {row.id for row in fold}
        assert not groups or not {row.fields["group"] for row in rest} & {row.fields["group"] for row in fold}
        counts = Counter(row.fields["label"] for row in fold)
        assert counts["common"] in range(14, 17)
        assert counts["rare"] in range(2, 5)


def test_a_label_of_a_single_group_is_never_held_out() -> None:
    found = fold_tables(table(["a"] * 9 + ["b"] * 9 + ["once"], list(range(19))), 3, stratify="label")
    assert all(row.fields["label"] != "once" for _, fold in found for row in fold)
    assert all(any(row.fields["label"] == "once" for row in rest) for rest, _ in found)


def test_near_duplicates_are_too_few_for_folds() -> None:
    rows = tuple(Row(str(number), "", {"text": "the same text in all of the rows here"}) for number in range(9))
    with pytest.raises(DataError, match="1 rows without near duplicates for 3 folds"):
        fold_tables(Table("rows", rows), 3)


#: Options with the cheapest baselines only.
FEW = {"skip": ["linear_probe", "tfidf", "few_shot"]}


def test_rows_that_the_other_folds_repeat_are_left_out(place: Path, tmp_path: Path) -> None:
    lines = rows()
    repeated = [{**line, "firm": f"copy of {line['firm']}"} for line in lines[:6]]
    data = {"train": write(tmp_path / "rows.jsonl", [*lines, *repeated])}
    record = fulltune.run(place / "config.yaml", out=tmp_path / "runs", data=data, baselines=FEW, progress=False)
    leaks = record.data.summary.leaks
    assert leaks is not None
    assert 0 < leaks.rows <= 12
    assert record.scores["tuned"][record.metric].n == 42 - leaks.rows


def test_a_fold_whose_rows_all_repeat_training_rows_is_named(place: Path, tmp_path: Path) -> None:
    lines = [{**line, "firm": f"firm {copy}"} for copy in range(12) for line in rows(4)]
    data = {"train": write(tmp_path / "rows.jsonl", lines)}
    with pytest.raises(DataError, match="fold 1: "):
        fulltune.run(place / "config.yaml", out=tmp_path / "runs", data=data)
