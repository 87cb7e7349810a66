"""Text metrics against rouge-score and sacrebleu, in several scripts."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU, CHRF

from fulltune.metrics import text
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.base import Metric
from fulltune.metrics.words import bleu_tokenizer, sentences, words
from fulltune.records.run import Prediction

ENGLISH = [
    ("The quick brown fox jumps over the lazy dog.", "The quick brown dog jumps on the log."),
    ("It's a well-known fact: 3.5 million people live here.", "Some 3.5 million people live there, it's known."),
    ("She left. He stayed! Why? Nobody knows.", "He stayed. She left. Nobody knows why."),
    ("Rain fell all day.", ""),
    ("Mr. J. Smith paid £5 for snake_case soup", "Mr. J. Smith paid for soup"),
    ("one two three four five six seven", "one two three four five six seven"),
]
RUSSIAN = [
    ("Жил-был старик со старухой. Пошёл он в лес.", "Жил-был старик. Пошёл старик в тёмный лес."),
    ("Царь позвал трёх сыновей и дал им по стреле.", "Царь дал сыновьям по стреле."),
]
CHINESE = [("猫坐在垫子上。", "猫在垫子上坐着。"), ("他去了北京大学。", "他去北京大学了。")]
JAPANESE = [("私は学校に行きました。", "私は学校へ行った。"), ("ラーメンを食べたい。", "ラーメンが食べたい。")]
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rows(pairs: Sequence[tuple[str, str]]) -> list[Prediction]:
    """Return predictions for (reference, output) pairs."""
    return [
        Prediction(system="tuned", id=str(index), input="", reference=reference, output=output)
        for index, (reference, output) in enumerate(pairs)
    ]


def value(metric: Metric, predictions: Sequence[Prediction]) -> float:
    accumulator = Accumulator([metric])
    for prediction in predictions:
        accumulator.add(prediction)
    return accumulator.scores(resamples=100)[metric.name].value


def continuation(output: str | None, reference: str | None = None) -> Prediction:
    found = {"continuation": output, "continuation_reference": reference}
    values = {key: text for key, text in found.items() if text is not None}
    return Prediction(system="tuned", id="0", input="", reference="", output="", values=values)


@pytest.mark.parametrize("name", ROUGE)
def test_rouge_on_english_equals_rouge_score(name: str) -> None:
    scorer = RougeScorer([name])
    expected = []
    for reference, output in ENGLISH:
        if name == "rougeLsum":
            reference, output = "\n".join(sentences(reference)), "\n".join(sentences(output))
        expected.append(scorer.score(reference, output)[name].fmeasure)
    assert value(getattr(text, name), rows(ENGLISH)) == pytest.approx(np.mean(expected))
    assert 0 < np.mean(expected) < 1


def test_rouge_lsum_takes_line_breaks_as_rouge_score_does() -> None:
    pair = ("the cat sat\non the mat today", "on a mat\nthe cat sat down")
    expected = RougeScorer(["rougeLsum"]).score(*pair)["rougeLsum"].fmeasure
    assert value(text.rougeLsum, rows([pair])) == pytest.approx(expected)
    assert value(text.rougeL, rows([pair])) < expected


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_text_are_those_of_rouge_score(drawn: str) -> None:
    assert words(drawn) == DefaultTokenizer().tokenize(drawn)


def test_rouge_counts_russian_words_that_the_default_drops() -> None:
    default = RougeScorer(["rouge1"]).score(*RUSSIAN[0])["rouge1"].fmeasure
    assert default == 0
    reference, output = (set(words(side)) for side in RUSSIAN[1])
    shared = len(reference & output)
    expected = 2 * shared / (len(reference) + len(output))
    assert value(text.rouge1, rows(RUSSIAN[1:])) == pytest.approx(expected)
    for name in ROUGE:
        assert value(getattr(text, name), rows([(RUSSIAN[0][0], RUSSIAN[0][0])])) == 1.0


def test_words_in_many_scripts() -> None:
    assert words("Ёлка-и ВОДА") == ["ёлка", "и", "вода"]
    assert words("cafe\u0301 naïve") == ["caf\u00e9", "naïve"]
    assert words("我们go") == ["我", "们", "go"]
    assert words("कहानी।") == ["कहानी"]
    assert words("...") == []


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        ("Mr. J. Smith left. He was sad.", ["Mr. J. Smith left.", "He was sad."]),
        ("Is it 3.5? Yes.", ["Is it 3.5?", "Yes."]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("Жил царь. «Да!» Сказал он.\nКонец", ["Жил царь.", "«Да!»", "Сказал он.", "Конец"]),
        ("我们去了。他走了！", ["我们去了。", "他走了！"]),
        ("no end", ["no end"]),
        (" \n ", []),
    ],
)
def test_sentences(whole: str, expected: list[str]) -> None:
    assert sentences(whole) == expected


@given(st.text())
def test_sentences_lose_no_word(whole: str) -> None:
    assert [word for sentence in sentences(whole) for word in words(sentence)] == words(whole)


@pytest.mark.parametrize(
    ("pairs", "tokenizer"),
    [(ENGLISH, "13a"), (RUSSIAN, "13a"), (CHINESE, "zh"), (JAPANESE, "char")],
    ids=["english", "russian", "chinese", "japanese"],
)
def test_bleu_equals_sacrebleu_with_the_tokenizer_of_the_script(pairs: list[tuple[str, str]], tokenizer: str) -> None:
    references, outputs = zip(*pairs, strict=True)
    library = BLEU(tokenize=tokenizer)
    expected = library.corpus_score(outputs, [references]).score
    assert value(text.bleu, rows(pairs)) * 100 == pytest.approx(expected)
    assert expected > 0
    assert str(library.get_signature()) == text.bleu_signature(tokenizer)
    assert {bleu_tokenizer(reference) for reference in references} == {tokenizer}


@pytest.mark.parametrize("pairs", [ENGLISH, RUSSIAN, CHINESE, JAPANESE])
def test_chrf_equals_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    references, outputs = zip(*pairs, strict=True)
    library = CHRF()
    expected = library.corpus_score(outputs, [references]).score
    assert value(text.chrf, rows(pairs)) * 100 == pytest.approx(expected)
    assert str(library.get_signature()) == text.chrf_signature()


WORDS = st.lists(st.sampled_from(["a", "b", "cat", "dog.", "it's", "3,5", "кот"]), max_size=12).map(" ".join)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_corpus_scores_equal_sacrebleu_on_anything(pairs: list[tuple[str, str]]) -> None:
    references, outputs = zip(*pairs, strict=True)
    for metric, library in ((text.bleu, BLEU()), (text.chrf, CHRF())):
        expected = library.corpus_score(outputs, [references]).score / 100
        assert value(metric, rows(pairs)) == pytest.approx(expected)


def test_signatures_are_in_the_source() -> None:
    assert text.bleu_signature() in text.bleu.source
    assert text.chrf_signature() in text.chrf.source
    assert "rouge-score 0." in text.rougeL.source


def test_bleu_keeps_no_lines() -> None:
    for index in range(50):
        text.bleu.statistics(rows([(f"the cat {index}", f"a cat {index}")])[0])
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

    assert Tokenizer13a.__call__.cache_info().currsize == TokenizerRegexp.__call__.cache_info().currsize == 0


def test_exact_match_ignores_the_amount_of_white_space() -> None:
    assert value(text.exact_match, rows([("a  b\nc", " a b c "), ("a b", "ab"), ("A", "a"), ("", "")])) == 0.5


def test_length_ratio_is_words_over_words() -> None:
    assert value(text.length_ratio, rows([("a b c d", "a"), ("a, b", "one two three")])) == pytest.approx(4 / 6)
    assert math.isnan(value(text.length_ratio, rows([("", "word")])))


def test_capped_is_the_fraction_of_capped_rows() -> None:
    values: list[dict[str, bool]] = [{"capped": True}, {"capped": False}, {"capped": False}, {}]
    predictions = [row.model_copy(update={"values": v}) for row, v in zip(rows(RUSSIAN * 2), values, strict=True)]
    assert value(text.capped, predictions) == pytest.approx(1 / 3)
    assert text.capped.direction == "lower"


def test_diversity_of_continuations() -> None:
    loop, fresh = continuation("да и да и да и да и"), continuation("one two three four five six")
    assert value(text.distinct_2, [loop]) == pytest.approx(2 / 7)
    assert value(text.repetition_4, [loop]) == pytest.approx(3 / 5)
    assert value(text.distinct_2, [fresh]) == 1
    assert value(text.repetition_4, [fresh]) == 0
    assert value(text.distinct_2, [loop, fresh]) == pytest.approx((2 / 7 + 1) / 2)


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=30))
def test_repetition_counts_ngrams_seen_before(tokens: list[str]) -> None:
    seen: set[tuple[str, ...]] = set()
    again = []
    for start in range(len(tokens) - 3):
        ngram = tuple(tokens[start : start + 4])
        again.append(ngram in seen)
        seen.add(ngram)
    assert value(text.repetition_4, [continuation(" ".join(tokens))]) == pytest.approx(np.mean(again))


@pytest.mark.parametrize(
    "metric",
    [text.distinct_2, text.repetition_4, text.continuation_bleu, text.continuation_rougeL],
    ids=lambda m: m.name,
)
def test_a_row_without_continuation_does_not_count(metric: Metric) -> None:
    assert metric.statistics(continuation(None)) is None


def test_continuations_are_scored_against_their_reference() -> None:
    (reference, output), other = ENGLISH[0], continuation("no reference here")
    pair = continuation(output, reference)
    assert value(text.continuation_bleu, [pair, other]) == value(text.bleu, rows([(reference, output)]))
    assert value(text.continuation_rougeL, [pair, other]) == value(text.rougeL, rows([(reference, output)]))


def test_script_warning() -> None:
    assert text.script_warning([]) is None
    assert text.script_warning(["Plain English, 100 %.", "café"]) is None
    russian = text.script_warning(reference for reference, _ in RUSSIAN)
    assert russian is not None
    assert russian.startswith("100% of the letters in the references are not Latin (Cyrillic)")
    assert "on Unicode words" in russian
    assert "by character" in (text.script_warning([CHINESE[0][0]]) or "")
    assert "Cyrillic" in (text.script_warning(["half of it", "половина"]) or "")


@pytest.mark.parametrize("metric", [text.rouge1, text.bleu, text.chrf, text.exact_match], ids=lambda m: m.name)
def test_a_perfect_answer_scores_1(metric: Metric) -> None:
    for pairs in (ENGLISH, RUSSIAN, CHINESE, JAPANESE):
        same = [(reference, reference) for reference, _ in pairs]
        assert value(metric, rows(same)) == pytest.approx(1)


@given(st.text("ab cd", max_size=80), st.text("ab cd", max_size=80))
def test_rouge_l_equals_rouge_score_for_any_words(reference: str, output: str) -> None:
    expected = RougeScorer(["rougeL"]).score(reference, output)["rougeL"].fmeasure
    assert value(text.rougeL, rows([(reference, output)])) == pytest.approx(expected)


def test_texts_of_100_kb_are_scored_in_seconds() -> None:
    draw = random.Random(3)
    names = [f"word{number}" for number in range(500)]

    def long() -> str:
        return " ".join(f"{' '.join(draw.choices(names, k=15))}." for _ in range(900))

    reference, output = long(), long()
    started = time.process_time()
    found = rows([(reference, output), (reference, reference)])
    assert value(text.rougeL, found[1:]) == value(text.rougeLsum, found[1:]) == 1
    assert 0.05 < value(text.rougeL, found[:1]) < 0.3
    assert time.process_time() - started < 30
