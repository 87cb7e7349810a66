"""Metrics of generated text: ROUGE, BLEU and chrF as in their reference libraries, repetition, length.

ROUGE, BLEU and chrF are fractions of 1, like all other scores (sacrebleu prints them times 100).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from fulltune.metrics.base import Array, Metric
from fulltune.metrics.ratios import fraction_of, mean_of, ratio
from fulltune.metrics.words import bleu_tokenizer, sentences, words
from fulltune.metrics.words import script_warning as script_warning
from fulltune.records.run import Prediction

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
#: Words of a text that ROUGE-Lsum reads: its time grows with their square.
_LSUM_WORDS = 1000
_BLEU_ORDER = 4
_CHAR_ORDER = 6
_CHRF_BETA = 2


class _Words:
    """Tokenizer object that replaces rouge-score's own."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge_scorer(*names: str) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(names, tokenizer=_Words())


def _rouge_f(reference: str, output: str) -> Array:
    """Return the F-measures of :data:`_ROUGE` followed by 1, so that sums give the mean per row."""
    lines = sentences(reference), sentences(output)
    pair = "\n".join(lines[0]), "\n".join(lines[1])
    scores = {name: score.fmeasure for name, score in _rouge_scorer("rouge1", "rouge2").score(*pair).items()}
    scores["rougeL"] = _rouge_l(words(pair[0]), words(pair[1]))
    begun = (_beginning(part) for part in lines)
    scores["rougeLsum"] = _rouge_scorer("rougeLsum").score(*begun)["rougeLsum"].fmeasure
    return np.array([*(scores[name] for name in _ROUGE), 1.0])


def _rouge_l(reference: Sequence[str], output: Sequence[str]) -> float:
    """Return the F-measure of the longest common subsequence, as rouge-score does."""
    common = longest_common(reference, output)
    if not common:
        return 0.0
    precision, recall = common / len(output), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Bits of whole rows of the table are computed at once (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"):
    texts of 100 kB take a fraction of a second, instead of minutes and gigabytes.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(one) - row.bit_count()


def _beginning(lines: Sequence[str]) -> str:
    """Return the sentences of a text up to :data:`_LSUM_WORDS` words, a longer sentence up to there."""
    kept, left = list[str](), _LSUM_WORDS
    for line in lines:
        if left <= 0:
            break
        found = words(line)
        kept.append(line if len(found) <= left else " ".join(found[:left]))
        left -= len(found)
    return "\n".join(kept)


def _rouge(prediction: Prediction) -> Array:
    return _rouge_f(_text(prediction.reference), _text(prediction.output))


def _rouge_metric(name: str, label: str, version_: int = 1, note: str = "") -> Metric:
    column = _ROUGE.index(name)

    def value(sums: Array) -> Array:
        return ratio(sums[..., column], sums[..., -1])

    source = f"Lin 2004; rouge-score {version('rouge-score')}, mean F of the rows, Unicode words, no stemming{note}"
    return Metric(name, "higher", version_, source, _rouge, value, label=label, ratio=(column, len(_ROUGE)))


rouge1 = _rouge_metric("rouge1", "ROUGE-1")
rouge2 = _rouge_metric("rouge2", "ROUGE-2")
rougeL = _rouge_metric("rougeL", "ROUGE-L")
rougeLsum = _rouge_metric("rougeLsum", "ROUGE-Lsum", 2, f", of the first {_LSUM_WORDS:,} words of each text")


def bleu_signature(tokenizer: str = "13a") -> str:
    """Return sacrebleu's signature of BLEU as computed here, for references that use this tokenizer."""
    return f"nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:{version('sacrebleu')}"


def chrf_signature() -> str:
    """Return sacrebleu's signature of chrF as computed here."""
    return f"nrefs:1|case:mixed|eff:yes|nc:{_CHAR_ORDER}|nw:0|space:no|version:{version('sacrebleu')}"


@cache
def _bleu_scorer(tokenizer: str) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    # Only the counts are read, which do not depend on the effective order; without it sacrebleu warns for every row.
    return BLEU(tokenize=tokenizer, effective_order=True)


def _bleu_counts(reference: str, output: str) -> Array:
    """Return output length, reference length, matches of 1..4-grams, and 1..4-grams of the output: ``(10,)``."""
    scorer = _bleu_scorer(bleu_tokenizer(reference))
    score = scorer.sentence_score(output, [reference])
    _clear_cache(scorer.tokenizer)
    return np.array([score.sys_len, score.ref_len, *score.counts, *score.totals], dtype=np.float64)


def _clear_cache(tokenizer: Any) -> None:
    """Clear sacrebleu's caches of the last 65 536 lines, so that memory does not grow with the rows."""
    for layer in (tokenizer, getattr(tokenizer, "_post_tokenizer", None)):
        if clear := getattr(vars(type(layer)).get("__call__"), "cache_clear", None):
            clear()


def _bleu(prediction: Prediction) -> Array:
    return _bleu_counts(_text(prediction.reference), _text(prediction.output))


def _bleu_value(sums: Array) -> Array:
    """Return BLEU with exponential smoothing, as sacrebleu computes it, for sums ``(..., 10)`` at once."""
    output, reference = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + _BLEU_ORDER], sums[..., 2 + _BLEU_ORDER :]
    # Each order without a match halves the count that it is given: 1/2, 1/4, ... (Chen & Cherry 2014, method 3).
    counts = np.where(matches > 0, matches, 0.5 ** np.cumsum(matches == 0, axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(counts / totals).mean(axis=-1))
        brevity = np.where(output < reference, np.exp(1 - reference / output), 1.0)
        score = brevity * precision
    defined = (matches > 0).any(axis=-1) & (totals > 0).all(axis=-1)
    return np.where(defined, score, 0.0)


def _char_ngrams(text: str) -> list[Counter[str]]:
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    return list(extract_all_char_ngrams(text, _CHAR_ORDER))


def _chrf(prediction: Prediction) -> Array:
    """Return, per order 1..6, n-grams of the output (0 if the reference has none), of the reference, and of both."""
    pairs = zip(_char_ngrams(_text(prediction.output)), _char_ngrams(_text(prediction.reference)), strict=True)
    counts = [
        (output.total() if reference else 0, reference.total(), (output & reference).total())
        for output, reference in pairs
    ]
    return np.array(counts, dtype=np.float64).ravel()


def _chrf_value(sums: Array) -> Array:
    """Return F with recall weighted twice, from mean precision and recall over the orders that both sides have."""
    output, reference, both = (sums[..., part::3] for part in range(3))
    used = (output > 0) & (reference > 0)
    precision = ratio(np.where(used, ratio(both, output), 0.0).sum(axis=-1), used.sum(axis=-1))
    recall = ratio(np.where(used, ratio(both, reference), 0.0).sum(axis=-1), used.sum(axis=-1))
    f = ratio((1 + _CHRF_BETA**2) * precision * recall, _CHRF_BETA**2 * precision + recall)
    return np.nan_to_num(f)


bleu = Metric(
    name="bleu",
    direction="higher",
    version=1,
    source=f"Papineni et al. 2002; sacrebleu corpus BLEU, {bleu_signature()} (tok:zh where the reference is Chinese, "
    "tok:char where it is in another script without spaces)",
    statistics=_bleu,
    value=_bleu_value,
    label="BLEU",
)

chrf = Metric(
    name="chrf",
    direction="higher",
    version=1,
    source=f"Popović 2015; sacrebleu corpus chrF2, {chrf_signature()}",
    statistics=_chrf,
    value=_chrf_value,
    label="chrF",
)


def _same_text(prediction: Prediction) -> Array:
    return np.array([_text(prediction.output).split() == _text(prediction.reference).split(), 1.0], dtype=np.float64)


exact_match = mean_of(
    _same_text,
    name="exact_match",
    direction="higher",
    source="equal to the reference, runs of white space counted as one",
    label="exact match",
)


def _lengths(prediction: Prediction) -> Array:
    return np.array([len(words(_text(prediction.output))), len(words(_text(prediction.reference)))], dtype=np.float64)


length_ratio = mean_of(
    _lengths,
    name="length_ratio",
    direction="higher",
    source="words of all outputs / words of all references; best near 1, so it is shown and not judged",
    percent=False,
    label="length ratio",
)

capped = fraction_of(
    "capped",
    name="capped",
    direction="lower",
    source="the output was cut off by the limit of new tokens",
    label="fraction cut off",
)


def _continuation(prediction: Prediction) -> str | None:
    text = prediction.values.get("continuation")
    return None if text is None else str(text)


def _distinct_fraction(text: str, order: int) -> float | None:
    tokens = words(text)
    ngrams = [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def _distinct(prediction: Prediction) -> Array | None:
    fraction = _distinct_fraction(_continuation(prediction) or "", 2)
    return None if fraction is None else np.array([fraction, 1.0])


def _repeated(prediction: Prediction) -> Array | None:
    fraction = _distinct_fraction(_continuation(prediction) or "", 4)
    return None if fraction is None else np.array([1 - fraction, 1.0])


distinct_2 = mean_of(
    _distinct,
    name="distinct_2",
    direction="higher",
    source="different bigrams / bigrams of a continuation (Li et al. 2016), mean of those of two words or more",
    label="distinct bigrams",
    reads_answers=False,
)

repetition_4 = mean_of(
    _repeated,
    name="repetition_4",
    direction="lower",
    source="4-grams that occurred before / 4-grams of a continuation (Welleck et al. 2020), mean of those of four "
    "words or more",
    label="repeated 4-grams",
    reads_answers=False,
)


def _continuation_pair(prediction: Prediction) -> tuple[str, str] | None:
    output = _continuation(prediction)
    reference = prediction.values.get("continuation_reference")
    return None if output is None or reference is None else (str(reference), output)


def _continuation_bleu(prediction: Prediction) -> Array | None:
    pair = _continuation_pair(prediction)
    return None if pair is None else _bleu_counts(*pair)


def _continuation_rouge(prediction: Prediction) -> Array | None:
    pair = _continuation_pair(prediction)
    return None if pair is None else _rouge_f(*pair)


continuation_bleu = Metric(
    "continuation_bleu",
    "higher",
    1,
    bleu.source,
    _continuation_bleu,
    bleu.value,
    label="BLEU of continuations",
    reads_answers=False,
)
continuation_rougeL = Metric(
    "continuation_rougeL",
    "higher",
    1,
    rougeL.source,
    _continuation_rouge,
    rougeL.value,
    ratio=rougeL.ratio,
    label="ROUGE-L of continuations",
    reads_answers=False,
)


def _text(answer: str | tuple[str, ...]) -> str:
    return answer if isinstance(answer, str) else "\n".join(answer)
