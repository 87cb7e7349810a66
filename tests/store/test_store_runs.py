"""Run folders: exclusive, atomic, and with a reliable status."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fulltune.errors import DataError, StoreError, TrainingStopped
from fulltune.records.run import Step
from fulltune.runtime.files import atomic_text, unfinished_path
from fulltune.store.runs import RunFolder, list_runs, new_run_id, part_of, resolve, status


def make(out: Path, *names: str) -> None:
    for name in names:
        with RunFolder.create(out, name) as folder:
            folder.write_text("record.json", "{}")


def test_a_run_id_has_time_task_and_model_and_never_repeats() -> None:
    ids = {new_run_id("causal-lm", "openai-community/GPT2 Medium/") for _ in range(50)}
    assert len(ids) > 45
    for run_id in ids:
        assert re.fullmatch(r"\d{8}-\d{6}-causal-lm-gpt2-medium-[0-9a-f]{4}", run_id)


@pytest.mark.parametrize("model", ["package:x/model", "C:\\weights\\я", "/", "..", "модель", "a" * 300])
def test_a_run_id_is_a_safe_file_name(model: str) -> None:
    assert re.fullmatch(r"[a-z0-9.-]{1,120}", new_run_id("text2sql", model))


def test_a_second_run_never_shares_a_folder(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "one") as folder:
        with pytest.raises(StoreError, match="exists already"):
            RunFolder.create(tmp_path, "one")
        assert status(folder.path).state == "running"


def _create(out: str, name: str) -> bool:
    try:
        RunFolder.create(out, name).close()
    except StoreError:
        return False
    return True


def test_one_of_many_processes_gets_the_name(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        won = pool.starmap(_create, [(str(tmp_path), "same")] * 6)
    assert sum(won) == 1


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "finished"),
        (DataError("bad rows"), "refused"),
        (TrainingStopped("too hot"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (ZeroDivisionError("oops"), "failed"),
    ],
)
def test_status_reports_how_the_block_ended(tmp_path: Path, error: BaseException | None, state: str) -> None:
    folder = RunFolder.create(tmp_path, "one")
    if error is None:
        with folder:
            pass
    else:
        with pytest.raises(type(error)), folder:
            raise error
    found = status(folder.path)
    assert (found.state, found.pid) == (state, os.getpid())
    assert found.message == (str(error) if error else "")
    assert found.ended >= found.started > ""


def test_a_killed_run_is_reported_as_such(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from fulltune.store.runs import RunFolder;"
        "RunFolder.create(sys.argv[1], 'doomed'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "doomed" / "status.json").read_text())["state"] == "running"
    found = status(tmp_path / "doomed")
    assert found.state == "killed"
    assert "is gone" in found.message


def test_writing_replaces_complete_files_without_leftovers(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "one") as folder:
        folder.write_text("a.txt", "first, and longer")
        folder.write_text("a.txt", "é")
        folder.write_json("b.json", {"value": math.nan, "rows": (1, 2)})
        assert (folder.path / "a.txt").read_text(encoding="utf-8") == "é"
        assert json.loads((folder.path / "b.json").read_text()) == {"value": "NaN", "rows": [1, 2]}
    assert {path.name for path in folder.path.iterdir()} == {"a.txt", "b.json", "status.json", ".lock"}


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "one") as folder:
        (folder.path / "plain").touch()
        folder.write_text("a.txt", "x")
        assert (folder.path / "a.txt").stat().st_mode == (folder.path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
        (errno.EIO, "--out"),
    ],
)
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with RunFolder.create(tmp_path, "one") as folder:
        folder.write_text("a.txt", "old")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(StoreError, match=f"(?i){advice}") as caught:
                folder.write_text("a.txt", "new")
        assert str(folder.path / "a.txt") in str(caught.value)
        assert (folder.path / "a.txt").read_text() == "old"
        assert not list(folder.path.glob("*.part")) + list(folder.path.glob(".*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_appending_to_a_full_disk_is_reported(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "one") as folder:
        (folder.path / "steps.jsonl").symlink_to("/dev/full")
        with pytest.raises(StoreError, match="Free some space"), folder.append("steps.jsonl") as write:
            write({"step": 1})


def test_a_file_in_place_of_the_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="choose another"):
        RunFolder.create(tmp_path / "runs", "one")


def test_appended_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "one") as folder, folder.append("steps.jsonl") as write:
        for step in (1, 2):
            write(Step(step=step, epoch=0.5, loss=math.inf))
            lines = (folder.path / "steps.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == list(range(1, step + 1))
        assert Step.model_validate_json(lines[0]).loss == math.inf


def test_errors_of_the_block_are_not_taken_for_disk_errors(tmp_path: Path) -> None:
    with (
        RunFolder.create(tmp_path, "one") as folder,
        pytest.raises(ConnectionError, match="hub"),
        folder.append("steps.jsonl"),
    ):
        raise ConnectionError("the hub is away")


def test_a_value_that_json_cannot_represent(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "one") as folder, pytest.raises(StoreError, match="cannot be written as JSON"):
        folder.write_json("a.json", {"text": "\ud800"})


def test_resolve_by_id_prefix_path_and_latest(tmp_path: Path) -> None:
    make(tmp_path, "20260101-a", "20260102-b")
    with RunFolder.create(tmp_path, "20260103-c"):
        pass
    assert resolve("20260101-a", tmp_path) == tmp_path / "20260101-a"
    assert resolve("20260102", tmp_path) == tmp_path / "20260102-b"
    assert resolve(str(tmp_path / "20260103-c"), "elsewhere") == tmp_path / "20260103-c"
    assert resolve("latest", tmp_path) == tmp_path / "20260102-b", "a run without a record has nothing to show"


def test_the_latest_run_is_none_of_an_experiment(tmp_path: Path) -> None:
    make(tmp_path, "20260101-a")
    with part_of("methods-1"):
        make(tmp_path, "20260102-b")
    make(tmp_path, "20260100-c")
    assert resolve("latest", tmp_path) == tmp_path / "20260101-a"
    assert resolve("20260102", tmp_path) == tmp_path / "20260102-b"
    assert [run.run_id for run in list_runs(tmp_path)] == ["20260100-c", "20260101-a", "20260102-b"]


def test_the_latest_of_two_runs_in_one_second_is_the_one_that_ended_later(tmp_path: Path) -> None:
    names = ["20260101-120000-a-tiny-ff00", "20260101-120000-a-tiny-00ff"]
    make(tmp_path, *names)
    for place, name in enumerate(names):
        os.utime(tmp_path / name / "record.json", (place + 1, place + 1))
    assert resolve("latest", tmp_path) == tmp_path / names[1]


def test_an_id_that_begins_another_is_not_ambiguous(tmp_path: Path) -> None:
    make(tmp_path, "a", "ab")
    assert resolve("a", tmp_path) == tmp_path / "a"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("2026010", "matches 7 runs"),
        ("20260103-x", "did you mean '20260103-r'"),
        ("zzz", "the newest five"),
        ("", "there is no run ''"),
    ],
)
def test_resolve_helps_with_a_wrong_name(tmp_path: Path, name: str, message: str) -> None:
    make(tmp_path, *(f"2026010{day}-r" for day in range(1, 8)))
    with pytest.raises(StoreError) as caught:
        resolve(name, tmp_path)
    assert message.lower() in str(caught.value).lower()


@pytest.mark.parametrize("name", ["latest", "some"])
def test_resolve_where_nothing_ran_yet(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"there is no run.*[Ss]tart one with `fulltune run`"):
        resolve(name, tmp_path / "nowhere")


def test_listing_is_in_order_and_skips_other_folders(tmp_path: Path) -> None:
    make(tmp_path, "b", "a")
    (tmp_path / "cache").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "status.json").write_text("{")
    assert [run.run_id for run in list_runs(tmp_path)] == ["a", "b"]
    assert {run.status.state for run in list_runs(tmp_path)} == {"finished"}
    assert list_runs(tmp_path / "nowhere") == []


def test_status_of_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a run folder"):
        status(tmp_path)
    (tmp_path / "status.json").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="cannot be read"):
        status(tmp_path)


KILLED = """
import os, sys
from pathlib import Path
from fulltune.runtime.files import atomic
with atomic(Path(sys.argv[1])) as write:
    write(b"half")
    os.kill(os.getpid(), 9)
"""


def test_the_next_write_of_a_file_removes_only_its_own_leftovers(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.json")], check=False)
    left = list(tmp_path.glob(".a.json.*.part"))
    assert len(left) == 1
    own = unfinished_path(tmp_path / "a.json")  # of a process that is alive
    foreign = tmp_path / ".a.json.00000000-1-00000000.part"  # of another machine
    for path in (own, foreign):
        path.write_text("x", encoding="utf-8")
    atomic_text(tmp_path / "b.json", "other")
    assert left[0].exists()
    atomic_text(tmp_path / "a.json", "whole")
    assert sorted(tmp_path.glob(".*.part")) == sorted([own, foreign])


def test_a_resumed_run_removes_every_unfinished_file_of_its_folder(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "r") as folder:
        folder.set_status("running")
        (folder.path / "model").mkdir()
        (folder.path / "model" / ".weights.0-1-2.part").write_text("x", encoding="utf-8")
        (folder.path / ".checkpoint-4.01234567.part").mkdir()
        folder._lock.release()  # type: ignore[union-attr]
        with RunFolder.open(folder.path) as resumed:
            assert list(resumed.path.rglob(".*.part")) == []


def test_a_folder_whose_name_is_not_unicode_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not Unicode text"):
        RunFolder.create(tmp_path / "out\udcff", "r")
    assert list(tmp_path.iterdir()) == []
