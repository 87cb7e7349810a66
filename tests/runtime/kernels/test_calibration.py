"""The choice between two libraries: cached where possible, the same in every later process, never a failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fulltune.models.fast_kernels import fast_kernels
from fulltune.runtime.kernels import active, calibration
from fulltune.runtime.kernels.active import current, pinned_kernels
from fulltune.runtime.kernels.calibration import dump_choices, is_exact, machine_choices, measure, read_choices
from fulltune.runtime.kernels.products import NONE, Choices, choose_by_rule, shape_classes
from fulltune.runtime.paths import cache_folder

CLASS = shape_classes()[-1]
SOME = Choices(frozenset({("forward", CLASS), ("grad_weight", CLASS)}), "measured")
OTHER = Choices(frozenset({("forward", CLASS)}), "measured")


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active, "_machine_choices", {})
    monkeypatch.setattr(calibration, "has_exact_onednn", lambda: True)


def answers(monkeypatch: pytest.MonkeyPatch, *choices: Choices) -> list[Choices]:
    """Replace measurements by these, in turn; return the list of those not used yet."""
    left = list(choices)
    monkeypatch.setattr(calibration, "measure", lambda: left.pop(0))
    return left


def test_it_is_measured_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, SOME)
    assert machine_choices(tmp_path / "new") == SOME
    assert machine_choices(tmp_path / "new") == SOME
    (file,) = (tmp_path / "new").iterdir()
    assert read_choices(file) == SOME


def test_the_first_of_two_processes_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile() -> Choices:
        path = tmp_path / f"products-{calibration._machine_key()}.json"
        path.write_text(dump_choices(OTHER))
        return SOME

    monkeypatch.setattr(calibration, "measure", meanwhile)
    assert machine_choices(tmp_path) == OTHER
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 0}', '{"version": 1}', '{"version": 1, "onednn": [[1]]}'])
def test_a_broken_file_is_measured_again(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, SOME)
    (tmp_path / f"products-{calibration._machine_key()}.json").write_text(text)
    assert machine_choices(tmp_path) == SOME
    assert machine_choices(tmp_path) == SOME


def test_without_a_writable_cache_the_rule_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = answers(monkeypatch, SOME)
    (tmp_path / "file").write_text("")
    found = machine_choices(tmp_path / "file" / "cache")
    assert found.source == "rule"
    assert left == [SOME]


def test_without_onednn_the_blas_computes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "has_exact_onednn", lambda: False)
    assert machine_choices(tmp_path) == NONE
    assert list(tmp_path.iterdir()) == []


def test_products_of_reduced_precision_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert not calibration.has_exact_onednn()
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert not calibration.has_exact_onednn()
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_cache_is_where_the_system_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLTUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FULLTUNE_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fulltune"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder().parts[-3:] == ("Library", "Caches", "fulltune")
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cache_folder() == tmp_path / "fulltune" / "cache"


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "all_classes", lambda: shape_classes()[:3])


def test_a_measurement_selects_the_faster_library(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    slow = calibration._blas
    monkeypatch.setattr(calibration, "_seconds", lambda by, pair: 2.0 if by is slow else 1.0)
    found = measure(60)
    assert found.source == "measured"
    assert len(found.onednn) == 9
    monkeypatch.setattr(calibration, "_seconds", lambda by, pair: 1.0)
    assert measure(60).onednn == frozenset()


def test_a_library_with_wrong_results_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    assert is_exact((torch.randn(8, 4), torch.randn(3, 4)))
    slow = calibration._blas
    monkeypatch.setattr(calibration, "_seconds", lambda by, pair: 2.0 if by is slow else 1.0)
    monkeypatch.setattr(calibration, "_onednn", lambda a, b: (a.bfloat16() @ b.bfloat16().t()).float())
    assert measure(60).onednn == frozenset()


def test_a_machine_too_busy_to_measure_uses_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    assert measure(0) == choose_by_rule(calibration.machine.cpu_name(), torch.backends.cpu.get_cpu_capability())


def test_measuring_leaves_torchs_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    state = torch.get_rng_state()
    measure(60)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_continues_with_the_kernels_that_it_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "machine_choices", lambda: SOME)
    with pinned_kernels("auto", tmp_path / "kernels.json") as first:
        assert first == current() == SOME
    monkeypatch.setattr(active, "_machine_choices", {})
    monkeypatch.setattr(calibration, "machine_choices", lambda: OTHER)
    with pinned_kernels("auto", tmp_path / "kernels.json") as again:
        assert again == current() == SOME
        assert again.digest == SOME.digest != OTHER.digest
        with pinned_kernels("auto"):
            assert current() == SOME
        with pinned_kernels("off") as none:
            assert none is current() is None
        assert current() == SOME
    assert current() == OTHER
    assert json.loads((tmp_path / "kernels.json").read_text())["source"] == "measured"


def test_off_changes_no_layer(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
    with pinned_kernels("off", tmp_path / "kernels.json"), fast_kernels(model):
        assert all("forward" not in layer.__dict__ for layer in model)
    assert not (tmp_path / "kernels.json").exists()
    with pinned_kernels("auto"), fast_kernels(model), fast_kernels(model):
        assert all("forward" in layer.__dict__ for layer in model)
    assert all("forward" not in layer.__dict__ for layer in model)
