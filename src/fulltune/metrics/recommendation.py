"""Recommend what to do after a run, by fixed rules on its record: outcome, comparisons, validation curve, guards.

    recommend(record).sentence  # "Training ended while it was still improving (…): raise train.epochs (3 → 6)."

The rules are in :func:`recommend`; the first one that applies decides. Only the curve of the validation rows is read,
because the evaluation set never chooses (``docs/decisions/0003``).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from fulltune.metrics import wording
from fulltune.metrics.power import least_rows, rows_needed
from fulltune.records.run import (
    SCORES_ONLY,
    Action,
    Comparison,
    Outcome,
    Parameters,
    Recommendation,
    Record,
    Training,
    base_kept,
)

Trend = Literal["improving", "flat", "past its best", "never improved", "unknown"]

#: The curve still improves if its last interval gains at least this fraction of the mean gain per interval. Schedules
#: that lower the rate flatten every curve at its end, so that half of the mean gain would be asking too much.
STILL_GAINING = 0.2

#: The curve is past its best if the last point lost at least this fraction of what was gained.
LOST_AGAIN = 0.1

#: Times as many evaluation rows as there are that can reasonably be asked for.
AFFORDABLE = 20

#: Fewer optimizer steps than this may be too few: a new head may not even beat a guess, and a curve looks flat.
FEW_STEPS = 100

#: A score of a baseline from which on a better model has nothing left to gain. It is the deciding one: where a class is
#: rare, a baseline may be right in nearly all rows and know nothing about that class.
NEAR_PERFECT = 0.98

#: Fraction of training rows that may be truncated before reading more of them is worth more than other advice.
TRUNCATED = 0.05

#: Labels that a sentence lists.
_LISTED = 3

#: Relative changes of weights below this are no training: float32 is exact to 6e-8.
_NOTHING = 1e-6


class Curve(NamedTuple):
    """The validation curve that chooses the best step.

    Attributes:
        trend: Its direction in the last part.
        words: The points that show it, e.g. ``validation loss 2.31 → 2.10 from step 40 to 60``.
        is_scheduled: It is flat only where the schedule has taken the rate below half of its peak, which flattens every
            curve, so that nothing follows about longer training.
        is_unfinished: The last point is the best one, and the schedule had lowered the rate by then: the curve is flat
            because training was about to end, not because nothing was left to learn.
    """

    trend: Trend
    words: str
    is_scheduled: bool = False
    is_unfinished: bool = False


def recommend(record: Record) -> Recommendation:
    """Return what to do after a run.

    The rules, in this order:

    1. Training was stopped: free memory, keep more of the base, or lower the rate, depending on the guard.
    2. No weight changed: raise the rate.
    3. No step was better than the base, or the score is not a number: lower the rate; train longer if a classifier
       guesses after fewer than :data:`FEW_STEPS` steps.
    4. There are fewer rows than any test needs: get more evaluation rows.
    5. Labels have several spellings, each a class of its own, and the outcome is not ``accepted``: merge them.
    6. A baseline that the tuned model does not beat is nearly perfect (:data:`NEAR_PERFECT`): use it.
    7. A baseline is better: use it; train longer if validation was still improving, lower the rate if it was past its
       best. If it was flat, choose a base that was pretrained on the language of the data, read longer texts if many
       training rows are truncated (:data:`TRUNCATED`), else get more training rows. Fewer than :data:`FEW_STEPS` steps
       are too few to call it flat, and where the schedule lowers the rate every curve is: train longer then, or get
       more training rows.
    8. The tuned model is no better than guessing: train longer if validation was still improving; else check the data.
    9. More was forgotten than the budget allows: keep more.
    10. The outcome is undecided: train longer if validation was still improving; get more evaluation rows if the tuned
        model is ahead and an affordable number would show it; otherwise use the baseline, which costs less.
    11. The outcome is accepted: use it.
    """
    return _with_command(_advice(record), record)


def _advice(record: Record) -> Recommendation:
    curve = curve_of(record)
    stopped = _after_stop(record) if record.outcome == "stopped" else None
    return (
        stopped
        or _nothing_learned(record)
        or _too_few(record)
        or _spelled(record)
        or _near_perfect(record)
        or _beaten(record, curve)
        or _guessing(record, curve)
        or _forgetful(record)
        or _undecided(record, curve)
        or _accepted(record, curve)
    )


def _with_command(found: Recommendation, record: Record) -> Recommendation:
    """Add the command by which a recommended baseline answers; texts without targets are only scored."""
    if found.use in ("", "tuned") or record.task == SCORES_ONLY:
        return found
    command = f"`fulltune predict {record.run_id}#{found.use} FILE` answers with {wording.system(found.use)}."
    return found.model_copy(update={"sentence": f"{found.sentence} {command}"})


def lead(found: Recommendation, outcome: Outcome) -> str:
    """Return the recommendation in a few words, for the beginning of a headline.

    A baseline that the tuned model cannot be told from is preferred for its cost, not because it is better.
    """
    if found.use == "tuned":
        return "Use it"
    action = found.action
    if not found.use:
        return f"{action[:1].upper()}{action[1:]}"
    baseline = f"{'Prefer' if outcome == 'undecided' else 'Use'} {wording.system(found.use)}"
    return baseline if action == "use the baseline" else f"{baseline}, or {action}"


def unchanged(parameters: Parameters) -> str:
    """Return a sentence if training changed no weight by more than rounding; else an empty text."""
    change = parameters.largest_change
    if parameters.moved > 0 if change is None else not change <= _NOTHING:
        return ""
    size = "" if not change else f" by more than {change:.1g} of its tensor's largest"
    return f"No weight changed{size}: raise train.learning_rate, or train for more steps."


def curve_of(record: Record) -> Curve:
    """Return the trend of the validation curve that chose the best step; ``unknown`` without one."""
    stored = record.details.get("validation")
    if not isinstance(stored, dict) or len(points := _points(stored["points"])) < 2:
        return Curve("unknown", "")
    name = str(stored["metric"])
    higher = name in record.metrics and record.metrics[name].direction == "higher"
    sign = 1 if higher else -1
    steps, values = [step for step, _ in points], [sign * value for _, value in points]
    best = max(range(len(values)), key=values.__getitem__)
    trend = _trend(values, best)
    start = best if trend == "past its best" else max(0, len(points) - 2)
    called = wording.in_sentence(wording.metric_label(name))
    words = (
        f"validation {called} {sign * values[start]:.4g} → {sign * values[-1]:.4g} "
        f"from step {steps[start]} to {steps[-1]}"
    )
    half = _half_rate_step(record.training)
    early = [value for step, value in zip(steps, values, strict=True) if step <= half]
    is_flat_early = len(early) > 2 and _trend(early, max(range(len(early)), key=early.__getitem__)) == "flat"
    is_open = trend == "flat" and not _is_perfect(record)
    is_unfinished = is_open and steps[-1] > half and best == len(points) - 1
    return Curve(trend, words, is_open and (is_unfinished or not is_flat_early), is_unfinished)


def _half_rate_step(training: Training) -> float:
    """Return the last step whose learning rate is at least half of the peak: the middle of both decaying schedules."""
    if training.scheduler == "constant":
        return math.inf
    return training.warmup_steps + (training.steps - training.warmup_steps) / 2


def _points(stored: Any) -> list[tuple[int, float]]:
    """Return the finite points of a stored curve; JSON holds NaN as text."""
    points = [(int(step), float(value)) for step, value in stored]
    return [(step, value) for step, value in points if math.isfinite(value)]


def _trend(values: list[float], best: int) -> Trend:
    """Return the trend of values that are better high."""
    if best == 0:
        return "never improved"
    gained = values[best] - values[0]
    if best < len(values) - 1:
        return "past its best" if values[best] - values[-1] >= LOST_AGAIN * gained else "flat"
    mean = gained / (len(values) - 1)
    return "improving" if values[-1] - values[-2] >= STILL_GAINING * mean else "flat"


# ---- The rules ----


def _after_stop(record: Record) -> Recommendation:
    guard = next((event.guard for event in reversed(record.guards) if event.stops), "divergence")
    if guard == "memory":
        return Recommendation(
            use="",
            action="free memory",
            sentence="Memory ran out: lower train.batch_size, set train.gradient_checkpointing, or free memory.",
        )
    if guard == "forgetting":
        return Recommendation(use="", action="keep more", sentence=_keeping(record))
    return Recommendation(
        use="",
        action="lower the rate",
        sentence=f"Lower train.learning_rate ({_rate(record, 1 / 3)}) and run again.",
    )


def _nothing_learned(record: Record) -> Recommendation | None:
    is_base = base_kept(record.guards) is not None
    if not is_base and (sentence := unchanged(record.parameters)):
        return Recommendation(use="", action="raise the rate", sentence=sentence)
    if not is_base and math.isfinite(_tuned(record)):
        return None
    use, steps = _winner(record) or "", record.training.steps
    if is_base and _is_guess(record) and steps < FEW_STEPS:
        return Recommendation(
            use=use,
            action="train longer",
            sentence=f"{steps} steps were too few for a new head to learn anything: raise train.epochs "
            f"({record.training.epochs:.3g} → {_enough(record)}).",
        )
    return Recommendation(
        use=use,
        action="lower the rate",
        sentence=f"No step was better than the base: lower train.learning_rate ({_rate(record, 1 / 3)}), raise "
        "train.evaluations to see earlier steps, or bring more training rows.",
    )


def _too_few(record: Record) -> Recommendation | None:
    best, least = _best(record), least_rows(record.confidence)
    n = record.scores["tuned"][record.metric].n
    if best and best[1].groups:
        return _too_few_groups(best[1].groups, least)
    if n >= least:
        return None
    needed = (rows_needed(best[1], record.confidence) if best else None) or least
    larger = f", and about {needed:,} to show a difference of this size" if needed > least else ""
    sentence = f"Bring more evaluation rows: {wording.rows(n)} cannot decide, at least {least} are needed{larger}."
    return Recommendation(use="", action="get more evaluation rows", sentence=sentence, rows=needed)


def _too_few_groups(groups: int, least: int) -> Recommendation | None:
    if groups >= least:
        return None
    sentence = f"Bring evaluation rows of more groups (data.group): {groups} cannot decide, {least} are needed."
    return Recommendation(use="", action="get more evaluation rows", sentence=sentence)


def _spelled(record: Record) -> Recommendation | None:
    labels = record.data.summary.labels
    if labels is None or labels.distinct >= labels.written or record.outcome == "accepted":
        return None
    shown = [" = ".join(f"{name!r} ({count:,})" for name, count in one.items()) for one in labels.spellings[:_LISTED]]
    listed = f" ({'; '.join(shown)}{', …' if len(labels.spellings) > _LISTED else ''})" if shown else ""
    return Recommendation(
        use=_winner(record) or "",
        action="merge the spellings of labels",
        sentence=f"The {labels.written:,} classes are {labels.distinct:,} labels in several spellings{listed}: set "
        "data.merge_labels: true, or write each label in one way, and run again. No model can tell spellings apart, "
        "and each counts as a class.",
    )


def _near_perfect(record: Record) -> Recommendation | None:
    """Recommend the best of the baselines that the tuned model does not beat, if it leaves nothing to gain."""
    name = next((name for name, found in _ranked(record) if found.verdict != "improved"), None)
    if name is None or record.outcome not in ("undecided", "rejected") or _forgot(record):
        return None
    score = record.scores[name][record.metric]
    if record.metrics[record.metric].direction != "higher" or not NEAR_PERFECT <= score.value <= 1:
        return None
    system, metric = wording.system(name), wording.in_sentence(wording.metric_label(record.metric))
    return Recommendation(
        use=name,
        action="use the baseline",
        sentence=f"{system[:1].upper()}{system[1:]} has {wording.with_article(metric)} of "
        f"{wording.figure(score.value)} and costs less: nothing is left to gain by training.",
    )


def _beaten(record: Record, curve: Curve) -> Recommendation | None:
    best = _winner(record)
    if best is None:
        return None
    name = wording.system(best)
    if longer := _longer(record, curve):
        return Recommendation(use=best, action="train longer", sentence=longer)
    if curve.trend == "past its best":
        return Recommendation(use=best, action="lower the rate", sentence=_lower(record, curve))
    if curve.trend == "flat":
        action, sentence = _more(record, curve)
        return Recommendation(use=best, action=action, sentence=sentence)
    return Recommendation(
        use=best,
        action="use the baseline",
        sentence=f"{name[:1].upper()}{name[1:]} also costs less. With data.valid: 0.1 the next run shows "
        "whether longer training or a lower rate would help.",
    )


def _guessing(record: Record, curve: Curve) -> Recommendation | None:
    if not _is_guess(record) and (record.outcome != "rejected" or _forgot(record)):
        return None
    if longer := _longer(record, curve):
        return Recommendation(use="", action="train longer", sentence=longer)
    return Recommendation(
        use="",
        action="check the data",
        sentence="The answers do not follow from the inputs: check that inputs and targets belong together, then try a "
        "higher train.learning_rate or more train.epochs.",
    )


def _forgetful(record: Record) -> Recommendation | None:
    return Recommendation(use="", action="keep more", sentence=_keeping(record)) if _forgot(record) else None


def _undecided(record: Record, curve: Curve) -> Recommendation | None:
    alike = next(((name, found) for name, found in _ranked(record) if found.verdict != "improved"), None)
    if record.outcome != "undecided":
        return None
    if alike is None:
        return Recommendation(use="", action="get more evaluation rows", sentence=_unproven(record))
    name, found = alike
    if longer := _longer(record, curve):
        return Recommendation(use="", action="train longer", sentence=longer)
    needed = rows_needed(found, record.confidence)
    if needed is not None and needed <= AFFORDABLE * found.n and _is_ahead(record, found):
        needed = max(needed, found.n + 1)
        return Recommendation(
            use="",
            action="get more evaluation rows",
            sentence=f"About {needed:,} evaluation rows would show a difference of this size in four of five cases; "
            f"there are {found.n:,}.",
            rows=needed,
        )
    rest = f" {_more(record, curve)[1]}" if curve.trend == "flat" else ""
    return Recommendation(
        use=name,
        action="use the baseline",
        sentence=f"The tuned model cannot be told from {wording.system(name)} on these rows, and the latter costs "
        f"less: prefer it.{rest}",
    )


def _unproven(record: Record) -> str:
    reasons = "; ".join(record.reasons)
    return f"{reasons[:1].upper()}{reasons[1:]}." if reasons else "Bring more evaluation rows."


def _accepted(record: Record, curve: Curve) -> Recommendation:
    more = f" {_longer(record, curve)}" if curve.trend == "improving" else ""
    return Recommendation(
        use="tuned", action="use it", sentence=f"`fulltune predict {record.run_id} FILE` answers new rows.{more}"
    )


# ---- Facts of the record ----


def _ranked(record: Record) -> list[tuple[str, Comparison]]:
    """Return the comparisons with the baselines that have a score, the best baseline first."""
    sign = 1 if record.metrics[record.metric].direction == "higher" else -1
    found = [(key.removeprefix("tuned vs "), item) for key, item in record.comparison.items()]
    known = [(name, item, record.scores.get(name, {}).get(record.metric)) for name, item in found]
    scored = [(name, item, score.value) for name, item, score in known if score and not math.isnan(score.value)]
    return [(name, item) for name, item, _ in sorted(scored, key=lambda one: -sign * one[2])]


def _best(record: Record) -> tuple[str, Comparison] | None:
    return next(iter(_ranked(record)), None)


def _winner(record: Record) -> str | None:
    """Return the best of the baselines that beat the tuned model."""
    level = 1 - record.confidence
    return next(
        (name for name, found in _ranked(record) if found.verdict == "worse" and not found.p_holm > level), None
    )


def _is_guess(record: Record) -> bool:
    """Return True if the answers of a classifier cannot be distinguished from guessing."""
    mcc = record.scores["tuned"].get("mcc")
    return mcc is not None and not mcc.low > 0


def _tuned(record: Record) -> float:
    return record.scores["tuned"][record.metric].value


def _is_perfect(record: Record) -> bool:
    """Return True if the deciding score is a fraction, and 1."""
    return record.metrics[record.metric].direction == "higher" and _tuned(record) == 1


def _is_ahead(record: Record, found: Comparison) -> bool:
    return found.delta > 0 if record.metrics[record.metric].direction == "higher" else found.delta < 0


def _forgot(record: Record) -> bool:
    return any(found.verdict == "lost" for found in record.retention.values())


# ---- Advice ----


def _longer(record: Record, curve: Curve) -> str:
    """Return that training ended too early; empty if nothing shows it."""
    epochs, steps = record.training.epochs, record.training.steps
    if curve.trend == "improving":
        return (
            f"Training ended while it was still improving ({curve.words}): raise train.epochs ({epochs:.3g} → "
            f"{2 * epochs:.3g})."
        )
    if curve.trend in ("flat", "unknown") and steps < FEW_STEPS:
        return f"{steps} steps are few: raise train.epochs ({epochs:.3g} → {_enough(record)})."
    return ""


def _enough(record: Record) -> int:
    """Return the epochs that :data:`FEW_STEPS` steps take."""
    return math.ceil(record.training.epochs * FEW_STEPS / max(1, record.training.steps))


def _lower(record: Record, curve: Curve) -> str:
    return (
        f"Training went past its best ({curve.words}): lower train.learning_rate ({_rate(record, 1 / 3)}), or train "
        "for fewer epochs."
    )


def _more(record: Record, curve: Curve) -> tuple[Action, str]:
    """Return what may help a model that longer training does not help, the cheapest first."""
    if (gap := record.language_gap) is not None:
        example = f", such as {gap.alternative}" if gap.alternative else ""
        return "choose another base", (
            f"The texts are in {gap.data}, but the base was pretrained on {wording.listed(gap.base)}: choose one that "
            f"was pretrained on {gap.data}{example}."
        )
    train = record.data.summary.truncation.get("train")
    if train is not None and train.fraction >= TRUNCATED:
        return "read longer texts", (
            f"{train.fraction:.1%} of the training rows are truncated ({train.rows:,} of {train.of:,}): raise "
            "data.max_length, or choose a base with more positions."
        )
    return "train longer" if curve.is_scheduled else "get more training rows", _more_rows(record, curve)


def _more_rows(record: Record, curve: Curve) -> str:
    rows = record.data.train.rows
    epochs = record.training.epochs
    if curve.is_unfinished:
        return (
            f"The schedule ended while validation was still improving ({curve.words}), and every curve is flat where "
            f"the rate is low: raise train.epochs ({epochs:.3g} → {2 * epochs:.3g}). More training rows (there are "
            f"{rows:,}) may help as well."
        )
    if curve.is_scheduled:
        return (
            f"More train.epochs ({epochs:.3g} → {2 * epochs:.3g}) or more training rows (there are {rows:,}) may help: "
            "where the schedule lowers the rate the curve is flat in any case, so it does not show which."
        )
    return (
        f"Longer training will hardly help ({curve.words}): more training rows may (there are {rows:,}); "
        "`fulltune plan CONFIG --learning-curve` estimates how much."
    )


def _rate(record: Record, factor: float) -> str:
    rate = record.training.learning_rate
    return f"{rate:.3g} → {rate * factor:.1g}"


def _keeping(record: Record) -> str:
    lost = [name for name, found in record.retention.items() if found.verdict == "lost"]
    named = f" of {wording.listed(lost)}" if lost else ""
    return (
        f"More{named} was lost than the budget allows: mix base and tuned weights (`fulltune models interpolate "
        f"{record.run_id}`), replay general text (regularize.replay: 0.1), or lower train.learning_rate "
        f"({_rate(record, 1 / 3)})."
    )
