"""The checkpoint of a training: a ``from_pretrained`` folder with all the state that is needed to go on exactly.

    checkpoint-50/
      config.json, model.safetensors      the model (of one that is trained in part, trained.safetensors: what learns)
      trainer_state.json                  as transformers writes it; the states of callbacks lie in it
      optimizer, scheduler, random, progress   each a .json, and a .safetensors where it has tensors
      manifest.json                       size and SHA-256 of every file, and the facts

Nothing here is a pickle. Which checkpoint is the newest is told by the manifests, not by the names of the folders, and
one that is damaged or was not finished is none.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerState

from fulltune.errors import CheckpointError, StoreError
from fulltune.models.bundle import trained_state
from fulltune.runtime.version import __version__
from fulltune.store.manifest import MANIFEST, Manifest, read_manifest, require_space, verify, write_folder
from fulltune.training.checkpoints.state_files import Part, copies

#: Checkpoints to go back to lie in here, in the output folder.
PRIVATE = ".rollback"

#: Parts that a training is divided in by checkpoints, and steps that lie between two of them at least. Both are plain
#: counts, so that a training that went back gives the same weights when it is repeated.
PARTS, SPACING = 8, 10

PREFIX = "checkpoint-"

#: Raised when the files of a checkpoint change so that an older reader would misread them.
FORMAT = 1

_WEIGHTS, _TRAINED = "model.safetensors", "trained.safetensors"

#: What transformers' own checkpoints are told by, and what they need to go on as if nothing had happened.
_THEIRS = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


@dataclass(frozen=True)
class Snapshot:
    """All that is written of one step.

    Attributes:
        facts: For the manifest; ``step`` is among them.
        texts: Small files by name.
        weights: Of the model, each tensor once.
        is_whole: They are all of the model's, not only what learns.
        parts: The state beside it.
    """

    facts: dict[str, Any]
    texts: dict[str, bytes]
    weights: dict[str, Tensor]
    is_whole: bool
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(value.nbytes for value in self.weights.values()) + sum(part.size for part in self.parts.values())

    def copied(self) -> Snapshot:
        """The same with tensors that training does not change any more."""
        parts = {name: part.copied() for name, part in self.parts.items()}
        return Snapshot(self.facts, self.texts, copies(self.weights), self.is_whole, parts)

    def write(self, target: Path) -> Manifest:
        """Write the checkpoint, whole or not at all.

        Raises:
            StoreError: There is no room for it, or it cannot be written.
        """
        require_space(target.parent, self.size, "a checkpoint")
        return write_folder(target, self._fill, facts=self.facts, replace=True)

    def _fill(self, folder: Path) -> None:
        for name, data in self.texts.items():
            (folder / name).write_bytes(data)
        weights = {name: value.contiguous() for name, value in self.weights.items()}
        save_file(weights, folder / (_WEIGHTS if self.is_whole else _TRAINED), metadata={"format": "pt"})
        for name, part in self.parts.items():
            part.write(folder, name)


def snapshot(
    model: nn.Module, step: int, parts: Mapping[str, Part], texts: Mapping[str, bytes], is_whole: bool, **facts: Any
) -> Snapshot:
    """A model (or what learns of it) and the state beside it as they are now; the tensors are the training's own."""
    weights = _each_once(model.state_dict()) if is_whole else trained_state(model)
    known = {"format": FORMAT, "step": step, "fulltune": __version__}
    return Snapshot(known | facts, {**_descriptions(model), **texts}, weights, is_whole, dict(parts))


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into the model, bit for bit.

    Raises:
        StoreError: They are those of another model.
    """
    is_whole = (folder / _WEIGHTS).exists()
    found = load_file(folder / (_WEIGHTS if is_whole else _TRAINED))
    own = _each_once(model.state_dict()) if is_whole else trained_state(model)
    missing, strange = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    # Buffers may grow in training; the model's own load_state_dict knows how to take them.
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    other = [name for name in parameters & own.keys() & found.keys() if own[name].shape != found[name].shape]
    if missing or strange or other:
        names = ", ".join([*missing, *strange, *sorted(other)][:5])
        raise StoreError(
            f"the weights are those of another model ({names})",
            expected=f"the {len(own)} tensors of {type(model).__name__}",
            fix="resume with the model that the checkpoint was made with",
            where=str(folder),
        )
    try:
        model.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise StoreError(
            f"{type(model).__name__} does not take the weights: {error}",
            fix="resume with the model that the checkpoint was made with",
            where=str(folder),
        ) from error


# ---- Which one ----


@dataclass(frozen=True)
class Found:
    """A checkpoint whose manifest can be read; its files were not looked at."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return int(self.manifest.facts["step"])

    @property
    def sequence(self) -> int:
        """Grows with every checkpoint that is written to a folder, whatever its step."""
        return int(self.manifest.facts["sequence"])


def is_ours(folder: Path) -> bool:
    """Whether this is a checkpoint of this format, whole or not."""
    return (folder / MANIFEST).exists() or (folder / "progress.json").exists()


def has_state(folder: Path) -> bool:
    """Return True if a checkpoint of this format holds more than weights (it does not with ``save_only_model``)."""
    return (folder / "progress.json").exists()


def found_in(folder: Path, tell: Callable[[str], object] = lambda message: None) -> list[Found]:
    """The checkpoints in a folder, the newest first; ``tell`` gets a line about each whose manifest is damaged."""
    found = []
    for path in _folders(folder):
        try:
            found.append(Found(path, read_manifest(path)))
        except StoreError as error:
            if is_ours(path):
                tell(f"{path.name} is left out: {error.message()}")
    return sorted(found, key=lambda one: one.sequence, reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose every file is as it was written; those that are damaged are warned of by name."""

    def warn(message: str) -> None:
        warnings.warn(message, UserWarning, stacklevel=2)

    for one in found_in(folder, warn):
        try:
            verify(one.path, allow_others=True)
        except StoreError as error:
            warn(f"{one.path.name} is left out: {error.message()}")
        else:
            return one.path
    return None


def check(folder: Path) -> None:
    """Whether training can go on from this folder: a checkpoint of ours undamaged, or one of transformers' with a
    warning.

    Raises:
        StoreError: It cannot.
    """
    if is_ours(folder):
        facts = verify(folder, allow_others=True).facts
        if int(facts.get("format", 0)) > FORMAT:
            found = f"the checkpoint has format {facts['format']}"
            raise StoreError(found, expected=f"at most {FORMAT}", where=str(folder), fix="upgrade fulltune")
        return
    missing = [name for name in _THEIRS if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"Can't find a valid checkpoint at {folder} (there is no {', '.join(missing)})",  # as transformers words it
            expected="a folder checkpoint-N that a training has written, with the state of its optimizer",
            fix="name another, or train from the beginning",
        )
    warnings.warn(
        f"{folder} was written by transformers: nothing tells whether its files are whole, and its pickles are read "
        "with weights_only. The next checkpoint is of fulltune's own format.",
        UserWarning,
        stacklevel=2,
    )


def prune(folder: Path, keep: int | None, held: Container[int] = ()) -> None:
    """Remove all but the ``keep`` newest checkpoints and those whose steps are held; None keeps all."""
    for one in [] if keep is None else found_in(folder)[keep:]:
        if one.step not in held:
            shutil.rmtree(one.path, ignore_errors=True)


def remove_all(folder: Path) -> None:
    """Remove the checkpoints of a training that is over."""
    for path in _folders(folder):
        shutil.rmtree(path, ignore_errors=True)


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def _each_once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied tensors under the first of their names."""
    names: dict[Any, str] = {}
    for name, value in state.items():
        known = (value.data_ptr(), value.shape, value.stride(), value.device) if value.numel() else name
        names.setdefault(known, name)
    return {name: state[name] for name in names.values()}


def _descriptions(model: Any) -> dict[str, bytes]:
    """The files that ``from_pretrained`` reads beside the weights."""
    texts: dict[str, bytes] = {}
    if hasattr(model, "config") and hasattr(model.config, "to_json_string"):
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        texts["config.json"] = config.to_json_string().encode()
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        texts["generation_config.json"] = generation.to_json_string().encode()
    return texts


def step_of(source: Path) -> int:
    """The step of a checkpoint, of ours or of transformers'."""
    return int(TrainerState.load_from_json(str(source / "trainer_state.json")).global_step)


def spacing(steps: int, asked: int | None = None) -> int:
    """Steps between two checkpoints of a training of so many: what is asked for, else a share of it."""
    return asked or max(SPACING, -(-steps // PARTS))
