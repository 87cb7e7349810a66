from __future__ import annotations

import fakes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config

from fulltune.pipeline.planning import engine_memory
from fulltune.pipeline.planning.engine_memory import ENGINES, Engine, Shape, activation_bytes, need, what_fits
from fulltune.pipeline.planning.model_shapes import published, shape_of

SMALL = Shape("small", 1_000_000, 100_000, 50_000, 64, 8, 256, 1000)
_GIB = 2**30


def test_the_formulas_are_those_of_the_documentation() -> None:
    p, rest = SMALL.parameters, activation_bytes(SMALL, 10)

    def device(engine: Engine, devices: int) -> float:
        return need(SMALL, engine, devices, tokens=10).device - rest

    assert device("ddp", 1) == 16 * p
    assert device("ddp", 8) == 20 * p
    bucket = 4 * engine_memory.BUCKET
    assert device("zero1", 4) == 8 * p + 16 * p / 4 + bucket
    assert device("zero2", 4) == 4 * p + 20 * p / 4 + bucket
    # A small model is gathered as a unit, and its gradients fit in one bucket.
    assert device("zero3", 4) == 20 * p / 4 + 4 * p + 4 * p + 4 * (50_000 + 100_000) + bucket
    assert device("fsdp2", 4) == 16 * p / 4 + 4 * (50_000 + 3 * 100_000)
    assert rest == 4 * 10 * (8 * 64 + 8 * 64 + 3 * 256 + 3 * 1000)


@given(devices=st.integers(1, 1000), parameters=st.integers(10**6, 10**12))
def test_more_devices_and_offload_never_need_more(devices: int, parameters: int) -> None:
    shape = Shape("any", parameters, parameters // 100, parameters // 50, 4096, 32, 16384, 32000)
    for engine in ENGINES[1:]:
        one, more = need(shape, engine, devices), need(shape, engine, devices + 1)
        assert more.device <= one.device
        moved = need(shape, engine, devices, offload=True)
        assert moved.device <= one.device
        assert moved.device + moved.host == pytest.approx(one.device)
    assert need(shape, "zero2", 64).device <= need(shape, "zero1", 64).device
    if parameters > 2 * engine_memory.LIVE:  # what ZeRO-3 gathers at a time is as large as a small model
        assert need(shape, "zero3", 64).device <= need(shape, "zero2", 64).device


def test_zero_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="0 devices"):
        need(SMALL, "ddp", 0)


def test_published_models_have_their_published_sizes() -> None:
    """Compare with the papers and model cards, in millions."""
    known = {"GPT-2 XL": 1558, "Llama-3.2-1B": 1236, "Llama-3.2-3B": 3213, "Llama-3.1-8B": 8030, "T5-3B": 2852}
    shapes = published()
    assert {shape.name: round(shape.parameters / 1e6) for shape in shapes} == known
    assert {shape.name: shape.layers for shape in shapes} == {
        "GPT-2 XL": 48,
        "Llama-3.2-1B": 16,
        "Llama-3.2-3B": 28,
        "Llama-3.1-8B": 32,
        "T5-3B": 48,
    }


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "bart"])
def test_a_shape_has_the_parameters_of_the_real_model(kind: str) -> None:
    model, _ = fakes.make(kind)
    shape = shape_of(kind, model.config)
    assert shape.parameters == model.num_parameters()
    assert shape.layers == (4 if kind in ("t5", "bart") else 2)
    assert 0 < shape.block < shape.parameters
    assert shape.embeddings == model.get_input_embeddings().weight.numel()


def test_the_table_is_consistent() -> None:
    shapes = published()
    rows = what_fits(shapes)
    assert len(rows) == 3 * len(shapes)
    for row in rows:
        for engine, devices in row.fits.items():
            shape = next(one for one in shapes if one.name == row.model)
            room = row.device_bytes - engine_memory.RESERVED
            if devices is None:
                assert need(shape, engine, 64).device > room  # type: ignore[arg-type]
            else:
                assert need(shape, engine, devices).device <= room  # type: ignore[arg-type]
    by_name = {(row.model, row.device_bytes // _GIB): row.fits for row in rows}
    assert by_name["Llama-3.1-8B", 80]["ddp"] is None, "16 bytes a parameter are 128 GB"
    assert by_name["GPT-2 XL", 40]["ddp"] == 1, "16 bytes a parameter are 25 GB"


def test_the_models_that_fit_are_those_of_published_experiments() -> None:
    """Compare with two cards of 23.65 GiB each, in FP32 with AdamW.

    Mangrulkar and Gugger, "Accelerate Large Model Training using PyTorch Fully Sharded Data Parallel" (2022), tables
    1 and 2.
    """
    card = 23.65 * _GIB
    large = shape_of("GPT-2 Large", GPT2Config(n_embd=1280, n_layer=36, n_head=20))
    xl = next(shape for shape in published() if shape.name == "GPT-2 XL")
    assert need(large, "ddp", 2).device < card
    assert need(xl, "ddp", 1).device > card
    assert need(xl, "ddp", 2).device > card
    assert need(xl, "fsdp2", 2).device < card
    assert need(xl, "fsdp2", 1, offload=True).device < card


def test_shards_are_those_of_the_zero_paper() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters take 120 GB, and 1.9 GB on each of 64 devices."""
    shape = Shape("7.5B", 7_500_000_000, 0, 0, 0, 0, 0, 0)
    assert need(shape, "ddp", 1).device == pytest.approx(120e9)
    assert need(shape, "fsdp2", 64).device == pytest.approx(1.9e9, rel=0.02)


@pytest.mark.parametrize(("devices", "published_gib"), [(1, 46.91), (2, 23.58)])
def test_zero3_matches_the_estimate_of_deepspeed_in_float32(devices: int, published_gib: float) -> None:
    """Compare with DeepSpeed's estimate for T0_3B (documentation of transformers, "DeepSpeed", memory requirements).

    That estimate is for half precision, 18 bytes per parameter where float32 takes 20, and excludes the
    buffers that are gathered and reduced.
    """
    shape = Shape("T0_3B", 2_783_000_000, 0, 65_000_000, 0, 0, 0, 0)
    in_float32 = published_gib * _GIB * 20 / 18
    at_once = 4 * (engine_memory.LIVE + 2 * engine_memory.BUCKET)
    assert need(shape, "zero3", devices).device == pytest.approx(in_float32 + at_once, rel=0.01)
