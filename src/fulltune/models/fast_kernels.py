"""Enable the CPU kernels for a model within a block.

The blocks are nested:

    with pinned_kernels("auto", folder / "kernels.json"):  # the whole run uses the same kernels
        with fast_kernels(model):  # layers of this model use them
            ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from fulltune.models.kernel_check import kernels_agree
from fulltune.runtime.kernels.active import current
from fulltune.runtime.kernels.attention import fast_attention
from fulltune.runtime.kernels.denormals import denormals_are_zero
from fulltune.runtime.kernels.dropout import fast_dropouts
from fulltune.runtime.kernels.linear import fast_linears
from fulltune.runtime.kernels.products import Choices

#: oneDNN compiles a primitive for every shape, and caches 1,024 by default. Batches of many lengths need more: three
#: products per kind of layer and number of rows.
_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192"


def choices_for(model: nn.Module) -> Choices | None:
    """Return the active kernel choices; None if kernels are off or would change the outputs of this model."""
    choices = current()
    return choices if choices is not None and kernels_agree(model, choices) else None


@contextmanager
def fast_kernels(model: nn.Module) -> Iterator[None]:
    """Make the model use the active kernels within the block. Nested blocks have no effect.

    A model whose outputs or gradients the kernels would change runs without them.
    """
    os.environ.setdefault(*_CAPACITY)  # read by oneDNN at its first product
    choices = choices_for(model)
    with ExitStack() as stack:
        if choices is not None:
            stack.enter_context(denormals_are_zero())
            stack.enter_context(fast_linears(model, choices))
            stack.enter_context(fast_dropouts(model))
            stack.enter_context(fast_attention())
        yield
