"""Plan a run in seconds: data, audit, steps, memory and time by formula, and what the evaluation rows can decide.

No model is loaded and no step is measured, so torch is not imported. Rows are counted as tokens by the tokenizer's own
file, without a chat template; a prompt may therefore have a few tokens more in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from fulltune.config import DataConfig
from fulltune.data import tokens
from fulltune.data.findings import Finding, unscored_rows
from fulltune.data.summary import data_summary
from fulltune.pipeline.job import Inputs
from fulltune.pipeline.planning.formula import memory_by_formula
from fulltune.pipeline.planning.plan import ModelSize, RowCounts, SequenceCounts, build_plan
from fulltune.pipeline.planning.rough_time import training_seconds
from fulltune.pipeline.planning.stored_model import StoredModel
from fulltune.records.plan import Plan
from fulltune.runtime import machine
from fulltune.tasks.base import Example, Features, Task
from fulltune.tasks.causal_lm import windows
from fulltune.training import defaults
from fulltune.training.guards.choosing_metric import choosing_metric
from fulltune.training.regularization.costs import replayed

#: Rows per split whose tokens are counted; more are counted by evenly spaced ones.
COUNTED = 5_000

#: Default windows in tokens, where ``data.max_length`` is not set: of classes, of documents, of sources.
_WINDOWS = {"classification": 512, "causal-lm": 1024}
_SOURCE = 512

#: Stands for the end-of-text token.
_END = 0


def quick_plan(inputs: Inputs, model: StoredModel) -> Plan:
    """Return a plan for which nothing of the model is measured.

    Args:
        inputs: The checked config with its rows.
        model: The sizes of its model.

    Raises:
        ConfigError: The job cannot work.
    """
    config, task, data = inputs.config, inputs.task, inputs.data
    choosing_metric(config.guards, task)
    encode = encoder(task, config.data, model)
    train, evaluation = _sample(data.train.examples), _sample(data.eval.examples)
    # Keyed by identity: rows of two splits may have the same id.
    encoded = {id(example): encode(example) for example in (*train, *evaluation)}
    features = [item for example in train for item in encoded[id(example)]]
    own = round(len(features) * len(data.train.examples) / max(1, len(train)))
    sequences = own + replayed(config.regularize, own)
    mean = sum(len(item.input_ids) for item in features) / max(1, len(features))
    total = round(mean * sequences)
    left_out = frozenset() if config.data.allow_leaks else frozenset(inputs.audit.leaked_ids)
    batches = None if config.speed.batch_tokens is None else max(1, -(-total // config.speed.batch_tokens))
    kind = defaults.ModelKind(model.family if task.head == "classification" else _writer(model), model.parameters)
    config = defaults.with_defaults(config, kind, own, batches)
    plan = build_plan(
        config,
        RowCounts.of(data, left_out, unscored_rows(inputs.audit.findings)),
        SequenceCounts(
            sequences=sequences,
            tokens=total,
            batches=batches,
        ),
        ModelSize(model.parameters, model.is_encoder_decoder),
        machine_memory=machine.memory_bytes(),
        baselines=tuple(name for name in task.baselines if name not in config.baselines.skip),
        metric=task.metrics[0],
        chosen=defaults.reasons(inputs.config.train, config.train, kind, own),
        more_advice=task.advice(train, mean, lambda text: len(model.ids([text], special=False)[0])),
    )
    splits = {"train": train, "eval": evaluation}
    lengths = _lengths(splits, config.data, lambda example: encoded[id(example)], model.window)
    are_all = len(train) + len(evaluation) == len(data.train.examples) + len(data.eval.examples)
    audit = inputs.audit.extended(finding for finding in lengths if are_all or finding.kind == "lengths")
    audit = audit.extended(tokens.window_finding("data.max_length", config.data.max_length or 0, model.window))
    audit.raise_if_broken()
    settings = config.data
    with machine.Waiting() as others:
        seconds = training_seconds(
            config, plan, model, features, lm=task.head == "lm", trains_all=inputs.method.trains_all
        )
    return plan.model_copy(
        update={
            "rough_seconds": round(seconds, 1),
            "waiting": others.fraction,
            "memory": memory_by_formula(inputs, model, features, plan.total_steps),
            "is_measured": False,
            "too_long": tuple(finding.message for finding in audit.findings if finding.kind in tokens.LENGTH_KINDS),
            "warnings": audit.warnings(without=tokens.LENGTH_KINDS),
            "data": data_summary(audit, plan.rows, max_length=settings.max_length, count_leaks=settings.allow_leaks),
        }
    )


def _writer(model: StoredModel) -> str:
    """Return the family of a model that writes text."""
    return "encoder-decoder" if model.is_encoder_decoder else "decoder"


def encoder(task: Task, settings: DataConfig, model: StoredModel) -> Callable[[Example], list[Features]]:
    """Return the function from an example to sequences as long as those that the task makes of it."""
    usual = min(_WINDOWS.get(task.name, _SOURCE), model.window)
    window = min(settings.max_length or usual, model.window)
    start = model.start_ids

    def encode(example: Example) -> list[Features]:
        texts = (settings.instruction, task.reads(example), example.input)
        [ids] = model.ids(["\n\n".join(text for text in texts if text)])
        if task.head == "classification":
            return [_shortened(ids, 0, example, "input", window)]
        [answer] = model.ids([example.answer], special=False)
        if model.is_encoder_decoder:
            return [_shortened(ids, [*answer, _END][: settings.max_target_length], example, "input", window)]
        if example.input:
            return [_shortened([*ids, *answer, _END], [*answer, _END], example, "input", window)]
        parts = windows(start, [*answer, _END], window, is_given=not start)
        return [Features(part.context + part.target, part.target, example.id) for part in parts]

    return encode


def _shortened(ids: list[int], labels: list[int] | int, example: Example, part: str, window: int) -> Features:
    lost = len(ids) - window
    return Features(ids[:window], labels, example.id, {part: lost} if lost > 0 else {})


def _sample(examples: Sequence[Example]) -> Sequence[Example]:
    """Return at most :data:`COUNTED` evenly spaced examples."""
    return examples[:: max(1, -(-len(examples) // COUNTED))]


def _lengths(
    splits: Mapping[str, Sequence[Example]],
    settings: DataConfig,
    encode: Callable[[Example], Sequence[Features]],
    positions: int,
) -> Iterator[Finding]:
    for split, examples in splits.items():
        if examples:
            yield from tokens.length_findings(split, examples, encode, settings, positions)
