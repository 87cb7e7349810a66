"""Collect the outputs of the base model before training, and compare them with those of the tuned model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fulltune.config import Config
from fulltune.evaluation.retention import features
from fulltune.evaluation.retention.abilities import Ability, RepresentationAbility, ScoredAbility, abilities, vectors
from fulltune.evaluation.retention.language import unknown_to
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import relative_loss
from fulltune.metrics.power import least_rows
from fulltune.metrics.wording import metric_label
from fulltune.models import reconcile
from fulltune.models.bundle import Bundle, with_base_head
from fulltune.models.modes import in_mode
from fulltune.records.run import Prediction, Retention, Score
from fulltune.runtime import distributed
from fulltune.runtime.progress import NullProgress, Progress
from fulltune.store.cache import cache_key, cache_path, cached_rows
from fulltune.tasks import prompts
from fulltune.tasks.base import Example

#: Part of the cache key: increased whenever outputs of the same model change.
VERSION = 2

_NO_BUDGET = math.inf

#: Differences of relative losses that rounding may cause.
_ROUNDING = 1e-12

Verdict = Literal["kept", "lost", "cannot tell", "no budget"]


@dataclass(frozen=True)
class BaseOutputs:
    """Outputs of the base model before training.

    Attributes:
        config: Config of the run.
        base: The base model. Its head is put on the body of a tuned model that has another head.
        outputs: Outputs of the base for each ability.
    """

    config: Config
    base: Bundle
    outputs: tuple[tuple[Ability, tuple[Any, ...]], ...]

    @classmethod
    def collect(
        cls,
        config: Config,
        base: Bundle,
        out: Path | None = None,
        progress: Progress | None = None,
        train: Sequence[Example] = (),
    ) -> BaseOutputs:
        """Run the base now, since training may overwrite its weights.

        Args:
            config: ``guards.forgetting`` selects the abilities.
            base: Untrained base with its own head.
            out: Folder of runs, whose cache stores the outputs; None: no cache.
            progress: Reports one stage per ability.
            train: Rows of train: general text in their language has a budget.

        Raises:
            ConfigError: The probe or a set is not available, or the base does not support it.
            DataError: Rows of the probe or of a set cannot be read.
        """
        outputs = []
        for ability in abilities(config, base, train):
            with (progress or NullProgress()).stage(f"base: {ability.name}", total=ability.rows) as bar:
                outputs.append((ability, tuple(_cached(ability, base, out, bar.advance))))
        return cls(config, base, tuple(outputs))

    def compare(self, model: Bundle, progress: Progress | None = None) -> dict[str, Retention]:
        """Run the tuned model on the same rows, and return the retention of each ability.

        Args:
            model: Tuned model, in any mode; it is run in eval mode, and its mode is restored.
            progress: Reports one stage per ability.
        """
        retention: dict[str, Retention] = {}
        with in_mode(model.model, training=False), with_base_head(self.base, model) as bundle:
            for ability, before in self.outputs:
                with (progress or NullProgress()).stage(f"tuned: {ability.name}", total=ability.rows) as bar:
                    after = tuple(_counted(ability.outputs(bundle), bar.advance))
                retention |= self._compared(ability, before, after)
        return distributed.broadcast(retention)  # guards must decide the same on all processes

    def _compared(self, ability: Ability, before: Sequence[Any], after: Sequence[Any]) -> dict[str, Retention]:
        """Return the retention of an ability by name; a representation has up to two entries."""
        if isinstance(ability, ScoredAbility):
            return {ability.name: self._retention(ability, ability.metric, before, after)}
        assert isinstance(ability, RepresentationAbility)
        base = vectors(before)
        tuned = vectors(after)
        retention = {ability.name: self._similarity(base, tuned)}
        if base_topics := ability.topics(base):
            now = ability.topics(tuned)
            retention[ability.topics_name] = self._retention(ability, features.topic_accuracy, base_topics, now)
        return retention

    def _retention(self, ability: Ability, metric: Metric, before: Iterable[Any], after: Iterable[Any]) -> Retention:
        """Return the change of a metric with its interval and verdict."""
        base = _accumulated(metric, before)
        tuned = _accumulated(metric, after)
        settings = {"resamples": self.config.evaluation.resamples, "confidence": self.config.evaluation.confidence}
        change, low, high = relative_loss(tuned, base, metric, **settings)  # type: ignore[arg-type]
        base_score = base.scores(**settings)[metric.name]  # type: ignore[arg-type]
        tuned_score = tuned.scores(**settings)[metric.name]  # type: ignore[arg-type]
        if base_score.value == 0 and math.isfinite(tuned_score.value):
            change = low = high = 0.0  # the base had nothing to lose
        reason = ability.unbudgeted or (unknown_to(self.base, metric, base_score) if ability.is_inferred else "")
        budget = _NO_BUDGET if reason else self._budget
        return Retention(
            metric=metric.name,
            direction=metric.direction,
            base=base_score,
            tuned=tuned_score,
            change=change,
            low=low,
            high=high,
            budget=budget,
            verdict=verdict_of(change, low, high, budget, base_score.n, self.config.evaluation.confidence),
            reason=reason,
        )

    def _similarity(self, base: Any, tuned: Any) -> Retention:
        """Return the similarity of two representations ``(n, hidden)``."""
        score = features.similarity(base, tuned, self.config.evaluation.confidence)
        return Retention(
            metric="linear_cka",
            direction="higher",
            base=Score(value=1.0, low=1.0, high=1.0, n=score.n),
            tuned=score,
            change=1 - score.value,
            low=1 - score.high,
            high=1 - score.low,
            budget=_NO_BUDGET,
            verdict="no budget",
            reason="features may rotate without a loss",
        )

    @property
    def _budget(self) -> float:
        """The highest accepted loss: differences that do not count are no losses."""
        settings = self.config.guards.forgetting
        return max(settings.budget, self.config.evaluation.min_effect) if settings else _NO_BUDGET


def verdict_of(change: float, low: float, high: float, budget: float, n: int, confidence: float) -> Verdict:
    """Return the verdict on a relative loss, by its interval against the budget.

    ``kept``: the interval lies within the budget, so that at most so much was lost. ``lost``: it lies beyond.
    ``cannot tell``: the budget is inside of it, or there are fewer rows than any test needs.

    Args:
        change: Relative loss; NaN (the tuned model's score is not a number) counts as lost.
        low, high: Its interval; NaN for a single row.
        budget: Highest accepted loss; infinite if there is none.
        n: Number of rows.
        confidence: Confidence level of the interval.
    """
    if math.isinf(budget):
        return "no budget"
    if math.isnan(change):
        return "lost"
    limit = budget + _ROUNDING
    if n < least_rows(confidence) or not (low > limit or high <= limit):
        return "cannot tell"
    return "lost" if low > limit else "kept"


def sentence(name: str, retention: Retention) -> str:
    """Return a line such as ``general text (en): Bits per byte 1.1 → 1.2, 9.1% worse (+2.8% to +15.1%): …``."""
    direction = "worse" if retention.change > 0 else "better"
    return (
        f"{name}: {metric_label(retention.metric)} {retention.base.value:.4g} → {retention.tuned.value:.4g}, "
        f"{abs(retention.change):.1%} {direction} ({retention.low:+.1%} to {retention.high:+.1%}): {outcome(retention)}"
    )


def outcome(retention: Retention) -> str:
    """Return the verdict in words, with the budget that it refers to."""
    budget = f"the budget of {100 * retention.budget:.3g}%"
    return {
        "kept": f"kept, within {budget}",
        "lost": f"lost, beyond {budget}",
        "cannot tell": f"{retention.base.n} rows cannot tell whether it is within {budget}",
        "no budget": f"only reported ({retention.reason})" if retention.reason else "only reported",
    }[retention.verdict]


def _accumulated(metric: Metric, rows: Iterable[Any]) -> Accumulator:
    accumulator = Accumulator((metric,))
    for row in rows:
        accumulator.add(Prediction.model_validate(row))
    return accumulator


def _cached(ability: Ability, base: Bundle, out: Path | None, advance: Callable[[], object]) -> Iterable[Any]:
    """Return the base's outputs from the cache, or compute and cache them."""
    if out is None:
        return _counted(ability.outputs(base), advance)
    key = {"retention": VERSION, "name": ability.name, "base": base.info.sha256, "window": base.window}
    key |= {
        "prompts": prompts.VERSION,
        "asked": ability.digest,
        "reconciled": [reconcile.VERSION, *base.info.reconciled],
    }
    path = cache_path(out, cache_key(key))
    return cached_rows(path, lambda: _counted(ability.outputs(base), advance))


def _counted(rows: Iterable[Any], advance: Callable[[], object]) -> Iterable[Any]:
    """Yield the rows and advance a bar for each."""
    for row in rows:
        advance()
        yield row
