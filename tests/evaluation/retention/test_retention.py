"""Retention: the same numbers as an independent loop, for each family, before and after."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fulltune.config import Config, load_config
from fulltune.errors import ConfigError, DataError
from fulltune.evaluation.retention import BaseOutputs, sentence
from fulltune.evaluation.retention.abilities import abilities
from fulltune.evaluation.retention.base_outputs import verdict_of
from fulltune.evaluation.retention.features import jackknife, linear_cka, topics
from fulltune.evaluation.retention.language import languages_of
from fulltune.evaluation.retention.probe import load_probe
from fulltune.evaluation.retention_sets import check_sets
from fulltune.metrics import get
from fulltune.metrics.accumulate import Accumulator
from fulltune.metrics.compare import relative_loss
from fulltune.metrics.likelihood import bits_per_byte
from fulltune.models.bundle import Bundle, with_base_head
from fulltune.records.run import Prediction
from fulltune.tasks.base import Example
from fulltune.training.regularization.denoising import corrupted, masked, sentinel_ids

TEXTS = ["The king has a red fox.", "It was not the law of the state.", "A film about a dog and a cat, good and great."]


@pytest.fixture
def probe(tmp_path: Path) -> str:
    return write(tmp_path / "probe.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(probe: str = "builtin", **options: Any) -> Config:
    forgetting = {"probe": probe} | options
    data = {"train": "unused"}
    return load_config({"model": "m", "task": "causal-lm", "data": data, "guards": {"forgetting": forgetting}})


def shaken(bundle: Bundle, size: float = 0.05) -> Bundle:
    with torch.no_grad():
        for number, parameter in enumerate(bundle.model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(noise * size)
    return bundle


@torch.no_grad()
def test_a_decoder_is_scored_in_bits_per_byte_of_an_unbatched_loop(probe: str) -> None:
    base = fakes.bundle("gpt2")
    found = BaseOutputs.collect(config(probe), base).compare(shaken(fakes.bundle("gpt2")))["general text"]

    def by_hand(bundle: Bundle) -> float:
        nll = 0.0
        for text in TEXTS:
            ids = torch.tensor([bundle.tokenizer(text).input_ids])
            logs = F.log_softmax(bundle.model(input_ids=ids).logits[0, :-1].double(), dim=-1)
            nll -= float(logs.gather(1, ids[0, 1:, None]).sum())
        return nll / math.log(2) / sum(len(text[1:].encode()) for text in TEXTS)

    before, after = by_hand(fakes.bundle("gpt2")), by_hand(shaken(fakes.bundle("gpt2")))
    assert (found.metric, found.base.n, found.tuned.n) == ("bits_per_byte", 3, 3)
    assert found.base.value == pytest.approx(before, rel=1e-5)
    assert found.tuned.value == pytest.approx(after, rel=1e-5)
    assert found.change == pytest.approx((after - before) / before, rel=1e-3)
    assert found.low <= found.change <= found.high


@torch.no_grad()
def test_an_encoder_is_scored_on_the_same_masks_as_a_loop(probe: str) -> None:
    base = fakes.bundle("bert")
    found = BaseOutputs.collect(config(probe), base).compare(base)["general text"]
    nll, count = 0.0, 0
    for row, text in enumerate(TEXTS):
        ids, hidden = masked(base, text, row)
        assert hidden
        logs = F.log_softmax(base.model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
        places = [index for index, token in enumerate(ids) if token == base.tokenizer.mask_token_id]
        assert places == list(hidden)
        nll -= sum(float(logs[place, token]) for place, token in hidden.items())
        count += len(hidden)
    assert (found.metric, found.change, found.verdict) == ("masked_loss", 0.0, "cannot tell")
    assert found.base.value == pytest.approx(nll / count, rel=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@torch.no_grad()
def test_an_encoder_decoder_restores_what_was_corrupted(kind: str, probe: str) -> None:
    base = fakes.bundle(kind)
    found = BaseOutputs.collect(config(probe), base).compare(base)["general text"]
    nll, count = 0.0, 0
    for row, text in enumerate(TEXTS):
        asked = corrupted(base, text, row)
        assert asked.target == [*base.tokenizer(text, add_special_tokens=False).input_ids, base.tokenizer.eos_token_id]
        assert len(asked.context) < len(asked.target) + 2
        out = base.model(input_ids=torch.tensor([asked.context]), labels=torch.tensor([asked.target]))
        nll, count = nll + float(out.loss) * len(asked.target), count + len(asked.target)
    assert (found.metric, found.change) == ("infilling_loss", 0.0)
    assert found.base.value == pytest.approx(nll / count, rel=1e-5)


def test_sentinels_of_the_tokenizer_are_used_in_their_order(probe: str) -> None:
    names = [f"<extra_id_{index}>" for index in range(30)]
    # The other way round, as in T5's own vocabulary.
    tokenizer = fakes.byte_tokenizer(
        ["<pad>", "</s>", "<unk>", *reversed(names)],
        "$A </s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    base = fakes.bundle("t5", tokenizer=tokenizer)
    assert sentinel_ids(base) == [tokenizer.convert_tokens_to_ids(name) for name in names]
    text = " ".join(TEXTS)
    asked = corrupted(base, text, 0)
    spans = tokenizer.convert_ids_to_tokens([token for token in asked.context if token in sentinel_ids(base)])
    assert spans == names[: len(spans)]
    assert 1 < len(spans) < 30
    assert asked.target[0] == sentinel_ids(base)[0]
    restored, holes = "", asked.target[:-1]
    for token in asked.context[:-1]:
        if token not in sentinel_ids(base):
            restored += tokenizer.decode([token])
            continue
        start = holes.index(token) + 1
        while start < len(holes) and holes[start] not in sentinel_ids(base):
            restored, start = restored + tokenizer.decode([holes[start]]), start + 1
    assert restored == text
    assert BaseOutputs.collect(config(probe), base).compare(base)["general text"].metric == "span_loss"


HEADS = ["gpt2", "llama", "bert", "t5", "bart"]


@pytest.mark.parametrize("kind", HEADS)
def test_a_model_with_a_new_head_is_scored_with_the_bases_head_on_its_body(kind: str, probe: str) -> None:
    """Score a tuned classifier with the base's head.

    One with the base's own body retains everything; one with another body does not, and the base is unchanged.
    """
    base = fakes.bundle(kind)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    base_outputs = BaseOutputs.collect(config(probe), base)
    same = fakes.bundle(kind, "classification")
    named = dict(base.model.named_parameters())
    prefix = "transformer." if kind == "t5" else ""
    with torch.no_grad():
        for name, value in same.model.named_parameters():
            if name.removeprefix(prefix) in named:
                value.copy_(named[name.removeprefix(prefix)])
    same.model.train()
    kept = base_outputs.compare(same)["general text"]
    assert (kept.change, kept.tuned) == (0.0, kept.base)
    assert same.model.training
    assert base_outputs.compare(shaken(same, 0.3))["general text"].change != 0.0
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_body_under_the_bases_head_is_trained(probe: str) -> None:
    base, tuned = fakes.bundle("bert"), fakes.bundle("bert", "classification")
    base.model.requires_grad_(False)
    ids = torch.tensor([tuned.tokenizer(TEXTS[0]).input_ids])
    with with_base_head(base, tuned) as view:
        view.model(input_ids=ids).logits.sum().backward()
    assert tuned.model.base_model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_an_encoder_without_a_head_keeps_its_representation_and_its_topics() -> None:
    whole = fakes.bundle("bert")
    base = replace(whole, model=whole.model.base_model)
    base_outputs = BaseOutputs.collect(config("builtin:en"), base)
    same = base_outputs.compare(base)
    assert same.keys() == {"representation (en)", "topics (en)"}
    assert same["representation (en)"].tuned.value == pytest.approx(1.0)
    assert (same["representation (en)"].tuned.n, same["topics (en)"].base.n) == (40, 40)
    # The same answers on 40 rows do not exclude a loss of 5%.
    assert (same["topics (en)"].change, same["topics (en)"].verdict) == (0.0, "cannot tell")
    assert -same["topics (en)"].low == pytest.approx(same["topics (en)"].high)
    assert same["topics (en)"].high > 0.05
    assert same["representation (en)"].verdict == "no budget"
    other = base_outputs.compare(shaken(fakes.bundle("bert", "classification"), 0.3))
    assert other["representation (en)"].tuned.value < 0.9
    assert math.isinf(other["representation (en)"].budget)


def test_linear_cka_is_one_for_a_rotation_and_near_zero_for_unrelated_features() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(30, 100))
    rotation, _ = np.linalg.qr(random.normal(size=(100, 100)))
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1.0)
    assert abs(linear_cka(x, random.normal(size=(30, 100)))) < 0.15
    assert math.isnan(linear_cka(x[:3], x[:3]))


def test_linear_cka_equals_a_sum_over_quadruples() -> None:
    """The unbiased HSIC is a mean over ordered quadruples of distinct rows (Song et al. 2012, equation 4)."""
    random = np.random.default_rng(1)
    x, y = random.normal(size=(6, 3)), random.normal(size=(6, 2))

    def hsic(k: Any, l: Any) -> float:  # noqa: E741
        quadruples = itertools.permutations(range(len(k)), 4)
        return float(np.mean([k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in quadruples]))

    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert linear_cka(x, y) == pytest.approx(hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l)))


def test_the_jackknife_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(2).normal(size=50)
    found = jackknife(50, lambda rows: float(values[rows].mean()), 0.95)
    reach = 1.959964 * values.std(ddof=1) / math.sqrt(50)
    assert (found.low, found.value, found.n) == (pytest.approx(found.value - reach), values.mean(), 50)


def test_topics_are_predicted_only_from_features_that_contain_them() -> None:
    random = np.random.default_rng(3)
    wanted = ["a", "b"] * 20
    clear = random.normal(size=(40, 4)) + 9 * np.array([[topic == "a"] * 4 for topic in wanted])
    ids = [str(index) for index in range(40)]
    assert all(answer.output == answer.reference for answer in topics(ids, clear, wanted))
    guesses = topics(ids, random.normal(size=(40, 4)), wanted)
    assert 5 < sum(answer.output == answer.reference for answer in guesses) < 35
    assert {answer.output for answer in topics(ids, clear * math.nan, wanted)} == {""}


# ---- Numbers ----


def accumulated(nlls: list[float]) -> Accumulator:
    found = Accumulator((bits_per_byte,))
    for row, nll in enumerate(nlls):
        values = {"nll": nll, "bytes": 10}
        found.add(Prediction(system="", id=str(row), input="", reference="", output="", values=values))
    return found


def test_the_relative_loss_is_paired_and_follows_the_direction() -> None:
    base = [10.0, 20.0, 30.0, 40.0]
    change, low, high = relative_loss(accumulated([1.1 * nll for nll in base]), accumulated(base), "bits_per_byte")
    # Every row is worse by a tenth, so every resample agrees.
    assert (change, low, high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    assert relative_loss(accumulated([9.0]), accumulated([10.0]), "bits_per_byte")[0] == pytest.approx(-0.1)
    assert all(map(math.isnan, relative_loss(accumulated([]), accumulated([]), "bits_per_byte")))
    assert math.isnan(relative_loss(accumulated([math.nan]), accumulated([10.0]), "bits_per_byte")[0])


@pytest.mark.parametrize(
    ("change", "low", "high", "n", "verdict"),
    [
        (-0.2, -0.3, -0.1, 40, "kept"),
        (0.03, 0.01, 0.05, 40, "kept"),
        (0.03, 0.01, 0.06, 40, "cannot tell"),
        (0.1, -0.467, 0.476, 40, "cannot tell"),
        (0.1, 0.01, 0.19, 40, "cannot tell"),
        (0.1, 0.05, 0.15, 40, "cannot tell"),
        (0.1, 0.06, 0.14, 40, "lost"),
        (0.3, 0.3, 0.3, 5, "cannot tell"),
        (0.3, 0.3, 0.3, 6, "lost"),
        (0.06, math.nan, math.nan, 1, "cannot tell"),
        (math.nan, math.nan, math.nan, 40, "lost"),
    ],
)
def test_the_interval_against_the_budget_decides(change: float, low: float, high: float, n: int, verdict: str) -> None:
    assert verdict_of(change, low, high, 0.05, n, 0.95) == verdict
    assert verdict_of(change, low, high, math.inf, n, 0.95) == "no budget"


@pytest.mark.parametrize(
    ("rows", "changed", "verdict"),
    [(40, 0, "cannot tell"), (72, 0, "cannot tell"), (74, 0, "kept"), (74, 1, "cannot tell"), (120, 1, "kept")],
)
def test_as_many_equal_answers_exclude_a_loss_as_the_score_interval_needs(
    rows: int, changed: int, verdict: str
) -> None:
    """No answer of n changed: with z = 1.96, a loss of up to z² / (n + z²) is possible (Tango 1998), 5% for n = 73."""
    base, tuned = (fraction([index >= lost for index in range(rows)]) for lost in (0, changed))
    change, low, high = relative_loss(tuned, base, "exact_match")
    assert change == pytest.approx(changed / rows)
    assert low <= change <= high
    if not changed:
        assert high == pytest.approx(1.959964**2 / (rows + 1.959964**2), rel=1e-4)
    assert verdict_of(change, low, high, 0.05, rows, 0.95) == verdict


def fraction(hits: list[bool]) -> Accumulator:
    found = Accumulator((get("exact_match"),))
    for row, hit in enumerate(hits):
        found.add(Prediction(system="", id=str(row), input="", reference="a", output="a" if hit else "b"))
    return found


def test_a_budget_of_nothing_ignores_differences_that_do_not_count(probe: str) -> None:
    base = fakes.bundle("gpt2")
    found = BaseOutputs.collect(config(probe, budget=0.0), base).compare(base)["general text"]
    assert found.budget == config(probe).evaluation.min_effect
    assert BaseOutputs.collect(config(probe), base).compare(base)["general text"].budget == 0.05


def test_a_model_with_nan_scores_has_forgotten(probe: str) -> None:
    base_outputs = BaseOutputs.collect(config(probe), fakes.bundle("gpt2"))
    found = base_outputs.compare(shaken(fakes.bundle("gpt2"), math.nan))["general text"]
    assert found.verdict == "lost"
    text = sentence("general text", found)
    assert text.startswith("general text: Bits per byte ")
    assert text.endswith("nan% better (+nan% to +nan%): lost, beyond the budget of 5%")


def test_the_builtin_probe_keeps_its_languages_apart_and_a_file_may_name_them(tmp_path: Path) -> None:
    assert BaseOutputs.collect(config(limit=6), fakes.bundle("gpt2")).compare(fakes.bundle("gpt2")).keys() == {
        "general text (en)",
        "general text (ru)",
    }
    assert [len(load_probe(name, 200)) for name in ("builtin", "builtin:en", "builtin:ru")] == [80, 40, 40]
    rows = [{"text": "one", "topic": "a", "language": "en"}, {"text": "два", "topic": "b", "language": "ru"}]
    found = load_probe(write(tmp_path / "own.jsonl", rows), 200)
    assert [(passage.topic, passage.language) for passage in found] == [("a", "en"), ("b", "ru")]
    with pytest.raises(ConfigError, match="Did you mean 'builtin:en'"):
        load_probe("builtin:eng", 200)
    with pytest.raises(DataError, match="text"):
        load_probe(write(tmp_path / "bad.jsonl", [{"words": "one"}]), 200)


def test_the_bases_answers_are_cached_by_questions_and_model(probe: str, tmp_path: Path) -> None:
    base = fakes.bundle("gpt2")
    first = BaseOutputs.collect(config(probe), base, tmp_path / "runs")
    shaken(base)  # the hash is that of the same model: the cache must answer, not the weights
    again = BaseOutputs.collect(config(probe), base, tmp_path / "runs")
    assert len(list((tmp_path / "runs" / "cache").glob("*.jsonl"))) == 1
    tuned = fakes.bundle("gpt2")
    assert again.compare(tuned) == first.compare(tuned)
    BaseOutputs.collect(
        config(probe), replace(base, info=base.info.model_copy(update={"sha256": "1" * 64})), tmp_path / "runs"
    )
    assert len(list((tmp_path / "runs" / "cache").glob("*.jsonl"))) == 2


# ---- Languages ----

CZECH = """Starý hodinář žil v úzkém domě za mostem a opravoval hodiny, které už nikdo jiný opravit neuměl. Každý večer
otevřel okno, poslouchal řeku a počítal údery z věže. Jednou v zimě věž mlčela. Hodinář si vzal lampu, svůj kufřík a šel
po sněhu nahoru, protože věděl, že bez těch úderů město neusne."""


def spoken(language: str) -> list[Example]:
    """Return rows in a language; English and Russian ones are not in the probe."""
    texts = {
        "en": "If the rent has not been paid by the end of the month, the owner has to say so, and the lease is over.",
        "ru": "Если он не придёт до вечера, то мы пойдём в лес без него, потому что на дворе темно, как под землёй.",
        "cs": CZECH,
    }
    return [Example(str(number), text, "label") for number, text in enumerate([texts[language]] * 3)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (spoken("en"), ("en",)),
        (spoken("ru"), ("ru",)),
        (spoken("en") + spoken("ru"), ("en", "ru")),
        (spoken("cs"), ()),
        ([Example("1", "the lease", "a")], ()),
        ([Example("1", CZECH, spoken("en")[0].input)], ("en",)),
    ],
    ids=["English", "Russian", "both", "Czech", "too few words", "English answers"],
)
def test_the_languages_of_the_data_are_recognized(rows: list[Example], expected: tuple[str, ...]) -> None:
    assert languages_of(rows) == expected


def budgets(settings: Config, train: list[Example], kind: str = "gpt2") -> dict[str, str]:
    """Return why each ability has no budget."""
    return {ability.name: ability.unbudgeted for ability in abilities(settings, fakes.bundle(kind), train)}


def test_only_the_language_of_the_data_and_what_the_config_names_have_a_budget(probe: str) -> None:
    english, russian = "general text (en)", "general text (ru)"
    assert budgets(config(), spoken("en")) == {
        english: "",
        russian: "the data is not Russian; to keep it, name ru in guards.forgetting.keep",
    }
    czech = budgets(config(), spoken("cs"))
    assert all(why.startswith("the data is not ") for why in czech.values())
    assert budgets(config(keep=["en", "ru"]), spoken("cs")) == {english: "", russian: ""}
    assert budgets(config(keep=["ru"]), spoken("en"))[english] == "guards.forgetting.keep does not name en"
    assert budgets(config("builtin:en"), spoken("cs")) == {english: ""}
    assert budgets(config(probe), spoken("cs")) == {"general text": ""}
    with pytest.raises(ConfigError, match="there is no built-in general text in 'cs'"):
        check_sets(config(keep=["en", "cs"]))


def test_a_language_that_the_base_does_not_know_has_no_budget() -> None:
    # The tokenizer of this model has a hundred English words.
    assert budgets(config(), spoken("en"), "bert")["general text (en)"].endswith(
        "of its tokens are unknown to the base"
    )
    guessing = fakes.bundle("gpt2")
    found = BaseOutputs.collect(config(limit=8), guessing, train=spoken("en")).compare(guessing)
    assert (found["general text (en)"].verdict, found["general text (en)"].reason) == (
        "no budget",
        "the base itself does no better than guessing",
    )
    assert BaseOutputs.collect(config(limit=12, keep=["en"]), guessing).compare(guessing)[
        "general text (en)"
    ].verdict == "kept"  # fmt: skip


# ---- Sets ----


def test_a_set_of_any_task_is_scored_by_its_deciding_metric(probe: str, tmp_path: Path) -> None:
    rows = [{"text": f"the {word}", "label": label} for word, label in [("law", "state"), ("film", "movie")] * 3]
    file = write(tmp_path / "set.jsonl", rows)
    sets = {"clauses": {"task": "classification", "data": {"eval": file}}}
    base_outputs = BaseOutputs.collect(config(probe, sets=sets, limit=4), fakes.bundle("bert"))
    found = base_outputs.compare(fakes.bundle("bert", "classification", labels=("x", "y", "z")))
    assert found["clauses"].metric == "macro_f1"
    assert found["clauses"].base.n == 4


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@torch.no_grad()
def test_minimal_pairs_are_likelihood_comparisons(kind: str, probe: str, tmp_path: Path) -> None:
    rows = [
        {"sentence_good": "the cat has a dog", "sentence_bad": "the the cat dog"},
        {"sentence_good": "it was", "sentence_bad": "was it no"},
    ]
    sets = {"blimp": {"task": "minimal-pairs", "data": {"train": write(tmp_path / "pairs.jsonl", rows)}}}
    base = fakes.bundle(kind)
    base_outputs = BaseOutputs.collect(config(probe, sets=sets), base)
    found = base_outputs.compare(base)["blimp"]

    def nll(text: str) -> float:
        ids = list(base.tokenizer(text).input_ids)
        if kind == "gpt2":
            ids = [base.tokenizer.eos_token_id, *ids]
            logs = F.log_softmax(base.model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
            return -sum(float(logs[place - 1, token]) for place, token in enumerate(ids) if place)
        total = 0.0
        for place in range(1, len(ids) - 1):
            hidden = torch.tensor([[*ids[:place], base.tokenizer.mask_token_id, *ids[place + 1 :]]])
            total -= float(F.log_softmax(base.model(input_ids=hidden).logits[0, place].double(), dim=-1)[ids[place]])
        return total

    answers = next(answers for ability, answers in base_outputs.outputs if ability.name == "blimp")
    for answer, row in zip(answers, rows, strict=True):
        assert answer.values["good_nll"] == pytest.approx(nll(row["sentence_good"]), rel=1e-4)
        assert answer.values["bad_nll"] == pytest.approx(nll(row["sentence_bad"]), rel=1e-4)
    right = [nll(row["sentence_good"]) < nll(row["sentence_bad"]) for row in rows]
    assert (found.metric, found.base.value, found.verdict) == ("pair_accuracy", np.mean(right), "cannot tell")


def test_all_invalid_sets_are_refused_together(probe: str, tmp_path: Path) -> None:
    sets: dict[str, Any] = {"one": {"task": "clasification", "data": {"train": "x"}}, "two": {"task": "causal-lm"}}
    with pytest.raises(ConfigError) as caught:
        check_sets(config(probe, sets=sets))
    assert {problem.field for problem in caught.value.problems} == {
        "guards.forgetting.sets.one.task",
        "guards.forgetting.sets.two.data",
    }
    check_sets(config(probe))
    never = config(probe, action="stop")
    never = never.model_copy(update={"train": never.train.model_copy(update={"evaluations": 0})})
    with pytest.raises(ConfigError, match="while train"):
        check_sets(never)
    pairs = {
        "pairs": {"task": "minimal-pairs", "data": {"train": write(tmp_path / "p.jsonl", [{"good": "a", "bad": "b"}])}}
    }
    with pytest.raises(ConfigError, match="minimal pairs for an encoder-decoder"):
        BaseOutputs.collect(config(probe, sets=pairs), fakes.bundle("t5"))
    tales = {"tales": {"task": "causal-lm", "data": {"train": probe}}}
    with pytest.raises(ConfigError, match="decoder for causal-lm"):
        BaseOutputs.collect(config(probe, sets=tales), fakes.bundle("bert"))
