"""The fast paths of a run: chosen once, in force for as long as a block lasts, and undone afterwards.

with pinned_kernels("auto", folder / "kernels.json"):     # the whole run makes its products in one way
    with fast_kernels(model):                     # layers of this model are fast in here
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

#: oneDNN compiles a product for every shape that it meets, and forgets all but the last 1,024. Batches of many lengths
#: have more: three products for each kind of layer and each number of rows.
_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192"


def choices_for(model: nn.Module) -> Choices | None:
    """Return the choice in force for this model, or None where kernels are off or would change what it computes."""
    choices = current()
    return choices if choices is not None and kernels_agree(model, choices) else None


@contextmanager
def fast_kernels(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model computes by the choice in force. Nested blocks change nothing.

    A model whose answers or gradients the kernels would change computes without them.
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
