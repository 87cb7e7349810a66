"""Define the format of a checkpoint: a ``from_pretrained`` folder with all state that an exact resume needs.

    checkpoint-50/
      config.json, model.safetensors      the model (trained.safetensors if only the trainable parameters are stored)
      trainer_state.json                  as transformers writes it, with the states of callbacks
      optimizer, scheduler, random, progress   each a .json, and a .safetensors if it has tensors
      manifest.json                       size and SHA-256 of every file, and properties

No file is a pickle. The newest checkpoint is the one with the highest sequence number in its manifest, whatever the
names of the folders are. A corrupt or unfinished checkpoint is skipped.
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

#: Folder of the checkpoints for roll-backs, inside the output folder.
PRIVATE = ".rollback"

#: Checkpoints of a training, and the least number of steps between two of them. Both are counts and not times, so that
#: a training that was rolled back has the same weights when it is repeated.
PARTS = 8
SPACING = 10

PREFIX = "checkpoint-"

#: Increase it when the files of a checkpoint change so that an older version would misread them.
FORMAT = 1

#: ``writer`` in the manifest of a checkpoint of transformers (:class:`fulltune.callbacks.Guards` writes it).
LIBRARY = "transformers"

_WEIGHTS = "model.safetensors"
_TRAINED = "trained.safetensors"

#: Files that a checkpoint of transformers needs to be resumed exactly.
_OF_LIBRARY = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint.

    Attributes:
        properties: Entries of the manifest; ``step`` is one of them.
        texts: Small files by name.
        weights: Tensors of the model by name; tied tensors occur once.
        is_complete: ``weights`` has all tensors of the model, not only the trainable parameters.
        parts: States of the optimizer, the random number generators and so on, by name.
    """

    properties: dict[str, Any]
    texts: dict[str, bytes]
    weights: dict[str, Tensor]
    is_complete: bool
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(value.nbytes for value in self.weights.values()) + sum(part.size for part in self.parts.values())

    def copied(self) -> Snapshot:
        """Return a snapshot with copies of the tensors, which training does not change."""
        parts = {name: part.copied() for name, part in self.parts.items()}
        return Snapshot(self.properties, self.texts, copies(self.weights), self.is_complete, parts)

    def write(self, target: Path) -> Manifest:
        """Write the checkpoint atomically.

        Args:
            target: Its folder; an existing one is replaced.

        Raises:
            StoreError: The disk is full, or a file cannot be written.
        """
        require_space(target.parent, self.size, "a checkpoint")
        return write_folder(target, self._fill, properties=self.properties, replace=True)

    def _fill(self, folder: Path) -> None:
        for name, data in self.texts.items():
            (folder / name).write_bytes(data)
        weights = {name: value.contiguous() for name, value in self.weights.items()}
        save_file(weights, folder / (_WEIGHTS if self.is_complete else _TRAINED), metadata={"format": "pt"})
        for name, part in self.parts.items():
            part.write(folder, name)


def snapshot(
    model: nn.Module,
    step: int,
    parts: Mapping[str, Part],
    *,
    texts: Mapping[str, bytes],
    is_complete: bool,
    **properties: Any,
) -> Snapshot:
    """Return a snapshot of the current state, without a copy of its tensors.

    Args:
        model: Unwrapped.
        step: Optimizer steps so far.
        parts: States other than the weights, by name.
        texts: Small files by name, in addition to those that describe the model.
        is_complete: Include all tensors of the model, not only the trainable parameters.
        properties: Further entries of the manifest.
    """
    weights = _each_once(model.state_dict()) if is_complete else trained_state(model)
    known = {"format": FORMAT, "step": step, "fulltune": __version__}
    return Snapshot(known | properties, {**_descriptions(model), **texts}, weights, is_complete, dict(parts))


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint into a model, bit for bit.

    Args:
        model: Unwrapped.
        folder: The checkpoint.

    Raises:
        StoreError: The weights are those of another model.
    """
    is_complete = (folder / _WEIGHTS).exists()
    stored = load_file(folder / (_WEIGHTS if is_complete else _TRAINED))
    own = _each_once(model.state_dict()) if is_complete else trained_state(model)
    missing = sorted(own.keys() - stored.keys())
    unexpected = sorted(stored.keys() - own.keys())
    # Shapes of buffers are not compared: buffers may grow in training, and load_state_dict of the model handles that.
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    common = parameters & own.keys() & stored.keys()
    reshaped = sorted(name for name in common if own[name].shape != stored[name].shape)
    if missing or unexpected or reshaped:
        names = ", ".join([*missing, *unexpected, *reshaped][:5])
        raise StoreError(
            f"the weights are those of another model ({names})",
            expected=f"the {len(own)} tensors of {type(model).__name__}",
            fix="resume with the model that the checkpoint was made with",
            where=str(folder),
        )
    try:
        model.load_state_dict(stored, strict=False)
    except RuntimeError as error:
        raise StoreError(
            f"{type(model).__name__} does not take the weights: {error}",
            fix="resume with the model that the checkpoint was made with",
            where=str(folder),
        ) from error


# ---- Checkpoints in a folder ----


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with a valid manifest; its other files are not verified.

    Attributes:
        path: Its folder.
        manifest: Its manifest.
    """

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimizer steps before it."""
        return int(self.manifest.properties["step"])

    @property
    def sequence(self) -> int:
        """Number that increases with every checkpoint of a folder, whatever its step is."""
        return int(self.manifest.properties["sequence"])


def is_ours(folder: Path) -> bool:
    """Return True if a folder is a checkpoint of this format, intact or not."""
    has_manifest = (folder / MANIFEST).exists() and not _is_of_library(folder)
    return has_manifest or (folder / "progress.json").exists()


def _is_of_library(folder: Path) -> bool:
    """Return True if the manifest of a folder, intact or not, describes a checkpoint of transformers."""
    try:
        return bool(read_manifest(folder).properties.get("writer") == LIBRARY)
    except StoreError:
        return (folder / _OF_LIBRARY[1]).is_file()


def has_state(folder: Path) -> bool:
    """Return True if a checkpoint of this format holds more than weights (it does not with ``save_only_model``)."""
    return (folder / "progress.json").exists()


def checkpoints_in(folder: Path, warn: Callable[[str], object] = lambda message: None) -> list[Checkpoint]:
    """Return the checkpoints in a folder, the newest first.

    Args:
        folder: The output folder of a training.
        warn: Called with a message for each checkpoint whose manifest is corrupt.
    """
    checkpoints = []
    for path in _folders(folder):
        try:
            one = Checkpoint(path, read_manifest(path))
            checkpoints += [one] if is_ours(path) else []
        except StoreError as error:
            if is_ours(path):
                warn(f"{path.name} is skipped: {error.message()}")
    return sorted(checkpoints, key=lambda one: one.sequence, reverse=True)


def newest(folder: Path) -> Path | None:
    """Return the newest intact checkpoint, or None; warn of each corrupt one by name."""

    def warn(message: str) -> None:
        warnings.warn(message, UserWarning, stacklevel=2)

    for one in checkpoints_in(folder, warn):
        try:
            verify(one.path, allow_others=True)
        except StoreError as error:
            warn(f"{one.path.name} is skipped: {error.message()}")
        else:
            return one.path
    return None


def check(folder: Path) -> None:
    """Check that training can resume from a folder; warn if transformers wrote it.

    Raises:
        StoreError: The checkpoint is corrupt, or a newer version wrote it.
        CheckpointError: The folder is not a checkpoint.
    """
    if is_ours(folder):
        properties = verify(folder, allow_others=True).properties
        if int(properties.get("format", 0)) > FORMAT:
            raise StoreError(
                f"the checkpoint has format {properties['format']}",
                expected=f"at most {FORMAT}",
                where=str(folder),
                fix="upgrade fulltune",
            )
        return
    missing = [name for name in _OF_LIBRARY if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"Can't find a valid checkpoint at {folder} (there is no {', '.join(missing)})",  # wording of transformers
            expected="a folder checkpoint-N that a training has written, with the state of its optimizer",
            fix="name another folder, or train from the beginning",
        )
    if (folder / MANIFEST).exists():
        verify(folder, allow_others=True)
        return
    warnings.warn(
        f"{folder} was written by transformers: its files cannot be verified, and its pickles are read with "
        "weights_only. The next checkpoint has the format of fulltune.",
        UserWarning,
        stacklevel=2,
    )


def prune(folder: Path, keep: int | None, best: int | None = None, in_use: Container[int] = ()) -> None:
    """Remove old checkpoints.

    Args:
        folder: The output folder of a training.
        keep: Number of checkpoints that are kept: the best one, and the newest; None keeps all.
        best: Step of the best checkpoint. It and the newest one are kept even if ``keep`` is 1.
        in_use: Steps whose checkpoints are kept whatever their number is.
    """
    if keep is None:
        return
    known = checkpoints_in(folder)
    older = [one for one in known[1:] if one.step != best]
    room = keep - (len(known) - len(older))
    for one in older[max(room, 0) :]:
        if one.step not in in_use:
            shutil.rmtree(one.path, ignore_errors=True)


def remove_all(folder: Path) -> None:
    """Remove all checkpoints of a training."""
    for path in _folders(folder):
        shutil.rmtree(path, ignore_errors=True)


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def _each_once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state; tied tensors are kept under the first of their names."""
    names: dict[Any, str] = {}
    for name, value in state.items():
        known = (value.data_ptr(), value.shape, value.stride(), value.device) if value.numel() else name
        names.setdefault(known, name)
    return {name: state[name] for name in names.values()}


def _descriptions(model: Any) -> dict[str, bytes]:
    """Return the files that ``from_pretrained`` reads in addition to the weights."""
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
    """Return the step of a checkpoint, of this format or of transformers."""
    return int(TrainerState.load_from_json(str(source / "trainer_state.json")).global_step)


def spacing(steps: int, asked: int | None = None) -> int:
    """Return the number of steps between two checkpoints.

    Args:
        steps: Steps of the training.
        asked: The configured number; None for a fraction of the training.
    """
    return asked or max(SPACING, -(-steps // PARTS))
