"""One cell of the matrix: one model type, one task, fulltune against plain transformers."""

from __future__ import annotations

import math
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

import fulltune
from architectures import jobs
from architectures.checkpoints import EOS, Checkpoint
from architectures.reference import Answer, Family, Reference
from fulltune.config import Config, load_config
from fulltune.errors import FulltuneError
from fulltune.models import inference, load
from fulltune.models.bundle import Bundle
from fulltune.models.fast_kernels import fast_kernels
from fulltune.models.inference import Text
from fulltune.pipeline.job import checked_task_and_method
from fulltune.pipeline.model_loading import load_model
from fulltune.records.run import Prediction, Step
from fulltune.runtime.kernels.active import pinned_kernels
from fulltune.runtime.kernels.calibration import dump_choices, has_exact_onednn
from fulltune.runtime.kernels.products import NONE, PRODUCTS, Choices, shape_classes
from fulltune.tasks import dataset
from fulltune.tasks.base import Example, Features, Task
from fulltune.tasks.text2sql import normalize

Status = Literal["ok", "wrong", "crash", "refused", "not built", "-"]

#: Largest difference from plain transformers: absolute below 1, relative above.
TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3

COLUMNS = ("lm", *jobs.TASKS)
#: Tasks that do not apply to a family: an encoder generates nothing, and `causal-lm` is for decoders.
_ASKED: dict[Family, tuple[str, ...]] = {
    "decoder": ("lm", "pc", "s2s", "sql", "cls", "multi"),
    "encoder": ("cls", "multi"),
    "encoder-decoder": ("lm", "s2s", "sql", "cls", "multi"),
}
#: Columns that are also trained with dropout: one for each kind of label.
_WITH_DROPOUT = ("pc", "s2s", "cls")


@dataclass(frozen=True)
class Cell:
    """Result of one cell.

    Attributes:
        status: ``ok``; ``wrong`` (another number or answer than plain transformers), ``crash`` (an error that is not
            fulltune's own), ``refused`` (fulltune's own error, with its message), or ``-`` for what does not apply.
        detail: The differences, or the error.
    """

    model_type: str
    task: str
    status: Status
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def family_of(checkpoint: Checkpoint) -> Family:
    """Return the family by the head that the checkpoint was saved with."""
    if checkpoint.head == "seq2seq":
        return "encoder-decoder"
    return "decoder" if checkpoint.head == "causal" else "encoder"


def measure(checkpoint: Checkpoint, column: str, folder: Path) -> Cell:
    """Measure one column of the matrix on a checkpoint; files are written to ``folder``."""
    if column not in _ASKED[family_of(checkpoint)]:
        return Cell(checkpoint.name, column, "-")
    try:
        with pinned_kernels("auto", _every_product(folder)):
            differences = list(_differences(checkpoint, column, folder))
    except FulltuneError as error:
        return Cell(checkpoint.name, column, "refused", _sentence(error, checkpoint))
    except Exception as error:  # noqa: BLE001 - every error of the library is a result here
        return Cell(checkpoint.name, column, "crash", _place(error))
    return Cell(checkpoint.name, column, "wrong" if differences else "ok", "; ".join(differences))


def _sentence(error: FulltuneError, checkpoint: Checkpoint) -> str:
    """Return the error in one line, with the checkpoint's name in place of its folder."""
    return " ".join(str(error).split()).replace(str(checkpoint.folder), checkpoint.name)


def _every_product(folder: Path) -> Path:
    """Write a file that sends every possible product to oneDNN: small ones too, and on every processor."""
    every = Choices(frozenset((product, sizes) for product in PRODUCTS for sizes in shape_classes()), "measured")
    path = folder / "kernels.json"
    path.write_text(dump_choices(every if has_exact_onednn() else NONE), encoding="utf-8")
    return path


def _differences(checkpoint: Checkpoint, column: str, folder: Path) -> Iterator[str]:
    """Return each difference as text, with the fast paths off and on."""
    if column == "lm":
        yield from _untrained(checkpoint)
        return
    for fast in (False, True):
        place = folder / f"{column}-{'fast' if fast else 'plain'}"
        job = _Job.run(checkpoint, column, place, fast=fast)
        yield from (f"{'fast' if fast else 'plain'}: {difference}" for difference in job.differences())
        shutil.rmtree(place)
    if column in _WITH_DROPOUT:
        yield from _with_dropout(checkpoint, column, folder / f"{column}-dropout")


def _with_dropout(checkpoint: Checkpoint, column: str, folder: Path) -> Iterator[str]:
    """Train with dropout and every fast path: masks differ, so only a loss that is not finite is a difference.

    A model without dropout layers has nothing to test.
    """
    config = jobs.config(checkpoint.folder, column, folder, fast=True, dropout=0.1)
    try:
        record = fulltune.run(config, out=folder / "runs")
    except FulltuneError as error:
        if [problem.field for problem in error.problems] == ["regularize.dropout"]:
            return
        raise
    losses = [step.loss for step in _steps(folder / "runs" / record.run_id) if step.loss is not None]
    if not all(map(math.isfinite, losses)):
        yield f"dropout: losses {losses}"
    shutil.rmtree(folder)


def _steps(run: Path) -> list[Step]:
    return [Step.model_validate_json(line) for line in (run / "steps.jsonl").read_text().splitlines()]


# ---- Likelihoods and generation of the base ----


def _untrained(checkpoint: Checkpoint) -> Iterator[str]:
    bundle, family = load.load(str(checkpoint.folder)), family_of(checkpoint)
    reference = Reference.load(checkpoint.folder, family)
    texts = _texts(bundle)
    losses = [_reference_nll(reference, text) for text in texts]
    prompts = [text.context for text in texts]
    answers = [reference.greedy(prompt, jobs.CAP, _ends(reference)) for prompt in prompts]
    for switch in ("off", "auto"):
        with pinned_kernels(switch), fast_kernels(bundle.model):
            scored = [one.nll for one in inference.likelihoods(bundle, iter(texts), 4)]
            written = list(inference.generate(bundle, iter(prompts), 4, jobs.CAP))
        yield from (f"kernels {switch}: nll {d}" for d in _unequal(scored, losses))
        given = [one.text for one in written]
        wrong = [pair for pair in zip(given, answers, strict=True) if not _same(bundle, *pair)]
        if wrong:
            example = f"{wrong[0][0]!r} for {_text(bundle, wrong[0][1])!r}"
            yield f"kernels {switch}: {len(wrong)} of {len(answers)} answers, e.g. {example}"


def _texts(bundle: Bundle) -> list[Text]:
    """Return contexts with a long common prefix and several lengths, with targets; some share the complete context."""
    rows = [jobs.TASKS["pc"][1](row) for row in range(6)]
    contexts = [list(bundle.tokenizer(row["prompt"]).input_ids) for row in rows]
    # An encoder-decoder's targets are complete texts, with their end: mBART's language code comes after it.
    whole = bundle.family == "encoder-decoder"
    targets = [list(bundle.tokenizer(row["completion"], add_special_tokens=whole).input_ids) for row in rows]
    pairs = [*zip(contexts, targets, strict=True), (contexts[-1], targets[0]), (contexts[-1], targets[1])]
    short = list(bundle.tokenizer("fox").input_ids)
    return [Text(*pair) for pair in [*pairs, (short, targets[2])]]


def _reference_nll(reference: Reference, text: Text) -> float:
    with torch.no_grad():
        if reference.family == "encoder-decoder":
            return float(reference.token_losses(text.context, text.target).sum())
        labels = [-100] * len(text.context) + text.target
        return float(reference.token_losses(text.context + text.target, labels).sum())


# ---- A run of two steps ----


@dataclass(frozen=True)
class _Job:
    """A finished run and what is needed to recompute its sums."""

    config: Config
    family: Family
    task: Task
    data: dataset.Data
    start: Bundle
    folder: Path

    @classmethod
    def run(cls, checkpoint: Checkpoint, column: str, folder: Path, *, fast: bool) -> _Job:
        config = load_config(jobs.config(checkpoint.folder, column, folder, fast=fast))
        record = fulltune.run(config, out=folder / "runs")
        task, _ = checked_task_and_method(config)
        task, data = dataset.prepare(config, task)
        start = load_model(config, task, folder / "runs", head=task.head)
        task.begin(start, data.train.examples)
        return cls(config, family_of(checkpoint), task, data, start, folder / "runs" / record.run_id)

    def differences(self) -> Iterator[str]:
        """Compare what the run logged and predicted with the same sums over single rows."""
        steps = _steps(self.folder)
        first = next(step for step in steps if step.loss is not None)
        # In training mode: BigBird attends to random blocks there, and to none in evaluation.
        loss, norm = self._loss_and_norm(Reference(self.start.model.train(), self.family))
        yield from (f"first loss {d}" for d in _unequal([first.loss], [loss]))
        if abs(first.grad_norm - norm) > GRADIENT_TOLERANCE * max(1.0, norm):
            yield f"gradient norm {first.grad_norm:.6g} for {norm:.6g}"
        tuned = Reference.load(self.folder / "model", self.family, classifies=self.task.head == "classification")
        final = [step.eval_loss for step in steps if step.eval_loss is not None][-1]
        yield from (f"eval loss {d}" for d in _unequal([final], [self._eval_loss(tuned)]))
        yield from self._wrong_predictions(tuned)

    def _loss_and_norm(self, reference: Reference) -> tuple[float, float]:
        """Return the loss over all training rows and the norm of its gradient."""
        features = self._features(self.data.train.examples)
        count = sum(_labeled(one, reference.family) for one in features)
        parameters = [one for one in reference.model.parameters() if one.requires_grad]
        total = 0.0
        for one in features:
            loss = self._row_loss(reference, one, trains=True) / count
            loss.backward()
            total += float(loss.detach())
        squares = [float(one.grad.double().square().sum()) for one in parameters if one.grad is not None]
        return total, math.sqrt(sum(squares))

    @torch.no_grad()
    def _eval_loss(self, reference: Reference) -> float:
        features = self._features(self.data.eval.examples)
        count = sum(_labeled(one, reference.family) for one in features)
        return sum(float(self._row_loss(reference, one)) for one in features) / count

    def _features(self, examples: Sequence[Example]) -> list[Features]:
        return [one for example in examples for one in self.task.encode(example, self.start)]

    def _row_loss(self, reference: Reference, features: Features, *, trains: bool = False) -> torch.Tensor:
        """Return the sum of the losses of one row."""
        labels = features.labels
        if self.task.head != "classification":
            loss = reference.training_loss if trains else reference.token_losses
            return loss(features.input_ids, labels).sum()
        logits = reference.class_logits(features.input_ids)
        if self.task.multi_label:
            wanted = torch.tensor(labels, dtype=torch.float64)
            return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return F.cross_entropy(logits, torch.tensor(labels))

    @torch.no_grad()
    def _wrong_predictions(self, tuned: Reference) -> Iterator[str]:
        lines = (self.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        made = [one for one in map(Prediction.model_validate_json, lines) if one.system == "tuned"]
        check = self._wrong_classes if self.task.head == "classification" else self._wrong_texts
        wrong = [
            d for one, example in zip(made, self.data.eval.examples, strict=True) for d in check(tuned, one, example)
        ]
        if wrong:
            yield f"{len(wrong)} predictions, e.g. {wrong[0]}"

    def _wrong_classes(self, tuned: Reference, made: Prediction, example: Example) -> Iterator[str]:
        [features] = self.task.encode(example, self.start)
        logits = tuned.class_logits(features.input_ids)
        if self.task.multi_label:
            yield from _unequal(list(made.values["probabilities"].values()), logits.sigmoid().tolist())
        else:
            yield from _unequal([made.values["confidence"]], [float(logits.softmax(0).max())])

    def _wrong_texts(self, tuned: Reference, made: Prediction, example: Example) -> Iterator[str]:
        [features] = self.task.encode(example, self.start)
        prompt, labels = list(features.input_ids), list(features.labels)
        if self.family == "decoder":
            prompt = prompt[: len(prompt) - sum(label != -100 for label in labels)]
        if "nll" in made.values:
            scored = tuned.token_losses(features.input_ids, labels)[:-1]  # the end token is not part of the text
            yield from _unequal([made.values["nll"]], [float(scored.sum())])
            if "continuation" not in made.values:
                return
        answer = tuned.greedy(prompt, jobs.CAP, _ends(tuned))
        written = str(made.values.get("continuation", made.output))
        read = normalize.strip_fences if self.config.task == "text2sql" else str.strip
        if not _same(self.start, written, answer, read):
            yield f"{written!r} for {_text(self.start, answer)!r}"


def _labeled(features: Features, family: Family) -> int:
    """Return what a row adds to the denominator: its labeled tokens, its classes if there are several, or one."""
    labels = features.labels
    if isinstance(labels, int):
        return 1
    return sum(label != -100 for label in labels)


# ---- Comparisons ----


def _unequal(values: Sequence[float], expected: Sequence[float]) -> Iterator[str]:
    """Return the largest difference, if it exceeds the tolerance."""
    worst = max(zip(values, expected, strict=True), key=lambda pair: _distance(*pair))
    if not _distance(*worst) <= TOLERANCE:
        yield f"{worst[0]:.6g} for {worst[1]:.6g}"


def _distance(value: float, expected: float) -> float:
    distance = abs(value - expected) / max(1.0, abs(expected))
    return math.inf if math.isnan(distance) else distance


def _ends(reference: Reference) -> list[int]:
    own = reference.model.generation_config.eos_token_id
    return [EOS] if own is None else own if isinstance(own, list) else [own]


def _text(bundle: Bundle, answer: Answer) -> str:
    return str(bundle.tokenizer.decode(list(answer.ids), skip_special_tokens=True))


def _same(bundle: Bundle, text: str, answer: Answer, read: Callable[[str], str] = str.strip) -> bool:
    """Return whether a text is what ``read`` makes of the answer; after a tie of two tokens any text is accepted."""
    if text.strip() == read(_text(bundle, answer)):
        return True
    tie = min(answer.ties, default=None)
    before = None if tie is None else Answer(answer.ids[:tie], frozenset())
    return before is not None and text.strip().startswith(read(_text(bundle, before)))


def _place(error: Exception) -> str:
    """Return the error and its location in fulltune and in the library."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/fulltune/" in frame.filename]
    places = [
        f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"
        for frame in (*ours[-1:], frames[-1])
    ]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} @ {' <- '.join(places)}"
