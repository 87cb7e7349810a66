"""Model soup: the mean of the weights of several models (Wortsman et al. 2022, "Model soups")."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fulltune.config import Config, load_config, refuse_folds
from fulltune.errors import IncompatibleError, Problem, StoreError, abridged
from fulltune.evaluation import evaluate
from fulltune.evaluation.retention import BaseOutputs
from fulltune.pipeline.job import checked_task_and_method
from fulltune.pipeline.model_loading import load_model
from fulltune.records.run import Model, Record, Retention, Score, left_out, read_record
from fulltune.runtime.files import advising, store_errors
from fulltune.runtime.progress import Progress, progress_of
from fulltune.store.registry.register import register_derived
from fulltune.store.runs import name_and_folder, resolve
from fulltune.tasks import dataset

#: Keys of a checkpoint's config that must be the same for its weights to mean the same.
_SAME = ("model_type", "architectures", "vocab_size", "id2label")


class Soup(Model):
    """A mean of models.

    Attributes:
        sources: The averaged models.
        model: Folder of the mean, for ``from_pretrained``.
        metric: The deciding metric of the task; empty if the first source is not a run, and nothing is scored.
        scores: Scores of ``soup`` and of the sources that were scored on the same rows (from their records).
        retention: Retention of the soup.
        version: The mean in the registry, as ``NAME@N``; empty if none of its sources is a run of this registry.
    """

    sources: tuple[str, ...]
    model: str
    metric: str = ""
    scores: dict[str, Score] = Field(default_factory=dict)
    retention: dict[str, Retention] = Field(default_factory=dict)
    version: str = ""


def soup(
    sources: Sequence[str | Path | Record],
    *,
    out: str | Path = "runs",
    to: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> Soup:
    """Average the weights of tuned models of one architecture, and score the mean like the first of them.

    Args:
        sources: At least two runs (id, beginning of an id, folder, record, ``latest``) or folders with a checkpoint.
        out: The runs folder.
        to: Folder of the mean, which must not exist; the default is ``soup-…`` in the runs folder.
        progress: Where stages report.

    Raises:
        IncompatibleError: Fewer than two sources, or they differ in architecture, labels, or tensor names or shapes.
        StoreError: A source does not exist or has no safetensors weights, or the folder already exists.
    """
    if len(sources) < 2:
        raise IncompatibleError(f"{len(sources)} models", expected="two or more to average", fix="name more runs")
    places = [name_and_folder(source, out) for source in sources]
    names = [name for name, _ in places]
    folders = [_folder(name, place) for name, place in places]
    _check_configs(names, folders)
    digest = hashlib.sha256("\n".join(map(str, sorted(folders))).encode()).hexdigest()[:8]
    goal = Path(to) if to else Path(out) / f"soup-{len(folders)}-{digest}"
    average(folders, goal)
    result = Soup(sources=tuple(names), model=str(goal))
    source = f"the mean of {', '.join(folder.parent.name for folder in folders)}"
    first = folders[0].parent
    if _is_run(first):
        result = _scored(result, first, folders, Path(out), progress_of(progress))
    version = register_derived(
        out,
        goal,
        of=[folder.parent for folder in folders],
        kind="soup",
        source=source,
        metric=result.metric,
        score=result.scores.get("soup"),
    )
    return result if version is None else result.model_copy(update={"version": version.ref})


@advising("choose another folder with --to")
def average(folders: Sequence[Path], goal: Path) -> None:
    """Write the mean of the weights in ``folders`` (safetensors, one file or several) as one checkpoint.

    Sums are computed in 64 bits; config and tokenizer are those of the first folder.

    Raises:
        IncompatibleError: The names or shapes of the tensors differ.
        StoreError: A folder has no safetensors file, or ``goal`` already exists.
    """
    if goal.exists():
        raise StoreError("the folder already exists", where=str(goal), fix="name another folder with --to")
    with ExitStack() as opened:
        models = [_tensors(folder, opened) for folder in folders]
        _check_tensors(folders, models)
        mean = {}
        for name, file in models[0].items():
            total = sum(model[name].get_tensor(name).double() for model in models)
            mean[name] = (total / len(models)).to(file.get_tensor(name).dtype)
    with store_errors(goal):
        shutil.copytree(folders[0], goal, ignore=shutil.ignore_patterns("*.safetensors*", "*.pt", "*.pth", "*.bin"))
        save_file(mean, goal / "model.safetensors", metadata={"format": "pt"})


def _tensors(folder: Path, opened: ExitStack) -> dict[str, Any]:
    """Return the open file that holds each tensor."""
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            file = opened.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise StoreError(f"the weights cannot be read ({error})", where=str(path), fix="train it again") from error
        files.update(dict.fromkeys(file.keys(), file))
    if not files:
        raise StoreError("there are no weights", expected="a *.safetensors file", where=str(folder))
    return files


def _check_tensors(folders: Sequence[Path], models: Sequence[Mapping[str, Any]]) -> None:
    shapes = [{name: file.get_slice(name).get_shape() for name, file in model.items()} for model in models]
    problems = [
        Problem(f"other tensors: {_some(shapes[0], other)}", f"those of {folders[0]}", where=str(folder))
        for folder, other in zip(folders, shapes, strict=True)
        if other != shapes[0]
    ]
    if problems:
        raise IncompatibleError(problems)


def _some(wanted: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    differing = sorted(name for name in {*wanted, *other} if wanted.get(name) != other.get(name))
    return abridged(differing, 3)


def _check_configs(sources: Sequence[str], folders: Sequence[Path]) -> None:
    configs = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in folders]
    problems = [
        Problem(f"{config.get(key)!r} in {name}", f"{configs[0].get(key)!r}, as in {sources[0]}", field=key)
        for name, config in zip(sources, configs, strict=True)
        for key in _SAME
        if config.get(key) != configs[0].get(key)
    ]
    if problems:
        raise IncompatibleError(problems)


def _folder(name: str, out: str | Path) -> Path:
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    folder = resolve(name, out) / "model"
    if not (folder / "config.json").is_file():
        raise StoreError("this run has no model", where=str(folder.parent), fix="name a run that was trained")
    return folder


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "record.json").is_file()


def _scored(soup: Soup, first: Path, folders: Sequence[Path], out: Path, progress: Progress) -> Soup:
    """Return the mean with its score on the evaluation rows of the first run, and the scores of the sources."""
    config: Config = load_config(first / "config.yaml")
    refuse_folds(config, "the score of a mean of models")
    task, data = dataset.prepare(config, checked_task_and_method(config)[0])
    base_outputs = BaseOutputs.collect(config, load_model(config, task, out), out, progress, data.train.examples)
    bundle = load_model(config.model_copy(update={"model": soup.model}), task, out, head=task.head, labels=())
    task = task.adopt(bundle)
    evaluation = evaluate.score_system(task, bundle, "soup", data, progress)
    evaluation = evaluation.without(left_out(first, data.eval.table.sha256))
    records = {
        name: read_record(folder.parent / "record.json")
        for name, folder in zip(soup.sources, folders, strict=True)
        if _is_run(folder.parent)
    }
    deciding = task.metrics[0].name
    scores = {
        name: record.scores["tuned"][deciding]
        for name, record in records.items()
        if record.data.eval.sha256 == data.eval.table.sha256 and deciding in record.scores["tuned"]
    }
    return soup.model_copy(
        update={
            "metric": deciding,
            "scores": scores | {"soup": evaluation.scores(config.evaluation)[deciding]},
            "retention": base_outputs.compare(bundle),
        }
    )
