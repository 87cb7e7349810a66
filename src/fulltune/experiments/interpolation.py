"""Interpolate weights from a base model to its tuned model (WiSE-FT).

    found = fulltune.interpolate("20260131-…")     # sweeps α, picks the best point within the budget, writes it

Nothing is trained. Between the base (α = 0) and the tuned model (α = 1) there is often a point that keeps most of the
gain and recovers most of what was forgotten (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fulltune.config import Config, EvaluationConfig, ForgettingConfig, GuardsConfig, load_config, refuse_folds
from fulltune.errors import ConfigError
from fulltune.evaluation.evaluate import evaluate as score
from fulltune.evaluation.retention import BaseOutputs
from fulltune.models import save
from fulltune.models.bundle import Bundle
from fulltune.pipeline.job import checked_task_and_method
from fulltune.pipeline.model_loading import find_model, load_model
from fulltune.records.run import Model, Record, Retention, Score, left_out
from fulltune.report import pareto
from fulltune.report.retention import worst
from fulltune.runtime.files import atomic_text
from fulltune.runtime.progress import Progress, progress_of
from fulltune.store.registry.register import register_derived
from fulltune.store.runs import name_and_folder, resolve
from fulltune.tasks import dataset
from fulltune.tasks.base import Example, Task
from fulltune.tasks.dataset import Data
from fulltune.training.regularization.penalties import Shared, shared_parameters

#: Points of a sweep.
ALPHAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Point(Model):
    """One mixture: its task score and its retention.

    ``loss`` is the largest relative loss of the retention sets with a budget (0 without any); ``on_front`` means that
    no other point is better in one of both and not worse in the other.
    """

    alpha: float
    score: Score
    retention: dict[str, Retention]
    loss: float
    within_budget: bool
    on_front: bool = False


class Interpolation(Model):
    """A sweep over α and the chosen point.

    Attributes:
        run_id, metric, direction: The run, and the deciding metric of its task.
        chosen_on: ``valid``, or ``eval`` if the run has no validation rows: the score of the choice is then optimistic.
        rows: Number of rows that the choice is based on.
        kept_as_tuned: Parameters that the base does not have (a new head), which are those of the tuned model at every
            α.
        points: Points by α.
        alpha: The chosen α.
        final: Deciding metric of ``base``, ``interpolated`` and ``tuned`` on the rows of ``eval``.
        model: Folder of the chosen model, for ``from_pretrained``.
        headline: The result in a sentence.
        version: The model in the registry, as ``NAME@N``; empty without a registry.
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
    version: str = ""


@dataclass(frozen=True)
class Mixture:
    """A tuned model whose weights can be set anywhere between those of the base and its own.

    Parameters that the base does not have (a new head, embeddings of new tokens) stay as tuned.
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
        """Set the weights to ``(1 − α) · base + α · tuned``, in place; exact at both ends."""
        for shared, end in zip(self.shared, self.ends, strict=True):
            shared.parameter[: shared.rows].copy_(torch.lerp(shared.base.to(end.device), end, alpha))
        return self.tuned

    @property
    def kept_as_tuned(self) -> tuple[str, ...]:
        """Names of the parameters that are the same at every α."""
        mixed = {id(one.parameter) for one in self.shared}
        return tuple(name for name, value in self.tuned.model.named_parameters() if id(value) not in mixed)


def interpolate(
    run: str | Path | Record,
    *,
    alphas: Sequence[float] = ALPHAS,
    out: str | Path = "runs",
    to: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> Interpolation:
    """Sweep from the base to the tuned model of a run, and write the best mixture within the forgetting budget.

    Writes the model to ``to``, and ``interpolation.json`` and ``interpolation.svg`` into the folder of the run.

    Args:
        run: A run: its id, the beginning of its id, its folder, its record, or ``latest``.
        alphas: Points between 0 (the base) and 1 (the tuned model); both ends are always included.
        out: The runs folder.
        to: Folder of the chosen model; the default is ``interpolated`` in the folder of the run.
        progress: Where stages report.

    Raises:
        ConfigError: An α outside 0 and 1.
        FulltuneError: The run, its base or its data cannot be loaded.
    """
    wanted, progress = _checked(alphas), progress_of(progress)
    run, out = name_and_folder(run, out)
    folder = resolve(run, out)
    config = _with_budget(load_config(folder / "config.yaml"))
    refuse_folds(config, "the choice of a mixture")
    task, data = dataset.prepare(config, checked_task_and_method(config)[0])
    base = load_model(config, task, out)
    task, tuned, _ = find_model(config, task, folder.name, folder.parent)
    base_outputs = BaseOutputs.collect(config, base, Path(out), progress, data.train.examples)
    mixture = Mixture(base, tuned)
    data = replace(data, eval=data.eval.without(left_out(folder, data.eval.table.sha256)))
    chooses = data.valid or data.eval
    points = []
    with progress.stage("interpolate", total=len(wanted), unit="point") as bar:
        for alpha in wanted:
            points.append(_point(config.evaluation, task, mixture, base_outputs, chooses.examples, alpha))
            bar.advance(note=f"α = {alpha:g}")
    points = with_front(points, task.metrics[0].direction)
    best = choose(points, task.metrics[0].direction)
    goal = Path(to) if to else folder / "interpolated"
    final = _final(config.evaluation, task, mixture, data, points, best)
    save.save_model(mixture.at(best.alpha), goal)
    result = Interpolation(
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
    version = register_derived(
        out,
        goal,
        of=[folder],
        kind="interpolation",
        source=source,
        metric=result.metric,
        score=final["interpolated"],
    )
    if version is not None:
        result = result.model_copy(update={"version": version.ref})
    atomic_text(folder / "interpolation.json", result.to_json())
    atomic_text(folder / "interpolation.svg", _picture(result, _budget(config.guards)))
    return result


def choose(points: Sequence[Point], direction: str) -> Point:
    """Return the best score within the budget (the base always is), the smallest loss if scores are equal."""
    sign = 1 if direction == "higher" else -1
    inside = [point for point in points if point.within_budget and not math.isnan(point.score.value)]
    return max(inside or points[:1], key=lambda point: (sign * point.score.value, -point.loss))


def with_front(points: Sequence[Point], direction: str) -> list[Point]:
    """Return the points with those marked that no other point dominates (the Pareto front of score and loss)."""
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
    """Return the config with the default forgetting guard if it has none: the choice needs a budget."""
    if config.guards.forgetting is not None:
        return config
    guards = config.guards.model_copy(update={"forgetting": ForgettingConfig()})
    return config.model_copy(update={"guards": guards})


def _budget(settings: GuardsConfig) -> float:
    return settings.forgetting.budget if settings.forgetting else math.inf


def _point(
    settings: EvaluationConfig,
    task: Task,
    mixture: Mixture,
    base_outputs: BaseOutputs,
    examples: Sequence[Example],
    alpha: float,
) -> Point:
    bundle = mixture.at(alpha)
    retention = base_outputs.compare(bundle)
    lost = worst(retention)
    return Point(
        alpha=alpha,
        score=_score(settings, task, bundle, examples),
        retention=retention,
        loss=max(0.0, lost[1].change) if lost and not math.isnan(lost[1].change) else (math.nan if lost else 0.0),
        within_budget=all(map(_is_within, retention.values())),
    )


def _is_within(ability: Retention) -> bool:
    """Return True unless a loss is beyond its budget; without enough rows to tell, the loss itself decides."""
    return ability.verdict != "lost" and not ability.change > ability.budget


def _score(settings: EvaluationConfig, task: Task, bundle: Bundle, examples: Sequence[Example]) -> Score:
    deciding = task.metrics[0]
    evaluation = score(task.predictor(bundle, "tuned"), examples, (deciding,), system="interpolated")
    return evaluation.scores(settings)[deciding.name]


def _final(
    settings: EvaluationConfig, task: Task, mixture: Mixture, data: Data, points: Sequence[Point], best: Point
) -> dict[str, Score]:
    """Return the scores of both ends and of the choice on the evaluation rows."""
    asked = {"base": points[0], "interpolated": best, "tuned": points[-1]}
    if data.valid is None:
        return {name: point.score for name, point in asked.items()}
    scores = {
        alpha: _score(settings, task, mixture.at(alpha), data.eval.examples)
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


def _picture(result: Interpolation, budget: float) -> str:
    dots = [
        pareto.Dot(point.alpha, point.loss, point.score.value, point.on_front, point.alpha == result.alpha)
        for point in result.points
    ]
    return pareto.picture(result.headline, result.metric, result.direction, dots, budget)
