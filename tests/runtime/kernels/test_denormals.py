from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fulltune.runtime.kernels import denormals
from fulltune.runtime.kernels.denormals import denormals_are_zero

#: Large enough for every thread to work on a part.
SIZE = 2_000_000


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    torch.ones(SIZE).mul_(2)  # start the threads
    yield request.param
    torch.set_num_threads(before)


def tiny() -> Tensor:
    """Return 1e-40, computed and scaled back: 1e-10, or 0 where it was flushed."""
    return torch.full((SIZE,), 1e-20).mul_(1e-20).mul_(1e30)


def test_all_threads_flush_inside_the_context_and_none_afterwards(threads: int) -> None:
    assert bool((tiny() > 0).all())
    with denormals_are_zero() as set_here:
        assert set_here
        assert not bool((tiny() > 0).any())
        assert bool((torch.full((SIZE,), 1e-20).mul_(1e-17) > 0).all())  # a normal number is kept
        with denormals_are_zero() as again:
            assert again
        assert not bool((tiny() > 0).any())
    assert bool((tiny() > 0).all())


def test_an_error_inside_restores_the_mode(threads: int) -> None:
    with pytest.raises(KeyError), denormals_are_zero():
        raise KeyError
    assert bool((tiny() > 0).all())


def test_copied_denormals_are_kept() -> None:
    weights = torch.tensor([1e-40, -3e-42])
    with denormals_are_zero():
        copy = weights.clone()
    assert torch.equal(copy.view(torch.int32), weights.view(torch.int32))


def test_without_the_switch_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denormals.torch, "set_flush_denormal", lambda on: False)
    with denormals_are_zero() as set_here:
        assert not set_here
        assert bool((tiny() > 0).all())
