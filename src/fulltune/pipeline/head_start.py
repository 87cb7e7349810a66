"""Start a new classification head from a linear probe of the frozen model.

A random head sends random gradients into the pretrained body, which distorts its features before the head has learned
anything. Linear probing first, then fine-tuning, avoids that (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution").

The weights of a probe are large where features vary little: a norm of 54 per label on the pooled output of a small
BERT, where a random head has 0.4. A step in the body then changes the logits far more than under a random head, and the
training may diverge at usual rates. So a probe is scaled down to the norm of trained heads. Its decisions stay the
same, and with them the directions of the first gradients.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fulltune.evaluation.baselines.catalog import groups_of
from fulltune.evaluation.baselines.labels import Choice, Fit, Members, choose, known_labels, sample, standardization
from fulltune.evaluation.baselines.probe import STRENGTHS
from fulltune.metrics.base import Array
from fulltune.pipeline.job import Job
from fulltune.runtime import distributed
from fulltune.tasks.base import Example, Features

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

_log = logging.getLogger(__name__)

#: Rows of train that the probe reads at most, and that scale a new projection.
ROWS, SCALING_ROWS = 10_000, 256

#: Largest norm of the weights of a label; longer ones are scaled down. One seed each, macro-F1 with norms of at most 1,
#: at most 3, and as fitted (54): 600 contract clauses with MiniLM 0.713, 0.754, 0.752 (a random head: 0.456); the
#: contracts demo 0.931, 0.840, diverged.
LONGEST = 1.0

#: Root mean square of what a new projection passes on: tanh and GELU are nearly linear there.
PROJECTED_RMS = 0.5


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe.

    Attributes:
        weight: Weights ``(labels, features)`` for the features as the head reads them.
        bias: Biases ``(labels,)``.
        choice: The strength, and how it was chosen.
        rows: Number of rows that it was fitted on.
        scale: Factor that weights and biases were multiplied by.
        projects: True if a projection that the checkpoint lacks was set to the identity.
    """

    weight: Array
    bias: Array
    choice: Choice
    rows: int
    scale: float = 1.0
    projects: bool = False

    def __str__(self) -> str:
        scale = f", its weights times {self.scale:.2g}" if self.scale < 1 else ""
        projection = "; the pooling layer that the checkpoint lacks starts as the identity" if self.projects else ""
        return (
            f"the head starts from a logistic regression on what the frozen model gives it, fitted on {self.rows:,} "
            f"rows of train, {self.choice}{scale}{projection}"
        )


def with_started_head(job: Job, model: Bundle, examples: Sequence[Example]) -> Bundle:
    """Initialize the head of a model before training; return the bundle with a note for the record.

    Args:
        job: Task, config and training sequences.
        model: The model to train; its head is changed in place.
        examples: Rows of train that the training may use.
    """
    job.task.begin(model, examples)
    if job.config.head.start != "probe":
        return model
    from fulltune.models.heads import output_layer

    layer = output_layer(model.model, len(job.task.labels))
    rows = _Rows.of(job, examples)
    if rows is None:
        return model
    probe = bounded(_with_projection(rows, model, layer))
    _set(model.model.get_submodule(layer), probe)
    _log.info("%s", probe)
    info = model.info.model_copy(update={"reconciled": (*model.info.reconciled, str(probe))})
    return replace(model, info=info)


@dataclass(frozen=True)
class _Rows:
    """The rows that a probe is fitted on.

    Attributes:
        job: The job that they are from.
        sequences: The training sequence of each row.
        member: Labels of the rows, ``(rows, labels)``.
        known: The labels that can be fitted.
        groups: Group of each row; empty without groups.
    """

    job: Job
    sequences: Sequence[Features]
    member: Members
    known: Any
    groups: Sequence[str]

    @classmethod
    def of(cls, job: Job, examples: Sequence[Example]) -> _Rows | None:
        """Return at most :data:`ROWS` rows; None if they have fewer than two labels."""
        task = job.task
        group_of = dict(zip((one.id for one in job.data.train.examples), groups_of(job.config, job.data), strict=False))
        groups = [group_of[one.id] for one in examples] if group_of else []
        chosen, groups, _ = sample(examples, groups, lambda row: 1, ROWS, job.config.train.seed)
        member = np.array([[label in one.labels for label in task.labels] for one in chosen], dtype=bool)
        known = known_labels(member, several=task.multi_label)
        if len(known) < (1 if task.multi_label else 2):
            return None
        sequence_of = {one.row_id: one for one in job.features}
        return cls(job, [sequence_of[one.id] for one in chosen], member, known, groups)

    @property
    def inputs(self) -> list[list[int]]:
        """Token ids of each row, as in training."""
        return [one.input_ids for one in self.sequences]

    def features(self, model: Bundle, layer: str) -> Array:
        """Return what the output layer of a model reads of each row, ``(rows, features)``."""
        from fulltune.models.inference import head_inputs

        size = self.job.config.evaluation.batch_size

        def read(part: Sequence[list[int]]) -> Iterator[list[float]]:
            return iter(head_inputs(model, layer, part, size))

        return np.array(list(distributed.map_sharded(read, self.inputs)), dtype=np.float64)


def _with_projection(rows: _Rows, model: Bundle, layer: str) -> Probe:
    """Return the probe; a projection that the checkpoint lacks is set to pass its input on if that is better.

    Better is a higher macro-F1 on held-out folds of the rows. A random projection mixes the features that the body has
    learned; one that is nearly the identity keeps them.
    """
    from fulltune.models.heads import new_projection, set_identity
    from fulltune.models.inference import input_rms

    probe = fit_probe(rows, model, layer)
    projection = new_projection(model.model, model.fresh)
    if projection is None:
        return probe
    drawn = {name: value.clone() for name, value in projection.state_dict().items()}
    rms = input_rms(model, projection, rows.inputs[:SCALING_ROWS], rows.job.config.evaluation.batch_size)
    set_identity(projection, PROJECTED_RMS / max(rms, 1e-6))
    kept = fit_probe(rows, model, layer)
    if kept.choice.score >= probe.choice.score:
        return replace(kept, projects=True)
    projection.load_state_dict(drawn)
    return probe


def fit_probe(rows: _Rows, model: Bundle, layer: str) -> Probe:
    """Fit a probe to what an output layer of a model reads of some rows, under the dropout of the training.

    Without dropout, features that hardly vary would get large weights, and the first training loss would be high.
    """
    from fulltune.models.heads import dropout_rate

    job, several, seed = rows.job, rows.job.task.multi_label, rows.job.config.train.seed
    clean = rows.features(model, layer)
    has_bias = model.model.get_submodule(layer).bias is not None

    def fitted() -> Probe:
        features = _with_dropout(clean, dropout_rate(model.model), seed)
        middle, width = standardization(features)
        middle *= has_bias
        fit = Fit((features - middle) / width, rows.member[:, rows.known], _maker(job, has_bias), several=several)
        choice = choose(STRENGTHS, fit.member, rows.groups, fit.held_out, several=several, seed=seed)
        weight, bias = _unstandardized(*fit.coefficients(choice.strength), middle, width)
        labels, count = len(job.task.labels), len(features)
        return Probe(
            weight=_spread(weight, rows.known, labels, missing=0.0),
            bias=_spread(bias, rows.known, labels, missing=-np.log(2 * count)),
            choice=choice,
            rows=count,
        )

    return distributed.on_main(fitted)


def bounded(probe: Probe) -> Probe:
    """Return the probe with weights of at most :data:`LONGEST` per label; it answers the same, with less confidence.

    A step of AdamW changes the features by about the learning rate, whatever the size of the gradient, and the logits
    by that times the norm of the weights: a rate suits heads of similar norms only.
    """
    longest = float(np.linalg.norm(probe.weight, axis=1).max())
    scale = LONGEST / max(longest, LONGEST)
    return replace(probe, weight=probe.weight * scale, bias=probe.bias * scale, scale=scale)


def _maker(job: Job, has_bias: bool) -> Any:
    balance = None if job.config.train.class_weights == "none" else "balanced"

    def make(strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=strength, max_iter=200, fit_intercept=has_bias, class_weight=balance)

    return make


def _with_dropout(features: Array, rate: float, seed: int) -> Array:
    """Return the features with a fraction of them set to 0, and the others scaled up, as dropout does in training."""
    kept = np.random.default_rng(seed).random(features.shape) >= rate
    return features * kept / (1 - rate)


def _unstandardized(weight: Array, bias: Array, middle: Array, width: Array) -> tuple[Array, Array]:
    """Return the weights and biases of the same classifier for features that are not standardized."""
    weight = weight / width
    return weight, bias - weight @ middle


def _spread(values: Array, known: Any, labels: int, missing: float) -> Array:
    """Return one value per label: ``missing`` for those that could not be fitted."""
    spread = np.full((labels, *values.shape[1:]), missing)
    spread[known] = values
    return spread


def _set(layer: Any, probe: Probe) -> None:
    import torch

    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(probe.weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(probe.bias))
