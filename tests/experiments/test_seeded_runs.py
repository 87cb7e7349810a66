"""Several seeds of one config: the mean over rows and seeds, the spread, resuming."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import fakes
import pytest
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.errors import ConfigError
from fulltune.experiments import seeded_runs
from fulltune.experiments.seeded_runs import run_seeds
from fulltune.metrics.decide import Decision
from fulltune.records.run import GuardEvent, read_record
from fulltune.runtime.config_file import to_yaml

WORDS = ("court", "state", "party", "good", "great", "red", "blue", "green")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a config; a fraction of its rows is held out."""
    place, drawn = tmp_path_factory.mktemp("seeds"), random.Random(1)
    lines = [
        {"text": f"{' '.join(drawn.choice(WORDS[index % 2 :: 2]) for _ in range(6))} {index}", "label": "ab"[index % 2]}
        for index in range(60)
    ]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    fakes.save("bert", place / "bert")
    config: dict[str, Any] = {
        "model": str(place / "bert"),
        "task": "classification",
        "data": {"train": str(place / "rows.jsonl"), "eval": 0.3},
        "train": {"batch_size": 16, "max_steps": 2, "evaluations": 0},
        "baselines": {"few_shot": 1},
        "evaluation": {"resamples": 100},
        "guards": {"forgetting": None},
    }
    (place / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return place


@pytest.mark.filterwarnings("ignore")
def test_seeds_share_rows_and_are_judged_together(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = place / "runs"
    words = ["run", str(place / "config.yaml"), "--seeds", "3", "--out", str(runs), "--json"]
    first = CliRunner().invoke(app, words)
    found = json.loads(first.stdout)
    assert first.exit_code == (3 if found["outcome"] in ("rejected", "stopped") else 0), first.output
    assert [run["seed"] for run in found["runs"]] == [17, 18, 19]
    records = [read_record(runs / run["run_id"]) for run in found["runs"]]
    assert len({record.data.eval.sha256 for record in records}) == 1
    assert [record.training.seed for record in records] == [17, 18, 19]
    mean = sum(run["value"] for run in found["runs"]) / 3
    assert found["scores"]["tuned"]["value"] == pytest.approx(mean)
    assert found["comparison"]["tuned vs majority"]["test"] == "t test of rows and seeds"
    assert "3 seeds (" in found["headline"]
    assert "apart (standard deviation)" in found["headline"]
    folder = Path(found["folder"])
    assert json.loads((folder / "seeds.json").read_text())["runs"] == found["runs"]

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a finished run is repeated")

    monkeypatch.setattr(seeded_runs, "run", never)
    again = CliRunner().invoke(app, words[:-1])
    assert again.exit_code == first.exit_code
    assert "seed 18" in again.stdout
    assert found["runs"][1]["run_id"] in again.stdout.replace("\n", "")


def test_a_training_that_failed_is_no_accepted_one(place: Path, tmp_path: Path) -> None:
    record = fulltune.run(place / "config.yaml", out=tmp_path)
    accepted = Decision("accepted", (), "Tuning improved accuracy.")
    good = record.model_copy(update={"guards": (), "retention": {}, "outcome": "accepted"})
    assert seeded_runs._together(accepted, [good, good]) == accepted
    stopped = good.model_copy(update={"outcome": "stopped", "reasons": ("the loss rose",)})
    assert seeded_runs._together(accepted, [good, stopped]).outcome == "stopped"
    event = GuardEvent(guard="overfitting", step=0, verdict="continue", message="the base is best")
    kept = good.model_copy(update={"guards": (event,)})
    some, every = (seeded_runs._together(accepted, records) for records in ([good, kept], [kept, kept]))
    assert (some.outcome, every.outcome) == ("undecided", "rejected")
    assert some.headline.startswith("1 of 2 runs kept the base.")


@pytest.mark.parametrize("words", [("--seeds", "2", "--resume", "latest"), ("--seeds", "0")], ids=["resume", "none"])
def test_wrong_numbers_are_explained(place: Path, words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["run", str(place / "config.yaml"), *words, "--out", str(place / "runs")])
    assert result.exit_code in (1, 2)
    assert "resumes" in result.output or "expected 1 to 1000" in result.output


@pytest.mark.filterwarnings("ignore")
def test_the_config_asks_for_seeds_and_the_option_overrides_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def recorded(config: Any, **options: Any) -> Any:
        asked.append(config.train.seed)
        assert config.train.seeds == 1
        raise ConfigError("enough")

    monkeypatch.setattr(seeded_runs, "run", recorded)
    words = ["run", str(place / "config.yaml"), "--set", "train.seeds=2", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 1
    with pytest.raises(ConfigError, match="enough"):
        run_seeds(place / "config.yaml", out=tmp_path, train={"seeds": 2})
    assert asked == [17, 17]
    [folder] = tmp_path.glob("seeds-*")  # the option and the key name the same job
    with pytest.raises(ConfigError, match="enough"):
        run_seeds(place / "config.yaml", seeds=2, out=tmp_path, train={"seeds": 5})
    assert [*tmp_path.glob("seeds-*")] == [folder]
    monkeypatch.undo()
    record = CliRunner().invoke(app, [*words, "--seeds", "1", "--json"])
    assert json.loads(record.stdout)["training"]["seed"] == 17, record.output


def test_one_run_refuses_several_seeds(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fulltune\.run_seeds"):
        fulltune.run(place / "config.yaml", out=tmp_path, train={"seeds": 3})


@pytest.mark.filterwarnings("ignore")
def test_the_plan_is_that_of_all_seeds(place: Path, tmp_path: Path) -> None:
    one = fulltune.plan(place / "config.yaml", out=tmp_path, quick=True)
    many = fulltune.plan(place / "config.yaml", out=tmp_path, train={"seeds": 4})
    assert (one.trainings, many.trainings) == (1, 4)
    assert many.total_seconds is not None
    shown = CliRunner().invoke(app, ["plan", str(place / "config.yaml"), "--quick", "--set", "train.seeds=4"])
    assert "4, which differ in their seed" in shown.output


@pytest.mark.parametrize("seeds", [0, 1001, 99_999_999_999])
def test_the_number_of_seeds_is_limited(place: Path, seeds: int) -> None:
    with pytest.raises(ConfigError, match=f"{seeds} seeds; expected 1 to 1000"):
        run_seeds(place / "config.yaml", seeds=seeds)
