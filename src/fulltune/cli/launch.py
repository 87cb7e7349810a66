"""``fulltune launch``: a verb on several processes, and what fits on how many devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fulltune.cli.options import Json, Verbose, answer, answering

#: What follows the verb to launch is that verb's own.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def launch(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[run CONFIG …]", help="What to run, with its options; or nothing.")
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="ddp, fsdp2, zero1, zero2 or zero3.")] = "ddp",
    processes: Annotated[int, typer.Option("--processes", metavar="N", help="In all, one a device.")] = 2,
    offload: Annotated[bool, typer.Option("--offload", help="Keep what is sharded in the machine's memory.")] = False,
    machines: Annotated[int, typer.Option("--machines", metavar="N", help="That take part.")] = 1,
    machine: Annotated[int, typer.Option("--machine", metavar="N", help="Number of this one, from 0.")] = 0,
    address: Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="Of machine 0.")] = "",
    restarts: Annotated[int, typer.Option("--restarts", metavar="N", help="After a process died.")] = 0,
    table: Annotated[
        bool, typer.Option("--table", help="Say what fits on how many devices: known models, or that of a CONFIG.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a verb on several processes by a preset of accelerate (DDP, FSDP2, DeepSpeed ZeRO)."""
    if table:
        _table(words or [], offload, as_json, verbose)
        return
    from fulltune.runtime.launch import Launch
    from fulltune.runtime.launch import launch as start

    with answering(as_json, verbose):
        code = start(Launch(preset, processes, offload, machines, machine, address, restarts), words or [])
    raise typer.Exit(code)


def _table(words: list[str], offload: bool, as_json: bool, verbose: bool) -> None:
    from fulltune.cli.render import runs

    with answering(as_json, verbose):
        from fulltune.pipeline.planning.engine_memory import Table, what_fits
        from fulltune.pipeline.planning.model_shapes import published, shape_of_config

        shapes = [shape_of_config(Path(word)) for word in words] or published()
        found = Table(offload=offload, rows=tuple(what_fits(shapes, offload=offload)))
    answer(found.model_dump_json(indent=2), runs.what_fits(found), as_json)
