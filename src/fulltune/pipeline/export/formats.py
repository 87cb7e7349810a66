"""List the formats: the packages that each needs, the models that it supports, and the function that writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fulltune.errors import ConfigError, did_you_mean
from fulltune.records.export import Format, Quantization
from fulltune.runtime import extras
from fulltune.runtime.progress import Progress

if TYPE_CHECKING:
    from fulltune.pipeline.export.original import Original


@dataclass(frozen=True)
class Form:
    """One format.

    Attributes:
        name: Its name.
        write: Writes a model, its config and its tokenizer into an empty folder, given the margin and where stages
            report; returns how it was quantized.
        packages: The packages that it needs besides the core.
        extra: The extra that installs them.
        note: Advice to users of the folder.
        tolerance: Largest relative difference of logits that rounding explains; None if the format rounds weights.
    """

    name: Format
    write: Callable[[Original, Path, float, Progress], Quantization | None]
    packages: tuple[str, ...] = ()
    extra: str = ""
    note: str = ""
    tolerance: float | None = None

    def check_packages(self) -> None:
        """Check that all packages are installed.

        Raises:
            MissingDependencyError: Some are not; names the extra.
        """
        extras.check(f"the format {self.name}", self.packages, self.extra, field="--format")


def _bfloat16(source: Original, folder: Path, margin: float, progress: Progress) -> None:
    from fulltune.pipeline.export.weights import write_bfloat16

    write_bfloat16(source.bundle, folder)


def _onnx(source: Original, folder: Path, margin: float, progress: Progress) -> None:
    from fulltune.pipeline.export.graphs import write_onnx

    write_onnx(source.bundle, folder)


def _onnx_int8(source: Original, folder: Path, margin: float, progress: Progress) -> Quantization:
    from fulltune.pipeline.export.quantized import write_int8

    return write_int8(source, folder, margin, progress)


def _gguf_f16(source: Original, folder: Path, margin: float, progress: Progress) -> None:
    from fulltune.pipeline.export.gguf_file import write_gguf

    write_gguf(source.bundle, folder, "F16")


def _gguf_q8_0(source: Original, folder: Path, margin: float, progress: Progress) -> None:
    from fulltune.pipeline.export.gguf_file import write_gguf

    write_gguf(source.bundle, folder, "Q8_0")


#: Advice to users of GGUF files.
_GGUF_NOTE = "fulltune computes with the weights of the file in float32; llama.cpp also rounds activations."

#: Packages that write and run ONNX graphs.
_ONNX = ("onnx", "onnxscript", "onnxruntime")

_FORMS = (
    Form(
        "safetensors-bf16",
        _bfloat16,
        note="The weights are rounded to bfloat16. fulltune computes with them in float32; `from_pretrained` computes "
        "in bfloat16 unless it gets dtype=torch.float32.",
    ),
    Form("onnx", _onnx, _ONNX, "export", tolerance=1e-3),
    Form(
        "onnx-int8",
        _onnx_int8,
        _ONNX,
        "export",
        note="The scale of activations depends on all of a batch: fulltune computes each row alone; elsewhere, an "
        "answer may depend on the other rows and on padding.",
    ),
    Form("gguf-f16", _gguf_f16, ("gguf",), "export", _GGUF_NOTE),
    Form("gguf-q8_0", _gguf_q8_0, ("gguf",), "export", _GGUF_NOTE),
)

FORMS: Mapping[str, Form] = {form.name: form for form in _FORMS}

#: Short names.
_SHORT = {"gguf": "gguf-f16"}


def form_of(name: str) -> Form:
    """Return a format by its name, once its packages are known to be installed.

    Raises:
        ConfigError: There is no such format.
        MissingDependencyError: It needs a package that is not installed.
    """
    name = _SHORT.get(name, name)
    if name not in FORMS:
        fix = did_you_mean(name, [*FORMS, *_SHORT]) or "choose one of these"
        raise ConfigError(f"unknown format {name!r}", expected=", ".join(FORMS), fix=fix, field="--format")
    FORMS[name].check_packages()
    return FORMS[name]
