from __future__ import annotations

import json
import math
import re

import pytest
import samples
from page_reader import PageReader

from fulltune.records.run import Prediction, Recommendation, Record, Score, Step
from fulltune.report import render, scores, task
from fulltune.report.page import asset

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"


def page(sample: samples.Sample, **changes: object) -> str:
    record = sample.record.model_copy(update=changes)
    return render(record, sample.steps, sample.predictions, sample.audit)


def read(sample: samples.Sample, **changes: object) -> PageReader:
    return PageReader(page(sample, **changes))


@pytest.fixture(scope="module", params=list(samples.SAMPLES))
def each(request: pytest.FixtureRequest) -> tuple[samples.Sample, str]:
    sample = samples.SAMPLES[request.param]()
    return sample, page(sample)


def test_every_task_has_a_sample() -> None:
    assert len(samples.SAMPLES) >= 5


def test_tags_close_and_ids_are_unique(each: tuple[samples.Sample, str]) -> None:
    found = PageReader(each[1])
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]

    assert not found.stray
    assert found.unclosed == []
    assert len(ids) == len(set(ids)) > 5


def test_the_page_is_self_contained_small_and_uses_no_network(each: tuple[samples.Sample, str]) -> None:
    found = PageReader(each[1])
    fetching = {"src", "srcset", "data", "action", "poster", "background"}

    for name, attributes in found.elements:
        assert name not in {"link", "iframe", "object", "embed", "img"}
        assert not fetching & set(attributes)
        assert str(attributes.get("href", "#")).startswith("#")
    assert "url(" not in each[1]
    assert "@import" not in each[1]
    assert len(each[1].encode()) < 300_000


def test_the_policy_allows_the_one_script_and_no_fetching(each: tuple[samples.Sample, str]) -> None:
    import base64
    import hashlib

    found = PageReader(each[1])
    policies = [str(a["content"]) for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = found.inside["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert f"script-src 'sha256-{digest}'" in policies[0]


def test_every_chart_has_a_name_a_description_and_real_text(each: tuple[samples.Sample, str]) -> None:
    charts = re.findall(r'<svg class="chart.*?</svg>\s*(?=</figure>)', each[1], re.S)

    assert len(charts) >= 4
    for chart in charts:
        assert re.search(r"<title>[^<]+</title><desc>[^<]+</desc>", chart)
        assert "<text" in chart
        assert not re.search(r"(?:^|[^a-zA-Z])nan(?:[^a-zA-Z]|$)", chart)


def test_the_verdict_is_the_first_line() -> None:
    found = read(samples.classification())

    assert found.texts[0] == samples.record().headline
    assert found.texts[1] == "✓ accepted"
    assert found.texts[2] == "better than every baseline"
    assert found.texts.count(samples.record().headline) == 1
    assert found.inside["title"][0] == samples.record().run_id
    advised = Recommendation(use="tuned", action="use it", sentence="Use [it].")
    titled = PageReader(render(samples.record(recommendation=advised), [], [], None)).inside["title"]
    assert titled[:1] == ["Use it: 20250301-101530-clauses"]


def test_a_baseline_that_wins_is_named_before_anything_else() -> None:
    found = read(samples.rejected())

    assert found.texts[0] == "TF-IDF (0.871) beats the tuned model (0.841) on Macro-F1."
    assert found.texts[1] == "Rejected: macro-F1 is 0.841."
    assert "✕ rejected" in found.texts
    assert "a baseline without training scores higher" in found.text


def test_the_warning_is_not_repeated() -> None:
    headline = "The TF-IDF baseline beats the tuned model: macro-F1 0.871 against 0.841."

    assert read(samples.rejected(), headline=headline).texts[0] == headline


def test_a_baseline_that_is_ahead_within_chance_does_not_beat() -> None:
    sample = samples.rejected()
    unclear = samples.versus("macro_f1", -0.03, "no detectable change", half=0.05)
    comparison = sample.record.comparison | {"tuned vs tfidf": unclear}

    first = read(sample, comparison=comparison).texts[0]
    assert first == "TF-IDF (0.871) cannot be told from the tuned model (0.841) on Macro-F1."


def test_only_baselines_with_a_test_of_their_own_beat() -> None:
    sample = samples.rejected()
    ahead = sample.record.scores | {"linear_probe": {"macro_f1": samples.score(0.848)}}
    unclear = samples.versus("macro_f1", -0.007, "no detectable change", half=0.24)
    comparison = sample.record.comparison | {"tuned vs linear_probe": unclear}

    assert read(sample, scores=ahead, comparison=comparison).texts[0] == (
        "TF-IDF (0.871) beats the tuned model (0.841) on Macro-F1; Linear probe (0.848) cannot be told from it."
    )


def test_a_baseline_that_does_not_win_once_adjusted_does_not_beat() -> None:
    sample = samples.rejected()
    single = samples.versus("macro_f1", -0.03, "worse").model_copy(update={"p_holm": 0.08})

    first = read(sample, comparison=sample.record.comparison | {"tuned vs tfidf": single}).texts[0]
    assert "beat" not in first


def test_a_certain_difference_that_does_not_count_is_no_win() -> None:
    sample = samples.rejected()
    small = samples.versus("macro_f1", -0.03, "no detectable change").model_copy(update={"min_effect": 0.05})

    assert read(sample, comparison=sample.record.comparison | {"tuned vs tfidf": small}).texts[0] == (
        sample.record.headline
    )


def test_the_detectable_difference_is_that_of_the_best_baseline() -> None:
    sizes = {"few_shot": 0.2, "zero_shot": 0.3, "majority": 0.317, "tfidf": 0.063}
    comparison = {
        f"tuned vs {name}": samples.versus("macro_f1", 0.03).model_copy(update={"n": 137, "smallest_detectable": size})
        for name, size in sizes.items()
    }
    text = read(samples.classification(), comparison=comparison).text

    assert "With 137 rows, a difference of 6.3 points from TF-IDF is detected in four of five cases." in text
    assert "31.7 points" not in text


def test_lower_is_better_decides_who_wins() -> None:
    sample = samples.causal_lm()
    scores = sample.record.scores | {"zero_shot": sample.record.scores["tuned"]}
    worse = scores | {"tuned": {"bits_per_byte": samples.score(1.2)}}
    lost = sample.record.comparison | {"tuned vs zero_shot": samples.versus("bits_per_byte", 0.213, "worse")}

    assert read(sample).texts[0] == sample.record.headline
    first = read(sample, scores=worse, comparison=lost).texts[0]
    assert first.startswith("Zero-shot (0.987) beats the tuned model (1.200)")


def test_each_baseline_is_listed_with_its_time_its_setting_and_its_sample() -> None:
    text = read(samples.classification()).text
    assert "TF-IDF: 3.2 s; C = 3 (3-fold cross-validation on train)" in text
    assert "Zero-shot: 14.0 s, from the cache" in text
    assert "Few-shot: 21.4 s; 300 of 828 evaluation rows, drawn at random" in text


def test_all_systems_are_listed_in_order_with_values_intervals_and_n() -> None:
    text = read(samples.classification()).text.partition("All systems")[2]
    places = [text.index(name) for name in ("Majority class", "TF-IDF", "Zero-shot", "Few-shot", "Tuned")]

    assert places == sorted(places)
    assert "0.871 [0.851, 0.891]" in text
    assert "n = 400" in text


def test_rows_with_their_own_n_show_it() -> None:
    record = samples.record()
    scores = record.scores | {"majority": {"macro_f1": samples.score(0.05, n=17)}}
    text = read(samples.classification(), scores=scores).text

    assert "n = 17" in text
    assert "–" in text


def test_the_best_value_is_marked_by_a_sign() -> None:
    source = page(samples.classification())

    assert re.search(r"★</abbr> 0\.903", source)
    assert re.search(r"★</abbr> 0\.031", source)
    assert source.count("★</abbr>") == 3


def test_a_majority_class_that_is_calibrated_by_nature_gets_no_star() -> None:
    one = samples.record().scores | {"tuned": {"ece": samples.score(0.5)}, "tfidf": {"ece": samples.score(0.4)}}
    table = scores.table(samples.record(scores=one), {name: {"ece": row["ece"]} for name, row in one.items()})
    assert table is not None
    assert [row.system for row in table.rows if row.cells[0] and row.cells[0].best] == ["few_shot"]


def test_equal_values_have_no_best() -> None:
    scores = {name: {"macro_f1": samples.score(0.0)} for name in ("zero_shot", "tuned")}

    assert "★</abbr>" not in page(samples.classification(), scores=scores, comparison={})


@pytest.mark.parametrize(("n", "others"), [(5, 5), (3, 400)], ids=["few rows", "other rows"])
def test_a_best_value_on_few_or_other_rows_gets_no_star(n: int, others: int) -> None:
    scores = {
        "zero_shot": {"macro_f1": samples.score(0.9, n=n)},
        "tuned": {"macro_f1": samples.score(0.5, n=others)},
    }

    assert "★</abbr>" not in page(samples.classification(), scores=scores, comparison={})


def test_a_ratio_that_is_best_near_one_gets_no_star() -> None:
    sample = samples.seq2seq()
    scores = {name: {"length_ratio": samples.score(value)} for name, value in (("zero_shot", 3.1), ("tuned", 1.0))}
    source = page(sample, scores=scores, metrics={}, comparison={})

    assert "★</abbr>" not in source
    assert "near 1 is better" in source


def test_comparisons_show_delta_interval_p_and_verdict() -> None:
    text = read(samples.rejected()).text

    assert "TF-IDF −0.030 [−0.050, −0.010] p < 0.001 ▼ worse" in text
    assert "Few-shot +0.191 [+0.171, +0.211] p < 0.001 ▲ improved" in text


def test_scores_without_leaks_get_a_table_of_their_own() -> None:
    leaking, clean = read(samples.rejected()), read(samples.classification())

    assert "without the evaluation rows that also occur in train" in leaking.text
    assert "n = 380" in leaking.text
    assert "20 evaluation rows also occur in train" in leaking.text
    assert "without the evaluation rows" not in clean.text
    assert "No evaluation row occurs in train" in clean.text


def test_a_metric_has_the_same_decimals_in_every_table() -> None:
    """Two systems that only a fourth decimal tells apart in one table need it; then the other table has it too."""
    sample = samples.rejected()
    close = {"tfidf": {"macro_f1": samples.score(0.9124)}, "tuned": {"macro_f1": samples.score(0.9121)}}
    apart = {"tfidf": {"macro_f1": samples.score(0.904)}, "tuned": {"macro_f1": samples.score(0.905)}}
    sample.record = sample.record.model_copy(update={"scores": close, "scores_without_leaks": apart})
    text = read(sample).text

    assert "0.9124 [0.8924, 0.9324]" in text
    assert "0.9040 [0.8840, 0.9240]" in text


def test_nan_is_never_zero() -> None:
    sample = samples.classification()
    tuned = {"macro_f1": samples.score(math.nan), "accuracy": samples.score(0.9)}
    comparison = {"tuned vs zero_shot": samples.versus("macro_f1", math.nan, "no detectable change")}
    found = read(sample, scores=sample.record.scores | {"tuned": tuned}, comparison=comparison)

    assert "Macro-F1, tuned model NaN no interval n = 400" in found.text
    assert "Zero-shot NaN no interval" in found.text
    assert not any(re.fullmatch(r"nan|None|null", text) for text in found.texts)


def test_active_regularizers_are_listed_with_their_strength() -> None:
    sample = samples.classification()
    used = {"l2_sp": 0.02, "replay": 0.2}
    for source, words in (("base", "generated by the base"), ("general.jsonl", "from general.jsonl")):
        training = sample.record.training.model_copy(update={"regularization": used, "general_text": source})
        assert f"L2-SP 0.02, replay 0.2; general text {words}" in read(sample, training=training).text
    assert "Regularization" not in read(sample).text


def test_a_nan_in_the_training_loss_leaves_a_gap_and_a_cross() -> None:
    found = read(samples.rejected())

    assert "not finite (×) at 1 logged step." in found.text
    assert found.of_class("cross") == 1


def test_a_run_of_nothing_but_nan_still_renders() -> None:
    steps = [Step(step=step, epoch=1, loss=math.nan, grad_norm=math.inf) for step in (1, 2)]
    scores = {"tuned": {"macro_f1": samples.score(math.nan)}}
    source = render(samples.record(scores=scores, comparison={}), steps, [], None)

    assert "not finite (×) at 2 logged steps" in PageReader(source).text


def test_a_score_on_no_row_is_a_dash() -> None:
    sample = samples.causal_lm()
    none = Score(value=math.nan, low=math.nan, high=math.nan, n=0)
    ngram = {"bits_per_byte": Score(value=1.5, low=1.4, high=1.6, n=300), "distinct_2": none, "repetition_4": none}
    scores = {**sample.record.scores, "ngram": ngram}
    page = render(sample.record.model_copy(update={"scores": scores}), sample.steps, [], None)
    text = PageReader(page).text
    assert "N-gram model 1.500 [1.400, 1.600]" in text
    assert "NaN" not in text
    assert "n = 0" not in text


def test_curves_of_loss_rate_and_norm() -> None:
    sample = samples.classification()
    text = read(sample).text

    assert "Training loss 1.62 at step 10" in text
    assert "Evaluation loss 0.715 at step 100" in text
    assert "Learning rate" in text
    assert "Gradient norm" in text
    assert read(sample).of_class("dot") == 4 + 1  # four evaluations and the one in the legend


def test_confusion_shows_counts_and_shades_by_row() -> None:
    details = {"confusion": {"labels": ["a", "b"], "matrix": [[3, 1], [0, 0]]}}
    source = page(samples.classification(), details=details)

    assert re.search(r'--share:0\.75" title="a → a: 3 of 4 rows" class="right">3<', source)
    assert re.search(r'--share:0\.25" title="a → b: 1 of 4 rows" class="">1<', source)


def test_classes_are_in_alphabetical_order_unless_they_have_one_of_their_own() -> None:
    """Ids follow code points, by which ``Řešení`` is after ``pokuta``; the order that a user gave is kept."""
    matrix = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    shown = task.confusion({"confusion": {"labels": ["Záruka", "pokuta", "Řešení"], "matrix": matrix}})
    assert shown is not None
    assert shown.labels == ("pokuta", "Řešení", "Záruka")
    assert [[cell.count for cell in row] for row in shown.rows] == [[5, 6, 4], [8, 9, 7], [2, 3, 1]]
    kept = task.confusion({"confusion": {"labels": ["low", "medium", "High"], "matrix": matrix}})
    assert kept is not None
    assert kept.labels == ("low", "medium", "High")
    tied = task.per_class({"per_class": [{"label": label, "support": 3} for label in ("Záruka", "pokuta", "Řešení")]})
    assert [row.label for row in tied] == ["pokuta", "Řešení", "Záruka"]


def test_confusion_as_a_bare_matrix_with_separate_labels() -> None:
    details = {"labels": ["cat", "dog"], "multi_label": False, "confusion": [[3, 1], [2, 4]]}
    found = read(samples.classification(), details=details)

    assert found.of_class("confusion") == 1
    assert "multi" not in found.text.lower()


def test_many_classes_become_the_most_confused_pairs() -> None:
    labels = [f"class {i:02}" for i in range(26)]
    matrix = [[10 if i == j else 0 for j in range(26)] for i in range(26)]
    matrix[3][7], matrix[5][1] = 4, 10
    found = read(samples.classification(), details={"confusion": {"labels": labels, "matrix": matrix}})

    assert found.of_class("confusion") == 0
    assert "class 05 class 01 10 50.0% class 03 class 07 4 28.6%" in found.text
    assert "The most confused of 26 classes" in found.text


def test_multi_label_details_have_classes_without_a_matrix() -> None:
    rows = [{"label": "risk", "precision": 0.5, "recall": "NaN", "f1": math.nan, "support": 3}]
    found = read(samples.classification(), details={"labels": ["risk"], "confusion": None, "per_class": rows})

    assert "risk 0.500 NaN NaN 3" in found.text


def test_calibration_reads_both_names_of_the_count() -> None:
    bins = {"low": 0.8, "high": 0.9, "confidence": 0.85, "accuracy": 0.5}
    for key in ("count", "n"):
        source = page(samples.classification(), details={"calibration": [bins | {key: 7}]})
        assert "confidence 0.85: 0.50 correct of 7 rows" in source
    assert "Calibration" in read(samples.classification()).text


@pytest.mark.parametrize("name", ["causal-lm", "seq2seq", "text2sql"])
def test_other_tasks_get_bars_for_every_metric(name: str) -> None:
    sample = samples.SAMPLES[name]()
    source = page(sample)

    assert source.count("by system</title>") == len(sample.record.metrics) >= 2


def test_continuations_before_and_after_share_the_opening() -> None:
    found = read(samples.causal_lm())

    assert "continuations" in found.ids()
    assert found.text.count("Жили-были старик со старухой, и было у них") >= 4
    assert "три сына: двое умных" in found.text


def test_a_smallest_difference_of_zero_is_not_named() -> None:
    record = samples.classification().record
    assert "does not count" not in scores.how_compared(record)
    name, one = next(iter(record.comparison.items()))
    counts = record.model_copy(update={"comparison": {name: one.model_copy(update={"min_effect": 0.005})}})
    assert "A difference below 0.5 points does not count." in scores.how_compared(counts)


def test_queries_that_run_and_the_errors_of_those_that_do_not() -> None:
    text = read(samples.text2sql()).text

    assert "Execution of the predicted queries" in text
    assert re.search(r"Zero-shot 80 \d+\.\d% 0 no such table × \d+", text)


def test_data_findings_by_level_with_their_fixes() -> None:
    found = read(samples.classification())

    assert "near duplicates : 12 rows of train are near copies of another Fix: drop them" in found.text
    assert found.text.index("Warnings") < found.text.index("median 61 tokens")
    assert "2,133" in found.text


@pytest.mark.parametrize(
    "audit",
    [
        {
            "findings": [
                {"code": "odd_rows", "severity": "WARN", "found": "7 odd rows", "where": "a.csv:3", "ids": ["r1"]}
            ]
        },
        {"findings": ["7 odd rows in a.csv:3, r1"]},
    ],
)
def test_audits_of_other_shapes_are_read(audit: dict[str, object]) -> None:
    sample = samples.classification()
    text = PageReader(render(sample.record, [], [], audit)).text

    assert "7 odd rows" in text
    assert "a.csv:3" in text
    assert "r1" in text


def test_without_an_audit_file_the_record_is_used() -> None:
    sample = samples.classification()

    assert "1 row is empty" in PageReader(render(sample.record, [], [], None)).text


def test_many_findings_are_counted_not_all_shown() -> None:
    audit = {"findings": [{"level": "error", "message": f"finding {i}"} for i in range(45)]}
    text = PageReader(render(samples.record(), [], [], audit)).text

    assert "finding 39" in text
    assert "finding 40" not in text
    assert "… and 5 more in audit.json" in text


def test_the_trained_parameters_the_cost_and_how_to_reproduce_it() -> None:
    text = read(samples.classification()).text

    for words in (
        "22,713,216 (100%)",
        "Frozen 0",
        "float32",
        "every parameter trainable",
        "AdamW (fused)",
        "3e-5, cosine",
        "24 steps",
        "8 × 2 accumulated = 16 rows per step",
        "3 epochs, 400 steps",
        "Seed 17",
        "ab" * 32,
        "usual 500 to 2000",
        "2.31 GB",
        "3 min 34 s",
        "2 cores, 24 GiB, no GPU",
        "fulltune run config.yaml",
        "torch 2.13.0",
        "Guo et al. 2017, 10 bins",
    ):
        assert words in text, words


def test_guards_reasons_and_warnings_are_shown() -> None:
    text = read(samples.rejected()).text

    assert "210 divergence stop the loss was NaN at step 210" in text
    assert "few-shot used 3 of 4 examples" in text


def test_a_stopped_run_without_scores_of_the_tuned_model() -> None:
    scores = {"zero_shot": {"macro_f1": samples.score(0.3)}}
    record = samples.record(scores=scores, comparison={}, outcome="stopped", reasons=("the loss became NaN at step 7",))
    found = PageReader(render(record, [], [], None))

    assert "■ stopped" in found.texts
    assert "the loss became NaN at step 7" in found.texts


def test_empty_sections_are_left_out() -> None:
    record = samples.record(
        scores={}, comparison={}, details={}, guards=(), metrics={}, versions={}, warnings=(), shots=()
    )
    resources = record.resources.model_copy(update={"stage_seconds": {}})
    found = PageReader(render(record.model_copy(update={"resources": resources}), [], [], None))

    gone = {"scores", "curves", "classes", "metrics", "queries", "continuations", "examples", "guards"}
    assert not gone & found.ids()
    assert {"data", "trained", "cost", "reproduce"} <= found.ids()
    assert "Time by stage" not in found.text
    assert found.unclosed == []


def poisoned() -> samples.Sample:
    """Return a sample with markup in every text that a user or a model supplies."""
    record = samples.rejected().record
    fields = json.loads(record.to_json())

    def spoil(value: object) -> object:
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return EVIL if isinstance(value, str) and value != "NaN" else value

    kept = ("metric", "metrics", "scores", "scores_without_leaks", "comparison", "outcome", "guards", "task")
    fields = {key: item if key in kept else spoil(item) for key, item in fields.items()}
    fields["details"] = {"confusion": {"labels": [EVIL, "b"], "matrix": [[1, 2], [3, 4]]}, EVIL: EVIL}
    fields["details"]["per_class"] = [{"label": EVIL, "precision": 1, "recall": 1, "f1": 1, "support": 1}]
    fields["resources"]["stage_seconds"] = {EVIL: 1.0}
    fields["guards"] = [{"guard": EVIL, "step": 1, "verdict": "stop", "message": EVIL}]
    fields["versions"] = {EVIL: EVIL}
    rows = [
        Prediction(
            system=name, id=EVIL, input=EVIL * 9, reference=EVIL, output=EVIL, values={"executes": 0, "error": EVIL}
        )
        for name in ("zero_shot", "tuned", EVIL)
    ]
    finding = {"kind": EVIL, "level": EVIL, "message": EVIL, "fix": EVIL, "ids": [EVIL]}
    return samples.Sample(Record.model_validate(fields), samples.steps(), rows, {"findings": [finding]})


def test_nothing_from_outside_becomes_markup() -> None:
    source = page(poisoned())
    found = PageReader(source)

    assert source.count("<script") == 1
    assert "<img" not in source
    assert all(name not in {"img", "iframe"} for name, _ in found.elements)
    assert not any("onerror" in attributes for _, attributes in found.elements)
    assert found.unclosed == []
    assert not found.stray
    assert found.text.count("alert('x')") > 20


def test_the_page_is_the_same_each_time() -> None:
    assert page(samples.classification()) == page(samples.classification())


def test_the_list_of_contents_names_every_section_in_order(each: tuple[samples.Sample, str]) -> None:
    source = each[1]
    sections = re.findall(r'<section id="([\w-]+)"', source)
    listed = source.partition('<nav class="contents"')[2].partition("</nav>")[0]

    assert len(sections) > 5
    assert re.findall(r'href="#([\w-]+)"', listed) == sections
    assert source.index("</header>") < source.index("<nav") < source.index("<section")


def test_what_is_wider_than_a_phone_shows_that_it_goes_on() -> None:
    """A table has shades at its edges, the links to sections wrap, and a figure keeps its unit."""
    css = re.sub(r"/\*.*?\*/", "", asset("report.css"))
    rules = {selector.strip(): body for selector, body in reversed(re.findall(r"([^{}]+)\{([^{}]*)\}", css))}

    assert rules[".scroll"].count("var(--shade)") == 2
    assert css.count("--shade: ") == 2  # light and dark
    assert "flex-wrap: wrap" in rules[".contents ul"]
    assert "white-space: nowrap" in rules[".tiles b"]


@pytest.mark.parametrize("count", [2, 12, 25])
def test_long_names_of_classes_are_complete(count: int) -> None:
    labels = [f"Post-termination services and transition, obligations of the supplier, part {i}" for i in range(count)]
    matrix = [[1 + (i == j) for j in range(count)] for i in range(count)]
    source = page(samples.classification(), details={"confusion": {"labels": labels, "matrix": matrix}})
    table = source.partition('<table class="confusion numbered">')[2].partition("</table>")[0]

    assert re.findall(r"<bdi>(.*?)</bdi> <b>(\d+)</b>", table) == [(name, str(i + 1)) for i, name in enumerate(labels)]
    assert re.findall(r"<span>(\d+)</span>", table) == [str(i + 1) for i in range(count)]
    assert f'title="{labels[0]} → {labels[1]}: 1 of {count + 1} rows"' in table
    assert "by the same numbers" in source
    css = asset("report.css")
    assert "ellipsis" not in css
    assert "nowrap" not in "".join(re.findall(r"\.confusion tbody[^}]*}", css))


def test_no_text_is_cut_inside_a_character() -> None:
    family = "👩‍👩‍👧‍👦"
    rows = [
        Prediction(
            system=name,
            id="r",
            input=family * 400,
            reference="ж",
            output="половина\ufffd",
            values={"capped": True},
        )
        for name in ("zero_shot", "tuned")
    ]
    source = render(samples.seq2seq().record, [], rows, None)

    assert "\ufffd" not in source
    assert "половина" in source
    shown = re.findall(r"<summary>(.*?) <span", source) + re.findall(r"</summary><p>(.*?) <span", source)
    assert len(shown) == 2
    assert all(text.replace(family, "") == "" for text in shown)


def test_a_broken_character_of_an_answer_that_was_not_cut_is_shown() -> None:
    rows = [
        Prediction(system=name, id="r", input="a", reference="ж", output="x\ufffd", values={"capped": False})
        for name in ("zero_shot", "tuned")
    ]
    assert "x\ufffd" in render(samples.seq2seq().record, [], rows, None)
