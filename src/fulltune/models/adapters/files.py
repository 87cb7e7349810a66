"""An adapter on disk: PEFT's two files, and ``base.json``, which names its base and the hash of that.

``adapter_model.safetensors`` and ``adapter_config.json`` are in the format of PEFT where it knows the method; the
tensors that ``bitfit`` and ``linear-probe`` train have the names that they have in the model. Nothing is ever
unpickled.
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

WEIGHTS, CONFIG, ORIGIN = "adapter_model.safetensors", "adapter_config.json", "base.json"

#: What PEFT puts before the names of a model's own tensors, for LoRA and for prompts.
LORA_PREFIX, PROMPT_PREFIX = "base_model.model.", "base_model."

#: Key of a soft prompt in PEFT's format.
PROMPT_KEY = "prompt_embeddings"


class Origin(Model):
    """What an adapter belongs to.

    Attributes:
        source: The base, as a config names it; a local folder by its whole path.
        sha256: Hash of the base's files; empty where the adapter was not made here.
        method: How it was trained.
        head: What the base was loaded with.
        labels: Of a classification head, which the adapter holds.
        multi_label: Several of them may hold at once.
        quantized: Layers that the adapter was trained on in 4 bits.
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
        """That of a bundle which is about to be trained."""
        place = Path(bundle.info.source).expanduser()
        config: Any = bundle.model.config
        is_classifier = bundle.head == "classification"
        return cls(
            source=str(place.resolve()) if place.exists() else bundle.info.source,
            sha256=bundle.info.sha256,
            method=method,
            head=bundle.head,
            labels=tuple(str(label) for label in config.id2label.values()) if is_classifier else (),
            multi_label=is_classifier and config.problem_type == "multi_label_classification",
            quantized=quantized,
        )

    @classmethod
    def read(cls, folder: Path) -> Origin:
        """From ``base.json``, or from PEFT's own config where there is none.

        Raises:
            ModelError: The file does not fit, names no base, or there are no safetensors weights beside it.
        """
        if not (folder / WEIGHTS).is_file():
            raise ModelError(
                "the adapter has no safetensors weights", expected=WEIGHTS, where=str(folder), fix="save it as such"
            )
        path = folder / (ORIGIN if (folder / ORIGIN).is_file() else CONFIG)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls.model_validate(raw if path.name == ORIGIN else _of_peft(raw))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the adapter does not tell its base ({read_failure(error)})",
                expected=f"{ORIGIN}, or base_model_name_or_path in {CONFIG}",
                where=str(path),
                field="model",
            ) from error

    def check(self, sha256: str, adapter: str) -> None:
        """
        Raises:
            ModelError: The base is not the one that the adapter was trained on.
        """
        if self.sha256 and self.sha256 != sha256:
            raise ModelError(
                f"the base of the adapter {adapter!r} has changed: {self.source} is {sha256[:12]} now",
                expected=f"the files that it was trained on ({self.sha256[:12]})",
                fix="put those back, or train again",
                field="model",
            )

    def apply(self, base: Bundle, folder: Path, *, with_head: bool) -> Bundle:
        """The adapter in its base, in place: merged where it can be. Without its head only what lies in the body."""
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        kind = config.get("peft_type")
        if kind == "LORA":
            if self.quantized:
                nf4.quantize(base.model, self.quantized)
                nf4.restore(base.model)
            lora.apply(base.model, folder, _without(tensors, LORA_PREFIX), with_head=with_head)
            return base
        if kind == "PROMPT_TUNING":
            vectors, rest = tensors.pop(PROMPT_KEY), _without(tensors, PROMPT_PREFIX)
            soft_prompt.attach(base.model, vectors)
            put_back(base.model, rest if with_head else {}, folder)
            return replace(base, window=base.window - len(vectors))
        if kind is not None:
            raise ModelError(
                f"an adapter of the kind {kind}", expected="LORA or PROMPT_TUNING", where=str(folder), field="model"
            )
        known = dict(base.model.named_parameters())
        put_back(base.model, tensors if with_head or self.head == base.head else _shared(tensors, known), folder)
        return base


def write(folder: Path, origin: Origin, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the three files.

    Args:
        folder: Made if it is not there.
        origin: What the adapter belongs to.
        config: PEFT's config as a mapping; ``peft_type`` is None for a method that it has not.
        tensors: Weights under the names of the format.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**config, "base_model_name_or_path": origin.source, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(whole, indent=2, sort_keys=True, default=_plain) + "\n", encoding="utf-8")
    (folder / ORIGIN).write_text(origin.to_json(), encoding="utf-8")
    detached = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(detached, folder / WEIGHTS, metadata={"format": "pt"})


def rename_base(folder: Path, source: str) -> None:
    """Name the base otherwise in the files of an adapter: what leaves this machine should not tell its folders."""
    for name, key in ((ORIGIN, "source"), (CONFIG, "base_model_name_or_path")):
        path = folder / name
        told = json.loads(path.read_text(encoding="utf-8")) | {key: source}
        path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def put_back(model: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Copy tensors into a model by name.

    Raises:
        ModelError: The model has no such tensors, or others.
    """
    known = dict(model.named_parameters())
    wrong = [name for name, value in tensors.items() if name not in known or known[name].shape != value.shape]
    if wrong:
        raise ModelError(
            f"{len(wrong)} tensors of the adapter do not fit its base: {', '.join(sorted(wrong)[:5])}",
            where=str(folder),
            field="model",
        )
    for name, value in tensors.items():
        known[name].data.copy_(value)


def _without(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def _shared(tensors: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name in known and known[name].shape == value.shape}


def _of_peft(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"source": config.get("base_model_name_or_path"), "method": str(config.get("peft_type", "")).lower()}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))
