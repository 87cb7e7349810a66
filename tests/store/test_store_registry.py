"""The registry: versions that never change, aliases that move atomically, and files that are verified."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report import samples
from typer.testing import CliRunner

from fulltune.cli.main import app
from fulltune.cli.render.registry import after_run
from fulltune.errors import PromotionRefused, StoreError
from fulltune.metrics import get
from fulltune.records.run import MetricInfo, ModelInfo, Prediction, Retention
from fulltune.store.registry import database
from fulltune.store.registry.gc import collect
from fulltune.store.registry.overview import listing, story, verify
from fulltune.store.registry.promotion import promote, rollback
from fulltune.store.registry.register import model_name, register_derived, register_run
from fulltune.store.registry.registry import Lineage, Registry, Version, reference
from fulltune.store.runs import RunFolder

WEIGHTS = b"\x00" * (1 << 20)
ROWS = 200


def add(
    registry: Registry,
    name: str = "causal-lm-tiny",
    *,
    content: bytes = b"1",
    outcome: str = "accepted",
    **lineage: Any,
) -> Version:
    """Add a version with two files, one of them large enough to be linked."""
    place = registry.root.parent / f"made-{content.hex()[:12]}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_bytes(b"{}")
    (place / "model.safetensors").write_bytes(WEIGHTS + content)
    base = ModelInfo(source="tiny", sha256="b" * 64, family="decoder", architecture="Tiny")
    facts = {"source": f"run-{content!r}", "task": "causal-lm", "method": "full", "base": base}
    facts |= {"train_sha256": "t", "eval_sha256": "e", "config_sha256": "c", "fulltune": "0", **lineage}
    files = {f"model/{path.name}": path for path in place.iterdir()}
    return registry.add(name, files, sha256=content.hex(), outcome=outcome, lineage=Lineage.model_validate(facts))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "runs")


def test_versions_count_up_and_the_same_again_is_the_same(registry: Registry) -> None:
    one, two = add(registry, content=b"1"), add(registry, content=b"2")
    assert (one.ref, two.ref) == ("causal-lm-tiny@1", "causal-lm-tiny@2")
    assert add(registry, content=b"1") == one
    assert [version.ref for version in registry.versions()] == [one.ref, two.ref]
    assert registry.with_sha256(b"2".hex()) == two
    assert registry.with_sha256("nothing") is None


def test_a_version_is_a_folder_with_the_same_bytes(registry: Registry) -> None:
    version = add(registry)
    folder = registry.checkout(version)
    assert (folder / "model" / "model.safetensors").read_bytes() == WEIGHTS + b"1"
    assert {path.name for path in (folder / "model").iterdir()} == {"config.json", "model.safetensors"}


def test_equal_files_are_stored_once_and_weights_are_linked(registry: Registry) -> None:
    add(registry, content=b"1"), add(registry, content=b"2")
    objects = [path for path in registry.objects.root.rglob("*") if path.is_file()]
    assert len(objects) == 3  # one config, two weights
    weights = [path.stat() for path in objects if path.stat().st_size > 100]
    assert [found.st_nlink for found in weights] == [3, 3]  # the object, the version's folder, its source
    assert all(found.st_mode & 0o222 == 0 for found in weights)


def test_overwriting_the_source_is_detected_or_harmless(registry: Registry, tmp_path: Path) -> None:
    version = add(registry)
    made = tmp_path / "runs" / "made-31"
    (made / "config.json").write_bytes(b"[]")
    assert verify(registry).files == 2
    os.chmod(made / "model.safetensors", 0o644)
    with (made / "model.safetensors").open("r+b") as file:
        file.write(b"\x01")
    with pytest.raises(StoreError, match=r"causal-lm-tiny@1/model/model.safetensors is damaged"):
        registry.checkout(version)


@pytest.mark.parametrize(
    "ref", ["causal-lm-tiny@2", "causal-lm-tiny@production", "causal-lm-tiny", "causal-lm-tiny@latest"]
)
def test_references(registry: Registry, ref: str) -> None:
    add(registry, content=b"1")
    two = add(registry, content=b"2")
    registry.move(two, "production", expected=None, action="promote", reason="it is good")
    assert registry.version(ref) == two
    assert reference(ref, registry.root.parent) == two


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("causal-lm-tin@1", "Did you mean 'causal-lm-tiny'"),
        ("causal-lm-tiny@7", "expected causal-lm-tiny@1"),
        ("causal-lm-tiny@prod", "causal-lm-tiny has no alias 'prod'"),
        ("causal-lm-tiny", "promote causal-lm-tiny@1"),
    ],
)
def test_a_wrong_reference_lists_the_existing_ones(registry: Registry, ref: str, message: str) -> None:
    add(registry)
    with pytest.raises(StoreError, match=message):
        registry.version(ref)


@pytest.mark.parametrize("name", ["gpt2", "openai/gpt2", "starter:gpt2", "./causal-lm-tiny", "here", "20260101-run"])
def test_other_names_are_not_registry_references(
    registry: Registry, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry)
    (tmp_path / "here").mkdir()
    (tmp_path / "runs" / "20260101-run" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert reference(name, tmp_path / "runs") is None


def test_a_missing_registry_is_empty_and_is_not_created(registry: Registry) -> None:
    assert listing(registry).models == ()
    assert verify(registry).versions == ()
    assert collect(registry, registry.root.parent).dropped == ()
    assert not registry.root.exists()


@pytest.mark.parametrize("name", ["latest", "Production", "1", "a b", ""])
def test_names_that_no_alias_can_have(registry: Registry, name: str) -> None:
    version = add(registry)
    with pytest.raises(StoreError, match="is not a valid alias"):
        registry.move(version, name, expected=None, action="promote", reason="")


def test_versions_and_history_cannot_be_changed(registry: Registry) -> None:
    registry.move(add(registry), "production", expected=None, action="promote", reason="")
    for change in (
        "UPDATE versions SET body = ''",
        "DELETE FROM versions",
        "UPDATE moves SET who = ''",
        "DELETE FROM moves",
    ):
        with pytest.raises(StoreError, match="never change"), registry.locked() as db:
            db.execute(change)


def test_a_move_that_lost_a_race_is_refused(registry: Registry) -> None:
    one, two = add(registry, content=b"1"), add(registry, content=b"2")
    registry.move(one, "production", expected=None, action="promote", reason="")
    with pytest.raises(StoreError, match="was moved in the meantime: it is 1 now"):
        registry.move(two, "production", expected=None, action="promote", reason="")
    assert registry.aliases("causal-lm-tiny") == {"production": 1}


def test_a_newer_registry_is_refused(registry: Registry) -> None:
    add(registry)
    db = sqlite3.connect(registry.file)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match=r"schema 99.*[Uu]pgrade fulltune"):
        registry.names()


def test_a_registry_without_a_place_for_exports_gets_one(registry: Registry) -> None:
    version = add(registry)
    db = sqlite3.connect(registry.file)
    db.execute("DROP TABLE artifacts")
    db.execute("PRAGMA user_version = 1")
    db.close()
    assert registry.artifacts(version) == []
    assert registry.names() == [version.name]
    with closing(sqlite3.connect(registry.file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_damaged_registry_is_one_message(registry: Registry) -> None:
    add(registry)
    registry.file.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="the registry cannot be used"):
        registry.names()


# Rollback.


def promoted(registry: Registry, count: int) -> list[Version]:
    versions = [add(registry, content=bytes([number])) for number in range(1, count + 1)]
    for version in versions:
        promote(registry, version, force="a test", who="me")
    return versions


def test_a_registry_of_another_user_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="his user may not write there"), database.errors(tmp_path):
        raise sqlite3.OperationalError("attempt to write a readonly database")


def test_a_rollback_is_one_step_and_is_recorded(registry: Registry) -> None:
    promoted(registry, 2)
    move = rollback(registry, "causal-lm-tiny", reason="it was worse", who="you")
    assert (move.before, move.after, move.action, move.who, move.reason) == (2, 1, "rollback", "you", "it was worse")
    assert registry.version("causal-lm-tiny").number == 1
    assert [m.action for m in story(registry, "causal-lm-tiny").history] == ["promote", "promote", "rollback"]


def test_a_second_rollback_needs_a_name(registry: Registry) -> None:
    promoted(registry, 3)
    rollback(registry, "causal-lm-tiny")
    with pytest.raises(StoreError, match=r"rolled back already, from version 3 to 2.*--to"):
        rollback(registry, "causal-lm-tiny")
    assert rollback(registry, "causal-lm-tiny", to=1).after == 1


@pytest.mark.parametrize(
    ("count", "to", "message"),
    [
        (0, None, "has no alias 'production'"),
        (2, 3, "is version 3 now"),
        (2, 9, "was never version 9"),
    ],
)
def test_a_rollback_needs_an_earlier_version(registry: Registry, count: int, to: int | None, message: str) -> None:
    add(registry, content=b"other")
    promoted(registry, count)
    with pytest.raises(StoreError, match=message):
        rollback(registry, "causal-lm-tiny", to=to)


def test_rolling_back_the_first_version_removes_the_alias(registry: Registry) -> None:
    promoted(registry, 1)
    move = rollback(registry, "causal-lm-tiny", who="you")

    assert (move.before, move.after, move.action, move.reason) == (1, None, "rollback", "version 1 was the first")
    assert registry.aliases("causal-lm-tiny") == {}
    assert [one.after for one in registry.history("causal-lm-tiny")] == [1, None]
    with pytest.raises(StoreError, match="has no alias 'production'"):
        rollback(registry, "causal-lm-tiny")

    [version] = registry.versions("causal-lm-tiny")
    again = promote(registry, version, force="it is good after all")
    assert (again.before, again.after) == (None, 1)


def test_without_an_alias_the_advice_is_a_command_that_works(registry: Registry) -> None:
    """The newest version may be one that the gate refuses."""
    add(registry, content=b"0", outcome="rejected")
    with pytest.raises(
        StoreError, match=r'promote causal-lm-tiny@1 --alias prod --force "…"` and a reason: .* rejected'
    ):
        rollback(registry, "causal-lm-tiny", "prod")
    add(registry, content=b"1")
    add(registry, content=b"2", outcome="rejected")
    with pytest.raises(StoreError, match="Create it with `fulltune models promote causal-lm-tiny@2`") as caught:
        rollback(registry, "causal-lm-tiny")
    assert "causal-lm-tiny@3" not in str(caught.value)
    promote(registry, registry.version("causal-lm-tiny@2"))
    assert registry.version("causal-lm-tiny").number == 2


def test_a_rollback_of_an_unknown_model_lists_those_that_exist(registry: Registry) -> None:
    add(registry)
    with pytest.raises(StoreError, match=r"no model 'clauses'.*causal-lm-tiny") as caught:
        rollback(registry, "clauses")
    assert "promote" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_rollback_to_a_damaged_version_is_refused_and_moves_nothing(registry: Registry, damage: str) -> None:
    one, _ = promoted(registry, 2)
    path = registry.objects.path(one.files["model/model.safetensors"].sha256)
    os.chmod(path, 0o644)
    if damage == "missing":
        path.unlink()
        (registry.folder(one) / "model" / "model.safetensors").unlink()
    else:
        with path.open("r+b") as file:
            file.write(b"\x01")
    with pytest.raises(StoreError, match=rf"model.safetensors is {damage}.*[Rr]estore the file"):
        rollback(registry, "causal-lm-tiny")
    assert registry.aliases("causal-lm-tiny") == {"production": 2}
    with pytest.raises(StoreError, match=damage):
        verify(registry)


@settings(max_examples=15)
@given(steps=st.lists(st.tuples(st.sampled_from("pr"), st.integers(1, 3)), max_size=8))
def test_aliases_always_match_the_history(steps: list[tuple[str, int]], tmp_path_factory: Any) -> None:
    registry = Registry(tmp_path_factory.mktemp("runs"))
    versions = [add(registry, content=bytes([number])) for number in (1, 2, 3)]
    for action, number in steps:
        try:
            if action == "p":
                promote(registry, versions[number - 1], force="a test")
            else:
                rollback(registry, "causal-lm-tiny")
        except StoreError:
            continue
    moves = registry.history("causal-lm-tiny", "production")
    target = moves[-1].after if moves else None
    assert registry.aliases("causal-lm-tiny") == ({"production": target} if target else {})
    assert all(later.before == earlier.after for earlier, later in pairwise(moves))


# The promotion gate.


ACCURACY = {"accuracy": MetricInfo(direction="higher", version=get("accuracy").version, source="share right")}


def finished(out: Path, name: str, right: int, config: str = "", **changes: Any) -> Path:
    """Return a run folder whose model answers ``right`` of its rows correctly."""
    facts = {
        "run_id": name,
        "metric": "accuracy",
        "metrics": ACCURACY,
        "retention": {},
        "details": {"labels": ["no", "yes"]},
    }
    with RunFolder.create(out, name) as folder:
        folder.write_text("config.yaml", f"model: tiny\n{config}")
        folder.write_text("record.json", samples.record(**(facts | changes)).to_json())
        (folder.path / "model").mkdir()
        (folder.path / "model" / "model.safetensors").write_bytes(name.encode())
        (folder.path / "model" / "config.json").write_text("{}")
        with folder.append("predictions.jsonl") as write:
            for row in range(ROWS):
                answer = "yes" if row < right else "no"
                write(Prediction(system="tuned", id=str(row), input="x", reference="yes", output=answer))
    return out / name


def retained(verdict: str) -> dict[str, Retention]:
    score, share = samples.score(0.5), {"lost": 0.2, "kept": 0.02, "cannot tell": 0.06}[verdict]
    found = {"metric": "accuracy", "direction": "higher", "base": score, "tuned": score, "change": share}
    found |= {"low": share, "high": share, "budget": 0.05, "verdict": verdict}
    return {"general text": Retention.model_validate(found)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_run_is_a_version_with_its_lineage(out: Path) -> None:
    version = register_run(out, finished(out, "one", 100))
    assert (version.ref, version.outcome) == ("classification-starter-encoder@1", "accepted")
    record = samples.record()
    assert version.lineage.base == record.model
    assert (version.lineage.train_sha256, version.lineage.eval_sha256) == (
        record.data.train.sha256,
        record.data.eval.sha256,
    )
    assert (version.lineage.source, version.lineage.method, version.lineage.fulltune) == (
        "one",
        "full",
        record.fulltune,
    )
    assert {"config.yaml", "record.json", "predictions.jsonl", "model/model.safetensors"} < set(version.files)
    assert register_run(out, out / "one") == version


def test_a_run_from_a_version_is_the_next_version_of_the_same_model(out: Path) -> None:
    one = register_run(out, finished(out, "one", 100))
    base = samples.record().model.model_copy(update={"source": one.ref, "sha256": one.sha256})
    two = register_run(out, finished(out, "two", 120, model=base))
    assert (two.ref, two.lineage.parents) == ("classification-starter-encoder@2", (one.ref,))
    other = register_run(out, finished(out, "three", 120, model=base, task="causal-lm"))
    assert (other.number, other.lineage.parents) == (1, (one.ref,))
    assert other.name.startswith("causal-lm-")


def test_models_made_of_runs_have_them_as_parents(out: Path, tmp_path: Path) -> None:
    run = finished(out, "one", 100)
    assert register_derived(out, run / "model", of=[run], kind="soup", source="the mean") is None
    one = register_run(out, run)
    (tmp_path / "soup").mkdir()
    (tmp_path / "soup" / "model.safetensors").write_bytes(b"mean")
    soup = register_derived(out, tmp_path / "soup", of=[run, tmp_path], kind="soup", source="the mean")
    assert soup is not None
    assert (soup.ref, soup.outcome, soup.lineage.parents) == (
        "classification-starter-encoder@2",
        "unjudged",
        (one.ref,),
    )
    assert (Registry(out).checkout(soup) / "config.yaml").is_file()
    with pytest.raises(PromotionRefused, match="unjudged"):
        promote(Registry(out), soup)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("gpt2", "causal-lm-gpt2"),
        ("Org/Big_Model", "causal-lm-big-model"),
        ("starter:gpt2", "causal-lm-starter-gpt2"),
        ("package:weights/model", "causal-lm-weights"),
        ("/somewhere/gpt2/model", "causal-lm-gpt2"),
        ("C:\\models\\tiny", "causal-lm-tiny"),
        ("/", "causal-lm-model"),
    ],
)
def test_names_come_from_task_and_base(base: str, name: str) -> None:
    assert model_name("causal-lm", base) == name


def test_the_gate_accepts_what_is_better(out: Path) -> None:
    registry = Registry(out)
    one, two = (register_run(out, finished(out, name, right)) for name, right in (("one", 100), ("two", 150)))
    assert promote(registry, one).reason == f"accepted; {one.name} had no such alias before"
    reason = promote(registry, two).reason
    assert "classification-starter-encoder@2 is better than classification-starter-encoder@1" in reason
    with pytest.raises(StoreError, match="is production already"):
        promote(registry, two)
    with pytest.raises(PromotionRefused, match=r"is worse than .*better than .* by the paired test"):
        promote(registry, one)
    assert registry.aliases(one.name) == {"production": 2}


def test_the_gate_needs_a_significant_gain(out: Path) -> None:
    registry = Registry(out)
    one, two = (register_run(out, finished(out, name, right)) for name, right in (("one", 100), ("two", 101)))
    promote(registry, one)
    with pytest.raises(PromotionRefused, match="No detectable change"):
        promote(registry, two)
    assert promote(registry, two, force="it is smaller", who="me").reason == "forced: it is smaller"
    assert registry.history(one.name)[-1].who == "me"


@pytest.mark.parametrize(("margin", "passes"), [(0.05, True), (0.001, False)])
def test_a_version_that_is_not_worse_passes_if_that_is_enough(margin: float, passes: bool, out: Path) -> None:
    config = f"promote:\n  require: not-worse\n  margin: {margin}\n"
    registry = Registry(out)
    one, two = (register_run(out, finished(out, name, 100, config, details={"labels": ["no", "yes"], "run": name}))
                for name in ("one", "two"))  # fmt: skip
    promote(registry, one)
    if passes:
        assert "not worse by 0.05 or more" in promote(registry, two).reason
    else:
        with pytest.raises(PromotionRefused, match=r"not worse than .* by 0\.001 \(promote\.margin\)"):
            promote(registry, two)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"outcome": "rejected"}, ["is rejected", "expected an accepted run", "--force"]),
        (
            {"outcome": "undecided", "headline": "Get more evaluation rows. 4 rows cannot decide."},
            [
                "@1 is undecided: Get more evaluation rows. 4 rows cannot decide; expected a run that shows that "
                "tuning helped. Promote another version, or give a reason with --force"
            ],
        ),
        (
            {"outcome": "stopped", "retention": retained("lost")},
            ["2 problems", "is stopped", "lost 20.0% of general text"],
        ),
    ],
)
def test_the_gate_reports_every_reason(out: Path, changes: dict[str, Any], messages: list[str]) -> None:
    version = register_run(out, finished(out, "one", 100, **changes))
    with pytest.raises(PromotionRefused) as refused:
        promote(Registry(out), version)
    assert all(message in str(refused.value) for message in messages)
    assert Registry(out).aliases(version.name) == {}


@pytest.mark.parametrize("verdict", ["kept", "cannot tell"])
def test_a_loss_that_is_not_beyond_the_budget_is_good_enough(verdict: str, out: Path) -> None:
    version = register_run(out, finished(out, "one", 100, retention=retained(verdict)))
    assert promote(Registry(out), version).after == 1


@pytest.mark.parametrize(("right", "offered"), [(150, True), (101, False), (60, False)])
def test_promoting_is_offered_only_if_the_gate_would_pass(right: int, offered: bool, out: Path) -> None:
    registry = Registry(out)
    first = register_run(out, finished(out, "one", 100))
    assert "`fulltune models promote classification-starter-encoder@1` to use it" in after_run("one", out)
    promote(registry, first)
    register_run(out, finished(out, "two", right))
    assert ("promote" in after_run("two", out)) is offered
    register_run(out, finished(out, "three", 160, outcome="undecided"))
    assert after_run("three", out) == "Version: classification-starter-encoder@3 (undecided)"
    assert after_run("unknown", out) == ""


def test_runs_on_other_rows_cannot_be_compared(out: Path) -> None:
    registry, data = Registry(out), samples.record().data
    other = data.model_copy(update={"eval": data.eval.model_copy(update={"sha256": "9" * 64})})
    promote(registry, register_run(out, finished(out, "one", 100)))
    version = register_run(out, finished(out, "two", 150, data=other))
    with pytest.raises(PromotionRefused, match=r"data.eval.sha256.*same in both runs.*[Ss]core both on the same rows"):
        promote(registry, version)


@pytest.mark.parametrize("reason", ["", "  "])
def test_force_without_a_reason_is_refused(registry: Registry, reason: str) -> None:
    with pytest.raises(PromotionRefused, match="the reason is empty"):
        promote(registry, add(registry), force=reason)


# Garbage collection.


def test_gc_lists_first_and_deletes_on_request(registry: Registry, out: Path) -> None:
    versions = [add(registry, content=bytes([number])) for number in range(1, 7)]
    promote(registry, versions[0], force="a test")
    promote(registry, versions[1], force="a test")
    found = collect(registry, out, keep=1)
    assert found.dropped == tuple(version.ref for version in versions[2:5])
    assert set(found.kept) == {versions[0].ref, versions[1].ref, versions[5].ref}
    assert not found.deleted
    assert verify(registry).files == 7
    assert collect(registry, out, keep=1, delete=True).dropped == found.dropped
    assert verify(registry).files == 4
    assert story(registry, "causal-lm-tiny").collected == found.dropped
    assert collect(registry, out, keep=1).dropped == ()
    with pytest.raises(StoreError, match=r"deleted by gc.*run its config again"):
        promote(registry, versions[3], force="a test")
    assert [registry.checkout(versions[number]).is_dir() for number in (0, 1, 5)] == [True] * 3


def test_gc_frees_what_it_announces(registry: Registry, out: Path) -> None:
    versions = [add(registry, content=bytes([number])) for number in range(1, 3)]
    assert collect(registry, out, keep=1).freed_bytes == 0  # the run's folder still has it
    (out / "made-01" / "model.safetensors").unlink()
    assert collect(registry, out, keep=1, delete=True).freed_bytes == versions[0].files["model/model.safetensors"].size


def test_gc_keeps_parents_of_what_it_keeps(registry: Registry, out: Path) -> None:
    one = add(registry, content=b"1")
    two = add(registry, content=b"2", parents=[one.ref])
    three = add(registry, "causal-lm-other", content=b"3", parents=[two.ref])
    add(registry, "causal-lm-tiny", content=b"4")
    promote(registry, three, force="a test")
    assert collect(registry, out, keep=0, delete=True).dropped == ("causal-lm-tiny@3",)


@pytest.mark.parametrize(("model", "kept"), [("causal-lm-tiny@1", {1}), ("causal-lm-tiny", {1, 2}), ("gpt2", set())])
def test_gc_keeps_the_base_of_an_unfinished_run(registry: Registry, out: Path, model: str, kept: set[int]) -> None:
    add(registry, content=b"1"), add(registry, content=b"2")
    folder = RunFolder.create(out, "run")
    folder.write_text("config.yaml", f"model: {model}\n")
    folder.close("stopped")
    assert set(collect(registry, out, keep=0).kept) == {f"causal-lm-tiny@{number}" for number in kept}
    (out / "run" / "record.json").write_text("{}")
    assert collect(registry, out, keep=0).kept == {}


def test_a_collected_version_can_be_registered_again(registry: Registry, out: Path) -> None:
    version = add(registry)
    collect(registry, out, keep=0, delete=True)
    assert add(registry) == version
    registry.check(version)


def test_an_alias_never_moves_to_a_version_that_gc_deleted_meanwhile(registry: Registry, out: Path) -> None:
    version = add(registry)
    collect(registry, out, keep=0, delete=True)
    with pytest.raises(StoreError, match="deleted by gc"):
        registry.move(version, "production", expected=None, action="promote", reason="")
    assert registry.aliases(version.name) == {}


def test_files_of_a_killed_registration_are_deleted(registry: Registry, out: Path, tmp_path: Path) -> None:
    add(registry)
    (tmp_path / "orphan").write_bytes(b"nobody's")
    entry = registry.objects.put(tmp_path / "orphan")
    assert collect(registry, out, delete=True).files == 1
    assert not registry.objects.path(entry.sha256).exists()


# Concurrent writers.

WRITER = """
import sys
from pathlib import Path
from fulltune.records.run import ModelInfo
from fulltune.store.registry.registry import Lineage, Registry
out, number = Path(sys.argv[1]), sys.argv[2]
place = out / f"made-{number}"
place.mkdir(parents=True)
(place / "model.safetensors").write_text(number)
base = ModelInfo(source="b", sha256="b", family="decoder", architecture="B")
same = dict(train_sha256="t", eval_sha256="e", config_sha256="c", fulltune="0", task="t", method="full")
lineage = Lineage(source=number, base=base, **same)
files = {"model/model.safetensors": place / "model.safetensors"}
print(Registry(out).add("tiny", files, sha256=number, outcome="accepted", lineage=lineage).number)
"""


def test_writers_in_many_processes_lose_nothing(out: Path) -> None:
    def write(number: int) -> str:
        command = [sys.executable, "-c", WRITER, str(out), str(number)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    with ThreadPoolExecutor(6) as pool:
        numbers = sorted(map(int, pool.map(write, range(6))))
    assert numbers == [1, 2, 3, 4, 5, 6]
    registry = Registry(out)
    assert {version.lineage.source for version in registry.versions("tiny")} == set(map(str, range(6)))
    assert len(verify(registry).versions) == 6


def test_creating_the_database_twice_keeps_the_first(tmp_path: Path) -> None:
    database.create(tmp_path / "r.sqlite")
    before = (tmp_path / "r.sqlite").stat().st_ino
    database.create(tmp_path / "r.sqlite")
    assert (tmp_path / "r.sqlite").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["r.sqlite"]


# The command line.


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


def test_the_commands_from_list_to_gc(out: Path) -> None:
    assert "is empty" in call("list", "--out", out).stdout
    finished(out, "one", 100), finished(out, "two", 150), finished(out, "three", 150)
    name = "classification-starter-encoder"
    for run in ("one", "two", "three"):
        assert json.loads(call("register", run, "--out", out, "--json").stdout)["lineage"]["source"] == run
    assert json.loads(call("list", "--out", out, "--json").stdout)["models"][0]["newest"] == f"{name}@3"
    assert call("promote", f"{name}@1", "--out", out).exit_code == 0
    assert call("promote", f"{name}@2", "--out", out).exit_code == 0
    for listed in (call("list", "--out", out), call("show", name, "--out", out)):
        words = " ".join(listed.stdout.split())
        for number in (1, 2, 3):
            assert f"@{number} starter-encoder on train.jsonl (2,133 rows): Accuracy 0.912" in words
    assert f"{name}: production → 2" in " ".join(call("list", "--out", out).stdout.split())
    stored = json.loads(call("list", "--out", out, "--json").stdout)["versions"][f"{name}@2"]
    assert (stored["base"], stored["data"], stored["metric"]) == ("starter-encoder", "train.jsonl", "accuracy")
    refused = call("promote", name, "--out", out, "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["error"]["type"]) == (3, "PromotionRefused")
    assert call("promote", name, "--force", "it is smaller", "--out", out).exit_code == 0
    assert json.loads(call("rollback", name, "--out", out, "--json").stdout)["after"] == 2
    again = call("rollback", name, "--out", out)
    assert (again.exit_code, "rolled back already" in again.stderr) == (1, True)
    shown = call("show", name, "--out", out)
    assert "forced: it is smaller" in " ".join(shown.stdout.split())
    assert len(json.loads(call("show", f"{name}@production", "--out", out, "--json").stdout)["versions"]) == 1
    assert "all as written" in call("verify", "--out", out).stdout
    assert "Would delete: 1 versions" in call("gc", "--keep", "0", "--out", out).stdout.replace("\n", " ")
