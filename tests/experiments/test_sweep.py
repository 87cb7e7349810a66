"""Searches on tiny models: search spaces, the journal, resuming, the best config, and its expected gain."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fakes
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.cli.render import runs
from fulltune.config import load_config
from fulltune.errors import ConfigError, StoreError
from fulltune.experiments.search import Choice, Range, Tried, best
from fulltune.experiments.sweep import parse_space, sweep
from fulltune.experiments.trials import Bench, Trial
from fulltune.metrics import known
from fulltune.metrics.compare import PairedRows
from fulltune.metrics.selection import gain_of_choosing
from fulltune.records.sweep import Sweep
from fulltune.runtime.progress import NullProgress
from fulltune.store.jobs import job_folder, locked
from fulltune.tasks import dataset

WORDS = ("court", "state", "party", "term", "film", "good", "great", "red", "blue", "green", "cat", "dog")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Write clauses whose words reveal the label and a tiny BERT, and return the config."""
    place, drawn = tmp_path_factory.mktemp("job"), random.Random(1)
    for name, rows in (("train", 72), ("eval", 16)):
        lines = []
        for index in range(rows):
            own = WORDS[:6] if index % 2 else WORDS[6:]
            text = " ".join(drawn.choice(own) for _ in range(6))
            lines.append({"text": f"{text} {name} {index}", "label": ("no", "yes")[index % 2]})
        (place / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    fakes.save("bert", place / "bert")
    return {
        "model": str(place / "bert"),
        "task": "classification",
        "data": {"train": str(place / "train.jsonl"), "eval": str(place / "eval.jsonl"), "valid": 0.25},
        "train": {"batch_size": 16, "epochs": 2, "learning_rate": 1e-3, "evaluations": 2},
        "evaluation": {"resamples": 200},
    }


# ---- Spaces ----


def space_of(job: dict[str, Any], *over: str) -> dict[str, Any]:
    return dict(parse_space(load_config(job), over))


@pytest.mark.parametrize(
    ("over", "part"),
    [
        ("train.learning_rate=1e-5..1e-3:log", Range(1e-5, 1e-3, log=True)),
        ("train.epochs=2..8", Range(2.0, 8.0)),
        ("train.batch_size=4..32", Range(4, 32)),
        ("train.batch_size=4, 8,4", Choice((4, 8))),
        ("train.scheduler=linear,cosine", Choice(("linear", "cosine"))),
        ("regularize.dropout=0.1,null", Choice((0.1, None))),
        ("trainer.adam_beta2=0.95,0.999", Choice((0.95, 0.999))),
        ("train.gradient_checkpointing=true,false", Choice((True, False))),
    ],
)
def test_a_key_and_its_values_are_read(job: dict[str, Any], over: str, part: Any) -> None:
    ((field, found),) = space_of(job, over).items()
    assert field == over.partition("=")[0]
    assert found == part
    assert [type(value) for value in vars(found).values()] == [type(value) for value in vars(part).values()]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("train.learning_rte=1e-5..1e-3", "did you mean 'learning_rate'"),
        ("train.learning_rate=1e-3..1e-5", "the lower one first"),
        ("train.learning_rate=0..1e-3:log", "a low end above 0"),
        ("train.learning_rate=-1,1e-3", "more than 0"),
        ("train.scheduler=linear,cosin", "'linear', 'cosine'"),
        ("trainer.adam_beta=0.9,0.99", "no field of TrainingArguments"),
        ("train.seed=1,2", "several seeds separate luck from skill"),
        ("data.eval=0.1,0.2", "how a trial is judged"),
        ("guards.overfitting.metric=accuracy", "how a trial is judged"),
        ("evaluation.batch_size=8,16", "how a trial is judged"),
        ("train.epochs", "field=LOW..HIGH"),
        ("method=full,fuller", "did you mean 'full'"),
    ],
)
def test_invalid_spaces_are_reported(job: dict[str, Any], over: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(job, over)
    assert message.lower() in str(caught.value).lower()


def test_all_problems_are_reported_before_the_first_trial(job: dict[str, Any], tmp_path: Path) -> None:
    over = ["train.epocs=1,2", "train.seed=1,2", "train.batch_size=8,0", "train.epochs=1,2", "train.epochs=3,4"]
    with pytest.raises(ConfigError, match="4 problems") as caught:
        sweep(job, over=over, out=tmp_path / "runs")
    assert "named twice" in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_an_empty_space_and_no_trials_are_refused(job: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to search over"):
        sweep(job, over=[], out=tmp_path)
    with pytest.raises(ConfigError, match="expected at least 1"):
        sweep(job, over=["train.epochs=1,2"], trials=0, out=tmp_path)


# ---- A search with an instant objective ----


class Formula(Bench):
    """Run trials whose value is a function of the learning rate; interrupted after ``dies`` trials."""

    def __init__(self, dies: int = 999) -> None:
        super().__init__("runs", NullProgress())
        self.trained: list[float] = []
        self.dies = dies

    def train(self, config: Any, name: str, report: Any = None) -> Trial:
        rate = config.train.learning_rate
        if len(self.trained) == self.dies:
            raise KeyboardInterrupt
        self.trained.append(rate)
        value = 1 - abs(math.log10(rate) + 3) / 4
        early = any(report(number, value * number / 4) for number in range(1, 5))
        return Trial(value, 4, 1.0, 100, ended_early=early)


def searched(job: dict[str, Any], folder: Path, bench: Bench, trials: int, **options: Any) -> list[Tried]:
    from fulltune.experiments.search import search

    space = {"train.learning_rate": Range(1e-6, 1e-1, log=True)}
    return search(load_config(job), space, folder, bench, trials=trials, **options)


def test_a_killed_search_resumes_to_the_same_result(job: dict[str, Any], tmp_path: Path) -> None:
    whole = searched(job, tmp_path / "a", Formula(), 9)
    cut = Formula(dies=6)
    with pytest.raises(KeyboardInterrupt):
        searched(job, tmp_path / "b", cut, 9)
    rest = Formula()
    resumed = searched(job, tmp_path / "b", rest, 9)
    assert (len(cut.trained), len(rest.trained)) == (6, 3)
    assert resumed == whole
    assert searched(job, tmp_path / "b", Formula(dies=0), 9) == whole
    assert len(searched(job, tmp_path / "b", Formula(), 11)) == 11


def test_a_search_approaches_the_optimum(job: dict[str, Any], tmp_path: Path) -> None:
    found = best(searched(job, tmp_path, Formula(), 25), "higher")
    assert found is not None
    assert 1e-4 < float(str(found.settings["train.learning_rate"])) < 1e-2
    assert found.state == "whole"


def test_other_seeds_search_elsewhere(job: dict[str, Any], tmp_path: Path) -> None:
    one, two = (searched(job, tmp_path / str(seed), Formula(), 3, seed=seed) for seed in (1, 2))
    assert [trial.settings for trial in one] != [trial.settings for trial in two]


def test_trials_that_fall_behind_are_pruned_on_request(job: dict[str, Any], tmp_path: Path) -> None:
    states = [trial.state for trial in searched(job, tmp_path / "a", Formula(), 20, prune=True)]
    assert states[:4] == ["whole"] * 4
    assert "pruned" in states
    assert {trial.state for trial in searched(job, tmp_path / "b", Formula(), 20)} == {"whole"}


def test_a_finite_space_is_searched_once(job: dict[str, Any], tmp_path: Path) -> None:
    from fulltune.experiments.search import search

    bench, rates = Formula(), (1e-4, 1e-3, 1e-2)
    space = {"train.learning_rate": Choice(rates), "train.epochs": Choice((1, 2))}
    first = [{"train.learning_rate": 1e-3, "train.epochs": 2}]
    tried = search(load_config(job), space, tmp_path, bench, trials=50, first=first)
    assert tried[0].settings == first[0]
    assert len(tried) == len({json.dumps(trial.settings) for trial in tried}) == 6


def test_two_searches_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(StoreError, match="another process"), locked(tmp_path):
        pass


def test_a_damaged_journal_is_reported(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "journal.log").write_text("no json\nat all\n", encoding="utf-8")
    with pytest.raises(StoreError, match="journal of the search cannot be read"):
        searched(job, tmp_path, Formula(), 1)


def test_a_folder_belongs_to_its_config_data_and_arguments(job: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(job)
    names = {
        job_folder(tmp_path, "sweep", config, {"seed": 1}).name,
        job_folder(tmp_path, "sweep", config, {"seed": 2}).name,
        job_folder(tmp_path, "sweep", load_config(job, ["train.epochs=9"]), {"seed": 1}).name,
    }
    assert len(names) == 3
    assert all(name.startswith("sweep-classification-bert-") for name in names)
    assert job_folder(tmp_path, "sweep", load_config(job), {"seed": 1}).name in names


# ---- The expected gain of the chosen config ----

ACCURACY = known(("no", "yes"))["accuracy"]


def table(hits: np.ndarray) -> Any:
    from fulltune.metrics.accumulate import Accumulator
    from fulltune.records.run import Prediction

    found = Accumulator((ACCURACY,))
    for row, hit in enumerate(hits):
        answer = "yes" if hit else "no"
        found.add(Prediction(system="t", id=str(row), input="", reference="yes", output=answer))
    return found.rows("accuracy")


def test_the_best_of_equal_trials_gains_nothing_on_rows_that_did_not_choose() -> None:
    draw = np.random.default_rng(0)
    seen = []
    judged = []
    claims = 0
    for _ in range(40):
        tables = [table(draw.random(40) < 0.7) for _ in range(10)]
        shares = [float(ACCURACY.value(rows.units.sum(axis=0))) for rows in tables]
        seen.append(max(shares) - shares[0])
        gain = gain_of_choosing(tables, 0, int(np.argmax(shares)), ACCURACY, resamples=100)
        judged.append(gain.value)
        claims += gain.verdict == "improved"
    assert np.mean(seen) > 0.07
    assert claims <= 3  # each with a probability of 2.5%, although the best of ten was chosen
    # In a sample the chosen trial keeps some of its luck; what remains is well below half of what is seen.
    assert np.mean(judged) < np.mean(seen) / 2


def test_a_true_gain_is_reported() -> None:
    draw = np.random.default_rng(1)
    tables = [table(draw.random(200) < share) for share in (0.5, 0.9, 0.6)]
    gain = gain_of_choosing(tables, 0, 1, ACCURACY)
    assert gain.low > 0.2
    assert gain.low < gain.value < gain.high < 0.6
    assert (gain.verdict, gain.p < 1e-6) == ("improved", True)
    paired = PairedRows(ACCURACY, tables[1], tables[0]).comparison(1 - 0.05 / 2)
    assert (gain.low, gain.high) == (paired.low, paired.high)  # at the level of one of two rivals
    assert gain_of_choosing(tables, 0, 1, ACCURACY, min_effect=0.9).verdict == "no detectable change"


def test_one_row_decides_nothing() -> None:
    found = gain_of_choosing([table(np.ones(1))], 0, 0, ACCURACY)
    assert math.isnan(found.value)
    assert found.verdict == "too few rows"


# ---- Real trials ----


@pytest.fixture(scope="module")
def swept(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    out = tmp_path_factory.mktemp("out")
    return sweep(job, over=["train.learning_rate=1e-6,1e-3,1e-2", "train.epochs=2,3"], trials=4, out=out)


def test_the_config_as_it_is_comes_first(swept: Sweep) -> None:
    assert swept.default == 0
    assert swept.trials[0].settings == {"train.learning_rate": 1e-3, "train.epochs": 2.0}
    assert len(swept.trials) == 4
    assert {trial.state for trial in swept.trials} == {"whole"}
    assert swept.rows == 18
    assert (swept.objective, swept.direction) == ("macro_f1", "higher")


def test_the_best_config_is_ready_to_run(swept: Sweep, job: dict[str, Any]) -> None:
    chosen = swept.trials[swept.best or 0]
    assert chosen.value == max(trial.value for trial in swept.trials)
    config = load_config(Path(swept.config))
    assert config.train.learning_rate == chosen.settings["train.learning_rate"]
    assert config.train.epochs == chosen.settings["train.epochs"]
    assert config.data.valid == 0.25
    assert config.guards == load_config(job).guards


def test_the_answer_is_cautious(swept: Sweep) -> None:
    assert "18 validation rows" in swept.caution
    assert swept.gain is not None
    assert swept.gain.seen >= 0
    assert json.loads((Path(swept.folder) / "sweep.json").read_text())["best"] == swept.best
    console = Console(width=200)
    with console.capture() as captured:
        console.print(runs.sweep(swept))
    text = captured.get()
    assert swept.headline in text
    assert "1e-06" in text
    assert "best.yaml" in text


def test_a_trial_never_reads_the_rows_that_decide(job: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(tmp_path, NullProgress())
    config = load_config(job)
    seen = bench.train(config, "a").answers
    again = bench.train(config, "b")
    assert seen is not None
    assert again.answers is not None
    assert again.answers.ids == seen.ids
    assert all("train.jsonl" in row for row in seen.ids)
    assert len(seen.ids) == 18
    assert list(tmp_path.iterdir()) == []


def test_a_loss_is_the_objective_where_no_metric_chooses(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Mock(wraps=dataset.prepare)
    monkeypatch.setattr(dataset, "prepare", reading)
    fakes.save("gpt2", tmp_path / "gpt2")
    tales = {
        "model": str(tmp_path / "gpt2"),
        "task": "causal-lm",
        "data": {name: job["data"][name] for name in ("train", "eval")},
        "train": {"batch_size": 16, "max_steps": 2, "evaluations": 1},
    }
    found = sweep(tales, over=["train.learning_rate=1e-9..1e-3:log"], trials=2, out=tmp_path / "runs")
    assert reading.call_count == 1
    assert (found.objective, found.direction, found.default) == ("eval_loss", "lower", 0)
    assert found.gain is not None
    assert math.isnan(found.gain.value)
    assert found.best == 1 or "cannot be estimated" not in found.caution
    assert "run" in found.caution
    best_one = load_config(Path(found.config))
    assert (best_one.data.valid, best_one.data.seed) == (0.1, 17)


def test_a_failed_trial_is_reported(job: dict[str, Any], tmp_path: Path) -> None:
    over = ["train.learning_rate=1e-3,1e9"]
    found = sweep(job | {"guards": {"divergence": None}}, over=over, trials=2, out=tmp_path)
    assert [trial.state for trial in found.trials] == ["whole", "broke"]
    assert "not" in found.trials[1].reason or "became" in found.trials[1].reason
    assert found.best == 0
    assert found.headline.startswith("Nothing beat the config as it is")


def test_the_command_searches_and_prints(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    words = ["sweep", str(tmp_path / "job.json"), "--over", "train.epochs=1,2", "--trials", "1", "--quiet"]
    done = CliRunner().invoke(app, [*words, "--json", "--out", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["trials"]) == 1
    wrong = CliRunner().invoke(app, [*words[:3], "train.epocs=1,2", "--out", str(tmp_path / "other")])
    assert wrong.exit_code == 1
    assert "Did you mean 'epochs'" in wrong.stderr


def test_sweep_is_exported() -> None:
    assert fulltune.sweep is sweep
