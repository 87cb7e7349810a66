"""Implement ``qlora``: LoRA on a body that is quantized to 4 bits (Dettmers et al. 2023).

The format is NormalFloat with double quantization; products are computed in float32. The adapter is merged into the
dequantized weights, because it was trained on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulltune.config import Config
from fulltune.models.adapters.packages import require
from fulltune.records.run import Parameters
from fulltune.training.methods.adapters import head_modules
from fulltune.training.methods.lora import Lora, targets

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle


class QLora(Lora):
    """Train as :class:`~fulltune.training.methods.lora.Lora` does; all linear layers of the body are quantized."""

    name = "qlora"
    refuses = frozenset({"l2_sp", "ewc", "distill"})
    dtype = "float32, frozen linear layers NF4"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        require(f"the method {self.name}", "peft", "bitsandbytes")

    def attach(self, bundle: Bundle) -> None:
        from fulltune.models.adapters import nf4

        model: Any = bundle.model
        # Layers that the library always keeps in float32; T5 reads their dtype and casts to it.
        kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
        layers = targets(bundle, "all-linear", head_modules(bundle))
        names = [name for name in layers if kept.isdisjoint(name.split("."))]
        nf4.quantize(bundle.model, names)
        assert self._origin is not None, "prepare sets it"
        self._origin = self._origin.model_copy(update={"quantized": tuple(names)})
        super().attach(bundle)

    def proof(self, bundle: Bundle) -> Parameters:
        from fulltune.models.adapters import nf4

        parameters = super().proof(bundle)
        layers = [layer for layer in bundle.model.modules() if nf4.is_quantized(layer)]
        size = sum(map(nf4.stored_bytes, layers))
        weights = sum(map(nf4.weights, layers))
        line = f"{len(layers)} layers in 4 bits (NF4, double quantization): {weights:,} weights in {size:,} bytes"
        return parameters.model_copy(update={"evidence": (*parameters.evidence, line)})
