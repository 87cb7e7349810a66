"""Jobs of all three families on tiny models, run by as many processes as a launcher starts.

python tests/ranks.py PLACE OUT [KIND …] [A.B=VALUE …]      alone, or started by torchrun or `accelerate launch`
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
KINDS = {"gpt2": "causal-lm", "bert": "classification", "t5": "seq2seq", "sql": "text2sql"}
MODELS = {"sql": "t5"}
COLUMNS = {
    "gpt2": ("text",),
    "bert": ("text", "label"),
    "t5": ("source", "target"),
    "sql": ("question", "sql", "db_id"),
}
HEROES = ("fox", "king", "cat", "dog", "court")


def prepare(place: Path) -> Path:
    """Write models and rows: 24 to train on, 5 to select by, and 7 to score, which do not divide by two."""
    import fakes

    for kind in KINDS:
        fakes.save(MODELS.get(kind, kind), place / kind)
    _save_database(place / "databases")
    for split, start, count in (("train", 0, 24), ("valid", 24, 5), ("eval", 29, 7)):
        rows = [_row(number) for number in range(start, start + count)]
        for kind, names in COLUMNS.items():
            lines = [json.dumps({name: row[name] for name in names}) + "\n" for row in rows]
            (place / f"{kind}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return place


def _row(number: int) -> dict[str, str]:
    hero, other = HEROES[number % 5], HEROES[number // 5 % 5]
    text = f"the {hero} and {number % 7} {other} " * (1 + number % 4) + str(number)
    return {
        "text": text,
        "label": ("yes", "no")[number % 2],
        "source": f"say {number}",
        "target": f"{number} {hero}",
        "question": f"legs of {hero} {number}",
        "sql": f"SELECT legs FROM animal WHERE name = '{hero}' AND legs < {number}",
        "db_id": "zoo",
    }


def _save_database(folder: Path) -> None:
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "zoo.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE animal (name TEXT, legs INTEGER)")
        connection.executemany("INSERT INTO animal VALUES (?, ?)", [(hero, place) for place, hero in enumerate(HEROES)])


def config(place: Path, kind: str) -> dict[str, Any]:
    data = {split: str(place / f"{kind}.{split}.jsonl") for split in ("train", "valid", "eval")}
    if kind == "sql":
        data["databases"] = str(place / "databases")
    return {
        "model": str(place / kind),
        "task": KINDS[kind],
        "data": data,
        "train": {"max_steps": 8, "batch_size": 4, "learning_rate": 1e-2, "evaluations": 2, "warmup": 1},
        "baselines": {"few_shot": 2},
        "evaluation": {"max_new_tokens": 3, "continuations": 2, "resamples": 100, "batch_size": 3},
        "guards": {"forgetting": {"limit": 4}},
        "regularize": {"dropout": 0.0},
        "checkpoints": None,
        "speed": {"packing": "off"},
    }


def environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | variables


def launch(
    place: Path, out: Path, *words: str, launcher: list[str] | None = None, fails: bool = False, **variables: str
) -> str:
    """Run the jobs, wait, and return what was written to stderr."""
    command = [
        sys.executable,
        *(torchrun() if launcher is None else launcher),
        str(TESTS / "ranks.py"),
        str(place),
        str(out),
        *words,
    ]
    found = environment(**variables)
    done = subprocess.run(command, env=found, check=False, capture_output=True, text=True, timeout=900)
    assert (done.returncode != 0) == fails, _errors(done.stderr)
    return done.stderr


def _errors(output: str) -> str:
    """Return the output from the first traceback on, and its end.

    The first process to fail is the one to look at.
    """
    start = max(0, output.find("Traceback (most recent call last)"))
    return output[start : start + 12000] + "\n[...]\n" + output[-2000:]


def accelerate(preset: str, place: Path, processes: int = 2) -> list[str]:
    """Return the arguments of the launcher that a preset is for."""
    from fulltune.runtime.config_file import to_yaml
    from fulltune.runtime.launch import Launch, accelerate_config

    path = place / f"{preset}.yaml"
    path.write_text(to_yaml(accelerate_config(Launch(preset, processes))), encoding="utf-8")
    return ["-m", "accelerate.commands.launch", "--config_file", str(path)]


def torchrun(processes: int = 2, *options: str) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *options]


def _stop_the_launcher() -> None:
    """Send the launcher SIGTERM, and continue once it has forwarded the signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.kill(os.getppid(), signal.SIGTERM)
    signal.sigwait({signal.SIGTERM})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)


def _break(fault: str) -> None:
    """Make the last process fail after a step."""
    from fulltune.training.callbacks import EvaluateAt

    kind, _, step = fault.partition("@")
    whole = EvaluateAt.on_step_end

    def broken(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == int(step):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "hang":
                signal.pause()
            if kind == "term":
                _stop_the_launcher()
        return whole(self, args, state, control, **kwargs)

    EvaluateAt.on_step_end = broken  # type: ignore[method-assign]


def main(place: Path, out: Path, words: list[str]) -> None:
    import fulltune

    overrides = [word for word in words if "=" in word]
    is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    if "FAULT" in os.environ and is_last and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        _break(os.environ["FAULT"])
    for kind in [word for word in words if word in KINDS] or list(KINDS):
        resume = os.environ.get("RESUME")
        fulltune.run(config(place, kind), out=out / kind, overrides=overrides, resume=resume)


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
