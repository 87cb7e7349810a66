"""Save a trained model: store the adapter, merge it into a plain model, and check the merged model against it.

The merged model is the one that is scored and reported (``docs/decisions/0012``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fulltune.evaluation.evaluate import evaluate
from fulltune.metrics.base import Metric
from fulltune.metrics.wording import label
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

#: Evaluation rows that are scored before and after a merge.
CHECKED = 64

#: A difference that rounding explains, as a fraction of the score.
_ROUNDING = 1e-3


def finish(job: Job, model: Bundle, trained: TrainingResult, folder: RunFolder) -> TrainingResult:
    """Write ``model/``, and ``adapter/`` if only few tensors were trained; merge these into the model, in place."""
    task, method = job.task, job.method
    if method.trains_all:
        save.save_model(model, folder.path / "model")
        return trained
    adapter_folder = folder.path / "adapter"
    metric = task.metrics[0]
    if distributed.is_main():
        method.save(model, adapter_folder)
    adapter = AdapterInfo(bytes=folder_bytes(adapter_folder), merged=method.stored_as != "adapter")
    if method.stored_as == "merged":
        rows = job.data.eval.examples[:CHECKED]
        before = _score(task, model, rows, metric)
        method.merge(model)
        after = _score(task, model, rows, metric)
        scores = {"metric": metric.name, "rows": len(rows), "before": before, "after": after}
        adapter = adapter.model_copy(update=scores)
    _write_model(method, model, folder.path / "model")
    return replace(trained, adapter=adapter, warnings=_dropped(adapter, metric))


def _write_model(method: Method, model: Bundle, place: Path) -> None:
    """Write a plain model folder; for a soft prompt, which is no part of the weights, the adapter and the tokenizer."""
    if method.stored_as != "adapter":
        save.save_model(model, place)
    elif distributed.is_main():
        method.save(model, place)
        model.tokenizer.save_pretrained(place)


def _score(task: Task, bundle: Bundle, rows: Sequence[Example], metric: Metric) -> float:
    return evaluate(task.predictor(bundle, "tuned"), rows, (metric,), system="tuned").value(metric.name)


def _dropped(adapter: AdapterInfo, metric: Metric) -> tuple[str, ...]:
    """Return a warning if the merged model scores worse than rounding explains, or NaN."""
    loss = adapter.before - adapter.after if metric.direction == "higher" else adapter.after - adapter.before
    if not adapter.rows or loss <= _ROUNDING * max(abs(adapter.before), _ROUNDING):
        return ()
    return (
        f"Merging changed {label(metric)} from {adapter.before:.4g} to {adapter.after:.4g} on {adapter.rows} rows; "
        "the merged model is the one that is reported.",
    )
