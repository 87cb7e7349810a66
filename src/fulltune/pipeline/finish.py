"""After training: what was trained is stored, merged into a plain model, and that one is checked against it.

The merged model is the one that is scored and reported (``docs/decisions/0012``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fulltune.evaluation.evaluate import evaluate
from fulltune.metrics.base import Metric
from fulltune.models import save
from fulltune.models.bundle import Bundle
from fulltune.pipeline.job import Job
from fulltune.records.run import AdapterInfo
from fulltune.runtime import distributed
from fulltune.runtime.files import folder_bytes
from fulltune.store.runs import RunFolder
from fulltune.tasks.base import Example, Task
from fulltune.training.fit import TrainingResult
from fulltune.training.methods.base import Method

#: Rows of the evaluation that are scored before and after a merge.
CHECKED = 64

#: A difference that rounding explains, as a share of the score.
_ROUNDING = 1e-3


def finish(job: Job, student: Bundle, trained: TrainingResult, folder: RunFolder) -> TrainingResult:
    """Write ``model/``, and ``adapter/`` where few tensors were trained; merge these into the model, in place."""
    task, method = job.task, job.method
    if method.trains_all:
        save.save_model(student, folder.path / "model")
        return trained
    beside, metric = folder.path / "adapter", task.metrics[0]
    if distributed.is_main():
        method.save(student, beside)
    found = AdapterInfo(bytes=folder_bytes(beside), merged=not method.stays_apart)
    if method.is_beside:
        rows = job.data.eval.examples[:CHECKED]
        before = _score(task, student, rows, metric)
        method.merge(student)
        told = {"metric": metric.name, "rows": len(rows), "before": before}
        found = found.model_copy(update=told | {"after": _score(task, student, rows, metric)})
    _write_model(method, student, folder.path / "model")
    return replace(trained, adapter=found, warnings=_dropped(found, metric))


def _write_model(method: Method, student: Bundle, place: Path) -> None:
    """A plain folder; of a soft prompt, which is no part of the weights, the adapter with its tokenizer."""
    if not method.stays_apart:
        save.save_model(student, place)
    elif distributed.is_main():
        method.save(student, place)
        student.tokenizer.save_pretrained(place)


def _score(task: Task, bundle: Bundle, rows: Sequence[Example], metric: Metric) -> float:
    return evaluate(task.predictor(bundle, "tuned"), rows, (metric,), system="tuned").value(metric.name)


def _dropped(found: AdapterInfo, metric: Metric) -> tuple[str, ...]:
    """A sentence where the merged model does worse than rounding explains; NaN does."""
    loss = found.before - found.after if metric.direction == "higher" else found.after - found.before
    if not found.rows or loss <= _ROUNDING * max(abs(found.before), _ROUNDING):
        return ()
    return (
        f"Merging changed {metric.name} from {found.before:.4g} to {found.after:.4g} on {found.rows} rows; "
        "the merged model is the one that is reported.",
    )
