"""What is recommended after a run: a table of recorded outcomes and curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from report import samples

from fulltune.metrics import wording
from fulltune.metrics.recommendation import curve_of, lead, recommend
from fulltune.records.data import DataSummary, LabelSpellings, Truncation
from fulltune.records.run import Comparison, GuardEvent, LanguageGap, Outcome, Record, Retention, Score, Verdict


def against(verdict: Verdict, delta: float, n: int = 400, detectable: float = 0.04) -> Comparison:
    return Comparison(
        metric="macro_f1", delta=delta, low=delta - 0.03, high=delta + 0.03, p=0.1, verdict=verdict, n=n,
        smallest_detectable=detectable,
    )  # fmt: skip


def retention(verdict: Any) -> Retention:
    score = Score(value=1.0, low=0.9, high=1.1, n=40)
    return Retention(
        metric="bits_per_byte", direction="lower", base=score, tuned=score, change=0.3, low=0.2, high=0.4, budget=0.05,
        verdict=verdict,
    )  # fmt: skip


#: Validation curves of macro-F1 (better high).
IMPROVING = [0.05, 0.30, 0.55, 0.70, 0.757]
FLAT = [0.05, 0.50, 0.70, 0.75, 0.7504]
PAST = [0.05, 0.60, 0.75, 0.70, 0.62]
NEVER = [0.30, 0.20, 0.10, 0.10, 0.05]


@dataclass(frozen=True)
class Case:
    """A recorded run and what is recommended: the system to use, the action, and words of the sentence."""

    outcome: Outcome
    tfidf: Comparison
    use: str
    action: str
    words: str
    curve: list[float] = field(default_factory=list)
    tuned: float = 0.757
    mcc: float = 0.6
    n: int = 400
    kept: Any = "kept"
    guards: tuple[GuardEvent, ...] = ()
    moved: float = 1.0
    steps: int = 400
    every: int = 20
    scheduler: str = "cosine"

    def record(self) -> Record:
        points = [[self.every * place, value] for place, value in enumerate(self.curve)]
        details = {"validation": {"metric": "macro_f1", "points": points}} if points else {}
        base = samples.record()
        scores = {
            "majority": {"macro_f1": Score(value=0.1, low=0.09, high=0.11, n=self.n)},
            "tfidf": {"macro_f1": Score(value=self.tuned - self.tfidf.delta, low=0.5, high=0.6, n=self.n)},
            "tuned": {
                "macro_f1": Score(value=self.tuned, low=0.7, high=0.8, n=self.n),
                "mcc": Score(value=self.mcc, low=self.mcc - 0.05, high=self.mcc + 0.05, n=self.n),
            },
        }
        return samples.record(
            outcome=self.outcome,
            scores=scores,
            comparison={"tuned vs majority": against("improved", 0.6), "tuned vs tfidf": self.tfidf},
            details=details,
            retention={"general text (en)": retention(self.kept)},
            guards=self.guards,
            training=base.training.model_copy(update={"steps": self.steps, "scheduler": self.scheduler}),
            parameters=base.parameters.model_copy(update={"moved": self.moved}),
        )


STOP = "Training was stopped."
WINS = against("improved", 0.1)
LOSES = against("worse", -0.06)
AHEAD = against("no detectable change", 0.02)
BEHIND = against("no detectable change", -0.01)

CASES = {
    "better than all": Case("accepted", WINS, "tuned", "use it", "FILE` answers new rows.", FLAT),
    "better and still improving": Case("accepted", WINS, "tuned", "use it", "raise train.epochs (3 → 6)", IMPROVING),
    "cannot tell retention": Case("accepted", WINS, "tuned", "use it", "answers new rows", FLAT, kept="cannot tell"),
    # The demo of the issue: TF-IDF 0.819 against 0.757, and the last steps were the best.
    "beaten, still improving": Case(
        "rejected", LOSES, "tfidf", "train longer",
        "still improving (validation macro-F1 0.7 → 0.757 from step 60 to 80): raise train.epochs (3 → 6)", IMPROVING,
    ),
    "beaten, past its best": Case(
        "rejected", LOSES, "tfidf", "lower the rate",
        "went past its best (validation macro-F1 0.75 → 0.62 from step 40 to 80): lower train.learning_rate (3e-05 → "
        "1e-05), or train for fewer epochs", PAST,
    ),
    "beaten, flat": Case("rejected", LOSES, "tfidf", "get more training rows", "(there are 2,133)", FLAT),
    # At step 120 of 160 a cosine has fallen to 0.15 of its peak, and before that the curve still improved.
    "beaten, flat at the end of the schedule": Case(
        "rejected", LOSES, "tfidf", "train longer", "raise train.epochs (3 → 6). More training rows (there are 2,133)",
        [0.05, 0.30, 0.55, 0.75, 0.7504], steps=160, every=40,
    ),
    "beaten, flat around the best": Case(
        "rejected", LOSES, "tfidf", "train longer", "More train.epochs (3 → 6) or more training rows (there are 2,133)",
        [0.05, 0.30, 0.55, 0.7504, 0.75], steps=160, every=40,
    ),
    "beaten, flat before the rate falls": Case(
        "rejected", LOSES, "tfidf", "get more training rows", "Longer training will hardly help",
        [0.05, 0.75, 0.7501, 0.7502, 0.7502], steps=160, every=40,
    ),
    "beaten, flat at a constant rate": Case(
        "rejected", LOSES, "tfidf", "get more training rows", "Longer training will hardly help",
        [0.05, 0.30, 0.55, 0.75, 0.7504], steps=160, every=40, scheduler="constant",
    ),
    "beaten, flat after a few steps": Case(
        "rejected", LOSES, "tfidf", "train longer", "18 steps are few: raise train.epochs (3 → 17).", FLAT, steps=18,
    ),
    "beaten, no curve": Case("rejected", LOSES, "tfidf", "use the baseline", "With data.valid: 0.1 the next run shows"),
    "ahead, affordable rows": Case(
        "undecided", AHEAD, "", "get more evaluation rows",
        "About 1,600 evaluation rows would show a difference of this size in four of five cases; there are 400.", FLAT,
    ),
    "ahead by next to nothing": Case(
        "undecided", against("no detectable change", 0.002), "tfidf", "use the baseline", "be told from TF-IDF", FLAT,
    ),
    "undecided, still improving": Case("undecided", AHEAD, "", "train longer", "raise train.epochs", IMPROVING),
    "behind": Case(
        "undecided", BEHIND, "tfidf", "use the baseline",
        "The tuned model cannot be told from TF-IDF on these rows, and the latter costs less: prefer it.", PAST,
    ),
    "four rows": Case(
        "undecided", against("too few rows", 0.1, n=4, detectable=0.3), "", "get more evaluation rows",
        "4 rows cannot decide, at least 6 are needed, and about 36 to show a difference of this size.", FLAT, n=4,
    ),
    "guessing": Case("undecided", WINS, "", "check the data", "do not follow from the inputs", FLAT, mcc=0.02),
    "guessing, improving": Case("undecided", WINS, "", "train longer", "raise train.epochs", IMPROVING, mcc=0.02),
    "nothing right": Case("rejected", AHEAD, "", "check the data", "do not follow", FLAT, tuned=0.0),
    "forgot too much": Case(
        "undecided", WINS, "", "keep more", "More of general text (en) was lost", FLAT, kept="lost"
    ),
    "forgot too much, rejected": Case("rejected", WINS, "", "keep more", "models interpolate", FLAT, kept="lost"),
    "nothing moved": Case("rejected", AHEAD, "", "raise the rate", "No weight changed", FLAT, moved=0.0),
    "base kept": Case(
        "rejected", LOSES, "tfidf", "lower the rate", "No step was better than the base", NEVER,
        guards=(GuardEvent(guard="overfitting", step=0, verdict="continue", message="Nothing beat step 0."),),
    ),
    # A rate is not too high because 12 steps of a new head, of which a hundred are needed, did not beat a guess.
    "base kept after a few steps": Case(
        "rejected", LOSES, "tfidf", "train longer",
        "12 steps were too few for a new head to learn anything: raise train.epochs (3 → 25)", NEVER, mcc=0.01,
        steps=12,
        guards=(GuardEvent(guard="overfitting", step=0, verdict="continue", message="Nothing beat step 0."),),
    ),
    "not a number": Case("rejected", AHEAD, "", "lower the rate", "lower train.learning_rate", tuned=float("nan")),
    "diverged": Case(
        "stopped", AHEAD, "", "lower the rate", "Lower train.learning_rate (3e-05 → 1e-05)", IMPROVING,
        guards=(GuardEvent(guard="divergence", step=9, verdict="stop", message=STOP),),
    ),
    "out of memory": Case(
        "stopped", AHEAD, "", "free memory", "lower train.batch_size",
        guards=(GuardEvent(guard="memory", step=9, verdict="stop", message=STOP),),
    ),
    "stopped by forgetting": Case(
        "stopped", WINS, "", "keep more", "regularize.replay", kept="lost",
        guards=(GuardEvent(guard="forgetting", step=9, verdict="stop", message=STOP),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_recorded_run_has_its_recommendation(name: str) -> None:
    case = CASES[name]
    found = recommend(case.record())
    assert (found.use, found.action) == (case.use, case.action)
    assert case.words in found.sentence


#: A curve with a measured end: 12 epochs (216 steps) of questions to a database, under a cosine, ended with these two
#: losses and an execution accuracy of 0.551; 39 epochs reached 0.885.
COMPANY = [[0, 2.9], [54, 0.3312], [108, 0.2247], [162, 0.1719], [216, 0.1545]]


def company(scheduler: str = "cosine", tuned: float = 0.551) -> Record:
    record = Case("undecided", BEHIND, "", "", "", steps=216, scheduler=scheduler, tuned=tuned).record()
    details = {"validation": {"metric": "loss", "points": COMPANY}}
    training = record.training.model_copy(update={"epochs": 12.0})
    return record.model_copy(update={"details": details, "training": training})


@pytest.mark.parametrize("scheduler", ["cosine", "linear"])
def test_a_curve_that_a_low_rate_flattens_does_not_show_that_training_is_complete(scheduler: str) -> None:
    assert (
        "The schedule ended while validation was still improving (validation loss 0.1719 → 0.1545 from step 162 to "
        "216), and every curve is flat where the rate is low: raise train.epochs (12 → 24)."
    ) in recommend(company(scheduler)).sentence


def test_a_perfect_score_and_a_constant_rate_leave_nothing_to_longer_training() -> None:
    for record in (company("constant"), company(tuned=1.0)):
        assert "Longer training will hardly help" in recommend(record).sentence


CZECH = LanguageGap(data="Czech", base=("English", "Russian"), alternative="ufal/robeczech-base")
CUT = {"train": Truncation(rows=43, of=503)}
SPLIT = LabelSpellings(written=7, distinct=6, spellings=({"pokuta": 140, "pokuta ": 3},), padded=("pokuta ",))


def described(record: Record, gap: LanguageGap | None = None, **summary: Any) -> Record:
    """Return a record with facts about its data that may explain a weak result."""
    data = record.data.model_copy(update={"summary": DataSummary(**summary)})
    return record.model_copy(update={"data": data, "language_gap": gap})


@pytest.mark.parametrize("name", ["beaten, flat", "beaten, still improving", "behind", "ahead, affordable rows"])
def test_spellings_of_a_label_are_merged_before_anything_else(name: str) -> None:
    found = recommend(described(CASES[name].record(), CZECH, labels=SPLIT, truncation=CUT))
    assert found.action == "merge the spellings of labels"
    assert "The 7 classes are 6 labels in several spellings ('pokuta' (140) = 'pokuta ' (3))" in found.sentence
    assert "set data.merge_labels: true" in found.sentence
    assert found.use == ("tfidf" if name.startswith("beaten") else "")


def test_an_accepted_model_is_used_whatever_its_labels_are() -> None:
    assert recommend(described(CASES["better than all"].record(), labels=SPLIT)).action == "use it"


def test_another_language_and_truncated_rows_come_before_more_rows() -> None:
    record = CASES["beaten, flat"].record()

    found = recommend(described(record, CZECH, truncation=CUT))
    assert (found.use, found.action) == ("tfidf", "choose another base")
    assert "in Czech, but the base was pretrained on English and Russian" in found.sentence
    assert "pretrained on Czech, such as ufal/robeczech-base." in found.sentence

    found = recommend(described(record, truncation=CUT))
    assert (found.use, found.action) == ("tfidf", "read longer texts")
    assert found.sentence.startswith("8.5% of the training rows are truncated (43 of 503)")

    assert recommend(described(record, truncation={"train": Truncation(rows=4, of=503)})).action == (
        "get more training rows"
    )


def test_the_advice_is_the_same_where_a_baseline_is_as_good() -> None:
    behind = Case("undecided", BEHIND, "tfidf", "use the baseline", "", FLAT)
    assert "more training rows" in recommend(behind.record()).sentence
    assert "pretrained on Czech" in recommend(described(behind.record(), CZECH)).sentence


@pytest.mark.parametrize(("outcome", "tfidf"), [("rejected", LOSES), ("undecided", BEHIND)])
@pytest.mark.parametrize("curve", [FLAT, IMPROVING], ids=["flat", "improving"])
def test_nothing_is_asked_for_where_a_baseline_is_nearly_perfect(
    outcome: Outcome, tfidf: Comparison, curve: list[float]
) -> None:
    case = Case(outcome, tfidf, "", "", "", curve, tuned=0.995 + tfidf.delta)  # TF-IDF has 0.995
    found = recommend(described(case.record(), CZECH, truncation=CUT))

    assert (found.use, found.action) == ("tfidf", "use the baseline")
    assert found.sentence.startswith(
        "TF-IDF has a macro-F1 of 0.995 and costs less: nothing is left to gain by training."
    )


def test_nouns_have_their_article() -> None:
    assert [wording.with_article(noun) for noun in ("macro f1", "execution accuracy")] == [
        "a macro f1",
        "an execution accuracy",
    ]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.curve == IMPROVING and not case.guards])
def test_nothing_is_lowered_while_the_last_steps_are_the_best(name: str) -> None:
    sentence = recommend(CASES[name].record()).sentence
    assert "lower" not in sentence
    assert "fewer epochs" not in sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("better than all", "Use it"),
        ("beaten, still improving", "Use TF-IDF, or train longer"),
        ("beaten, no curve", "Use TF-IDF"),
        ("behind", "Prefer TF-IDF"),
        ("four rows", "Get more evaluation rows"),
        ("forgot too much", "Keep more"),
    ],
)
def test_the_headline_begins_with_the_recommendation(name: str, words: str) -> None:
    record = CASES[name].record()
    assert lead(recommend(record), record.outcome) == words


@pytest.mark.parametrize("name", ["beaten, still improving", "behind", "beaten, no curve", "base kept"])
def test_a_recommended_baseline_has_its_command(name: str) -> None:
    record = CASES[name].record()
    command = f"`fulltune predict {record.run_id}#tfidf FILE` answers with TF-IDF."
    assert recommend(record).sentence.endswith(command)
    assert "#" not in recommend(record.model_copy(update={"task": "causal-lm"})).sentence


def test_the_needed_rows_are_recorded() -> None:
    assert recommend(CASES["ahead, affordable rows"].record()).rows == 1600
    assert recommend(CASES["four rows"].record()).rows == 36
    assert recommend(CASES["better than all"].record()).rows is None


@pytest.mark.parametrize(
    ("metric", "values", "trend"),
    [
        ("loss", [3.0, 2.0, 1.5, 1.3], "improving"),
        ("loss", [3.0, 1.4, 1.3, 1.299], "flat"),
        ("loss", [3.0, 1.2, 1.5, 1.9], "past its best"),
        ("loss", [3.0, 1.2, 1.21, 1.22], "flat"),
        ("loss", [1.0, 1.2, 1.4, 1.6], "never improved"),
        ("loss", [3.0, "NaN", 2.0], "improving"),
        ("loss", [3.0], "unknown"),
        ("loss", ["NaN", "NaN"], "unknown"),
    ],
)
def test_a_curve_has_a_trend(metric: str, values: list[Any], trend: str) -> None:
    points = [[10 * place, value] for place, value in enumerate(values)]
    assert curve_of(samples.record(details={"validation": {"metric": metric, "points": points}})).trend == trend
