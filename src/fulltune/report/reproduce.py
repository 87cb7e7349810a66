"""State the commands that repeat a run, for a shell in the folder of its page."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from fulltune.config import load_config
from fulltune.errors import FulltuneError
from fulltune.runtime import paths

#: The runs folder that ``fulltune run`` uses if none is named.
_RUNS = "runs"


def commands(run_folder: Path) -> tuple[str, ...]:
    """Return the commands: relative to the run folder, quoted for a shell.

    A config names its data relative to the folder in which ``fulltune run`` was started; the commands go there.
    """
    folder = run_folder.absolute()
    out = folder.parent
    start = _started_in(folder)
    run = ["fulltune", "run", _relative(folder / "config.yaml", start)]
    if _relative(out, start) != _RUNS:
        run += ["--out", _relative(out, start)]
    return f"cd {shlex.quote(_relative(start, folder))}", shlex.join(run)


def _started_in(folder: Path) -> Path:
    """Return the folder from which the relative paths of the config lead to its data.

    It is the folder above the runs folder, the working directory, or a folder higher up; the first one if none has the
    data.
    """
    above = folder.parent.parent
    name = _training_data(folder)
    if not name or paths.user_path(name).is_absolute():
        return above
    candidates = (above, Path.cwd(), *above.parents)
    return next((place for place in candidates if paths.matches(str(place / name))), above)


def _training_data(folder: Path) -> str:
    try:
        train = load_config(folder / "config.yaml").data.train
    except (FulltuneError, OSError):
        return ""
    return train if isinstance(train, str) else str(train[0])


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # on another drive
        return path.as_posix()
