"""Checkpoints: exact to resume from, loadable, never a pickle, and all damage is detected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
import transformers
from matrix import often
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from fulltune import Trainer
from fulltune.errors import StoreError
from fulltune.store.manifest import read_manifest, verify
from fulltune.training.checkpoints import format
from fulltune.training.checkpoints.random_state import random_state, set_random_state
from fulltune.training.checkpoints.state_files import encode, read
from fulltune.training.guards.divergence import DivergenceGuard

TEXTS = [f"the fox number {number}" + " the king" * (number % 5) for number in range(20)]


class Log(TrainerCallback):
    """Collect the logged losses by step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses[state.global_step] = logs["loss"]


class Kill(TrainerCallback):
    """End training abruptly before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise SystemExit


def trainer(folder: Path, *callbacks: TrainerCallback, kind: str = "gpt2", **options: Any) -> Trainer:
    """Return a trainer of a tiny model with dropout; an epoch has 7 steps, and every third is saved."""
    model, tokenizer = fakes.make(kind)
    rows = [{"input_ids": ids, "labels": ids} for ids in (tokenizer(text).input_ids for text in TEXTS)]
    standard: dict[str, Any] = {
        "per_device_train_batch_size": 3,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "train_sampling_strategy": "group_by_length",
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 2,
        "seed": 3,
    }
    args = fakes.arguments(folder, **(standard | options))
    return Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows[:4], callbacks=list(callbacks))


def weights(one: Trainer) -> dict[str, Tensor]:
    assert isinstance(one.model, nn.Module)
    return one.model.state_dict()


def assert_same(left: Any, right: Any) -> None:
    """Check that nested states are equal, bit for bit."""
    first, second = encode(left), encode(right)
    assert first.value == second.value
    assert len(first.tensors) > 5
    assert [name for name, value in first.tensors.items() if not torch.equal(value, second.tensors[name])] == []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a short training; ``checkpoint-4``, the next one, is in the same folder."""
    folder = tmp_path_factory.mktemp("written")
    trainer(folder, max_steps=4).train()
    return folder / "checkpoint-3"


# ---- Exact ----

CASES: dict[str, dict[str, Any]] = {
    "middle of an epoch": {"save_steps": 5},
    "end of an epoch": {"save_steps": 7},
    "accumulation": {"gradient_accumulation_steps": 2, "num_train_epochs": 4, "save_steps": 6},
    "random order": {"train_sampling_strategy": "random"},
    "another schedule": {"lr_scheduler_type": "cosine", "warmup_steps": 4, "optim": "adafactor"},
}


@pytest.mark.parametrize("name", often(CASES, lambda name: name in ("middle of an epoch", "accumulation")))
def test_a_killed_training_resumes_exactly(name: str, tmp_path: Path) -> None:
    options = CASES[name]
    whole = Log()
    log = Log()
    expected = trainer(tmp_path / "whole", whole, **options)
    uninterrupted = expected.train()
    with pytest.raises(SystemExit):
        trainer(tmp_path / "parts", log, Kill(8), **options).train()
    torch.rand(3)
    resumed = trainer(tmp_path / "parts", log, **options)
    output = resumed.train(resume_from_checkpoint=True)
    assert output.training_loss == pytest.approx(uninterrupted.training_loss, rel=1e-12)
    assert_same(weights(resumed), weights(expected))
    assert_same(resumed.optimizer.state_dict(), expected.optimizer.state_dict())
    assert log.losses == whole.losses
    assert len(log.losses) >= 5


@pytest.mark.parametrize("kind", often(["t5", "bart", "llama"], lambda kind: kind == "t5"))
def test_every_family_resumes_exactly(kind: str, tmp_path: Path) -> None:
    expected = trainer(tmp_path / "whole", kind=kind, max_steps=6)
    expected.train()
    with pytest.raises(SystemExit):
        trainer(tmp_path / "parts", Kill(5), kind=kind, max_steps=6).train()
    resumed = trainer(tmp_path / "parts", kind=kind, max_steps=6)
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(resumed), weights(expected))


def test_rows_that_were_seen_are_neither_read_nor_collated_again(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        trainer(tmp_path, Kill(6), save_steps=5).train()
    resumed = trainer(tmp_path, max_steps=6)
    rows, read_rows = resumed.train_dataset, list[int]()

    class Counted(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> Any:
            read_rows.append(index)
            return rows[index]

    resumed.args.train_sampling_strategy = "random"  # ordering by length reads the length of every row
    resumed.train_dataset = Counted()
    resumed.train(resume_from_checkpoint=True)
    assert 0 < len(read_rows) <= 6  # one batch, and the one that the loader prefetches


@pytest.mark.parametrize("died", often([11, 14], lambda died: died == 14))
def test_a_resumed_training_rolls_back_like_an_uninterrupted_one(died: int, tmp_path: Path) -> None:
    """A NaN at step 13, before or after which the process dies; the rollback targets are resumed too."""

    def guarded(folder: Path, *callbacks: TrainerCallback) -> tuple[Trainer, DivergenceGuard]:
        guard = DivergenceGuard()
        one = trainer(folder, guard, *callbacks, save_steps=9, num_train_epochs=3)
        once = iter([True])

        def spoil(module: nn.Module, inputs: Any, output: Any) -> Any:
            if module.training and one.state.global_step == 12 and not guard.roll_backs and next(once, False):
                return output * float("nan")
            return output

        one.model.get_output_embeddings().register_forward_hook(spoil)  # type: ignore[union-attr]
        return one, guard

    expected, whole = guarded(tmp_path / "whole")
    expected.train()
    with pytest.raises(SystemExit):
        guarded(tmp_path / "parts", Kill(died))[0].train()
    resumed, parts = guarded(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(resumed), weights(expected))
    assert parts.events == whole.events
    assert len(whole.events) == 1
    assert not (tmp_path / "parts" / ".rollback").exists()


# ---- Contents ----


def test_a_checkpoint_is_a_model_folder_without_a_pickle(written: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(written)
    assert model.config.architectures == ["GPT2LMHeadModel"]
    assert model.transformer.wte.weight is model.lm_head.weight
    names = {path.name for path in written.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "manifest.json", "model.safetensors", "trainer_state.json"),
        *("optimizer.json", "optimizer.safetensors", "scheduler.json", "random.json", "random.safetensors"),
        "progress.json",
    }
    assert verify(written).properties["step"] == 3


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    one = trainer(
        tmp_path,
        save_steps=1,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=6,
        learning_rate=1.0,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    one.train()
    best = one.state.best_global_step
    assert best is not None
    assert best < 5, "the test wants a best step that is old"
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in (best, 6)}
    assert one.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoints of the steps 1 to 4."""
    folder = tmp_path_factory.mktemp("four")
    trainer(folder, save_steps=1, max_steps=4).train()
    return folder


@pytest.mark.parametrize("limit", [1, 2, 3, None])
@pytest.mark.parametrize("best", [1, 2, 4, None])
def test_the_limit_counts_the_best_as_in_transformers(
    limit: int | None, best: int | None, four: Path, tmp_path: Path
) -> None:
    ours, theirs = (Path(shutil.copytree(four, tmp_path / name)) for name in ("ours", "theirs"))
    format.prune(ours, limit, best)
    rotate_checkpoints(str(theirs), limit, best_model_checkpoint=best and str(theirs / f"checkpoint-{best}"))
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}


def test_checkpoints_in_use_are_not_counted(four: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(four, tmp_path / "checkpoints"))
    format.prune(folder, 2, best=2, in_use={1})
    assert {path.name for path in folder.iterdir()} == {f"checkpoint-{step}" for step in (1, 2, 4)}


def test_the_tokenizer_is_included(tmp_path: Path) -> None:
    one = trainer(tmp_path, max_steps=3)
    one.processing_class = fakes.gpt2_tokenizer()
    one.train()
    assert (tmp_path / "checkpoint-3" / "tokenizer.json").is_file()
    verify(tmp_path / "checkpoint-3")


# ---- Selection ----


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_a_damaged_checkpoint_is_named_and_skipped(
    harm: Callable[[Path], object], written: Path, tmp_path: Path
) -> None:
    shutil.copytree(written, tmp_path / "checkpoint-3")
    names = sorted(path.name for path in written.iterdir())
    assert len(names) > 9
    for name in names:
        later = tmp_path / "checkpoint-4"
        shutil.copytree(written.parent / "checkpoint-4", later)
        harm(later / name)
        with pytest.warns(UserWarning, match="checkpoint-4 is skipped"):
            assert format.newest(tmp_path) == tmp_path / "checkpoint-3"
        with pytest.raises(StoreError):
            format.check(later)
        shutil.rmtree(later)


def test_the_name_of_a_folder_is_not_trusted(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "checkpoint-900")
    trainer(tmp_path, max_steps=3).train()
    assert format.newest(tmp_path) == tmp_path / "checkpoint-3"


def test_having_no_intact_checkpoint_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No valid checkpoint found in output directory"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_leftovers_of_a_killed_writer_are_removed(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / ".checkpoint-6.01234567.part")
    trainer(tmp_path, max_steps=3).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_weights_of_another_model_are_refused(written: Path) -> None:
    with pytest.raises(StoreError, match=r"the weights are those of another model.*T5ForConditionalGeneration"):
        format.load_weights(fakes.t5()[0], written)
    with pytest.raises(StoreError, match=r"another model \(transformer\.h\.2\."):
        format.load_weights(_deeper(), written)


def _deeper() -> nn.Module:
    model, _ = fakes.gpt2()
    model.transformer.h.append(model.transformer.h[1].__class__(model.config))
    return model


def test_a_newer_format_is_refused(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "FORMAT", 0)
    with pytest.raises(StoreError, match=r"format 1; expected at most 0.*Upgrade fulltune"):
        format.check(written)


# ---- Checkpoints of transformers ----


def plain(folder: Path, **options: Any) -> transformers.Trainer:
    ours = trainer(folder, **options)
    return transformers.Trainer(
        model=ours.model, args=ours.args, train_dataset=ours.train_dataset, data_collator=ours.data_collator
    )


def test_a_checkpoint_of_transformers_is_accepted_with_a_warning(tmp_path: Path) -> None:
    options = {"save_steps": 7, "train_sampling_strategy": "sequential", "label_smoothing_factor": 0.0}
    plain(tmp_path / "theirs", max_steps=7, **options).train()
    resumed = trainer(tmp_path / "theirs", **options)
    with pytest.warns(UserWarning, match=r"written by transformers.*weights_only"):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 14
    assert verify(tmp_path / "theirs" / "checkpoint-14").properties["step"] == 14


def test_a_checkpoint_of_transformers_that_lacks_state_is_refused(tmp_path: Path) -> None:
    plain(tmp_path, max_steps=3).train()
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    with pytest.raises(StoreError, match=r"there is no optimizer\.pt"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


class Bomb:
    """Create a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_poisoned_pickle_never_runs(name: str, tmp_path: Path) -> None:
    plain(tmp_path, max_steps=3, save_steps=3).train()
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "checkpoint-3" / name)
    with (
        pytest.warns(UserWarning, match="written by transformers"),
        pytest.raises(Exception, match=r"[Ww]eights.only"),
    ):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert not (tmp_path / "exploded").exists()


# ---- Write errors ----


def test_too_little_space_is_reported_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 5))
    one = trainer(tmp_path)
    with pytest.raises(StoreError, match="are free on this disk"):
        one.train()
    assert one.state.global_step == 0


def test_an_error_of_the_thread_is_raised_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, folder: Path) -> None:
        if self.properties["step"] == 6:
            raise OSError(28, "No space left on device")
        fill(self, folder)

    fill = format.Snapshot._fill
    monkeypatch.setattr(format.Snapshot, "_fill", full)
    one = trainer(tmp_path)
    with pytest.raises(StoreError, match=r"checkpoint of step 6 cannot be written.*No space left.*are intact"):
        one.train()
    assert 6 <= one.state.global_step <= 9
    assert format.newest(tmp_path) == tmp_path / "checkpoint-3"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_without_memory_for_a_copy_the_checkpoint_is_written_synchronously(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        available = 0

    monkeypatch.setattr("fulltune.training.checkpoints.manager.psutil.virtual_memory", Full)
    one = trainer(tmp_path, max_steps=3)
    one.train()
    assert read_manifest(tmp_path / "checkpoint-3").properties["step"] == 3


# ---- State as files ----


def test_a_state_of_any_structure_is_restored(tmp_path: Path) -> None:
    shared = torch.arange(3)
    state = {
        "a": [1, 2.5, None, True, "text", (1, (2, "x"))],
        "numbers": [float("inf"), float("-inf"), np.float32(0.1), np.int64(7)],
        3: {"$odd": shared, "again": shared, "empty": torch.zeros(0), "half": torch.ones(2, dtype=torch.bfloat16)},
        "array": np.arange(4, dtype=np.uint32),
    }
    encode(state).write(tmp_path, "state")
    found = read(tmp_path, "state")
    assert found["a"] == state["a"]
    assert found["numbers"] == [float("inf"), float("-inf"), float(np.float32(0.1)), 7]
    assert torch.equal(found[3]["$odd"], shared)
    assert found[3]["half"].dtype == torch.bfloat16
    assert found[3]["empty"].shape == (0,)
    assert np.array_equal(np.asarray(found["array"]), state["array"])


def test_nan_and_infinity_survive_strict_json(tmp_path: Path) -> None:
    encode([float("nan")]).write(tmp_path, "nan")
    assert "NaN" not in (tmp_path / "nan.json").read_text(encoding="utf-8")
    (value,) = read(tmp_path, "nan")
    assert np.isnan(value)


def test_data_that_is_not_plain_is_named() -> None:
    with pytest.raises(StoreError, match=r"field 'groups\.0\.fn'.*builtins\.function|holds a builtins\.function"):
        encode({"groups": [{"fn": _deeper}]})


def test_a_missing_state_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no state 'optimizer' here"):
        read(tmp_path, "optimizer")


def test_the_random_state_is_restored_from_files(tmp_path: Path) -> None:
    import random

    random.gauss(0, 1)
    encode(random_state()).write(tmp_path, "random")

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(torch.rand(()))]

    expected = draw()
    set_random_state(read(tmp_path, "random"))
    assert draw() == expected
    assert json.loads((tmp_path / "random.json").read_text(encoding="utf-8"))
