"""Exchanges between processes, with threads in place of processes, and the variables set by a launcher."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ranks
from hypothesis import given
from hypothesis import strategies as st
from matrix import often

from fulltune.errors import DataError, ProcessError
from fulltune.runtime import distributed
from fulltune.runtime.kernels import active, calibration
from fulltune.runtime.kernels.products import Choices


class Threads:
    """Run the same function in several threads, with the collectives of `distributed` between them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count)
        self.here = threading.local()
        self.box: list[Any] = [None] * count
        monkeypatch.setattr(distributed, "size", lambda: count)
        monkeypatch.setattr(distributed, "rank", lambda: self.here.rank)
        monkeypatch.setattr(distributed, "all_gather", self.gathered)
        monkeypatch.setattr(distributed, "broadcast", lambda value: self.gathered(value)[0])

    def gathered(self, value: Any) -> list[Any]:
        self.box[self.here.rank] = value
        self.barrier.wait(10)
        found = list(self.box)
        self.barrier.wait(10)
        return found

    def run(self, work: Callable[[], Any]) -> list[Any]:
        results: list[Any] = [None] * self.count

        def one(rank: int) -> None:
            self.here.rank = rank
            try:
                results[rank] = work()
            except DataError as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return results


@given(rows=st.integers(0, 40), processes=st.integers(1, 5), block=st.integers(1, 4))
def test_every_row_is_answered_once_and_in_order_on_any_split(rows: int, processes: int, block: int) -> None:
    asked: list[int] = []

    def answer(items: Sequence[int]) -> Iterator[str]:
        asked.extend(items)
        return (f"answer {item}" for item in items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "BLOCK", block)
        threads = Threads(patch, processes)
        found = threads.run(lambda: list(distributed.map_sharded(answer, range(rows))))
    assert found == [[f"answer {row}" for row in range(rows)]] * processes
    assert sorted(asked) == list(range(rows))


def test_the_value_of_the_first_process_reaches_all(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, made = Threads(monkeypatch, 3), []

    def make() -> str:
        made.append(distributed.rank())
        return "the name"

    assert threads.run(lambda: distributed.on_main(make)) == ["the name"] * 3
    assert made == [0]


def test_an_error_of_the_first_process_is_raised_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> str:
        raise DataError("no rows")

    found = Threads(monkeypatch, 3).run(lambda: distributed.on_main(make))
    assert [type(one) for one in found] == [DataError] * 3
    assert {str(one) for one in found} == {"no rows."}


def test_a_single_process_needs_no_exchange() -> None:
    with distributed.joined():
        assert (distributed.size(), distributed.rank(), distributed.is_main(), distributed.engine()) == (1, 0, True, "")
        assert (
            distributed.broadcast("x") == distributed.on_main(lambda: "x") == distributed.main_first(lambda: "x") == "x"
        )
        assert distributed.all_gather(3) == [3]
        assert list(distributed.sharded(iter)([1, 2])) == [1, 2]
        distributed.barrier()
    assert distributed.is_first_to_report()
    assert distributed.shows_output()


@pytest.mark.parametrize(
    ("variables", "engine"),
    [
        ({}, "ddp"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero1"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "zero2"),
    ],
)
def test_the_engine_is_read_from_the_launchers_variables(
    variables: dict[str, str], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "2"} | variables).items():
        monkeypatch.setenv(name, value)
    assert (distributed.engine(), distributed.launched(), distributed.restarts()) == (engine, 2, 2)
    assert not distributed.shows_output()


def test_a_world_of_one_is_not_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert distributed.launched() == 1, "only a launcher gives ranks"


@pytest.mark.parametrize(
    ("rank", "size"), [("0", "0"), ("-1", "2"), ("2", "2"), ("0", "many"), ("", "2"), ("0", "1e9")]
)
def test_variables_that_no_launcher_sets_are_refused(rank: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ProcessError, match=r"RANK=.*unset RANK WORLD_SIZE"):
        distributed.launched()
    assert distributed.is_first_to_report()


def test_a_lost_process_is_reported_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "_join", lambda timeout: None)
    with (
        pytest.raises(ProcessError, match=r"process 1 lost another process .*within 5 s.*trainer\.ddp_timeout"),
        distributed.joined(5),
    ):
        raise RuntimeError("[gloo] Timed out waiting 5000ms for recv operation to complete")
    with pytest.raises(RuntimeError, match="size mismatch"), distributed.joined(5):
        raise RuntimeError("size mismatch")


def test_all_processes_use_the_kernels_of_the_first_which_alone_writes_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first process creates the folder of a new run: it may not exist yet when the others get here."""
    threads, seen = Threads(monkeypatch, 2), []
    chosen = [Choices(frozenset({("forward", (2**number, 64, 64))}), "measured") for number in (6, 8)]
    write = active.atomic_text
    monkeypatch.setattr(active, "_machine_choices", {})
    monkeypatch.setattr(calibration, "machine_choices", lambda: chosen[distributed.rank()])
    monkeypatch.setattr(active, "atomic_text", lambda *given: (seen.append(distributed.rank()), write(*given)))

    def work() -> Choices | None:
        with active.pinned_kernels("auto", tmp_path / "kernels.json") as found:
            return found

    assert threads.run(work) == [chosen[0]] * 2
    assert seen == [0]


RESTARTED = """
import os
from fulltune.runtime import distributed

with distributed.joined(60):
    distributed.barrier()
    os.write(1, f"{{distributed.restarts()}} {{distributed.is_first_to_report()}}\\n".encode())
    distributed.barrier()
    os._exit(distributed.restarts() < {restarts})  # like a process that dies: no cleanup
"""


@pytest.mark.parametrize("restarts", often([1, 3], lambda restarts: restarts == 1))
def test_restarted_processes_do_not_connect_to_those_that_died(restarts: int, tmp_path: Path) -> None:
    """The launcher keeps one store over all restarts, and with it the addresses and flags of every start."""
    script = tmp_path / "restarted.py"
    script.write_text(RESTARTED.format(restarts=restarts), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *ranks.torchrun(2, "--max-restarts", str(restarts), "--monitor-interval", "0.1"), str(script)],
        env=ranks.environment(), check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    starts = [f"{start} {is_first}" for start in range(restarts + 1) for is_first in (False, True)]
    assert sorted(done.stdout.splitlines()) == starts, "each start has one process that reports errors"
