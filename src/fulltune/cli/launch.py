"""``fulltune launch``: run a command on several processes, and estimate what fits on how many devices."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from fulltune.cli.options import Common, with_common_options

#: Options after the command to launch belong to that command.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


@with_common_options
def launch(
    common: Common,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="run CONFIG …", help="Command to run, with its options.")
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="ddp, fsdp2, zero1, zero2 or zero3.")] = "ddp",
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", help="Total number of processes, one per device.")
    ] = 2,
    offload: Annotated[bool, typer.Option("--offload", help="Keep sharded tensors in host memory.")] = False,
    machines: Annotated[int, typer.Option("--machines", metavar="N", help="Number of machines.")] = 1,
    machine: Annotated[int, typer.Option("--machine", metavar="N", help="Rank of this machine, from 0.")] = 0,
    address: Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="Address of machine 0.")] = "",
    restarts: Annotated[
        int, typer.Option("--restarts", metavar="N", help="Number of restarts after a process died.")
    ] = 0,
    table: Annotated[
        bool,
        typer.Option("--table", help="Show what fits on how many devices: known models, or the model of a CONFIG."),
    ] = False,
) -> None:
    """Run a command on several processes with a preset of accelerate (DDP, FSDP2, DeepSpeed ZeRO)."""
    if table:
        _table(common, words or [], offload)
        return
    from fulltune.runtime.launch import Launch
    from fulltune.runtime.launch import launch as start

    with common.answering():
        command = words or []
        _check(command)
        # Common options before the command are meant for it; its own come later, so that they win.
        command = [*command[:1], *common.words(), *command[1:]]
        code = start(Launch(preset, processes, offload, machines, machine, address, restarts), command)
    raise typer.Exit(code)


def _check(command: list[str]) -> None:
    """Check the config of ``run CONFIG``, once and before any process starts.

    Raises:
        ConfigError: It cannot be read, or a key is wrong.
    """
    if command[:1] == ["run"] and len(command) > 1 and not command[1].startswith("-"):
        from fulltune.config import load_config

        load_config(Path(command[1]), [value for word, value in pairwise(command) if word == "--set"])


def _table(common: Common, words: list[str], offload: bool) -> None:
    from fulltune.cli.render import runs

    with common.answering():
        from fulltune.pipeline.planning.engine_memory import Table, what_fits
        from fulltune.pipeline.planning.model_shapes import published, shape_of_config

        shapes = [shape_of_config(Path(word)) for word in words] or published()
        table = Table(offload=offload, rows=tuple(what_fits(shapes, offload=offload)))
    common.answer(table.model_dump_json(indent=2), runs.what_fits(table))
