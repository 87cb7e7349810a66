"""False claims, coverage and power of the verdicts, by simulation: two systems on the same rows, many times.

    python benchmarks/calibration.py null [KIND …]     # no true difference
    python benchmarks/calibration.py power [KIND …]    # true gains
    python benchmarks/calibration.py enumerate         # 0/1 scores, every possible outcome
    python benchmarks/calibration.py skewed            # mean difference 0, but not symmetric: what no test withstands
    python benchmarks/calibration.py failures          # "not worse" by a margin, if failures are rare

Each command prints a Markdown table (docs/evidence.md). ``--rows 5,6,10`` selects the numbers of rows, ``--trials 500``
the number of pairs per cell, ``--seed 1`` other random pairs. Percentages of ``null``:

* better, worse: verdicts ``improved`` and ``worse`` with ``min_effect`` 0; at most 2.5% each within Monte Carlo error.
* difference, score: 95% intervals that cover the true difference (0) and the true score.
* strict: the higher score is called better. unpaired: intervals of the difference that ignore the pairing. bootstrap:
  the paired percentile bootstrap, the larger side of each.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fulltune.metrics import get, intervals, known, resampling
from fulltune.metrics.accumulate import Rows
from fulltune.metrics.base import Metric
from fulltune.metrics.compare import PairedRows
from fulltune.metrics.fractions import mcnemar, tango, wilson

ROWS = (5, 6, 10, 20, 50, 200, 800)
TRIALS = {5: 2000, 6: 2000, 10: 2000, 20: 2000, 50: 1000, 200: 600, 800: 300}
RATES = (0.5, 0.8, 0.95, 0.99)
GROUP = 5
SPREADS = (0.001, 0.05, 0.15)
LABELS = ("a", "b", "c")

Array = NDArray[np.float64]
Random = np.random.Generator

#: Systems a and b on the same rows; the gain is a's over b, in the unit of the kind.
Draw = Callable[[Random, int, float], tuple[Array, Array]]


@dataclass(frozen=True)
class Kind:
    """A kind of score.

    Attributes:
        name: Name in the tables.
        metric: The metric.
        draw: Draws vectors of both systems, ``(n, k)`` each.
        grouped: True if units are groups of :data:`GROUP` rows; ``n`` is then their number.
        gains: True gains of the power table, in the metric's unit.
    """

    name: str
    metric: Metric
    draw: Draw
    grouped: bool = False
    gains: tuple[float, ...] = (0.02, 0.05, 0.10)


def fractions(rate: float) -> Draw:
    """Return a draw of 0/1 scores; half of the rows are as easy for one system as for the other."""

    def draw(random: Random, n: int, gain: float) -> tuple[Array, Array]:
        hard = random.random(n)
        own = [np.where(random.random(n) < 0.5, hard, random.random(n)) for _ in range(2)]
        hits = [u < level for u, level in zip(own, (min(1.0, rate + gain), rate), strict=True)]
        return _means(hits[0]), _means(hits[1])

    return draw


def grouped_fractions(rate: float) -> Draw:
    """Return a draw of 0/1 scores of groups whose rows are alike, for each system in its own way."""

    def draw(random: Random, n: int, gain: float) -> tuple[Array, Array]:
        sides = []
        for level in (rate + gain, rate):
            easy = np.repeat(random.random(n), GROUP)
            own = np.where(random.random(n * GROUP) < 0.7, easy, random.random(n * GROUP))
            sides.append((own < level).reshape(n, GROUP).sum(axis=1))
        return tuple(np.stack([side, np.full(n, GROUP)], axis=1).astype(float) for side in sides)  # type: ignore[return-value]

    return draw


def likelihoods(random: Random, n: int, gain: float) -> tuple[Array, Array]:
    """Draw nats and bytes of documents of very different lengths; the gain is a fraction of the base's."""
    sizes = random.lognormal(6, 1, n)
    level = np.exp(random.normal(0, 0.3, n))
    one, two = (sizes * (level + random.normal(0, 0.08, n)) for _ in range(2))
    return np.stack([one - gain * two.sum() / sizes.sum() * sizes, sizes], axis=1), np.stack([two, sizes], axis=1)


def skewed(sigma: float) -> Draw:
    """Return a draw of costs that differ by skewed values with a mean of 0: documents of one length."""

    def draw(random: Random, n: int, gain: float) -> tuple[Array, Array]:
        gaps = random.lognormal(0, sigma, n) - math.exp(sigma**2 / 2)
        sides = np.full(n, 50.0) + gaps, np.full(n, 50.0)
        return tuple(np.stack([side, np.ones(n)], axis=1) for side in sides)  # type: ignore[return-value]

    return draw


def overlaps(random: Random, n: int, gain: float) -> tuple[Array, Array]:
    """Draw scores such as ROUGE-2: many are 0, the rest is skewed."""
    sides = []
    for level in (gain, 0.0):
        values = random.beta(1.2, 4, n) * (random.random(n) < 0.5 * (1 + level / 0.1154))
        sides.append(np.stack([values, np.ones(n)], axis=1))
    return sides[0], sides[1]


def labels(accuracy: float) -> Draw:
    """Return a draw of three labels, one of them rare; half of the rows are as easy for one system as for the other."""

    def draw(random: Random, n: int, gain: float) -> tuple[Array, Array]:
        truth = random.choice(3, n, p=(0.6, 0.25, 0.15))
        hard = random.random(n)
        sides = []
        for level in (min(1.0, accuracy + gain), accuracy):
            right = np.where(random.random(n) < 0.5, hard, random.random(n)) < level
            sides.append(_counts(truth, np.where(right, truth, (truth + random.choice((1, 2), n)) % 3)))
        return sides[0], sides[1]

    return draw


def translations(random: Random, n: int, gain: float) -> tuple[Array, Array]:
    """Draw counts of n-grams of sentences; half of what makes a sentence hard is common to both systems."""
    size = random.integers(8, 40, n)
    hard = random.normal(0, 0.5, n)
    sides = []
    for shift in (4 * gain, 0.0):
        skill = 1 / (1 + np.exp(-(0.3 + shift + hard + random.normal(0, 0.5, n))))
        length = np.maximum(4, size + random.integers(-3, 4, n))
        totals = np.stack([length - order for order in range(4)], axis=1)
        matches = random.binomial(totals, skill[:, None] ** np.arange(1, 5))
        sides.append(np.concatenate([length[:, None], size[:, None], matches, totals], axis=1).astype(float))
    return sides[0], sides[1]


def _means(values: NDArray[np.bool_]) -> Array:
    return np.stack([values, np.ones(len(values))], axis=1).astype(float)


def _counts(truth: NDArray[np.int_], answers: NDArray[np.int_]) -> Array:
    """Return the statistics of :mod:`fulltune.metrics.classification` for three labels."""
    rows, vectors = np.arange(len(truth)), np.zeros((len(truth), 2 + 3 * 4))
    vectors[:, 0], vectors[:, 1] = truth == answers, 1
    vectors[rows, 2 + truth] += truth == answers
    vectors[rows, 6 + answers] += 1
    vectors[rows, 10 + truth] += 1
    return vectors


_EXACT = get("exact_match")
_CLASSES = known(LABELS)
KINDS = {
    kind.name: kind
    for kind in (
        *(Kind(f"accuracy {rate}", _EXACT, fractions(rate)) for rate in RATES),
        Kind("bits per byte", get("bits_per_byte"), likelihoods, gains=(0.01, 0.02, 0.05)),
        Kind("overlap with zeros", get("exact_match"), overlaps, gains=(0.02, 0.05)),
        Kind("macro-F1 0.6", _CLASSES["macro_f1"], labels(0.6)),
        Kind("macro-F1 0.9", _CLASSES["macro_f1"], labels(0.9), gains=(0.02, 0.05)),
        Kind("MCC 0.8", _CLASSES["mcc"], labels(0.8)),
        Kind("BLEU", get("bleu"), translations),
        Kind("groups, accuracy 0.8", _EXACT, grouped_fractions(0.8), grouped=True),
    )
}

SKEWED = {
    f"log-normal {sigma}": Kind(f"log-normal {sigma}", get("bits_per_byte"), skewed(sigma)) for sigma in (1.0, 1.5)
}


def null_cell(kind: Kind, n: int, trials: int, seed: int) -> list[float]:
    """Return the percentages of one row of the table without a true difference."""
    random, truth = np.random.default_rng(seed), _truth(kind)
    counts = np.zeros(9)
    for _ in range(trials):
        a, b = kind.draw(random, n, 0.0)
        draws = {"resamples": 500, "seed": int(random.integers(2**31))}
        found = PairedRows(kind.metric, *_rows(kind, a, b), **draws).comparison(min_effect=0)
        low, high = intervals.of_score(kind.metric, a, confidence=0.95, rows=not kind.grouped, **draws)
        claims = found.verdict == "improved", found.verdict == "worse"
        counts += [*claims, found.low <= 0 <= found.high, low <= truth <= high, *_rivals(kind, a, b, random)]
    better, worse, difference, score, *rivals = (100 * counts / trials).tolist()
    if kind.metric.direction == "lower":
        rivals = [rivals[1], rivals[0], *rivals[2:]]
    return [better, worse, difference, score, max(rivals[0], 0), rivals[2], max(rivals[3], rivals[4])]


def _rivals(kind: Kind, a: Array, b: Array, random: Random) -> list[bool]:
    """Return the claims of other rules: higher, lower, unpaired, and both sides of the paired percentile bootstrap."""
    value = kind.metric.value
    delta = float(value(a.sum(axis=0)) - value(b.sum(axis=0)))
    errors = [resampling.standard_error(side, value) for side in (a, b)]
    unpaired = abs(delta) > 1.96 * math.hypot(*errors)
    sums = resampling.resampled((a, b), 500, int(random.integers(2**31)))
    low, high = _percentile_interval(value(sums[0]) - value(sums[1]), 0.95)
    enough = len(a) >= 6
    return [delta > 0, delta < 0, unpaired and delta > 0, enough and low > 0, enough and high < 0]


def _percentile_interval(values: Array, confidence: float) -> tuple[float, float]:
    """Return the percentile interval of draws; undefined ones are skipped."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    # Use observed values: interpolation between infinities is undefined.
    low, high = np.quantile(defined, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def _truth(kind: Kind) -> float:
    """Return the score of a very large sample."""
    a, _ = kind.draw(np.random.default_rng(0), 400_000, 0.0)
    return float(kind.metric.value(a.sum(axis=0)))


def _rows(kind: Kind, *sides: Array) -> list[Rows]:
    return [Rows(side, len(side) * (GROUP if kind.grouped else 1), kind.grouped) for side in sides]


def power_cell(kind: Kind, n: int, gain: float, trials: int, seed: int) -> list[float]:
    """Return the percentages of one row of the table with a true gain: ours, the test alone, and the bootstrap."""
    random = np.random.default_rng(seed)
    counts = np.zeros(3)
    for _ in range(trials):
        a, b = kind.draw(random, n, gain)
        rows = _rows(kind, a, b)
        found = PairedRows(kind.metric, *rows, resamples=500, seed=int(random.integers(2**31))).comparison()
        better = (found.delta > 0) == (kind.metric.direction == "higher")
        alone = better and _test(kind, *rows) <= 0.05
        counts += [found.verdict == "improved", alone, any(_rivals(kind, a, b, random)[3:])]
    return (100 * counts / trials).tolist()


def skewed_cell(kind: Kind, n: int, trials: int, seed: int) -> list[float]:
    """Return the percentages of claims about skewed differences with a mean of 0: both sides, and the test alone."""
    random = np.random.default_rng(seed)
    counts = np.zeros(3)
    for _ in range(trials):
        rows = _rows(kind, *kind.draw(random, n, 0.0))
        draws = {"resamples": 500, "seed": int(random.integers(2**31))}
        found = PairedRows(kind.metric, *rows, **draws).comparison(min_effect=0)
        counts += [found.verdict == "improved", found.verdict == "worse", _test(kind, *rows) <= 0.05]
    return (100 * counts / trials).tolist()


def failures_cell(spread: float, n: int, trials: int, seed: int) -> list[float]:
    """Return the percentages of claims that a mean is not worse by 2 points, with and without room for unseen failures.

    The first two are of a system that fails completely on 1 row in 28, which costs 2 points, so that every claim is
    false; the others are of one that is equally good.
    """
    random, kind, margin = np.random.default_rng(seed), KINDS["overlap with zeros"], 0.02
    counts = np.zeros(4)
    for _ in range(trials):
        before = np.clip(random.normal(28 * margin, 0.15, n), 0, 1)
        equal = np.clip(before + random.normal(0, spread, n), 0, 1)
        draws = {"resamples": 500, "seed": int(random.integers(2**31))}
        claims = []
        for after in (np.where(random.random(n) < 1 / 28, 0.0, equal), equal):
            sides = [np.stack([values, np.ones(n)], axis=1) for values in (after, before)]
            pair = PairedRows(kind.metric, *_rows(kind, *sides), **draws)
            claims += [pair.not_worse(margin, 0.95).verdict == "not worse", pair.interval()(0.95)[0] > -margin]
        counts += claims
    return (100 * counts / trials).tolist()


def _test(kind: Kind, a: Rows, b: Rows) -> float:
    """Return the p-value of the test alone."""
    if not kind.grouped and intervals.is_fraction(kind.metric, a.units, b.units):
        return mcnemar(*intervals.wins_and_losses(kind.metric, a.units, b.units))
    return resampling.swap_test(a.units, b.units, kind.metric.value)[0]


def enumerated(n: int, rate: float) -> list[float]:
    """Return exact percentages for 0/1 scores: false claims per side, coverage of difference and score."""
    discordant = rate * (1 - rate) * 0.75  # of each side, as in `fractions`
    logs = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    better = covered = total = 0.0
    for wins in range(n + 1):
        for losses in range(n - wins + 1):
            ties = n - wins - losses
            log = logs[n] - logs[wins] - logs[losses] - logs[ties]
            log += (wins + losses) * math.log(discordant) + ties * math.log(1 - 2 * discordant)
            if log < math.log(1e-9):
                continue
            probability = math.exp(log)
            total += probability
            low, high = tango(wins, losses, n)
            off = low > 0 or high < 0
            claims = n >= 6 and mcnemar(wins, losses) <= 0.05 and off
            better += probability * (claims and wins > losses)
            covered += probability * (not claims)
    score = sum(
        math.exp(logs[n] - logs[k] - logs[n - k] + k * math.log(rate) + (n - k) * math.log(1 - rate))
        for k in range(n + 1)
        if wilson(k, n)[0] <= rate <= wilson(k, n)[1]
    )
    return [100 * better / total, 100 * better / total, 100 * covered / total, 100 * score]


def table(header: Sequence[str], lines: Iterable[tuple[Sequence[str], Sequence[float]]]) -> None:
    """Print a Markdown table, line by line."""
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    for names, values in lines:
        print(f"| {' | '.join([*names, *(f'{value:.1f}' for value in values)])} |", flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["null", "power", "enumerate", "skewed", "failures"])
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sizes = [int(n) for n in options.rows.split(",")]
    kinds = [KINDS[name] for name in options.kinds]
    resampling.SWAPS = 999

    def trials(n: int) -> int:
        return int(options.trials or TRIALS.get(n, 500))

    if options.part == "enumerate":
        header = ("score", "n", "better", "worse", "difference", "score covered")
        table(header, (((f"accuracy {rate}", str(n)), enumerated(n, rate)) for rate in RATES for n in sizes))
    elif options.part == "null":
        header = ("score", "n", "better", "worse", "difference", "score covered", "strict", "unpaired", "bootstrap")
        cells = ((kind, n) for kind in kinds for n in sizes)
        table(header, (((k.name, str(n)), null_cell(k, n, trials(n), options.seed)) for k, n in cells))
    elif options.part == "skewed":
        header = ("differences", "n", "better", "worse", "test alone")
        cases = ((kind, n) for kind in SKEWED.values() for n in sizes)
        table(header, (((k.name, str(n)), skewed_cell(k, n, trials(n) // 2, options.seed)) for k, n in cases))
    elif options.part == "failures":
        header = ("others differ by", "n", "false claims", "without room", "true claims", "without room")
        cells = ((spread, n) for spread in SPREADS for n in sizes)
        table(
            header,
            (((f"{spread:g}", str(n)), failures_cell(spread, n, trials(n), options.seed)) for spread, n in cells),
        )
    else:
        header = ("score", "n", "gain", "improved", "test alone", "bootstrap")
        cases = ((kind, n, gain) for kind in kinds for gain in kind.gains for n in sizes)
        table(
            header,
            (
                ((k.name, str(n), f"{gain:g}"), power_cell(k, n, gain, trials(n) // 2, options.seed))
                for k, n, gain in cases
            ),
        )


if __name__ == "__main__":
    main()
