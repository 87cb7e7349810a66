"""Read and write adapters: PEFT's two files, and ``base.json`` with the base model and its hash.

``adapter_model.safetensors`` and ``adapter_config.json`` are in PEFT's format if PEFT supports the method; tensors of
``bitfit`` and ``linear-probe`` have the same names as in the model. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from fulltune.errors import ModelError
from fulltune.models.adapters import lora, nf4, soft_prompt
from fulltune.records.run import Model
from fulltune.runtime.validation import read_failure

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ORIGIN = "base.json"

#: Prefix of tensor names in PEFT's format for LoRA.
LORA_PREFIX = "base_model.model."

#: Prefix of tensor names in PEFT's format for soft prompts.
PROMPT_PREFIX = "base_model."

#: Key of a soft prompt in PEFT's format.
PROMPT_KEY = "prompt_embeddings"


class Origin(Model):
    """Base and training of an adapter.

    Attributes:
        source: The base, as in a config; the absolute path of a local folder.
        sha256: Hash of the base's files; empty if the adapter was trained by another program.
        method: Training method.
        head: Head that the base was loaded with.
        labels: Labels of the classification head in the adapter.
        multi_label: True if a row may have several labels.
        quantized: Layers that were quantized to 4 bits in training.
    """

    source: str
    sha256: str = ""
    method: str = ""
    head: Literal["lm", "classification"] = "lm"
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    quantized: tuple[str, ...] = ()

    @classmethod
    def of(cls, bundle: Bundle, method: str, quantized: tuple[str, ...] = ()) -> Origin:
        """Return the origin of an adapter that will be trained on a bundle."""
        path = Path(bundle.info.source).expanduser()
        config: Any = bundle.model.config
        is_classifier = bundle.head == "classification"
        return cls(
            source=str(path.resolve()) if path.exists() else bundle.info.source,
            sha256=bundle.info.sha256,
            method=method,
            head=bundle.head,
            labels=tuple(str(label) for label in config.id2label.values()) if is_classifier else (),
            multi_label=is_classifier and config.problem_type == "multi_label_classification",
            quantized=quantized,
        )

    @classmethod
    def read(cls, folder: Path) -> Origin:
        """Read the origin from ``base.json``, or from PEFT's config if there is none.

        Raises:
            ModelError: The file is invalid, contains no base, or the folder has no safetensors weights.
        """
        if not (folder / WEIGHTS).is_file():
            raise ModelError(
                "the adapter has no safetensors weights",
                expected=WEIGHTS,
                where=str(folder),
                fix="save it in the safetensors format",
            )
        path = folder / (ORIGIN if (folder / ORIGIN).is_file() else CONFIG)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls.model_validate(raw if path.name == ORIGIN else _of_peft(raw))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(
                f"the base of the adapter is unknown ({read_failure(error)})",
                expected=f"{ORIGIN}, or base_model_name_or_path in {CONFIG}",
                where=str(path),
                field="model",
            ) from error

    def check(self, sha256: str, adapter: str) -> None:
        """Check the hash of a base.

        Raises:
            ModelError: It is not the base that the adapter was trained on.
        """
        if self.sha256 and self.sha256 != sha256:
            raise ModelError(
                f"the base of the adapter {adapter!r} has changed: {self.source} is {sha256[:12]} now",
                expected=f"the files that it was trained on ({self.sha256[:12]})",
                fix="restore those files, or train again",
                field="model",
            )

    def unused_head(self, folder: Path) -> str:
        """Return a sentence if the adapter has a classification head whose classes have no names; empty otherwise."""
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if self.labels or config.get("task_type") != "SEQ_CLS":
            return ""
        return "the classification head of the adapter is not used: its classes have no names"

    def apply(self, base: Bundle, folder: Path, *, with_head: bool) -> Bundle:
        """Apply the adapter to its base in place, merged if possible.

        Args:
            base: Bundle of the base.
            folder: Folder of the adapter.
            with_head: Apply the adapter's head, too.

        Returns:
            The base with the adapter.
        """
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        adapter_type = config.get("peft_type")
        if adapter_type == "LORA":
            if self.quantized:
                nf4.quantize(base.model, self.quantized)
                nf4.restore(base.model)
            lora.apply(base.model, folder, _without(tensors, LORA_PREFIX), with_head=with_head)
            return base
        if adapter_type == "PROMPT_TUNING":
            vectors = tensors.pop(PROMPT_KEY)
            soft_prompt.attach(base.model, vectors)
            copy_tensors(base.model, _without(tensors, PROMPT_PREFIX) if with_head else {}, folder)
            return replace(base, window=base.window - len(vectors))
        if adapter_type is not None:
            raise ModelError(
                f"an adapter of the kind {adapter_type}",
                expected="LORA or PROMPT_TUNING",
                where=str(folder),
                field="model",
            )
        if not (with_head or self.head == base.head):
            tensors = _matching(tensors, dict(base.model.named_parameters()))
        copy_tensors(base.model, tensors, folder)
        return base


def write(folder: Path, origin: Origin, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the three files of an adapter.

    Args:
        folder: Created if it does not exist.
        origin: Base and training of the adapter.
        config: PEFT's config as a mapping; ``peft_type`` is None for methods that PEFT does not support.
        tensors: Weights, by their names in the format.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = {**config, "base_model_name_or_path": origin.source, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(saved, indent=2, sort_keys=True, default=_plain) + "\n", encoding="utf-8")
    (folder / ORIGIN).write_text(origin.to_json(), encoding="utf-8")
    detached = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(detached, folder / WEIGHTS, metadata={"format": "pt"})


def rename_base(folder: Path, source: str) -> None:
    """Change the base in the files of an adapter: exported files should not contain paths of this machine."""
    for name, key in ((ORIGIN, "source"), (CONFIG, "base_model_name_or_path")):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) | {key: source}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_tensors(model: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Copy tensors into a model by name.

    Args:
        model: Changed in place.
        tensors: Tensors by parameter name.
        folder: Folder that they were read from, for messages.

    Raises:
        ModelError: The model lacks these parameters, or they have other shapes.
    """
    parameters = dict(model.named_parameters())
    wrong = sorted(tensors.keys() - _matching(tensors, parameters).keys())
    if wrong:
        raise ModelError(
            f"{len(wrong)} tensors of the adapter do not fit its base: {', '.join(wrong[:5])}",
            where=str(folder),
            field="model",
        )
    for name, value in tensors.items():
        parameters[name].data.copy_(value)


def _without(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return tensors by their names without a prefix."""
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def _matching(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that have a parameter of the same name and shape."""
    matching = {}
    for name, value in tensors.items():
        if name in parameters and parameters[name].shape == value.shape:
            matching[name] = value
    return matching


def _of_peft(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an origin from PEFT's config."""
    return {"source": config.get("base_model_name_or_path"), "method": str(config.get("peft_type", "")).lower()}


def _plain(value: Any) -> Any:
    """Convert sets and enums of PEFT's config for JSON."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))
