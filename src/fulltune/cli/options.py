"""Share what every command has: its common options, where its answer goes, and the exit code of an error."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fulltune.errors import FulltuneError
from fulltune.runtime import distributed
from fulltune.runtime.files import check_name, refused_paths
from fulltune.runtime.packages import usable_packages
from fulltune.runtime.terminal import EscapedRenderable, answer_console, discard_output, portable_json, write_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fulltune.config import Config
    from fulltune.pipeline.job import Job
    from fulltune.runtime.progress import Progress


class LogLevel(str, Enum):
    """Levels of the log on stderr."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML or JSON file.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run: its id, the beginning of its id, a path, or `latest`.")
]
TaskConfig = Annotated[
    Path | None, typer.Option("--config", metavar="CONFIG", help="Task and columns; a run has its own.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override one key of the config; repeatable.")
]

#: Environment variables that keep libraries from drawing bars and writing logs; read when they are imported.
_SILENCE = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


#: An option that every command has, in a panel of its own below those of the command.
_option = functools.partial(typer.Option, rich_help_panel="Options of every command")


@dataclass(frozen=True)
class Common:
    """The options that every command has; :func:`with_common_options` adds them to a command."""

    out: Annotated[Path, _option("--out", metavar="DIR", help="Folder of the runs and the registry.")] = Path("runs")
    quiet: Annotated[bool, _option("--quiet", help="Show no progress and no log on stderr.")] = False
    as_json: Annotated[
        bool, _option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")
    ] = False
    verbose: Annotated[
        bool, _option("--verbose", help="Log at level info, and show tracebacks of expected errors.")
    ] = False
    log_level: Annotated[
        LogLevel | None,
        _option("--log-level", metavar="LEVEL", help="Log on stderr: debug, info, warning (default) or error."),
    ] = None

    @contextmanager
    def answering(self) -> Iterator[Progress]:
        """Keep stdout free for the answer, and turn an expected error into one message and its exit code."""
        from fulltune.runtime.progress import open_progress

        self._configure_logs()
        try:
            with redirect_stdout(sys.stderr), usable_packages(), refused_paths():
                check_name(self.out)
                yield open_progress(not distributed.shows_output() or self.quiet)
        except FulltuneError as error:
            if self.verbose or os.environ.get("FULLTUNE_DEBUG"):
                traceback.print_exc()
            if distributed.is_first_to_report():
                self._refuse(error.message(), type(error).__name__, [problem.to_dict() for problem in error.problems])
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as error:
            self._refuse(str(error) or "interrupted", "KeyboardInterrupt", [])
            raise typer.Exit(130) from None

    def load(self, config: Path, overrides: Sequence[str] | None) -> Config:
        """Return a config with its overrides, before a command imports anything else.

        Raises:
            ConfigError: It cannot be read, or a key is wrong.
        """
        from fulltune.config import load_config

        return load_config(config, overrides or ())

    def prepare(self, config: Path, overrides: Sequence[str] | None) -> Job:
        """Return the job of a config, whose mistakes are reported before torch is imported.

        Raises:
            FulltuneError: The config, the data or the model cannot be used.
        """
        loaded = self.load(config, overrides)
        from fulltune.pipeline.job import prepare_job

        return prepare_job(loaded, self.out)

    def answer(self, text: str, human: RenderableType) -> None:
        """Print the result of a command on stdout, from the main process alone.

        Args:
            text: The result as JSON.
            human: The result for people.
        """
        if not distributed.shows_output() or sys.stdout is None:
            return
        with writing_stdout():
            if self.as_json:
                _print_json(text)
            else:
                answer_console().print(EscapedRenderable(human))
            sys.stdout.flush()

    def in_json(self, wanted: bool = True) -> Common:
        """Return the same options with an answer in JSON, if that is wanted in another way than by ``--json``."""
        return replace(self, as_json=self.as_json or wanted)

    def write(self, text: str) -> None:
        """Print a result that has a format of its own, such as XML, on stdout from the main process alone."""
        if not distributed.shows_output() or sys.stdout is None:
            return
        with writing_stdout():
            sys.stdout.write(text)
            sys.stdout.flush()

    def _configure_logs(self) -> None:
        from fulltune.runtime.logs import log_to_stderr

        if self.quiet:
            os.environ.update(_SILENCE)
        usual = "critical" if self.quiet else "info" if self.verbose else "warning"
        log_to_stderr(self.log_level.value if self.log_level else usual)

    def words(self) -> list[str]:
        """Return these options as they are written in a command line; those with their defaults are left out."""
        written = [] if self.out == type(self).out else ["--out", str(self.out)]
        switches = {"--quiet": self.quiet, "--json": self.as_json, "--verbose": self.verbose}
        written += [name for name, is_set in switches.items() if is_set]
        return written + (["--log-level", self.log_level.value] if self.log_level else [])

    def _refuse(self, message: str, error_type: str, problems: list[dict[str, str]]) -> None:
        write_line(sys.stderr, f"error: {message}")
        if self.as_json and sys.stdout is not None:
            error = {"type": error_type, "message": message, "problems": problems}
            with writing_stdout():
                _print_json(json.dumps({"error": error}, ensure_ascii=False))
                sys.stdout.flush()


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter ``common`` of a command by the options of :class:`Common`.

    Args:
        command: A function whose parameter ``common`` is a :class:`Common`, and whose others are its own options.

    Returns:
        The same command with the signature that typer reads options from.
    """
    # Not typing.get_type_hints: on Python 3.10 it wraps the hint of a parameter whose default is None in Optional, and
    # typer no longer sees the Argument or Option in it.
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.name != "common"
    ]
    shared = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(Common, eval_str=True).parameters.values()
    ]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        common = Common(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        command(common=common, **values)

    parameters = [*own, *shared]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def refuse_unread(reason: str, **options: object) -> None:
    """Check that no option is set that this call does not read.

    Args:
        reason: The case in which the options are read, such as ``with --ask``.
        options: Values by the name of the option, with ``_`` for ``-``; None, False and empty ones are not set.

    Raises:
        typer.BadParameter: Options are set; it names all of them.
    """
    is_set = [name for name, value in options.items() if not (value is None or value is False or value in ("", []))]
    names = [f"--{name.replace('_', '-')}" for name in is_set]
    if names:
        raise typer.BadParameter(f"read only {reason}", param_hint=" and ".join(names))


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Ignore in the block that stdout has no reader; report that it cannot be written, as on a full disk.

    Raises:
        typer.Exit: It cannot be written.
    """
    try:
        yield
    except BrokenPipeError:
        discard_output(sys.stdout)
    except OSError as error:
        discard_output(sys.stdout)  # what is buffered would fail again at exit
        write_line(sys.stderr, f"error: {unwritable_stdout(error)}. Redirect it to another file.")
        raise typer.Exit(1) from None


def unwritable_stdout(error: OSError) -> str:
    """Return the problem that stdout cannot be written, for a message."""
    return f"stdout cannot be written ({error.strerror or type(error).__name__})"


def _print_json(text: str) -> None:
    print(portable_json(text.rstrip(), sys.stdout.encoding))
