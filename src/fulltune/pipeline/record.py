"""Build the record of a run from the results of its stages."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fulltune.config import BaselineConfig, Config, EvaluationConfig, ForgettingConfig
from fulltune.data.findings import rows
from fulltune.evaluation.evaluate import Evaluation
from fulltune.evaluation.prompt_use import prompt_uses, sentences
from fulltune.evaluation.retention import sentence
from fulltune.metrics import wording
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import holm, paired
from fulltune.metrics.decide import Decision, decide
from fulltune.metrics.memorization import memorization
from fulltune.metrics.parts import part_scores
from fulltune.metrics.recommendation import lead, recommend, unchanged
from fulltune.models.bundle import Bundle
from fulltune.pipeline.job import Job
from fulltune.pipeline.proposal.base_models import language_gap, writing_limit
from fulltune.pipeline.proposal.language import language_of
from fulltune.records.data import DataSummary
from fulltune.records.parts import PartScores
from fulltune.records.run import (
    Comparison,
    DataInfo,
    EvaluationRecord,
    FoldOutcome,
    LanguageGap,
    Outcome,
    Prediction,
    PromptUse,
    Record,
    Resources,
    Retention,
    Score,
    base_kept,
    best_baseline,
)
from fulltune.runtime import machine
from fulltune.runtime.files import folder_bytes
from fulltune.runtime.json_lines import Lines
from fulltune.runtime.stopwatch import Stopwatch, Warnings
from fulltune.runtime.version import __version__, versions
from fulltune.store.runs import RunFolder
from fulltune.tasks.base import Example, Task
from fulltune.tasks.dataset import Data
from fulltune.training.fit import TrainingResult


@dataclass(frozen=True)
class _Of:
    """The predictions of one system, without some rows, read from the file at every iteration."""

    lines: Lines[Prediction]
    system: str
    left_out: Container[str] = ()

    def __iter__(self) -> Iterator[Prediction]:
        return (line for line in self.lines if line.system == self.system and line.id not in self.left_out)


def build_record(
    job: Job,
    *,
    summary: DataSummary,
    shots: Sequence[Example],
    systems: Mapping[str, Evaluation],
    trained: TrainingResult,
    retention: Mapping[str, Retention],
    watch: Stopwatch,
    warned: Warnings,
    folder: RunFolder,
    folds: Sequence[FoldOutcome] = (),
) -> Record:
    """Return the record of a finished or stopped run."""
    config, task, data, audit = job.config, job.task, job.data, job.audit
    settings, deciding = config.evaluation, task.metrics[0]
    counted = _without(systems, job.left_out)
    scores = _scores(counted, settings)
    comparison, lines = _comparisons(settings, deciding, counted), Lines(folder.path / "predictions.jsonl", Prediction)
    verdict = _verdict(job, counted, comparison, scores)
    verdict = _of_folds(verdict, folds)
    verdict = _not_forgetting(verdict, config.guards.forgetting, retention)
    verdict = _conclusion(verdict, trained)
    asked = prompt_uses(lines)
    noted = (*_skipped(config.baselines), *sentences(asked, len(shots)), *constant_answer(_Of(lines, "tuned")))
    draft = Record(
        run_id=folder.run_id,
        fulltune=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        task=task.name,
        task_version=task.version,
        method=config.method,
        headline=verdict.headline,
        metric=deciding.name,
        metrics={metric.name: metric.info() for metric in task.metrics},
        model=job.base.info.model_copy(update={"reconciled": (*job.base.info.reconciled, *trained.reconciled)}),
        language_gap=_language_gap(job),
        data=DataInfo(
            train=data.train.table.info,
            eval=data.eval.table.info,
            valid=data.valid.table.info if data.valid else None,
            audit=audit.summary(),
            summary=summary,
        ),
        parameters=trained.parameters,
        adapter=trained.adapter,
        training=trained.training,
        confidence=settings.confidence,
        scores=scores,
        scores_all_rows=_scores(systems, settings) if audit.leaked_ids else {},
        scores_without_leaks=_scores(_without(systems, audit.leaked_ids), settings) if audit.leaked_ids else {},
        baselines={name: one.use for name, one in systems.items() if one.use is not None},
        shots=tuple(shot.id for shot in shots),
        folds=tuple(folds),
        chat_date=config.data.chat_date,
        prompts=asked,
        comparison=comparison,
        details=_details(task, data, trained, lines, job.left_out),
        retention=dict(retention),
        guards=trained.guards,
        resources=_resources(trained, watch, folder.path / "model"),
        versions=versions(),
        warnings=(*warned.messages, *trained.warnings, *noted),
        outcome=verdict.outcome,
        reasons=verdict.reasons,
    )
    draft = draft.model_copy(update={"parts": _parts(job, counted, best_baseline(draft))})
    return _recommending(draft, _limit(job, trained.parameters.total))


def _limit(job: Job, parameters: int) -> str:
    """Return what a small model that is trained on documents cannot do; empty for other tasks and larger models."""
    examples = job.data.train.examples
    if job.task.name != "causal-lm" or any(example.input for example in examples):
        return ""
    return writing_limit(parameters, language_of(example.answer for example in examples))


def _parts(job: Job, systems: Mapping[str, Evaluation], baseline: str | None) -> PartScores | None:
    """Return the deciding scores by group, folder or database; None if there is nothing to compare with."""
    if baseline is None:
        return None
    parts = {example.id: example.part for example in job.data.eval.examples}
    tuned, other = (systems[name].accumulator for name in ("tuned", baseline))
    by = job.config.data.group or job.task.part
    return part_scores(tuned, other, job.task.metrics[0], parts, by=by, name=baseline)


def _language_gap(job: Job) -> LanguageGap | None:
    texts = (example.input or example.answer for example in job.data.train.examples)
    return language_gap(job.config.model, job.base.family, language_of(texts))


def _verdict(
    job: Job, systems: Mapping[str, Evaluation], comparison: Mapping[str, Comparison], scores: Mapping[str, Any]
) -> Decision:
    """Return the verdict on the scores; a gain that only rows of train show is not accepted."""
    settings, deciding, leaked = job.config.evaluation, job.task.metrics[0], job.audit.leaked_ids
    verdict = decide(comparison, scores, deciding, settings.confidence)
    if verdict.outcome != "accepted" or not leaked or job.left_out:
        return verdict
    clean = _without(systems, leaked)
    comparison = _comparisons(settings, deciding, clean)
    without = decide(comparison, _scores(clean, settings), deciding, settings.confidence)
    if without.outcome == "accepted":
        return verdict
    reason = f"without the {rows(len(leaked), of='eval')} that also occur in train: {without.headline}"
    return Decision("undecided", (reason,), f"{verdict.headline} But {reason}")


def _of_folds(verdict: Decision, folds: Sequence[FoldOutcome]) -> Decision:
    """Return the verdict on the scores, unless the training of a fold was stopped: its answers show a broken model."""
    stopped = [fold for fold in folds if fold.outcome == "stopped"]
    if not stopped:
        return verdict
    reasons = tuple(f"the training of fold {fold.fold} was stopped ({fold.run_id})" for fold in stopped)
    outcome: Outcome = "rejected" if verdict.outcome == "rejected" else "undecided"
    lead = f"{len(stopped)} of {len(folds)} folds stopped."
    return Decision(outcome, (*reasons, *verdict.reasons), f"{lead} {verdict.headline}")


def _not_forgetting(
    verdict: Decision, settings: ForgettingConfig | None, retention: Mapping[str, Retention]
) -> Decision:
    """Return the verdict on the scores, unless more was forgotten than the budget allows.

    Such a model is not accepted; ``guards.forgetting.action`` says whether it is rejected.
    """
    lost = tuple(sentence(name, ability) for name, ability in retention.items() if ability.verdict == "lost")
    if not lost or settings is None:
        return verdict
    rejects = settings.action == "reject" or verdict.outcome == "rejected"
    headline = f"Too much was forgotten. {verdict.headline}"
    return Decision("rejected" if rejects else "undecided", (*lost, *verdict.reasons), headline)


def _conclusion(verdict: Decision, trained: TrainingResult) -> Decision:
    """Return the verdict on the scores, preceded by the outcome of the training itself."""
    kept = base_kept(trained.guards)
    outcome, reasons, headline = verdict
    if kept is not None:
        headline, reasons = f"The base was kept because no training step beat it. {headline}", (kept.message, *reasons)
        outcome = "rejected"
    elif trained.stopped is None and (reason := unchanged(trained.parameters)):
        headline, reasons = f"Nothing was learned. {headline}", (reason, *reasons)
        outcome = "rejected"
    if trained.stopped is not None:
        headline = f"Training was stopped: {trained.stopped.problems[0].found}. {headline}"
        return Decision("stopped", (str(trained.stopped), *(reasons if kept else ())), headline)
    ended = next((event for event in trained.guards if event.guard == "forgetting" and event.stops), None)
    if ended is not None:
        return Decision(
            "stopped", (ended.message, *reasons), f"Training was stopped because the model forgot too much. {headline}"
        )
    return Decision(outcome, reasons, headline)


def _recommending(record: Record, limit: str = "") -> Record:
    """Return the record with what to do next, which its headline begins with, and what cannot be expected."""
    advice = recommend(record)
    if limit:
        advice = advice.model_copy(update={"sentence": f"{advice.sentence} {limit}"})
    headline = f"{lead(advice, record.outcome)}. {record.headline}"
    return record.model_copy(update={"recommendation": advice, "headline": headline})


def _without(systems: Mapping[str, Evaluation], ids: Container[str]) -> dict[str, Evaluation]:
    return {name: evaluation.without(ids) for name, evaluation in systems.items()}


def _scores(systems: Mapping[str, Evaluation], settings: EvaluationConfig) -> dict[str, dict[str, Score]]:
    return {name: evaluation.scores(settings) for name, evaluation in systems.items()}


def _details(
    task: Task, data: Data, trained: TrainingResult, predictions: Lines[Prediction], left_out: Container[str]
) -> dict[str, Any]:
    details = dict(task.details(_Of(predictions, "tuned", left_out)))
    if trained.validation:
        details["validation"] = trained.validation
    # With folds, the rows of train are those that were answered.
    compares = task.head == "lm" and not task.config.data.is_crossed
    copied = memorization(predictions, _answers(data)) if compares else None
    return details | ({"memorization": copied} if copied else {})


def constant_answer(predictions: Iterable[Prediction]) -> tuple[str, ...]:
    """Return a warning if all answers are the same although the references differ."""
    wanted, given, rows = set[Any](), set[Any](), 0
    for prediction in predictions:
        if prediction.output != "":  # no answer was asked for
            wanted.add(prediction.reference)
            given.add(prediction.output)
            rows += 1
    if len(given) != 1 or len(wanted) < 2:
        return ()
    answer = str(next(iter(given)))
    return (f"The tuned model gives the same answer to all {rows} rows: {answer[:80]!r}.",)


def _skipped(settings: BaselineConfig) -> tuple[str, ...]:
    """Return a warning about the baselines that were switched off: "better than every baseline" is not about them."""
    names = [wording.system(name) for name in settings.skip]
    return (f"Not compared with {wording.listed(names)} (baselines.skip).",) if names else ()


def _answers(data: Data) -> Iterator[str]:
    return (example.answer for example in data.train.examples)


def evaluation_record(
    config: Config,
    task: Task,
    data: Data,
    bundle: Bundle,
    evaluation: Evaluation,
    asked: Mapping[str, PromptUse],
    warned: Warnings,
    left_out: frozenset[str] = frozenset(),
) -> EvaluationRecord:
    """Return the record of one model on one split: its scores, how its rows were asked, and the warnings.

    Rows that the run of the model leaves out, because they also occur in train, do not count here either.
    """
    leaks = f"{rows(len(left_out), 'be', 'eval')} left out of the scores, as in the run: also in train"
    return EvaluationRecord(
        model=bundle.info,
        system=evaluation.system,
        task=task.name,
        task_version=task.version,
        metric=task.metrics[0].name,
        metrics={metric.name: metric.info() for metric in task.metrics},
        data=data.eval.table.info,
        scores=evaluation.without(left_out).scores(config.evaluation),
        seconds=round(evaluation.seconds, 3),
        chat_date=config.data.chat_date,
        prompts=dict(asked),
        warnings=(*warned.messages, *sentences(asked), *((leaks,) if left_out else ())),
    )


def _comparisons(
    settings: EvaluationConfig, deciding: Metric, systems: Mapping[str, Evaluation]
) -> dict[str, Comparison]:
    """Compare the tuned model with each baseline; p-values are also adjusted for their number."""
    comparisons = {
        f"tuned vs {name}": paired(
            systems["tuned"].on(evaluation.accumulator.ids).accumulator,
            evaluation.accumulator,
            deciding,
            resamples=settings.resamples,
            confidence=settings.confidence,
            min_effect=settings.min_effect,
        )
        for name, evaluation in systems.items()
        if name != "tuned"
    }
    adjusted = holm([comparison.p for comparison in comparisons.values()])
    return {
        name: comparison.model_copy(update={"p_holm": p})
        for (name, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }


def _resources(trained: TrainingResult, watch: Stopwatch, model: Path) -> Resources:
    stages = dict(watch.seconds)
    # Without this stage, training was complete before the run was resumed.
    before = trained.seconds_before if "train" in stages else trained.train_seconds
    if before:
        stages["train"] = round(stages.get("train", 0.0) + before, 3)
    return Resources(
        peak_rss_bytes=machine.peak_rss_bytes(),
        train_seconds=round(trained.train_seconds, 3),
        tokens_per_second=round(trained.tokens_per_second, 1),
        total_seconds=round(watch.total + before, 3),
        seconds_before=round(before, 3),
        core_seconds=round(watch.core_seconds, 3),
        stage_seconds=stages,
        machine=machine.describe(),
        model_bytes=folder_bytes(model),
    )
