"""Every model type of transformers that reads and writes text, on every task, against plain transformers.

    python benchmarks/architectures/matrix.py [--only TYPE ...] [--tasks COLUMN ...] [--again STATUS ...]
                                              [--seconds N] [--results FILE] [--write]

Each model type gets a two-layer checkpoint with random weights and is tested in a separate process, with a limit of
computing time for each cell, so that a hang or a crash does not stop the others. Results are appended to a JSON lines
file as they arrive; a cell that has one is not measured again unless `--again` names its status. `--write` creates
docs/architectures.md from all results.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import transformers

from architectures import cells, checkpoints, page
from architectures.cells import COLUMNS, Cell

#: Longest time of a cell on a busy machine, in multiples of its computation.
_PATIENCE = 20

RESULTS = Path(__file__).parents[1] / "results" / "architectures.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the missing cells, and write the page on request."""
    options = _parser().parse_args(arguments)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    chosen = options.only or checkpoints.names()
    _forget(options.results, chosen, options.tasks, options.again)
    for model_type in chosen:
        measure(model_type, options.tasks, options.results, options.seconds)
    if options.write:
        page.write(read(options.results))


def read(results: Path) -> list[Cell]:
    """Return all results in the order in which they were measured."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return [Cell(**json.loads(line)) for line in lines]


def measure(model_type: str, columns: Iterable[str], results: Path, seconds: int) -> None:
    """Measure the columns without a result in a child process; after a hang or crash the rest run in another one."""
    while left := [column for column in columns if column not in _known(results, model_type)]:
        died = _in_child(lambda: _try(model_type, left, results, seconds))
        open_cells = [column for column in left if column not in _known(results, model_type)]
        if died and open_cells:
            _append(results, Cell(model_type, open_cells[0], "crash", died))
        elif open_cells:
            raise RuntimeError(f"{model_type}: the process ended without a result for {open_cells}")


def _try(model_type: str, columns: Iterable[str], results: Path, seconds: int) -> None:
    """Measure columns one after another; a model that cannot be built is one result for all of them."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        _limit(seconds)
        try:
            checkpoint = checkpoints.save(model_type, Path(folder) / "base")
        except Exception as error:  # noqa: BLE001 - whatever the library raises is why this type is left out
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            for column in columns:
                _append(results, Cell(model_type, column, "not built", reason))
            return
        for column in columns:
            _limit(seconds)
            _append(results, cells.measure(checkpoint, column, Path(folder)))


def _limit(seconds: int) -> None:
    """End this process after so many seconds of computation, or much later if it waits without computing."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(_PATIENCE * seconds)


def _in_child(work: Callable[[], None]) -> str:
    """Do the work in a forked process; return how it died, or nothing."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if -status in (signal.SIGALRM, signal.SIGPROF):
        return "no result within the time limit"
    return f"killed by signal {-status}" if status < 0 else f"exit code {status}" if status else ""


def _known(results: Path, model_type: str) -> set[str]:
    return {cell.task for cell in read(results) if cell.model_type == model_type}


def _append(results: Path, cell: Cell) -> None:
    print(f"{cell.model_type:24} {cell.task:6} {cell.status:9} {cell.detail[:160]}", flush=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(cell.to_json()) + "\n")


def _forget(results: Path, chosen: Iterable[str], columns: Iterable[str], statuses: Iterable[str]) -> None:
    """Drop the results that are to be measured again."""
    if not statuses or not results.exists():
        return

    def stays(cell: Cell) -> bool:
        return not (cell.status in statuses and cell.model_type in chosen and cell.task in columns)

    kept = [json.dumps(cell.to_json()) + "\n" for cell in read(results) if stays(cell)]
    results.write_text("".join(kept), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="model types (default: all)")
    parser.add_argument("--tasks", nargs="+", default=list(COLUMNS), choices=COLUMNS)
    parser.add_argument("--again", nargs="+", default=[], help="statuses whose cells are measured again")
    parser.add_argument("--seconds", type=int, default=300, help="time limit of a cell, of one core")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md")
    return parser


if __name__ == "__main__":
    main()
