"""Records, steps and predictions for report tests, one complete set per task.

``python tests/report/samples.py DIR`` writes their pages.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fulltune.records.run import (
    AuditSummary,
    BaselineUse,
    Comparison,
    DataInfo,
    GuardEvent,
    MetricInfo,
    ModelInfo,
    Parameters,
    Prediction,
    Record,
    Resources,
    Score,
    SplitInfo,
    Step,
    Training,
)

CLASSES = ("Governing Law", "Termination", "Audit Rights", "Anti-Assignment", "Cap on Liability", "Insurance")


@dataclass
class Sample:
    """Everything that ``render`` takes."""

    record: Record
    steps: list[Step]
    predictions: list[Prediction]
    audit: dict[str, Any] | None = None

    def write(self, folder: Path) -> Path:
        """Write the sample as a run folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "record.json").write_text(self.record.to_json(), encoding="utf-8")
        for name, rows in (("steps", self.steps), ("predictions", self.predictions)):
            lines = "".join(row.model_dump_json() + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        return folder


def score(value: float, n: int = 400, half: float = 0.02) -> Score:
    return Score(value=value, low=value - half, high=value + half, n=n)


def versus(metric: str, gain: float, verdict: str = "improved", half: float = 0.02) -> Comparison:
    return Comparison(metric=metric, delta=gain, low=gain - half, high=gain + half, p=0.0004, verdict=verdict)


def record(**changes: Any) -> Record:
    """Return a small accepted classification run; any field may be replaced."""
    fields: dict[str, Any] = {
        "run_id": "20250301-101530-clauses",
        "fulltune": "0.1.0",
        "created": "2025-03-01T10:15:30+00:00",
        "task": "classification",
        "task_version": 1,
        "method": "full",
        "headline": "Improved: macro-F1 rose from 0.712 (few-shot) to 0.903.",
        "metric": "macro_f1",
        "metrics": {
            "macro_f1": MetricInfo(direction="higher", version=1, source="scikit-learn f1_score(average='macro')"),
            "accuracy": MetricInfo(direction="higher", version=1, source="fraction of rows that are right"),
            "ece": MetricInfo(direction="lower", version=1, source="Guo et al. 2017, 10 bins"),
        },
        "model": ModelInfo(
            source="starter-encoder", sha256="ab" * 32, family="encoder", architecture="BertForMaskedLM"
        ),
        "data": data(),
        "parameters": Parameters(
            total=22_713_216,
            trainable=22_713_216,
            frozen=0,
            dtype="float32",
            tied=("embeddings", "decoder"),
            moved=1.0,
            evidence=("every parameter trainable", "weights float32", "gradients float32", "AdamW moments float32"),
        ),
        "training": Training(
            optimizer="AdamW (fused)",
            scheduler="cosine",
            learning_rate=3e-5,
            warmup_steps=24,
            weight_decay=0.01,
            batch_size=8,
            accumulation=2,
            epochs=3.0,
            steps=400,
            seed=17,
            tokens=1_204_331,
            rows=6_400,
            final_loss=0.2113,
            advice=("the warm-up of 24 steps lies below the usual 500 to 2000; it is 6% of this run's steps",),
        ),
        "scores": {
            "majority": {"macro_f1": score(0.048), "accuracy": score(0.171), "ece": score(0.0, half=0.0)},
            "tfidf": {"macro_f1": score(0.871), "accuracy": score(0.89), "ece": score(0.21)},
            "zero_shot": {"macro_f1": score(0.344), "accuracy": score(0.39), "ece": score(0.153)},
            "few_shot": {"macro_f1": score(0.712), "accuracy": score(0.735), "ece": score(0.118)},
            "tuned": {"macro_f1": score(0.903), "accuracy": score(0.9125), "ece": score(0.031)},
        },
        "baselines": {
            "majority": BaselineUse(seconds=0.012),
            "tfidf": BaselineUse(seconds=3.21, setting="C = 3 (3-fold cross-validation on train)"),
            "zero_shot": BaselineUse(seconds=14.0, is_cached=True),
            "few_shot": BaselineUse(seconds=21.4, sampled="300 of 828 evaluation rows, drawn at random"),
        },
        "shots": ("train.jsonl:3", "train.jsonl:91"),
        "comparison": {
            "tuned vs few_shot": versus("macro_f1", 0.191),
            "tuned vs zero_shot": versus("macro_f1", 0.559),
            "tuned vs majority": versus("macro_f1", 0.855),
            "tuned vs tfidf": versus("macro_f1", 0.032),
        },
        "resources": Resources(
            peak_rss_bytes=2_310_000_000,
            train_seconds=214.0,
            tokens_per_second=5627.7,
            total_seconds=301.5,
            stage_seconds={
                "data": 2.1,
                "base": 1.4,
                "baselines": 40.2,
                "train": 214.0,
                "evaluate": 41.1,
                "report": 0.4,
            },
            machine="2 cores, 24 GiB, no GPU",
        ),
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        "outcome": "accepted",
    }
    return Record(**(fields | changes))


def data(leaked: int = 0) -> DataInfo:
    return DataInfo(
        train=SplitInfo(source="train.jsonl", rows=2133, sha256="12" * 32),
        eval=SplitInfo(source="test.jsonl", rows=400, sha256="34" * 32),
        valid=SplitInfo(source="train.jsonl (held out)", rows=100, sha256="56" * 32),
        audit=AuditSummary(errors=0, warnings=1, findings=("1 row is empty",), leaked_rows=leaked),
    )


def steps(count: int = 400) -> list[Step]:
    """Return a falling loss with noise, an evaluation every quarter, and a cosine rate after warm-up."""
    draw = random.Random(3)
    lines = []
    for step in range(10, count + 1, 10):
        done = step / count
        rate = 3e-5 * min(1.0, done / 0.06, 0.5 * (1 + math.cos(math.pi * done)))
        loss = 0.2 + 1.6 * math.exp(-4 * done) + draw.uniform(-0.06, 0.06)
        norm = 1.1 + 2.5 * math.exp(-6 * done) + draw.uniform(-0.2, 0.4)
        lines.append(Step(step=step, epoch=3 * done, loss=loss, learning_rate=rate, grad_norm=norm))
        if step % (count // 4) == 0:
            lines.append(Step(step=step, epoch=3 * done, eval_loss=0.27 + 1.5 * math.exp(-5 * done) + 0.06 * done))
    return lines


@dataclass
class _Chances:
    """Probabilities that each system is right."""

    zero_shot: float = 0.4
    few_shot: float = 0.72
    tuned: float = 0.91
    names: tuple[str, ...] = field(default=("zero_shot", "few_shot", "tuned"))


def classification(**changes: Any) -> Sample:
    draw = random.Random(5)
    chances = _Chances()
    predictions = []
    matrix = [[0] * len(CLASSES) for _ in CLASSES]
    for name in chances.names:
        for row in range(400):
            right = row * 7 % len(CLASSES) if row % 11 else 0
            answer = right if draw.random() < getattr(chances, name) else draw.randrange(len(CLASSES))
            matrix[right][answer] += name == "tuned"
            clause = f"Section {row}. {CLASSES[right]} of this Agreement shall be construed as named. "
            predictions.append(
                Prediction(
                    system=name,
                    id=f"test.jsonl:{row + 1}",
                    input=clause * (1 + row % 5),
                    reference=CLASSES[right],
                    output=CLASSES[answer],
                    values={"confidence": draw.random()},
                )
            )
    details = {
        "confusion": {"labels": list(CLASSES), "matrix": matrix},
        "per_class": [
            {
                "label": label,
                "precision": 0.9,
                "recall": 0.7 + 0.04 * i,
                "f1": 0.8 + 0.03 * i,
                "support": sum(matrix[i]),
            }
            for i, label in enumerate(CLASSES)
        ],
        "calibration": [
            {
                "low": low / 10,
                "high": low / 10 + 0.1,
                "confidence": low / 10 + 0.06,
                "accuracy": math.nan if low < 2 else min(1.0, low / 10 + 0.02 * low - 0.08),
                "count": 0 if low < 2 else 10 * low,
            }
            for low in range(10)
        ],
    }
    audit = {
        "findings": [
            {
                "kind": "near_duplicates",
                "level": "warning",
                "message": "12 rows of train are near copies of another",
                "fix": "drop them",
            },
            {"kind": "lengths", "level": "info", "message": "median 61 tokens, longest 512; 3 rows truncated"},
        ]
    }
    return Sample(record(details=details, **changes), steps(), predictions, audit)


def _text_record(task: str, metric: str, values: dict[str, dict[str, float]], **changes: Any) -> Record:
    names = list(values["tuned"])
    lower = {"bits_per_byte", "perplexity", "repetition_4"}
    infos = {
        name: MetricInfo(direction="lower" if name in lower else "higher", version=1, source="reference library")
        for name in names
    }
    scores = {
        system: {name: score(value, half=0.03 * abs(value)) for name, value in row.items()}
        for system, row in values.items()
    }
    gains = {
        f"tuned vs {system}": versus(metric, values["tuned"][metric] - row[metric], half=0.02)
        for system, row in values.items()
        if system != "tuned"
    }
    fields = {
        "task": task,
        "metric": metric,
        "metrics": infos,
        "scores": scores,
        "comparison": gains,
        "model": ModelInfo(
            source="starter-decoder", sha256="cd" * 32, family="decoder", architecture="LlamaForCausalLM"
        ),
    }
    return record(**(fields | changes))


def causal_lm(**changes: Any) -> Sample:
    values = {
        "zero_shot": {"bits_per_byte": 1.412, "perplexity": 141.2, "distinct_2": 0.71, "repetition_4": 0.32},
        "few_shot": {"bits_per_byte": 1.365, "perplexity": 118.7, "distinct_2": 0.69, "repetition_4": 0.30},
        "tuned": {"bits_per_byte": 0.987, "perplexity": 32.4, "distinct_2": 0.83, "repetition_4": 0.08},
    }
    draw, predictions = random.Random(7), []
    for system, row in values.items():
        for index in range(40):
            size = 900 + 10 * index
            row_values: dict[str, Any] = {"tokens": 300, "bytes": size}
            row_values["nll"] = (row["bits_per_byte"] + draw.uniform(-0.3, 0.3)) * size * math.log(2)
            opening = "Жили-были старик со старухой, и было у них" if index < 4 else ""
            tale = {
                "zero_shot": "много, много, много, много.",
                "few_shot": "три сына.",
                "tuned": "три сына: двое умных, а третий — Иван.",
            }
            if opening:
                reference = "три сына. Старший умный был детина, средний и так и сяк. " * 12
                row_values |= {
                    "opening": opening,
                    "continuation": tale[system] * (1 + index * 3),
                    "continuation_reference": reference,
                }
            predictions.append(
                Prediction(
                    system=system,
                    id=f"tales.jsonl:{index + 1}",
                    input=opening,
                    reference=str(row_values.get("continuation_reference", "")),
                    output=str(row_values.get("continuation", "")),
                    values=row_values,
                )
            )
    headline = "Improved: bits per byte fell from 1.365 (few-shot) to 0.987."
    return Sample(
        _text_record("causal-lm", "bits_per_byte", values, **({"headline": headline} | changes)), steps(), predictions
    )


def seq2seq(**changes: Any) -> Sample:
    values = {
        "zero_shot": {"rougeLsum": 0.142, "rouge1": 0.171, "bleu": 2.41, "chrf": 18.2},
        "few_shot": {"rougeLsum": 0.201, "rouge1": 0.232, "bleu": 4.9, "chrf": 24.0},
        "tuned": {"rougeLsum": 0.334, "rouge1": 0.381, "bleu": 12.6, "chrf": 36.4},
    }
    sentence = "we present a simple method that trains deep networks with fewer labels and show gains on images"
    words = sentence.split()
    draw, predictions = random.Random(11), []
    for system, kept in (("zero_shot", 3), ("few_shot", 6), ("tuned", 11)):
        for index in range(60):
            output = " ".join(draw.sample(words, kept)) if index % 9 or system != "tuned" else ""
            source = "In this paper " + " ".join(words * 4) + f" (row {index})."
            predictions.append(
                Prediction(
                    system=system,
                    id=f"s:{index}",
                    input=source,
                    reference=" ".join(words),
                    output=output,
                    values={"capped": False},
                )
            )
    headline = "Improved: ROUGE-Lsum rose from 0.201 (few-shot) to 0.334."
    return Sample(
        _text_record("seq2seq", "rougeLsum", values, **({"headline": headline} | changes)), steps(), predictions
    )


def text2sql(**changes: Any) -> Sample:
    values = {
        "zero_shot": {"execution_accuracy": 0.011, "exact_match": 0.0},
        "few_shot": {"execution_accuracy": 0.104, "exact_match": 0.05},
        "tuned": {"execution_accuracy": 0.612, "exact_match": 0.55},
    }
    draw, predictions = random.Random(13), []
    for system, row in values.items():
        for index in range(80):
            match = draw.random() < row["execution_accuracy"]
            runs = match or draw.random() < 0.4
            gold = f"SELECT city_name FROM city WHERE population > {index}000"
            output = gold.lower() if match else "SELECT name FROM cities" if not runs else "SELECT city_name FROM city"
            row_values = {"match": match, "executes": runs, "error": "" if runs else "no such table: cities"}
            question = f"which cities have more than {index} thousand people?"
            predictions.append(
                Prediction(
                    system=system, id=f"geo:{index}", input=question, reference=gold, output=output, values=row_values
                )
            )
    headline = "Improved: execution accuracy rose from 0.104 (few-shot) to 0.612."
    changed = {"headline": headline} | changes
    return Sample(_text_record("text2sql", "execution_accuracy", values, **changed), steps(), predictions)


def rejected() -> Sample:
    """Return a run that TF-IDF beats, with leaked rows, a NaN in training and a guard's message."""
    base = classification()
    scores = base.record.scores | {
        "tuned": {"macro_f1": score(0.841), "accuracy": score(math.nan), "ece": score(0.031)}
    }
    comparison = base.record.comparison | {"tuned vs tfidf": versus("macro_f1", -0.03, "worse")}
    changed = base.record.model_copy(
        update={
            "scores": scores,
            "scores_without_leaks": {"tuned": {"macro_f1": score(0.82, 380)}, "tfidf": {"macro_f1": score(0.86, 380)}},
            "comparison": comparison,
            "headline": "Rejected: macro-F1 is 0.841.",
            "outcome": "rejected",
            "reasons": ("a baseline without training scores higher",),
            "data": data(leaked=20),
            "guards": (
                GuardEvent(guard="divergence", step=210, verdict="stop", message="the loss was NaN at step 210"),
            ),
            "warnings": ("few-shot used 3 of 4 examples: the window is too small",),
        }
    )
    lines = [
        step.model_copy(update={"loss": math.nan}) if step.step == 210 and step.loss else step for step in base.steps
    ]
    return Sample(changed, lines, base.predictions, base.audit)


SAMPLES = {
    "classification": classification,
    "causal-lm": causal_lm,
    "seq2seq": seq2seq,
    "text2sql": text2sql,
    "rejected": rejected,
}


def main(folder: Path) -> None:
    from fulltune.report import render

    folder.mkdir(parents=True, exist_ok=True)
    for name, build in SAMPLES.items():
        sample = build()
        page = render(sample.record, sample.steps, sample.predictions, sample.audit)
        (folder / f"{name}.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
