"""Complete runs with each method: the stored model is the scored one, and stored models can be loaded again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fakes
import peft
import pytest
import torch
from matrix import often
from transformers import AutoModelForSequenceClassification, TrainerCallback

import fulltune
from fulltune import ModelError, Record
from fulltune.errors import ConfigError
from fulltune.models import load as models
from fulltune.pipeline.record import constant_answer
from fulltune.records.run import Prediction, read_record
from fulltune.runtime.plugins import load
from fulltune.tasks.base import Features
from fulltune.training.fit import fit
from fulltune.training.methods.proof import fingerprints

#: Method, family, task.
RUNS = [
    ("lora", "llama", "causal-lm"),
    ("lora", "bert", "classification"),
    ("lora", "t5", "seq2seq"),
    ("qlora", "gpt2", "causal-lm"),
    ("qlora", "t5", "classification"),
    ("prompt-tuning", "gpt2", "causal-lm"),
    ("prompt-tuning", "gpt2", "classification"),
    ("prompt-tuning", "bert", "classification"),
    ("prompt-tuning", "t5", "seq2seq"),
    ("linear-probe", "llama", "classification"),
    ("bitfit", "bart", "seq2seq"),
    ("bitfit", "bert", "classification"),
]


def rows(task: str, start: int, count: int) -> list[dict[str, Any]]:
    numbers = range(start, start + count)
    if task == "causal-lm":
        return [{"text": f"the fox met a king and said {number}"} for number in numbers]
    if task == "seq2seq":
        return [{"source": f"say {number}", "target": f"{number} it is"} for number in numbers]
    return [{"text": f"the {('court', 'film')[n % 2]} is {n}", "label": ("law", "film")[n % 2]} for n in numbers]


def run(place: Path, method: str, kind: str, task: str, **options: Any) -> Record:
    base = place / "base"
    if not base.exists():
        fakes.save(kind, base)
    data: dict[str, Any] = {"allow_leaks": True}
    for name, (start, count) in {"train": (0, 12), "valid": (40, 4), "eval": (50, 6)}.items():
        path = place / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(task, start, count)), encoding="utf-8")
        data[name] = str(path)
    small = {
        "model": str(base),
        "task": task,
        "method": method,
        "data": data,
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3, "evaluations": 1},
        "baselines": {"few_shot": 1},
        "evaluation": {"max_new_tokens": 3, "continuations": 1, "resamples": 100},
        "guards": {"forgetting": {"limit": 2}},
        "speed": {"kernels": "off"},
    }
    return fulltune.run(small | options, out=place / "runs")


def head_of(task: str) -> Any:
    return "classification" if task == "classification" else "lm"


@pytest.mark.filterwarnings("ignore:.*had no room for all")
@pytest.mark.parametrize(
    ("method", "kind", "task"), often(RUNS, lambda case: case in [RUNS[place] for place in (0, 3, 7, 9, 11)])
)
def test_the_scored_model_is_the_stored_one(method: str, kind: str, task: str, tmp_path: Path) -> None:
    record = run(tmp_path, method, kind, task)
    folder = tmp_path / "runs" / record.run_id
    assert record.method == method
    assert record.parameters.trainable < record.parameters.total / 2
    again = fulltune.evaluate(record.run_id, out=tmp_path / "runs")
    tuned = record.scores["tuned"][record.metric].value
    assert again.scores[record.metric].value == pytest.approx(tuned, rel=1e-6)
    stored = models.load(str(folder / "model"), head_of(task))
    loaded = models.load(str(folder / "adapter"), head_of(task))
    ids = torch.tensor([stored.prompt_ids + list(stored.tokenizer("the fox").input_ids)])
    own = {"decoder_input_ids": torch.tensor([[0, 5]])} if task == "seq2seq" else {}
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(input_ids=ids, **own).logits, stored.model(input_ids=ids, **own).logits, rtol=1e-5, atol=1e-6
        )
    assert record.adapter is not None
    assert record.adapter.bytes == sum(path.stat().st_size for path in (folder / "adapter").iterdir())
    assert record.adapter.merged == (method != "prompt-tuning")
    assert record.resources.model_bytes > 0
    assert record.training.optimizer_bytes >= 8 * record.parameters.trainable
    assert len(record.retention) >= 1


def test_that_table_has_every_method_and_family() -> None:
    assert {method for method, _, _ in RUNS} == {"lora", "qlora", "prompt-tuning", "linear-probe", "bitfit"}
    assert {"llama", "bert", "t5"} <= {kind for _, kind, _ in RUNS}


def test_a_merge_is_checked_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = load("method", "lora")
    whole = lora.merge

    def broken(self: Any, bundle: Any) -> Any:
        whole(self, bundle)
        with torch.no_grad():
            bundle.model.lm_head.weight.mul_(-3)
        return bundle

    monkeypatch.setattr(lora, "merge", broken)
    record = run(tmp_path, "lora", "llama", "causal-lm")
    assert record.adapter is not None
    assert record.adapter.after > record.adapter.before
    merge_warnings = [line for line in record.warnings if line.startswith("Merging changed bits per byte from")]
    assert len(merge_warnings) == 1
    assert "on 6 rows; the merged model is the one that is reported" in merge_warnings[0]
    assert record.scores["tuned"]["bits_per_byte"].value == pytest.approx(record.adapter.after)


def test_a_good_merge_is_not_reported(tmp_path: Path) -> None:
    record = run(tmp_path, "lora", "llama", "causal-lm", guards={"forgetting": None, "overfitting": None})
    assert record.adapter is not None
    assert record.adapter.rows == 6
    assert record.adapter.before == pytest.approx(record.adapter.after, rel=1e-5)
    assert not [line for line in record.warnings if "Merging" in line]


def prediction(output: Any, reference: Any = "a", number: int = 0) -> Prediction:
    return Prediction(system="tuned", id=str(number), input="", reference=reference, output=output)


def test_an_answer_that_never_changes_is_reported() -> None:
    same = [prediction("law", label) for label in ("law", "film", "law")]
    assert constant_answer(same) == ("The tuned model gives the same answer to all 3 rows: 'law'.",)
    assert constant_answer([*same, prediction("film", "film")]) == ()
    assert constant_answer([prediction("law", "law")] * 3) == ()
    assert constant_answer([prediction("", "")] * 3) == ()


# ---- Adapters as a source of models ----


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an adapter with its base, and that base; no test changes them."""
    place = tmp_path_factory.mktemp("written")
    record = run(place, "lora", "bert", "classification", guards={"forgetting": None, "overfitting": None})
    return record.folder / "adapter", place / "base"


@pytest.fixture
def stored(written: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Return copies of an adapter and of its base, as if the adapter had been trained on that copy."""
    adapter, base = (Path(shutil.copytree(one, tmp_path / one.name)) for one in written)
    for settings in (adapter / "adapter_config.json", adapter / "base.json"):
        settings.write_text(settings.read_text().replace(str(written[1]), str(base)))
    return adapter, base


def test_an_adapter_needs_the_base_that_it_was_trained_on(stored: tuple[Path, Path]) -> None:
    adapter, base = stored
    fakes.save("bert", base, seed=5)
    with pytest.raises(
        ModelError, match=r"the base of the adapter .* has changed: .* is \w{12} now; expected the files"
    ):
        models.load(str(adapter), "classification")
    base.rename(base.with_name("elsewhere"))
    with pytest.raises(ModelError, match=r"the base of the adapter .* cannot be loaded \(.*does not exist\)"):
        models.load(str(adapter), "classification")


def test_an_adapter_for_another_head_provides_only_its_body(stored: tuple[Path, Path]) -> None:
    adapter, base = stored
    whole, words = models.load(str(adapter), "classification"), models.load(str(adapter))
    assert list(whole.model.config.id2label.values()) == ["film", "law"]
    ours, theirs = dict(words.model.bert.named_parameters()), dict(whole.model.bert.named_parameters())
    untouched = dict(models.load(str(base)).model.bert.named_parameters())
    assert len(ours) > 10
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert any(not torch.equal(value, untouched[name]) for name, value in ours.items())


def test_an_adapter_made_by_peft_is_read_by_the_name_of_its_base(stored: tuple[Path, Path]) -> None:
    adapter, _ = stored
    with_hash = models.load(str(adapter))
    (adapter / "base.json").unlink()
    plain = models.load(str(adapter))
    assert fingerprints(plain.model) == fingerprints(with_hash.model)
    assert plain.info.sha256 != with_hash.info.sha256


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft_reads_what_is_written_here(stored: tuple[Path, Path]) -> None:
    adapter, base = stored
    ours = models.load(str(adapter), "classification")
    theirs = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    wrapped = peft.PeftModel.from_pretrained(theirs, str(adapter)).eval()
    ids = torch.tensor([list(ours.tokenizer("the fox").input_ids)])
    with torch.no_grad():
        torch.testing.assert_close(wrapped(input_ids=ids).logits, ours.model(input_ids=ids).logits)


def test_pickled_adapters_are_not_read(stored: tuple[Path, Path]) -> None:
    adapter, _ = stored
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no safetensors weights; expected adapter_model\.safetensors"):
        models.load(str(adapter))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3; expected LORA or PROMPT_TUNING"),
        ({"base_model_name_or_path": None}, "the base of the adapter is unknown"),
    ],
)
def test_unsupported_adapters_are_reported(change: dict[str, Any], message: str, stored: tuple[Path, Path]) -> None:
    adapter, _ = stored
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    if "base_model_name_or_path" in change:
        (adapter / "base.json").unlink()
    with pytest.raises(ModelError, match=message):
        models.load(str(adapter))


@pytest.mark.parametrize(("kind", "task"), [("gpt2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft_gives_the_same_answers_with_a_prompt_made_here(kind: str, task: str, tmp_path: Path) -> None:
    base = fakes.bundle(kind)
    other, _ = fakes.make(kind)
    method = load("method", "prompt-tuning")(
        fulltune.Config(model="m", task="causal-lm", method="prompt-tuning", data={"train": "x"})
    )
    method.prepare(base)
    with torch.no_grad():
        base.model.soft_prompt.add_(torch.randn_like(base.model.soft_prompt))
    method.save(base, tmp_path / "adapter")
    wrapped = peft.PeftModel.from_pretrained(other, str(tmp_path / "adapter")).eval()
    assert wrapped.peft_config["default"].task_type == task
    text = list(base.tokenizer("the fox met a king").input_ids)
    own = {"decoder_input_ids": torch.tensor([[0, 5]])} if kind == "t5" else {}
    with torch.no_grad():
        theirs = wrapped(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text)), **own).logits
        ours = base.model(input_ids=torch.tensor([base.prompt_ids + text]), **own).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_base_with_a_prompt_is_not_trained_further(tmp_path: Path) -> None:
    first = run(tmp_path, "prompt-tuning", "gpt2", "causal-lm", guards={"forgetting": None, "overfitting": None})
    with pytest.raises(ModelError, match=r"is a base with a soft prompt.*Train its base"):
        run(tmp_path, "bitfit", "gpt2", "causal-lm", model=first.run_id)


def test_unread_keys_are_reported_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"adapter\.rank.*2 for the method bitfit; expected keys that it reads \(none\)"
    ):
        run(tmp_path, "bitfit", "gpt2", "causal-lm", adapter={"rank": 2})


def test_a_record_without_an_adapter_is_read_as_before(tmp_path: Path) -> None:
    record = run(tmp_path, "full", "gpt2", "causal-lm", guards={"forgetting": None, "overfitting": None})
    path = tmp_path / "runs" / record.run_id / "record.json"
    raw = json.loads(path.read_text())
    assert raw.pop("adapter") is None
    path.write_text(json.dumps(raw))
    assert read_record(path).adapter is None
    assert not (path.parent / "adapter").exists()


# ---- Rolling back ----


class Spoil(TrainerCallback):
    """Set NaN in the trainable parameters after one step, once."""

    def __init__(self) -> None:
        self.done = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and not self.done:
            self.done = True
            next(value for value in kwargs["model"].parameters() if value.requires_grad).data.fill_(float("nan"))


@pytest.mark.parametrize(
    ("name", "kind"),
    often(
        [("lora", "t5"), ("qlora", "gpt2"), ("prompt-tuning", "gpt2"), ("bitfit", "gpt2")],
        lambda case: case[0] in ("lora", "prompt-tuning"),
    ),
)
def test_a_rollback_restores_the_trained_parameters(name: str, kind: str, tmp_path: Path) -> None:
    config = fulltune.Config(
        model="m",
        task="causal-lm",
        method=name,
        data={"train": "x"},
        train={"max_steps": 5, "batch_size": 2, "learning_rate": 1e-2, "evaluations": 0},
        speed={"kernels": "off"},
    )
    bundle = fakes.bundle(kind)
    method = load("method", name)(config)
    spoil = Spoil()
    ids = list(bundle.tokenizer("the fox met a king").input_ids)
    result = fit(bundle, method, [Features(ids, ids, "0")] * 8, None, config, output_dir=tmp_path, callbacks=[spoil])
    assert spoil.done
    assert [event.verdict for event in result.guards] == ["roll back"]
    assert result.training.steps == 5
    assert result.parameters.moved > 0.9
    assert all(bool(value.isfinite().all()) for value in bundle.model.parameters() if value.is_floating_point())
