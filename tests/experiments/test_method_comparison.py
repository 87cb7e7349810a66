"""Comparing methods on tiny models: fairness, work that is shared, rows with reasons, the recommendation."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import fakes
import pytest
from rich.console import Console
from typer.testing import CliRunner

import fulltune
from fulltune.cli.main import app
from fulltune.cli.render import runs
from fulltune.config import load_config
from fulltune.errors import ConfigError, DataError, FulltuneError, StoreError
from fulltune.experiments.methods import worker
from fulltune.experiments.methods.comparison import compare_methods, grid
from fulltune.experiments.methods.recommend import recommend
from fulltune.experiments.methods.worker import Answer, JobSpec, WorkerDied
from fulltune.metrics import known
from fulltune.records.methods import MethodComparison, MethodResult, SystemResult
from fulltune.records.run import Comparison, Score, read_record
from fulltune.runtime.config_file import to_yaml
from fulltune.store.runs import resolve

WORDS = ("court", "state", "party", "term", "film", "good", "great", "red", "blue", "green", "cat", "dog")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place, drawn = tmp_path_factory.mktemp("job"), random.Random(1)
    for name, rows in (("train", 64), ("eval", 24)):
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
        "data": {"train": str(place / "train.jsonl"), "eval": str(place / "eval.jsonl")},
        "train": {"batch_size": 16, "epochs": 2, "learning_rate": 1e-3, "evaluations": 1},
        "baselines": {"few_shot": 1},
        "evaluation": {"resamples": 100},
        "guards": {"forgetting": {"limit": 4}},
    }


#: The cheapest baselines, for tests of the trainings.
LIGHT = {"baselines": {"skip": ["tfidf", "linear_probe", "few_shot"]}}


class Counting:
    """Run the parts in this process and count them; chosen methods can be made to fail."""

    def __init__(self, crash: str = "", stop_after: int = 99) -> None:
        self.done: list[str] = []
        self.crash, self.stop_after = crash, stop_after

    def __call__(self, spec: JobSpec, path: Path) -> Answer:
        if len(self.done) == self.stop_after:
            raise KeyboardInterrupt
        if spec.methods == (self.crash,) and spec.kind != "prepare":
            raise WorkerDied("its process was killed by signal 9 (often a lack of memory)")
        self.done.append(path.stem)
        return worker.execute_and_write(spec, path)


# ---- The rates ----

#: Usual rates of the methods for a large model.
USUAL = {"full": 3e-5, "lora": 3e-4, "prompt-tuning": 3e-2, "bitfit": 1e-3}


def test_every_method_has_the_same_number_of_rates_around_its_default(job: dict[str, Any]) -> None:
    config = load_config(job, ["train.learning_rate=3e-5"])
    assert grid(config, "full", 1, USUAL) == (3e-5,)
    assert grid(config, "full", 3, USUAL) == pytest.approx((9.49e-6, 3e-5, 9.49e-5))
    assert grid(config, "lora", 3, USUAL) == pytest.approx([10 * rate for rate in grid(config, "full", 3, USUAL)])
    assert grid(config, "prompt-tuning", 1, USUAL) == (3e-2,)
    assert len(grid(config, "bitfit", 4, USUAL)) == 4


def test_a_rate_that_is_high_for_full_is_so_for_lora(job: dict[str, Any]) -> None:
    small = load_config(job, ["train.learning_rate=3e-4"])
    assert grid(small, "lora", 1, USUAL) == (3e-3,)
    assert grid(small, "prompt-tuning", 1, USUAL) == (3e-2,)
    asked = load_config(job, ["method=lora", "train.learning_rate=6e-4"])
    assert (grid(asked, "lora", 1, USUAL), grid(asked, "full", 1, USUAL)) == ((6e-4,), (6e-5,))


def test_without_a_rate_every_method_has_that_of_the_model(job: dict[str, Any]) -> None:
    unset = load_config({**job, "train": {"epochs": 1}})
    assert [grid(unset, name, 1, USUAL) for name in USUAL] == [(rate,) for rate in USUAL.values()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["full", "lorra"]}, "there is no method 'lorra'"),
        ({"methods": ["full", "full"]}, "each once"),
        ({"methods": []}, "each once"),
        ({"rates": 0}, "--rates: 0"),
        ({"seeds": 0}, "--seeds: 0"),
        ({"max_steps": 5, "tokens": 50}, "both --max-steps and --tokens"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(job: dict[str, Any], options: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compare_methods(job, **options)
    assert message in str(caught.value)


# ---- A comparison ----


@pytest.fixture(scope="module")
def compared(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[MethodComparison, Counting, Path]:
    out, runner = tmp_path_factory.mktemp("out"), Counting(crash="lora")
    found = compare_methods(
        job, methods=["full", "bitfit", "lora"], rates=2, seeds=2, out=out, quiet=True, runner=runner
    )
    return found, runner, out


def test_parts_run_in_order_and_a_crash_is_a_row(compared: tuple[MethodComparison, Counting, Path]) -> None:
    found, runner, _ = compared
    assert runner.done == [
        "prepare",
        *("full-search", "full-run-17", "full-run-18"),
        *("bitfit-search", "bitfit-run-17", "bitfit-run-18"),
    ]
    lora = found.methods[2]
    assert (lora.status, lora.score) == ("failed", None)
    assert "often a lack of memory" in lora.reason


def test_all_methods_see_the_same_rows_steps_and_tokens(compared: tuple[MethodComparison, Counting, Path]) -> None:
    found, _, out = compared
    records = [read_record(out / run.run_id / "record.json") for method in found.methods for run in method.runs]
    assert len(records) == 4
    for name in ("train", "valid", "eval"):
        assert len({getattr(record.data, name).sha256 for record in records}) == 1
    assert {record.training.steps for record in records} == {found.steps} == {8}
    assert len({run.tokens for method in found.methods for run in method.runs}) == 1
    with pytest.raises(StoreError, match="there is no run with a record"):  # `latest` is none of these runs
        resolve("latest", out)
    assert {record.training.seed for record in records} == {17, 18}
    assert found.rows == {"train": 58, "eval": 24, "valid": 6}


def test_rates_were_chosen_on_validation_rows(compared: tuple[MethodComparison, Counting, Path]) -> None:
    found, _, _ = compared
    assert found.objective == "macro_f1"
    for method in found.methods[:2]:
        values = {trial.settings["train.learning_rate"]: trial.value for trial in method.rates}
        assert len(values) == 2
        assert values[method.rate] == max(values.values())
        assert method.at_edge


def test_costs_and_scores_are_those_of_the_runs(compared: tuple[MethodComparison, Counting, Path]) -> None:
    found, _, out = compared
    full, bitfit, _ = found.methods
    records = [read_record(out / run.run_id / "record.json") for run in full.runs]
    assert full.score is not None
    values = [record.scores["tuned"]["macro_f1"].value for record in records]
    assert full.score.value == pytest.approx(sum(values) / 2)
    assert full.spread == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert full.trainable == full.total == records[0].parameters.total
    assert bitfit.trainable < full.trainable / 10
    assert 0 < bitfit.optimizer_bytes < full.optimizer_bytes
    assert bitfit.disk_bytes < full.disk_bytes == records[0].resources.model_bytes
    assert full.against is None
    assert bitfit.against is not None
    assert bitfit.against.delta == pytest.approx(bitfit.score.value - full.score.value if bitfit.score else 0)
    assert full.retention.keys() == records[0].retention.keys() != set()
    assert {one.system for one in found.baselines} == {"majority", "tfidf", "linear_probe", "zero_shot", "few_shot"}


def test_baselines_are_computed_once(compared: tuple[MethodComparison, Counting, Path]) -> None:
    _, _, out = compared
    assert len(list((out / "cache").glob("*.jsonl"))) >= 4
    changed = {path.stat().st_mtime_ns for path in (out / "cache").glob("*.jsonl")}
    first_run = min(path.stat().st_mtime_ns for path in out.glob("2*/config.yaml"))
    before = [time for time in changed if time < first_run]
    assert len(before) >= 4


def test_finished_parts_are_not_repeated(
    compared: tuple[MethodComparison, Counting, Path], job: dict[str, Any]
) -> None:
    found, _, out = compared
    again = Counting(crash="lora")
    same = compare_methods(job, methods=["full", "bitfit", "lora"], rates=2, seeds=2, out=out, runner=again)
    assert again.done == []
    assert same.methods == found.methods
    assert same.headline == found.headline


def test_a_removed_run_is_repeated(job: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": ["bitfit"], "rates": 1, "max_steps": 1, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        compare_methods(job | LIGHT, runner=Counting(stop_after=1), **options)
    first = Counting()
    found = compare_methods(job | LIGHT, runner=first, **options)
    assert first.done == ["bitfit-run-17"]
    assert found.reference == "bitfit"
    assert found.steps == 1
    assert found.methods[0].rates == ()
    (tmp_path / found.methods[0].runs[0].run_id / "record.json").unlink()
    second = Counting()
    compare_methods(job | LIGHT, runner=second, **options)
    assert second.done == ["bitfit-run-17"]


def test_an_interrupted_run_resumes_in_its_own_folder(job: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": ["bitfit"], "rates": 1, "max_steps": 2, "out": tmp_path}
    found = compare_methods(job | LIGHT, runner=Counting(), **options)
    run = tmp_path / found.methods[0].runs[0].run_id
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "stopped"}))
    for name in ("record.json", "report.html"):
        (run / name).unlink()
    again = compare_methods(job | LIGHT, runner=Counting(), **options)
    assert again.methods[0].runs[0].run_id == run.name
    assert again.methods[0].score == found.methods[0].score


def test_a_budget_of_tokens_becomes_steps(job: dict[str, Any], tmp_path: Path) -> None:
    found = compare_methods(job | LIGHT, methods=["bitfit"], rates=1, tokens=300, out=tmp_path, runner=Counting())
    assert 1 <= found.steps <= 3
    assert 150 <= found.methods[0].tokens <= 450


def test_a_method_that_does_not_apply_is_a_row_with_its_reason(job: dict[str, Any], tmp_path: Path) -> None:
    fakes.save("llama", tmp_path / "llama")
    tales = {
        "model": str(tmp_path / "llama"),
        "task": "causal-lm",
        "data": {name: job["data"][name] for name in ("train", "eval")},
        "train": {"batch_size": 16, "max_steps": 1, "evaluations": 1},
        "evaluation": {"continuations": 0, "resamples": 100},
        "guards": {"forgetting": None},
        "baselines": {"few_shot": 1},
    }
    found = compare_methods(tales, methods=["full", "bitfit"], rates=2, out=tmp_path / "runs", runner=Counting())
    assert found.methods[1].status == "does not apply"
    assert "no biases" in found.methods[1].reason
    assert "Only full was measured" in found.headline
    assert (found.direction, found.percent) == ("lower", False)
    assert "bitfit" in (tmp_path / "runs" / Path(found.folder).name / "methods.html").read_text()


def test_what_stops_a_run_stops_the_comparison(job: dict[str, Any], tmp_path: Path) -> None:
    broken = job | {"data": {"train": str(tmp_path / "nowhere.jsonl")}}
    with pytest.raises(DataError, match="nowhere"):
        compare_methods(broken, methods=["full"], out=tmp_path / "runs", runner=Counting())
    with pytest.raises(FulltuneError, match="bert"):
        compare_methods(job | {"model": str(tmp_path / "bert")}, methods=["full"], out=tmp_path, runner=Counting())


def test_nothing_applies(job: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="full: its process was killed"):
        compare_methods(job, methods=["full"], rates=1, out=tmp_path, runner=Counting(crash="full"))


def test_adapter_keys_go_to_the_methods_that_read_them(job: dict[str, Any]) -> None:
    config = load_config(job | {"adapter": {"rank": 4, "prompt_tokens": 3}})
    assert worker.of_method(config, "full").adapter == load_config(job).adapter
    assert (worker.of_method(config, "lora").adapter.rank, worker.of_method(config, "lora").adapter.prompt_tokens) == (
        4,
        20,
    )
    assert worker.of_method(config, "prompt-tuning").adapter.prompt_tokens == 3


def test_a_part_runs_in_a_process_of_its_own(job: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(job).model_dump(mode="json")
    spec = JobSpec(kind="run", config=config, methods=("nothing",), rates=(1e-3,), out="runs", folder="f", quiet=True)
    path = tmp_path / "spec.json"
    path.write_text(spec.to_json(), encoding="utf-8")
    answer = worker.execute_in_worker(spec, path)
    assert answer.refused is not None
    error = answer.refused.error()
    assert isinstance(error, ConfigError)
    assert "there is no method 'nothing'" in str(error)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(WorkerDied, match="ended with exit code 1"):
        worker.execute_in_worker(spec, path)


def test_the_command_and_the_terminal(
    compared: tuple[MethodComparison, Counting, Path],
    job: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    found, asked = compared[0], dict[str, Any]()
    config = tmp_path / "job.yaml"
    config.write_text(to_yaml(job), encoding="utf-8")
    monkeypatch.setitem(vars(fulltune), "compare_methods", lambda config, **options: asked.update(options) or found)
    words = [
        "methods",
        str(config),
        "--methods",
        "full, bitfit",
        "--seeds",
        "3",
        "--tokens",
        "900",
        "--out",
        str(tmp_path),
    ]
    done = CliRunner().invoke(app, [*words, "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    assert MethodComparison.model_validate_json(done.stdout).headline == found.headline
    assert asked["methods"] == ["full", "bitfit"]
    assert (asked["rates"], asked["seeds"], asked["tokens"], asked["max_steps"]) == (3, 3, 900, None)
    console = Console(width=240)
    with console.capture() as captured:
        console.print(runs.methods(found))
    assert found.headline in captured.get()
    assert "lora failed: its process was killed" in captured.get()


# ---- The recommendation ----

F1, BITS = known(("no", "yes"))["macro_f1"], known()["bits_per_byte"]


def method(
    name: str, value: float, memory: int, against: tuple[float, float, float, str] | None = None
) -> MethodResult:
    compared = None
    if against:
        delta, low, high, verdict = against
        compared = Comparison(metric="m", delta=delta, low=low, high=high, p=0.01, verdict=verdict)  # type: ignore[arg-type]
    return MethodResult(
        method=name,
        status="measured",
        memory_bytes=memory,
        seconds=memory / 10,
        score=Score(value=value, low=value - 0.02, high=value + 0.02, n=400),
        against=compared,
    )


def test_full_is_recommended_with_its_cost() -> None:
    methods = [
        method("full", 0.9, 3400),
        method("lora", 0.879, 1000, (-0.021, -0.033, -0.009, "worse")),
        method("prompt-tuning", 0.5, 900, (-0.4, -0.5, -0.3, "worse")),
    ]
    choice = recommend(methods, [], "full", F1)
    assert choice.method == "full"
    expected = (
        "full is better than lora, the next best, by 2.1 points (0.9 to 3.3) at 3.4× the memory and 3.4× the time."
    )
    assert choice.headline == expected
    assert any("2 methods are compared" in note for note in choice.notes)


def test_lora_wins_honestly_where_lower_is_better() -> None:
    methods = [method("full", 1.2, 2000), method("lora", 1.1, 1000, (-0.1, -0.15, -0.05, "improved"))]
    choice = recommend(methods, [], "full", BITS)
    assert choice.method == "lora"
    assert choice.headline.startswith("lora is better than full by 0.100 (0.050 to 0.150) at 0.5× the memory")


def test_without_a_detectable_difference_the_cheaper_method_is_recommended_with_the_risk() -> None:
    methods = [method("full", 0.9, 2000), method("lora", 0.89, 1000, (-0.01, -0.03, 0.01, "no detectable change"))]
    choice = recommend(methods, [], "full", F1)
    assert choice.method == "lora"
    assert "No difference between lora and full was detected: −1.0 points (−3.0 to +1.0) at " in choice.headline
    assert "up to 3.0 points that full may be better by" in choice.headline


def test_a_usually_cheaper_method_that_costs_more_is_not_recommended() -> None:
    methods = [method("full", 0.9, 1000), method("lora", 0.91, 990, (0.01, -0.01, 0.03, "no detectable change"))]
    assert recommend(methods, [], "full", F1).method == "full"


def test_a_method_that_learned_nothing_is_not_recommended_for_being_cheap(
    compared: tuple[MethodComparison, Counting, Path],
) -> None:
    run = compared[0].methods[0].runs[0].model_copy(update={"base_kept": True})
    lora = method("lora", 0.89, 1000, (-0.01, -0.03, 0.01, "no detectable change"))
    choice = recommend([method("full", 0.9, 2000), lora.model_copy(update={"runs": (run,)})], [], "full", F1)
    assert choice.method == "full"
    assert "lora never beat its base: take full." in choice.headline


def test_a_baseline_that_scores_higher_is_named() -> None:
    baseline = SystemResult(system="few_shot", score=Score(value=0.95, low=0.9, high=1.0, n=400), against=None)
    choice = recommend([method("full", 0.9, 1000)], [baseline], "full", F1)
    assert choice.headline.endswith("But few-shot, which trains nothing here, scores higher: 0.950.")


def test_without_a_reference_nothing_is_recommended() -> None:
    choice = recommend([MethodResult(method="full", status="failed", reason="x")], [], "full", F1)
    assert choice.method is None
    assert "Nothing can be recommended" in choice.headline
