"""Source and target language of multilingual tokenizers: as configured, in training, generation and saved folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
)

from fulltune.config import load_config
from fulltune.errors import ConfigError, ModelError
from fulltune.models.bundle import Bundle
from fulltune.models.save import save_model
from fulltune.pipeline import job, model_loading
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Task

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "▁", *"0123456789.,é"]
WORDS = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS]


def save(kind: str, folder: Path, *, forced: str | None = None, **languages: str) -> Path:
    tokenizer: Any
    if kind == "nllb":
        codes = ["eng_Latn", "fra_Latn", "rus_Cyrl"]
        vocabulary = {word: index for index, word in enumerate(WORDS)}
        tokenizer = NllbTokenizer(vocab=vocabulary, merges=[], additional_special_tokens=codes, **languages)
    else:
        made: Any = MBartTokenizer if kind == "mbart" else MBart50Tokenizer
        tokenizer = made(vocab=[(word, 0.0) for word in WORDS], **languages)
    tokenizer.model_max_length = 64
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(1)
    model: Any = M2M100ForConditionalGeneration(M2M100Config(**sizes)) if kind == "nllb" else None
    model = model or MBartForConditionalGeneration(MBartConfig(**sizes))
    model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids(forced) if forced else None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path, **data: Any) -> tuple[Task, Bundle]:
    config = load_config(
        {
            "model": str(folder),
            "task": "seq2seq",
            "data": {"train": "rows.jsonl", "eval": 0.5} | data,
            "evaluation": {"max_new_tokens": 5},
        }
    )
    task, _ = job.checked_task_and_method(config)
    return task, model_loading.load_model(config, task, "runs")


#: Codes of each tokenizer: source and target.
PAIRS = {"nllb": ("eng_Latn", "fra_Latn"), "mbart": ("en_XX", "fr_XX"), "mbart50": ("de_DE", "fr_XX")}


@pytest.mark.parametrize("kind", sorted(PAIRS))
def test_both_languages_are_in_training_generation_and_the_saved_folder(kind: str, tmp_path: Path) -> None:
    source, target = PAIRS[kind]
    task, bundle = loaded(save(kind, tmp_path / "base"), source_language=source, target_language=target)
    code = {name: bundle.tokenizer.convert_tokens_to_ids(name) for name in (source, target)}
    assert code[source] in prompts.prompt_ids(bundle, prompts.Wording(), "house")
    assert code[target] in prompts.answer_ids(bundle, "maison")
    assert code[source] not in prompts.answer_ids(bundle, "maison")
    rows = [Example(str(row), text, "maison") for row, text in enumerate(("house", "a tree", "old"))]
    predictions = list(task.predictor(bundle, "tuned")(rows))
    save_model(bundle, tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == (source, target)
    for prediction in predictions:
        output = model.generate(**tokenizer(prediction.input, return_tensors="pt"))[0]
        assert code[target] in output[:2].tolist()
        assert tokenizer.decode(output, skip_special_tokens=True).strip() == prediction.output
    # The token that starts the answer in training starts it in generation too.
    [features] = task.encode(rows[0], bundle)
    if kind == "mbart":  # its labels end with the language code, and its decoder starts with it
        assert features.labels[-1] == output[0] == code[target]
    else:
        assert features.labels[0] == output[1] == code[target]


@pytest.mark.parametrize("kind", sorted(PAIRS))
@pytest.mark.parametrize("field", ["source_language", "target_language"])
def test_an_unknown_language_lists_those_like_it(kind: str, field: str, tmp_path: Path) -> None:
    folder = save(kind, tmp_path)
    with pytest.raises(ConfigError, match=rf"data.{field}.*'fr'.*[Dd]id you mean .*fr") as caught:
        loaded(folder, **{field: "fr"})
    assert len(str(caught.value)) < 400


def test_both_unknown_languages_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 problems"):
        loaded(save("nllb", tmp_path), source_language="English", target_language="xx_XX")


def test_a_language_for_a_tokenizer_without_languages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"without language codes.*Remove it"):
        loaded(fakes.save("t5", tmp_path), target_language="fr")


@pytest.mark.parametrize("named", [{"target_language": "fra_Latn"}, {}])
def test_a_forced_start_token_of_another_language_is_refused(named: dict[str, str], tmp_path: Path) -> None:
    languages = {} if named else {"tgt_lang": "fra_Latn"}
    folder = save("nllb", tmp_path, forced="rus_Cyrl", **languages)
    with pytest.raises(ModelError, match=r"begins every output with rus_Cyrl .* is fra_Latn"):
        loaded(folder, **named)


def test_the_forced_start_token_names_the_target_where_nothing_else_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fulltune.models"):
        _, bundle = loaded(save("nllb", tmp_path, forced="rus_Cyrl"))
    assert prompts.answer_ids(bundle, "a")[0] == bundle.tokenizer.convert_tokens_to_ids("rus_Cyrl")
    assert any("is set: rus_Cyrl" in fact for fact in bundle.info.reconciled)
    assert "set data.target_language to change it" in caplog.text


def test_without_a_target_language_the_source_language_is_used_and_logged(tmp_path: Path) -> None:
    _, bundle = loaded(save("nllb", tmp_path))
    assert any("is set: eng_Latn, the source language" in fact for fact in bundle.info.reconciled)
    assert bundle.model.generation_config.forced_bos_token_id == prompts.answer_ids(bundle, "a")[0]


def test_the_saved_settings_are_read_back(tmp_path: Path) -> None:
    _, bundle = loaded(save("nllb", tmp_path / "base"), source_language="rus_Cyrl", target_language="fra_Latn")
    save_model(bundle, tmp_path / "saved")
    _, again = loaded(tmp_path / "saved")
    assert (again.tokenizer.src_lang, again.tokenizer.tgt_lang) == ("rus_Cyrl", "fra_Latn")
    stored = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert stored["forced_bos_token_id"] == again.tokenizer.convert_tokens_to_ids("fra_Latn")


def test_an_assumed_target_language_is_a_warning_of_the_audit(tmp_path: Path) -> None:
    rows = [json.dumps({"source": f"house {row}", "target": f"maison {row}"}) + "\n" for row in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    config = {
        "model": str(save("nllb", tmp_path / "base")),
        "task": "seq2seq",
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25, "allow_leaks": True},
    }

    def warnings(**data: str) -> list[str]:
        prepared = job.prepare_job(load_config(config | {"data": config["data"] | data}), tmp_path / "runs")
        return [one for one in prepared.audit.warnings() if "language" in one]

    [warning] = warnings()
    assert warning.startswith("no target language is set: eng_Latn, the source language, is used")
    assert warnings(target_language="fra_Latn") == []
