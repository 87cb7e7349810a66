"""A run that was stopped or killed goes on: what it must have in common with itself, and what is read back.

Data, audit and baselines are made anew or come from the cache; training goes on from the newest whole checkpoint; a
model that was finished is read.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fulltune.config import Config, load_config
from fulltune.errors import ConfigError, Problem, StoreError, TrainingStopped
from fulltune.models.bundle import Bundle
from fulltune.models.tokenizing import tokenizer_sha256
from fulltune.pipeline import record
from fulltune.pipeline.job import Job
from fulltune.pipeline.loading import load_model
from fulltune.runtime import distributed
from fulltune.runtime.files import to_json
from fulltune.store.runs import RunFolder, list_runs, resolve
from fulltune.tasks import prompts
from fulltune.training.checkpoints import format
from fulltune.training.checkpoints.format import PRIVATE
from fulltune.training.fit import TrainingResult
from fulltune.training.interrupt import terminable

#: What a run must have in common with itself, and what training came to.
_FACTS, _TRAINED = "resume.json", "training.json"

#: Which launch of several processes a run belongs to.
_LAUNCH = "launch.txt"

#: Packages whose major version decides results, and config sections that do not.
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy")
_FREE = ("checkpoints",)


class Interrupted(KeyboardInterrupt):
    """A run was interrupted; the message says how to go on with it."""


def config_of(run: str | Path, out: str | Path) -> Path:
    """The config that a run to resume left in its folder.

    Raises:
        StoreError: There is no such run, or it stopped before it wrote one.
    """
    path = resolve(str(run), out) / "config.yaml"
    if not path.exists():
        raise StoreError("this run has no config yet", where=str(path.parent), fix="start it anew")
    return path


def on_its_day(config: Config, resume: str | Path, out: str | Path) -> Config:
    """Return the config with the day that the run to resume was asked on, unless it names one itself."""
    path = resolve(str(resume), out) / "config.yaml"
    if config.data.chat_date is not None or not path.exists():
        return config
    day = load_config(path).data.chat_date
    return config.model_copy(update={"data": config.data.model_copy(update={"chat_date": day})})


def restarted(out: str | Path) -> str | None:
    """The run that these processes were at before the launcher started them anew; None the first time."""
    if not distributed.restarts():
        return None
    mine = [
        run.run_id
        for run in list_runs(out)
        if (run.path / _LAUNCH).is_file() and (run.path / _LAUNCH).read_text("utf-8") == distributed.launch_id()
    ]
    return mine[-1] if mine else None


@contextmanager
def locked(out: str | Path, resume: str | Path | None, new_id: str) -> Iterator[RunFolder]:
    """The folder of a new run of that id, or that of one to resume; an interruption inside tells how to go on.

    Raises:
        StoreError: The run is finished, or another process holds it.
    """
    folder = RunFolder.create(out, new_id) if resume is None else RunFolder.open(resolve(str(resume), out))
    if distributed.launch_id():
        folder.write_text(_LAUNCH, distributed.launch_id())
    with terminable(), folder:
        if resume is not None and distributed.is_main():
            (folder.path / "predictions.jsonl").unlink(missing_ok=True)
        try:
            yield folder
        except KeyboardInterrupt:
            place = "" if Path(out) == Path("runs") else f" --out {out}"
            raise Interrupted(f"interrupted. To go on: fulltune run --resume {folder.run_id}{place}") from None


def check(folder: RunFolder, job: Job, allow_changed: bool) -> None:
    """Whether a resumed run is still the same; a new one writes down what it is.

    Raises:
        ConfigError: It is not; names every field with both values.
    """
    distributed.on_main(lambda: _compare(folder, _facts(job), allow_changed))


def _compare(folder: RunFolder, now: dict[str, Any], allow_changed: bool) -> None:
    path = folder.path / _FACTS
    if not path.exists() or allow_changed:
        folder.write_json(_FACTS, now)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    problems = [
        Problem(f"{_shown(now.get(name))} now", f"{_shown(before.get(name))}, as when the run began", field=name)
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if problems:
        last = dataclasses.replace(problems[-1], fix="change it back, start a new run, or resume with --allow-changed")
        raise ConfigError([*problems[:-1], last])


# ---- A training that is over ----


def keep(trained: TrainingResult, folder: RunFolder) -> None:
    """Write what training came to, once its model is written: from here on it is not trained again."""
    plain = {item.name: getattr(trained, item.name) for item in dataclasses.fields(trained)}
    stopped = trained.stopped and [problem.to_dict() for problem in trained.stopped.problems]
    folder.write_json(_TRAINED, plain | {"stopped": stopped})


def read_back(job: Job, folder: RunFolder) -> tuple[Bundle, TrainingResult] | None:
    """The tuned model and the account of its training, where the run had come that far."""
    path = folder.path / _TRAINED
    if not path.exists():
        return None
    trained = _result(json.loads(path.read_text(encoding="utf-8")))
    tuned = job.config.model_copy(update={"model": str(folder.path / "model")})
    return load_model(tuned, job.task, job.out, head=job.task.head, labels=()), trained


def clean(folder: Path) -> None:
    """The record stands: remove what only a run that goes on needs."""
    if not distributed.is_main():
        return
    format.remove_all(folder)
    shutil.rmtree(folder / PRIVATE, ignore_errors=True)
    (folder / "best.safetensors").unlink(missing_ok=True)


def _result(raw: dict[str, Any]) -> TrainingResult:
    types = typing.get_type_hints(TrainingResult)
    stopped = raw.pop("stopped")
    values = {name: TypeAdapter(types[name]).validate_python(value) for name, value in raw.items()}
    points = values["validation"].get("points", [])
    if points:
        values["validation"]["points"] = [[int(step), float(value)] for step, value in points]
    error = None if stopped is None else TrainingStopped([Problem(**problem) for problem in stopped])
    return TrainingResult(**values, stopped=error)


# ---- What a run is ----


def _facts(job: Job) -> dict[str, Any]:
    """Return everything that a resumed run must have in common with the run that began."""
    config, data, base = job.config, job.data, job.base
    splits = {"train": data.train, "eval": data.eval, "valid": data.valid}
    versions = {name: version.split(".")[0] for name, version in record.versions().items() if name in _PACKAGES}
    own = config.model_dump(mode="json", exclude=set(_FREE))
    facts: dict[str, Any] = {
        f"rows of {name}": split.table.sha256 for name, split in splits.items() if split is not None
    }
    asked = prompts.fingerprint(base, config.data.chat, config.data.chat_date or date.today())
    facts |= {"base": base.info.sha256, "parameters": base.model.num_parameters(), "prompts": asked}
    facts |= {"tokenizer": tokenizer_sha256(base.tokenizer)}
    facts |= {"checkpoint": list(base.info.reconciled), "wording of prompts": prompts.VERSION}
    facts |= {f"major version of {name}": version for name, version in versions.items()}
    found: dict[str, Any] = json.loads(to_json(dict(_flat(own)) | facts))
    return found


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and text.isalnum() else text
