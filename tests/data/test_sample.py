"""A limit of rows draws a fair sample: seeded, each label at its rate, whole groups, and recorded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fulltune.config import Config, DataConfig
from fulltune.data.load import Row, Table
from fulltune.data.sample import sampled
from fulltune.evaluation.retention import abilities
from fulltune.evaluation.retention_sets import config_of_set
from fulltune.tasks.classification import Classification
from fulltune.tasks.dataset import prepare


def table(count: int, **fields: Callable[[int], Any]) -> Table:
    fields = {"text": lambda n: f"text {n}", **fields}
    rows = [Row(f"f:{n}", f"f:{n}", {name: value(n) for name, value in fields.items()}) for n in range(count)]
    return Table("f", tuple(rows))


def numbers(rows: Table) -> list[int]:
    return [int(row.id.partition(":")[2]) for row in rows]


def test_the_first_rows_are_no_sample() -> None:
    every = table(1000)
    drawn = sampled(every, 100)
    assert (len(drawn), drawn.drawn_from, drawn.info.drawn_from) == (100, 1000, 1000)
    assert numbers(drawn) == sorted(numbers(drawn))
    assert 40 < sum(number < 500 for number in numbers(drawn)) < 60
    assert sampled(every, 100) == drawn
    assert len({*numbers(drawn), *numbers(sampled(every, 100, seed=1))}) > 180


@pytest.mark.parametrize("limit", [None, 1000, 2000])
def test_a_limit_that_allows_all_rows_changes_nothing(limit: int | None) -> None:
    every = table(1000)
    assert sampled(every, limit) is every
    assert every.info.drawn_from == 0


def test_the_order_of_the_rows_does_not_matter() -> None:
    every = table(300)
    turned = replace(every, rows=every.rows[::-1])
    assert set(numbers(sampled(every, 30))) == set(numbers(sampled(turned, 30)))


def test_each_label_and_folder_is_drawn_at_its_rate() -> None:
    drawn = sampled(table(1000, label=lambda n: "rare" if n < 50 else "common"), 200)
    assert Counter(row.fields["label"] for row in drawn) == {"rare": 10, "common": 190}
    several = sampled(table(100, labels=lambda n: ["a", "b"] if n < 20 else []), 10)
    assert sum(row.fields["labels"] == ["a", "b"] for row in several) == 2
    folders = table(100)
    folders = replace(folders, rows=tuple(replace(row, folder="ab"[n < 30]) for n, row in enumerate(folders)))
    assert Counter(row.folder for row in sampled(folders, 10)) == {"b": 3, "a": 7}


@pytest.mark.parametrize("limit", range(1, 60, 7))
def test_whole_groups_are_drawn(limit: int) -> None:
    every = table(60, group=lambda n: str(n % 13))
    drawn = sampled(every, limit)
    sizes = Counter(row.fields["group"] for row in every)
    assert all(sizes[group] == count for group, count in Counter(row.fields["group"] for row in drawn).items())
    assert len(drawn) <= max(limit, min(sizes.values()))
    assert len(drawn) > min(limit, 60) - 5


def write(path: Path, count: int) -> str:
    rows = [{"text": f"{path.stem} {n}", "label": "ab"[n % 2], "firm": f"{n // 4}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("source", ["named", "marked", "held out"])
def test_every_split_is_limited_in_the_same_way(source: str, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", 200)
    more: dict[str, Any] = {"eval": write(tmp_path / "eval.jsonl", 100)}
    if source == "held out":
        more = {"eval": 0.5, "limit": None}
    if source == "marked":
        parts = [{"text": f"all {n}", "label": "ab"[n % 2], "firm": f"{n // 4}", "s": "test"} for n in range(100)]
        path = tmp_path / "all.jsonl"
        path.write_text((tmp_path / "train.jsonl").read_text().replace("}", ', "s": "train"}'))
        with path.open("a") as file:
            file.writelines(json.dumps(part) + "\n" for part in parts)
        train, more = str(path), {"split": "s"}
    data = {"train": train, "group": "firm", "limit": 40, "eval_limit": 20, **more}

    def ids(train_seed: int, **changes: Any) -> tuple[list[str], list[str]]:
        settings = {"train": {"seed": train_seed}, "data": data | {"seed": 3} | changes}
        config = Config(model="m", task="classification", **settings)
        splits = prepare(config, Classification(config))[1]
        assert splits.eval.table.info.drawn_from == 100
        return [one.id for one in splits.train.examples], [one.id for one in splits.eval.examples]

    trained, scored = ids(1)
    assert (len(trained), len(scored)) == (100 if source == "held out" else 40, 20)
    assert len({int(one.split(":")[-1]) // 40 for one in scored}) > 2  # of the whole file
    assert ids(2) == (trained, scored)
    assert ids(1, seed=4)[1] != scored


def test_a_set_of_the_retention_is_limited_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"good": f"good {n}", "bad": f"bad {n}"} for n in range(50)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"task": "minimal-pairs", "data": {"eval": str(path)}}
    forgetting = {"limit": 10, "sets": {"pairs": options}}
    config = Config(model="m", task="classification", data=DataConfig(train="t"), guards={"forgetting": forgetting})
    scored = list[tuple[str, str, str]]()
    monkeypatch.setattr(abilities.likelihoods, "pairs", lambda bundle, rows, size: scored.extend(rows))

    class Base:
        family, has_lm_head = "decoder", True

    ability = abilities._minimal_pairs("pairs", config_of_set(options, config), Base())  # type: ignore[arg-type]
    assert ability.rows == 10
    ability.outputs(Base())  # type: ignore[attr-defined]
    assert max(int(good.split()[1]) for _, good, _ in scored) > 20
