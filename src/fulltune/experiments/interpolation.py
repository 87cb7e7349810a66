"""Weights between models: from the base to the tuned one (WiSE-FT), and the mean of several tuned ones (model soup).

    found = fulltune.interpolate("20260131-…")     # sweeps α, picks the best point inside the budget, writes it
    found = fulltune.soup(["20260131-…", "20260201-…"])

Nothing is trained. Between the base (α = 0) and the tuned model (α = 1) there is often a point that keeps most of the
gain and gives back most of what was forgotten (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fulltune.config import Config, ForgettingConfig, load_config
from fulltune.errors import ConfigError
from fulltune.evaluation.evaluate import evaluate as score
from fulltune.evaluation.retention import Memory
from fulltune.models import save
from fulltune.models.bundle import Bundle
from fulltune.pipeline.job import parts
from fulltune.pipeline.loading import find_model, load_model
from fulltune.records.run import Model, Retention, Score
from fulltune.report import pareto
from fulltune.report.retention import worst
from fulltune.runtime.files import atomic_text
from fulltune.runtime.progress import NullProgress, Progress
from fulltune.store.registry.register import register_derived
from fulltune.store.runs import resolve
from fulltune.tasks import dataset
from fulltune.tasks.base import Example, Task
from fulltune.tasks.dataset import Data
from fulltune.training.regularization.penalties import Shared, shared_parameters

#: Points of a sweep.
ALPHAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Point(Model):
    """One mixture: its task score and what it retains.

    ``loss`` is the largest relative loss among what has a budget (0 where nothing has); ``on_front`` tells that no
    other point is better in one and no worse in the other.
    """

    alpha: float
    score: Score
    retention: dict[str, Retention]
    loss: float
    within_budget: bool
    on_front: bool = False


class Interpolation(Model):
    """A sweep and what was chosen.

    Attributes:
        run_id, metric, direction: What was swept, and the task's deciding metric.
        chosen_on: ``valid``, or ``eval`` where the run has no validation rows: the score of the choice is then
            optimistic.
        rows: How many rows chose.
        kept_as_tuned: Parameters that the base does not have (a new head), which are the tuned model's at every α.
        points: By α.
        alpha: The chosen one.
        final: ``base``, ``interpolated`` and ``tuned`` by the deciding metric on the rows of ``eval``.
        model: Folder of the chosen model, for ``from_pretrained``.
        headline: The result in a sentence.
    """

    run_id: str
    metric: str
    direction: Literal["higher", "lower"]
    chosen_on: Literal["valid", "eval"]
    rows: int
    kept_as_tuned: tuple[str, ...]
    points: tuple[Point, ...]
    alpha: float
    final: dict[str, Score]
    model: str
    headline: str


@dataclass(frozen=True)
class Mixture:
    """A tuned model whose weights can be set anywhere between the base's and its own.

    What the base does not have (a new head, embeddings of new tokens) stays as tuned.
    """

    base: Bundle
    tuned: Bundle
    shared: list[Shared] = field(init=False)
    ends: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        shared = shared_parameters(self.base, self.tuned)
        object.__setattr__(self, "shared", shared)
        object.__setattr__(self, "ends", [one.parameter[: one.rows].detach().clone() for one in shared])

    @torch.no_grad()
    def at(self, alpha: float) -> Bundle:
        """``(1 − α) · base + α · tuned``, in place; exactly the one or the other at the ends."""
        for shared, end in zip(self.shared, self.ends, strict=True):
            shared.parameter[: shared.rows].copy_(torch.lerp(shared.base.to(end.device), end, alpha))
        return self.tuned

    @property
    def kept_as_tuned(self) -> tuple[str, ...]:
        """Names of the parameters that no α touches."""
        mixed = {id(one.parameter) for one in self.shared}
        return tuple(name for name, value in self.tuned.model.named_parameters() if id(value) not in mixed)


def interpolate(
    run: str,
    *,
    alphas: Sequence[float] = ALPHAS,
    out: str | Path = "runs",
    to: str | Path | None = None,
    progress: Progress | None = None,
) -> Interpolation:
    """Sweep from the base to a run's tuned model, and write the best mixture inside the budget of forgetting.

    Writes the model to ``to``, and ``interpolation.json`` and ``interpolation.svg`` into the run's folder.

    Args:
        run: A run: its id, the beginning of it, a path, or ``latest``.
        alphas: Points between 0 (the base) and 1 (the tuned model); both ends are always among them.
        out: Where runs lie.
        to: Folder of the chosen model; ``interpolated`` in the run's folder by default.
        progress: Where stages report.

    Raises:
        ConfigError: An α outside 0 and 1.
        FulltuneError: The run, its base or its data cannot be had.
    """
    wanted, progress = _checked(alphas), progress or NullProgress()
    folder = resolve(run, out)
    config = _with_budget(load_config(folder / "config.yaml"))
    task, data = dataset.prepare(config, parts(config)[0])
    base = load_model(config, task, out)
    task, tuned, _ = find_model(config, task, folder.name, folder.parent)
    memory = Memory.of(config, base, Path(out), progress)
    mixture = Mixture(base, tuned)
    chooses = data.valid or data.eval
    points = []
    with progress.stage("interpolate", total=len(wanted), unit="point") as bar:
        for alpha in wanted:
            points.append(_point(config, task, mixture, memory, chooses.examples, alpha))
            bar.advance(note=f"α = {alpha:g}")
    points = with_front(points, task.metrics[0].direction)
    best = choose(points, task.metrics[0].direction)
    goal = Path(to) if to else folder / "interpolated"
    final = _final(config, task, mixture, data, points, best)
    save.save_model(mixture.at(best.alpha), goal)
    found = Interpolation(
        run_id=folder.name,
        metric=task.metrics[0].name,
        direction=task.metrics[0].direction,
        chosen_on="valid" if data.valid else "eval",
        rows=len(chooses.examples),
        kept_as_tuned=mixture.kept_as_tuned,
        points=tuple(points),
        alpha=best.alpha,
        final=final,
        model=str(goal),
        headline=_headline(task, data, points, best),
    )
    source = f"the interpolation of {folder.name} at {best.alpha:g}"
    register_derived(out, goal, of=[folder], kind="interpolation", source=source)
    atomic_text(folder / "interpolation.json", found.to_json())
    atomic_text(folder / "interpolation.svg", _picture(found, _budget(config)))
    return found


def choose(points: Sequence[Point], direction: str) -> Point:
    """The best score among the points inside the budget (the base always is), the least lost where scores are equal."""
    sign = 1 if direction == "higher" else -1
    inside = [point for point in points if point.within_budget and not math.isnan(point.score.value)]
    return max(inside or points[:1], key=lambda point: (sign * point.score.value, -point.loss))


def with_front(points: Sequence[Point], direction: str) -> list[Point]:
    """The points, with those told that no other one dominates (the Pareto front of score and loss)."""
    sign = 1 if direction == "higher" else -1
    places = [(sign * point.score.value, -point.loss) for point in points]

    def is_dominated(place: tuple[float, float]) -> bool:
        return any(other != place and other[0] >= place[0] and other[1] >= place[1] for other in places)

    return [
        point.model_copy(update={"on_front": not any(map(math.isnan, place)) and not is_dominated(place)})
        for point, place in zip(points, places, strict=True)
    ]


def _checked(alphas: Sequence[float]) -> list[float]:
    outside = [alpha for alpha in alphas if not 0 <= alpha <= 1]
    if outside:
        raise ConfigError(
            f"α of {', '.join(f'{alpha:g}' for alpha in outside)}",
            expected="numbers from 0 (the base) to 1 (the tuned model)",
            field="alphas",
        )
    return sorted({0.0, 1.0, *map(float, alphas)})


def _with_budget(config: Config) -> Config:
    """A run without the guard is swept with its defaults: without a budget there is nothing to choose by."""
    if config.guards.forgetting is not None:
        return config
    guards = config.guards.model_copy(update={"forgetting": ForgettingConfig()})
    return config.model_copy(update={"guards": guards})


def _budget(config: Config) -> float:
    return config.guards.forgetting.budget if config.guards.forgetting else math.inf


def _point(
    config: Config, task: Task, mixture: Mixture, memory: Memory, examples: Sequence[Example], alpha: float
) -> Point:
    bundle = mixture.at(alpha)
    retention = memory.compare(bundle)
    lost = worst(retention)
    return Point(
        alpha=alpha,
        score=_score(config, task, bundle, examples),
        retention=retention,
        loss=max(0.0, lost[1].change) if lost and not math.isnan(lost[1].change) else (math.nan if lost else 0.0),
        within_budget=all(found.verdict != "forgotten" for found in retention.values()),
    )


def _score(config: Config, task: Task, bundle: Bundle, examples: Sequence[Example]) -> Score:
    deciding = task.metrics[0]
    found = score(task.predictor(bundle, "tuned"), examples, (deciding,), system="interpolated")
    return found.scores(config.evaluation)[deciding.name]


def _final(
    config: Config, task: Task, mixture: Mixture, data: Data, points: Sequence[Point], best: Point
) -> dict[str, Score]:
    """The ends and the choice on the rows that decide."""
    asked = {"base": points[0], "interpolated": best, "tuned": points[-1]}
    if data.valid is None:
        return {name: point.score for name, point in asked.items()}
    scores = {
        alpha: _score(config, task, mixture.at(alpha), data.eval.examples)
        for alpha in sorted({point.alpha for point in asked.values()})
    }
    return {name: scores[point.alpha] for name, point in asked.items()}


def _headline(task: Task, data: Data, points: Sequence[Point], best: Point) -> str:
    first, last, metric = points[0], points[-1], task.metrics[0]
    rows = f"{len(data.valid.examples)} validation rows" if data.valid else f"{len(data.eval.examples)} rows of eval"
    optimistic = "" if data.valid else ", which also score it: name data.valid for a choice that is independent"
    return (
        f"α = {best.alpha:g}: {metric.label or metric.name} {best.score.value:.4g} (base {first.score.value:.4g}, "
        f"tuned {last.score.value:.4g}), lost of retention at most {best.loss:.1%} (tuned {last.loss:.1%}); "
        f"chosen on {rows}{optimistic}."
    )


def _picture(found: Interpolation, budget: float) -> str:
    dots = [
        pareto.Dot(point.alpha, point.loss, point.score.value, point.on_front, point.alpha == found.alpha)
        for point in found.points
    ]
    return pareto.picture(found.headline, found.metric, found.direction, dots, budget)
