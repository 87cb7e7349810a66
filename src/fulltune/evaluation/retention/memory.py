"""What the base could do, kept while it is trained over, and compared with what the tuned model still can."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fulltune.config import Config
from fulltune.evaluation.retention import features
from fulltune.evaluation.retention.abilities import Ability, Represented, Scored, abilities, vectors
from fulltune.metrics.accumulate import Accumulator, relative_loss
from fulltune.metrics.base import Metric
from fulltune.models import reconcile
from fulltune.models.bundle import Bundle, own_head
from fulltune.records.run import Prediction, Retention, Score
from fulltune.runtime import distributed
from fulltune.runtime.progress import NullProgress, Progress
from fulltune.store.cache import cache_key, cache_path, cached_rows
from fulltune.tasks import prompts

#: Raised when the same model would answer otherwise.
VERSION = 2

#: How near the representation is to the base's has no budget: features may turn without a loss.
_NO_BUDGET = math.inf

Verdict = Literal["kept", "within budget", "forgotten"]


@dataclass(frozen=True)
class Memory:
    """The answers of the untouched base.

    Attributes:
        config: The job.
        base: Its head is what the tuned model is asked with, where that was given another.
        answers: What the base said, for each ability.
    """

    config: Config
    base: Bundle
    answers: tuple[tuple[Ability, tuple[Any, ...]], ...]

    @classmethod
    def of(cls, config: Config, base: Bundle, out: Path | None = None, progress: Progress | None = None) -> Memory:
        """Ask the base, now: training may be about to overwrite it.

        Args:
            config: The job; ``guards.forgetting`` says what is asked.
            base: The untouched base with its own head.
            out: Where answers are cached by the base's hash and what was asked; nowhere by default.
            progress: Gets a stage an ability.

        Raises:
            ConfigError, DataError: The probe or a set cannot be had, or the base cannot be asked it.
        """
        known = []
        for ability in abilities(config, base):
            with (progress or NullProgress()).stage(f"base: {ability.name}", total=ability.rows) as bar:
                known.append((ability, tuple(_cached(ability, base, out, bar.advance))))
        return cls(config, base, tuple(known))

    def compare(self, student: Bundle, progress: Progress | None = None) -> dict[str, Retention]:
        """Ask the same of the tuned model.

        Args:
            student: In any mode; it is asked in eval mode and left as it was.
        """
        found: dict[str, Retention] = {}
        with _in_eval_mode(student), own_head(self.base, student) as bundle:
            for ability, before in self.answers:
                with (progress or NullProgress()).stage(f"tuned: {ability.name}", total=ability.rows) as bar:
                    after = tuple(_counted(ability.answer(bundle), bar.advance))
                found |= self._compared(ability, before, after)
        return distributed.broadcast(found)  # whoever acts on it must act alike

    def _compared(self, ability: Ability, before: Sequence[Any], after: Sequence[Any]) -> dict[str, Retention]:
        if isinstance(ability, Scored):
            return {ability.name: self._retention(ability.metric, before, after)}
        assert isinstance(ability, Represented)
        base, tuned = vectors(before), vectors(after)
        found = {"representation": self._similarity(base, tuned)}
        known, now = ability.topics(base), ability.topics(tuned)
        return found | ({"topics": self._retention(features.topic_accuracy, known, now)} if known else {})

    def _retention(self, metric: Metric, before: Iterable[Any], after: Iterable[Any]) -> Retention:
        base, tuned = _accumulated(metric, before), _accumulated(metric, after)
        used = {"resamples": self.config.evaluation.resamples, "confidence": self.config.evaluation.confidence}
        change, low, high = relative_loss(tuned, base, metric, **used)  # type: ignore[arg-type]
        old, new = base.scores(**used)[metric.name], tuned.scores(**used)[metric.name]  # type: ignore[arg-type]
        if old.value == 0 and math.isfinite(new.value):
            change = low = high = 0.0  # nothing was there to be lost
        return Retention(
            metric=metric.name,
            direction=metric.direction,
            base=old,
            tuned=new,
            change=change,
            low=low,
            high=high,
            budget=self._budget,
            verdict=verdict_of(change, low, self._budget),
        )

    def _similarity(self, base: Any, tuned: Any) -> Retention:
        score = features.similarity(base, tuned, self.config.evaluation.confidence)
        change, low = 1 - score.value, 1 - score.high
        return Retention(
            metric="linear_cka",
            direction="higher",
            base=Score(value=1.0, low=1.0, high=1.0, n=score.n),
            tuned=score,
            change=change,
            low=low,
            high=1 - score.low,
            budget=_NO_BUDGET,
            verdict=verdict_of(change, low, _NO_BUDGET),
        )

    @property
    def _budget(self) -> float:
        settings = self.config.guards.forgetting
        return settings.budget if settings else _NO_BUDGET


def verdict_of(change: float, low: float, budget: float) -> Verdict:
    """``forgotten``: a loss that is not chance and is larger than the budget; ``kept``: none that is not chance.

    Args:
        change: Relative loss; NaN (the tuned model gives no number) counts as forgotten.
        low: Lower end of its interval; NaN (one row) lets the change speak alone.
        budget: Highest loss allowed.
    """
    if math.isnan(change):
        return "forgotten"
    if change <= 0 or low <= 0:
        return "kept"
    return "forgotten" if change > budget else "within budget"


def sentence(name: str, found: Retention) -> str:
    """One ability in words, e.g. ``general text (en): bits_per_byte 1.021 → 1.342, 31.4% worse (+28.0% to +35.1%)``."""
    way = "worse" if found.change > 0 else "better"
    budget = "" if math.isinf(found.budget) else f", budget {found.budget:.3g}"
    return (
        f"{name}: {found.metric} {found.base.value:.4g} → {found.tuned.value:.4g}, {abs(found.change):.1%} {way} "
        f"({found.low:+.1%} to {found.high:+.1%}{budget}): {found.verdict}"
    )


@contextmanager
def _in_eval_mode(bundle: Bundle) -> Iterator[None]:
    was_training = bundle.model.training
    bundle.model.eval()
    try:
        yield
    finally:
        bundle.model.train(was_training)


def _accumulated(metric: Metric, rows: Iterable[Any]) -> Accumulator:
    accumulator = Accumulator((metric,))
    for row in rows:
        accumulator.add(Prediction.model_validate(row))
    return accumulator


def _cached(ability: Ability, base: Bundle, out: Path | None, advance: Callable[[], object]) -> Iterable[Any]:
    if out is None:
        return _counted(ability.answer(base), advance)
    key = {"retention": VERSION, "name": ability.name, "base": base.info.sha256, "window": base.window}
    key |= {
        "prompts": prompts.VERSION,
        "asked": ability.asked,
        "reconciled": [reconcile.VERSION, *base.info.reconciled],
    }
    path = cache_path(out, cache_key(key))
    return cached_rows(path, lambda: _counted(ability.answer(base), advance))


def _counted(rows: Iterable[Any], advance: Callable[[], object]) -> Iterable[Any]:
    for row in rows:
        advance()
        yield row
