"""``fulltune launch``: run a command on several processes, and estimate what fits on how many devices."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from fulltune.cli.options import Common, refuse_unread, with_common_options

#: Options after the command to launch belong to that command.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


@with_common_options
def launch(
    common: Common,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="run CONFIG …", help="Command to run, with its options.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="ddp, fsdp2, zero1, zero2 or zero3.  [default: ddp]")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", metavar="N", help="Total number of processes, one per device.  [default: 2]"),
    ] = None,
    offload: Annotated[bool, typer.Option("--offload", help="Keep sharded tensors in host memory.")] = False,
    machines: Annotated[
        int | None, typer.Option("--machines", metavar="N", help="Number of machines.  [default: 1]")
    ] = None,
    machine: Annotated[
        int | None, typer.Option("--machine", metavar="N", help="Rank of this machine, from 0.  [default: 0]")
    ] = None,
    address: Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="Address of machine 0.")] = "",
    restarts: Annotated[
        int | None,
        typer.Option("--restarts", metavar="N", help="Number of restarts after a process died.  [default: 0]"),
    ] = None,
    table: Annotated[
        bool,
        typer.Option("--table", help="Show what fits on how many devices: known models, or the model of a CONFIG."),
    ] = False,
) -> None:
    """Run a command on several processes with a preset of accelerate (DDP, FSDP2, DeepSpeed ZeRO)."""
    settings = {
        "preset": preset,
        "processes": processes,
        "machines": machines,
        "machine": machine,
        "address": address or None,
        "restarts": restarts,
    }
    if table:
        refuse_unread("without --table", **settings)
        _table(common, words or [], offload)
        return
    from fulltune.runtime.launch import Launch
    from fulltune.runtime.launch import launch as start

    with common.answering():
        command = words or []
        _check(command)
        # Common options before the command are meant for it; its own come later, so that they win.
        command = [*command[:1], *common.words(), *command[1:]]
        chosen: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        code = start(Launch(offload=offload, **chosen), command)
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
