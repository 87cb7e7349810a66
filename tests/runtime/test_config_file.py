"""Config files that are ambiguous, endless or not configs: one message, with the line, in bounded time."""

from __future__ import annotations

import dataclasses
import operator
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from transformers import TrainingArguments

from fulltune.config import load_config
from fulltune.errors import ConfigError, DataError, Problem, StoreError
from fulltune.records.run import read_record
from fulltune.runtime import other_tools
from fulltune.runtime.config_file import read_value, to_yaml

BASE = "model: m\ntask: classification\ndata: {train: rows.jsonl}\n"
MAPPING = {"model": "m", "task": "classification", "data": {"train": "rows.jsonl"}}


def refused(tmp_path: Path, text: str, name: str = "c.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("train: {epochs: yes}", ["train.epochs", "'yes'", "expected a number"]),
        ("train: {batch_size: on}", ["train.batch_size", "'on'"]),
        ("train: {batch_size: true}", ["train.batch_size", "found true", "expected a number"]),
        ("train: {learning_rate: 1_0e-5}", ["train.learning_rate", "'1_0e-5'"]),
        ("train: {learning_rate: fast}", ["train.learning_rate", "'fast'", "expected a number"]),
        ("train: {learning_rate: .inf}", ["train.learning_rate", "finite"]),
        ("train: {warmup: .inf, weight_decay: .nan}", ["train.warmup", "train.weight_decay", "finite"]),
        ("guards: {overfitting: {min_delta: .inf}}", ["guards.overfitting.min_delta", "finite"]),
        ("baselines: {}\nregularize: {dropout: [1]}", ["regularize.dropout", "a number"]),
        ("adapter: {targets: {a: 1}}", ["adapter.targets'", "a list or text"]),
        ("train: {seed: 4294967296}", ["train.seed", "at most 4,294,967,295"]),
        ("train: {epochs: 99999999999}", ["train.epochs", "at most 1,000,000"]),
        ("train: {learning_rate: -1e30}", ["train.learning_rate", "more than 0"]),
        ("train: {batch_size: 1000000000000000000000000000000}", ["train.batch_size", "at most"]),
        (f"train: {{seed: {'9' * 5000}}}", ["c.yaml:4", "cannot be read"]),
        ("train: {batch_size: 010}", ["c.yaml:4", "octal"]),
        ("train: {batch_size: 089}", ["c.yaml:4", "octal"]),
        ("train: {batch_size: 1:30}", ["c.yaml:4", "base 60"]),
        ("train: {seed: 2024-01-31}", ["train.seed", "the date 2024-01-31", "expected a whole number"]),
        ("train: {seed: !!binary aGVsbG8=}", ["train.seed", "binary data", "expected a whole number"]),
        ("train: {seed: 2024-13-45}", ["c.yaml:4", "month"]),
        ("data: {train: x}", ["c.yaml:4", "duplicate key 'data' (first in line 3)"]),
        ("train:\n  seed: 1\n  seed: 2", ["c.yaml:6", "duplicate key 'seed' (first in line 5)"]),
        ("train: {epochs: 1, epochs: 2}", ["c.yaml:4", "duplicate key 'epochs'"]),
        ("method: “full”", ["c.yaml:4", "typographic quotes around a value ('“full”')", "Write full"]),
        ("method: ‘lora’\ntrainer: {x: „a“}", ["c.yaml:4", "c.yaml:5", "2 problems"]),
        ("“method”: full", ["c.yaml:4", "typographic quotes around a key"]),
        ("true: 1", ["c.yaml:4", "'true'", "truth value", "quotes"]),
        ("yes: 1", ["unknown key", "'yes'"]),
        ("7: 1", ["c.yaml:4", "'7'", "a number"]),
        ("? [a]\n: 1", ["c.yaml:4", "a list or mapping"]),
        ("trainer: &a {x: *a}", ["c.yaml:4", "refers to a value that contains it"]),
        ("trainer: &a\n  <<: *a", ["c.yaml:4", "refers to a value that contains it"]),
        ("trainer: {x: " + "[" * 5000 + "]" * 5000 + "}", ["c.yaml:4", "nested too deeply"]),
        ("trainer: " + "{a: " * 5000 + "1" + "}" * 5000, ["c.yaml:4", "nested too deeply"]),
        ("\tseed: 1", ["c.yaml:4", "'\\t'"]),
        ("x: !!bool maybe", ["c.yaml:4", "cannot be read ('maybe')"]),
        ('x: "\\U0011FFFF"', ["an invalid escape sequence"]),
        ("%YAML 1.1", ["c.yaml:4", "a directive", "YAML 1.2"]),
        ("---\nmodel: m", ["c.yaml:4", "not valid YAML: another document", "remove the `---`"]),
        ("x: \x01", ["c.yaml:4", "U+0001"]),
        ("data2: !!python/object:os.system x", ["c.yaml:4", "cannot be read"]),
        ("x: *nobody", ["c.yaml:4", "undefined alias"]),
        ("speed:\n  kernels: off\n   unpad: off", ["c.yaml:6", "correct the indentation".capitalize()]),
        ("method:full\nx: 1", ["no `key: value`", "a space after the colon"]),
        ("method:\u00a0full\nx: 1", ["c.yaml:4", "U+00A0 after a key", "the space again"]),
        ("method\uff1afull\nx: 1", ["c.yaml:4", "U+FF1A after a key"]),
        ('x: "C:\\Users"', ["c.yaml:4", "an invalid escape sequence", "single quotes"]),
        ("x: [a", ["a bracket that is not closed"]),
        ("x: " + "9" * 6000, ["c.yaml:4", "999", "a number has too many digits"]),
        ('x: "a', ["a quote that is never closed"]),
        ("data: {train: x, eval: 0.6, valid: 0.5}", ["duplicate key"]),
    ],
)
def test_ambiguous_values_and_invalid_numbers_are_refused_with_their_location(
    tmp_path: Path, lines: str, words: list[str]
) -> None:
    message = refused(tmp_path, BASE + lines + "\n")
    assert [word for word in words if word not in message] == []


def test_a_key_without_a_value_means_its_default_and_null_means_null(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        BASE + "speed:\nmethod: lora\ntrain:\n  epochs:\n  # comment\ncheckpoints:\n"
        "guards:\n  divergence:\n  overfitting: null\n  forgetting:\n    budget:\n",
        encoding="utf-8",
    )
    config, plain = load_config(path), load_config({**MAPPING, "method": "lora"})
    assert config.guards.overfitting is None
    assert (config.speed, config.train, config.checkpoints) == (plain.speed, plain.train, plain.checkpoints)
    assert (config.guards.divergence, config.guards.forgetting) == (plain.guards.divergence, plain.guards.forgetting)
    assert load_config({**MAPPING, "train": None, "method": "lora"}).train == plain.train
    assert load_config({**MAPPING, "checkpoints": None}).checkpoints is None
    assert "data'" in refused(tmp_path, "model: m\ntask: t\ndata:\n")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.yaml", "hello".encode("utf-16"), "this is UTF-16"),
        ("a.yaml", b"model: m\n# \xe9\n", "a.yaml:2: byte 0xE9 is not UTF-8"),
        ("a.yaml", b"hello", "found plain text"),
        ("a.yaml", b"- a", "found a list"),
        ("a.yaml", b"3", "found a number"),
        ("a.jsonl", b"{}\n{}", "this is data, not a config"),
    ],
)
def test_a_file_of_another_kind_is_named_by_its_kind(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / name)


def test_splits_that_hold_out_everything_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hold out 1\.1 of train"):
        load_config({**MAPPING, "data": {"train": "x", "eval": 0.6, "valid": 0.5}})
    with pytest.raises(ConfigError, match=r"data\.eval is 50; .*set data\.eval_limit"):
        load_config({**MAPPING, "data": {"train": "x", "eval": 50}})


def test_values_of_another_type_are_reported_in_plain_language(tmp_path: Path) -> None:
    message = refused(tmp_path, BASE + "speed: fast\ntrain: {gradient_checkpointing: 3, scheduler: x, epochs: 0}\n")
    assert "field 'speed': 'fast'; expected keys with values." in message
    assert "3; expected true or false." in message
    assert "'x'; expected 'linear', 'cosine' or 'constant'." in message
    assert "0; expected more than 0" in message


def test_all_ambiguous_keys_are_reported_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, BASE + "train: {seed: 1, seed: 2}\ndata: {}\ntrue: 1\n")
    assert message.startswith("2 problems")


@pytest.mark.parametrize("shape", ["&a{n} [{parts}]", "&a{n} {{<<: [{parts}]}}"])
def test_aliases_that_expand_to_billions_are_refused_at_once(tmp_path: Path, shape: str) -> None:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: " + shape.format(n=n, parts=",".join([f"*a{n - 1}"] * 9)) for n in range(1, 12)]
    assert "too many values" in refused(tmp_path, "\n".join(lines) + "\n" + BASE)


def test_a_long_chain_of_aliases_is_too_deep(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100))]
    assert "nested too deeply" in refused(tmp_path, "\n".join(lines) + "\n" + BASE)


def test_aliases_and_merges_of_moderate_size_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: &t {seed: 3}\nbaselines: {<<: *t, few_shot: 2}\n" + BASE, encoding="utf-8")
    config = load_config(path)
    assert (config.train.seed, config.baselines.seed, config.baselines.few_shot) == (3, 3, 2)


@pytest.mark.parametrize(("text", "rate"), [("2e-5", 2e-5), ("5E-5", 5e-5), (".00002", 2e-5), ("'2e-5'", 2e-5)])
def test_numbers_in_plain_notation_are_accepted(tmp_path: Path, text: str, rate: float) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE + f"train: {{learning_rate: {text}}}\n", encoding="utf-8")
    assert load_config(path).train.learning_rate == rate


AMBIGUOUS = [
    *("yes", "off", "1:30", "0777", "089", "1e-5", "1_000", "-_", "2024-01-31", "null", "~", "<<", "=", "#x", "%YAML"),
    *("", " x", "x\n", "\x85x", "a\u2028b", "\x07", "😀", "a: b", "x" * 90 + "\té\\" + " y" * 50),
]


def test_what_is_written_is_read_as_the_same_by_this_and_by_older_readers() -> None:
    values = {"numbers": [1e-5, 3.0, 1e300, 7], "rest": [True, None, {}, []], **{text: text for text in AMBIGUOUS}}
    written = to_yaml(values)
    assert read_value(written, "here") == values
    assert YAML(typ="safe", pure=True).load("%YAML 1.1\n---\n" + written) == values
    assert "'off': 'off'\n" in written
    assert "- 1.0e-05\n" in written


def test_json_with_tabs_is_read_and_a_key_written_twice_is_not(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{\n\t"model": "m",\n\t"task": "t",\n\t"data": {"train": "x"}\n}', encoding="utf-8")
    assert load_config(path).model == "m"
    message = refused(tmp_path, '{"model": "m", "model": "n", "data": {"train": "x", "train": "y"}}', "d.json")
    assert message.startswith("2 problems")
    assert "duplicate key 'model'" in message
    assert "c.json:1: not valid JSON" in refused(tmp_path, '{"model":', "c.json")
    assert "cannot be read" in refused(tmp_path, "[" * 100_000, "c.json")


def test_an_endless_or_huge_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "long.yaml").write_text("#" * 300_000, encoding="utf-8")
    expected = {"pipe.yaml": "a named pipe", "zero.yaml": "a device file", "long.yaml": "300,000 bytes"}
    for name, words in expected.items():
        with pytest.raises(ConfigError, match=words):
            load_config(tmp_path / name)


@pytest.mark.parametrize("name", ["x" * 300 + ".yaml", "x/" * 3000, "a\0b.yaml"])
def test_an_impossible_file_name_is_one_short_message(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert len(str(caught.value)) < 600


def test_a_mapping_that_contains_itself_is_refused() -> None:
    options: dict[str, Any] = {}
    options["self"] = options
    with pytest.raises(ConfigError, match="refer to themselves"):
        load_config({**MAPPING, "trainer": options})


def test_overrides_are_as_strict_as_files() -> None:
    cases = {
        "train.epochs=": "without a value after the =",
        "train={seed: 1, seed: 2}": "duplicate key",
        "train.epochs=yes": "a number",
        "x=&a [*a]": "alias",
    }
    for override, words in cases.items():
        with pytest.raises(ConfigError, match=words):
            load_config(MAPPING, [override])


@pytest.mark.parametrize("source", [None, 5, ["config.yaml"]])
def test_what_is_no_config_is_named(source: Any) -> None:
    with pytest.raises(ConfigError, match=rf"an object of class {type(source).__name__}; expected the path of a YAML"):
        load_config(source)


def test_a_single_override_is_not_split_into_letters() -> None:
    config = load_config({"model": "m", "task": "causal-lm", "data": {"train": "t.jsonl"}}, "train.epochs=7")
    assert config.train.epochs == 7


def test_a_record_is_read_from_a_path_given_as_text(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no record\.json"):
        read_record(str(tmp_path / "record.json"))


def test_quotes_that_belong_to_a_text_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        BASE.replace("rows.jsonl", "rows.jsonl, instruction: '“Übersetze”', text: say “hi” twice"), encoding="utf-8"
    )
    data = load_config(path).data
    assert (data.instruction, data.text) == ("“Übersetze”", "say “hi” twice")


@pytest.mark.parametrize("name", ["rows.csv", "my rows.xlsx", "rows.csv.gz", "company.db", "notes.txt"])
def test_data_in_place_of_a_config_names_the_command_that_writes_one(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"text;label\nCaf\xe9;good\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    [problem] = caught.value.problems
    assert problem.found == "this is data, not a config"
    assert problem.fix == f"`fulltune init {shlex.quote(str(path))}` writes a config for it"


def test_a_folder_in_place_of_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"this is a folder; expected a YAML or JSON config\. `fulltune init "):
        load_config(tmp_path)
    (tmp_path / "config.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match=r"Name .*config\.yaml"):
        load_config(tmp_path)


def test_rows_in_a_json_file_are_no_config(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a", "label": "b"}]')
    with pytest.raises(ConfigError, match=r"found a list.*If these are rows, `fulltune init"):
        load_config(path)


def test_a_misspelled_file_name_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "contracts.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean '.*contracts\.yaml'"):
        load_config(tmp_path / "contract.yml")


# ---- Unknown keys ----


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("train.lr", "write it as train.learning_rate"),
        ("epochs", "write it as train.epochs"),
        ("evaluation.baselines", "'baselines' is a key of its own, at the left margin"),
        ("num_train_epochs", "write it as train.epochs"),
        ("per_device_train_batch_size", "write it as train.batch_size"),
        ("train.lr_scheduler_type", "write it as train.scheduler"),
        ("train.warmup_ratio", "write it as train.warmup"),
        ("max_seq_length", "write it as data.max_length"),
        ("train.max_length", "write it as data.max_length"),
        ("base_model", "write it as model"),
        ("budget", "write it as guards.forgetting.budget"),
        ("train.dropout", "write it as regularize.dropout or adapter.dropout"),
        ("batch_size", "write it as train.batch_size or evaluation.batch_size"),
        ("data.test_file", "write it as data.eval"),
        ("lora_r", "write it as adapter.rank"),
        ("load_in_4bit", "write `method: qlora`"),
        ("output_dir", "use the option --out DIR"),
        ("train.learning_rte", "did you mean 'learning_rate'?"),
        ("train.epocs", "did you mean 'epochs'?"),
        ("num_train_epoch", "did you mean train.epochs?"),
        ("qwertz", "remove it, or see docs/config.md"),
    ],
)
def test_an_unknown_key_is_named_as_it_is_called_here(key: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(MAPPING, [f"{key}=1"])
    [problem] = caught.value.problems
    assert (problem.field, problem.fix, problem.where) == (key, fix, "--set")


def test_the_names_of_other_tools_lead_to_keys_that_exist() -> None:
    config = load_config(MAPPING)
    for key in set(other_tools._KEYS.values()):
        section, _, name = key.rpartition(".")
        if section == "trainer":
            assert name in {field.name for field in dataclasses.fields(TrainingArguments)}, key
        else:
            assert operator.attrgetter(key)(config) is not NotImplemented, key


def test_unknown_names_are_reported_along_with_wrong_values(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = "model: m\ntask: clasification\nmethod: ful\ndata: {train: x}\ntrain: {epochs: soon}\n"
    path.write_text(f"{text}trainer: {{lr: 1, seed: 2}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["train.batch_size=0", "train.epocs=1", "nonsense"])
    assert [(problem.field, problem.where) for problem in caught.value.problems] == [
        ("", "--set"),
        ("train.epochs", str(path)),
        ("train.batch_size", "--set"),
        ("train.epocs", "--set"),
        ("task", str(path)),
        ("method", str(path)),
        ("trainer.lr", str(path)),
    ]


def test_the_same_problem_in_many_places_is_one_line() -> None:
    problems = [Problem("empty text", "text", "fill it in", f"rows.csv:{n}", "text") for n in range(2, 98)]
    one = "rows.csv:2, rows.csv:3, rows.csv:4 and 93 more, field 'text': empty text; expected text. Fill it in."
    assert str(DataError(problems)) == one
    several = DataError([*problems, Problem("no rows", where="other.csv")])
    assert str(several) == f"2 problems:\n  - {one}\n  - other.csv: no rows."
    assert len(several.problems) == 97


def test_a_broken_byte_is_reported_where_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE)
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["data.text=\udcff", "train.epocs=1"])
    assert [problem.where for problem in caught.value.problems] == ["--set", "--set"]
    assert "is not Unicode" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_config(options={"data": {"text": "\udcff"}})
    assert caught.value.problems[0].where == "keyword arguments"
