"""``fulltune models``: what can be done with tuned models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fulltune
from fulltune.cli.options import RUNS, Json, Out, Quiet, Verbose, answer, answering
from fulltune.errors import ConfigError

models = typer.Typer(help="Tuned models: the registry of versions, and what can be made of them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model of the registry.")]
Ref = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A model, or one version: NAME@3, NAME@production, NAME@latest.")
]
Alias = Annotated[str, typer.Option("--alias", metavar="ALIAS", help="Which alias.")]

PRODUCTION = "production"


@models.command("list")
def list_models(out: Out = RUNS, as_json: Json = False, verbose: Verbose = False) -> None:
    """List the models of the registry, their newest versions and their aliases."""
    from fulltune.cli.render import registry as render_registry
    from fulltune.store.registry.overview import listing
    from fulltune.store.registry.registry import Registry

    with answering(as_json, verbose):
        found = listing(Registry(out))
    answer(found.to_json(), render_registry.listing(found), as_json)


@models.command()
def show(name: Ref, out: Out = RUNS, as_json: Json = False, verbose: Verbose = False) -> None:
    """Show where a model's versions come from, and every move of its aliases."""
    from fulltune.cli.render import registry as render_registry
    from fulltune.store.registry.overview import story
    from fulltune.store.registry.registry import Registry

    with answering(as_json, verbose):
        found = story(Registry(out), name)
    answer(found.to_json(), render_registry.story(found), as_json)


@models.command()
def promote(
    name: Ref,
    alias: Alias = PRODUCTION,
    force: Annotated[
        str | None, typer.Option("--force", metavar="REASON", help="Pass over the gate; the reason is kept.")
    ] = None,
    out: Out = RUNS,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Point an alias at a version (the newest, unless named) that is better than the current one."""
    from fulltune.cli.render.registry import move
    from fulltune.store.registry.promotion import promote
    from fulltune.store.registry.registry import LATEST, Registry

    with answering(as_json, verbose):
        registry = Registry(out)
        version = registry.version(name if "@" in name else f"{name}@{LATEST}")
        found = promote(registry, version, alias, force=force)
    answer(found.to_json(), move(found, version.name), as_json)


@models.command()
def rollback(
    name: Name,
    alias: Alias = PRODUCTION,
    to: Annotated[
        int | None, typer.Option("--to", metavar="N", help="A version it pointed at; default: the one before.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept in the history.")] = "",
    out: Out = RUNS,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Point an alias back at the version before, once every byte of that was read."""
    from fulltune.cli.render.registry import move
    from fulltune.store.registry.promotion import rollback
    from fulltune.store.registry.registry import Registry

    with answering(as_json, verbose):
        found = rollback(Registry(out), name, alias, to=to, reason=reason)
    answer(found.to_json(), move(found, name), as_json)


@models.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME[@VERSION]]", help="All, unless named.")] = None,
    out: Out = RUNS,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Read every byte of versions and say what is missing or damaged."""
    from fulltune.cli.render.registry import verified
    from fulltune.store.registry.overview import verify
    from fulltune.store.registry.registry import Registry

    with answering(as_json, verbose):
        found = verify(Registry(out), name)
    answer(found.to_json(), verified(found), as_json)


@models.command()
def export(
    name: Ref,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="A folder with a model card.")] = None,
    delta: Annotated[Path | None, typer.Option("--delta", metavar="FILE", help="The difference from the base.")] = None,
    push: Annotated[str | None, typer.Option("--push", metavar="REPO", help="A repository of the hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository a private one.")] = False,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a version as a plain folder, as a delta that restores it bit for bit, or to the hub."""
    from fulltune.cli.render.registry import exported

    with answering(as_json, verbose, quiet):
        from fulltune.pipeline.export import export

        found = export(name, out=out, to=to, delta_file=delta, push=push, private=private)
    answer(found.to_json(), exported(found), as_json)


@models.command("apply-delta")
def apply_delta(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="The base, or the tuned model.")],
    delta: Annotated[Path, typer.Argument(metavar="FILE", help="What `export --delta` wrote.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder of what comes out.")],
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Restore the tuned model from its base, or the base from the tuned model, bit for bit."""
    from fulltune.cli.render.registry import restored

    with answering(as_json, verbose, quiet):
        from fulltune.pipeline.export import restore

        found = restore(source, delta, to, out=out)
    answer(found.to_json(), restored(found), as_json)


@models.command()
def gc(
    keep: Annotated[int, typer.Option("--keep", metavar="N", min=0, help="Newest versions of each that stay.")] = 3,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; otherwise they are only listed.")] = False,
    out: Out = RUNS,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List, or delete, the bytes of versions that no alias, roll-back, child or unfinished run needs."""
    from fulltune.cli.render.registry import garbage
    from fulltune.store.registry.gc import collect
    from fulltune.store.registry.registry import Registry

    with answering(as_json, verbose):
        found = collect(Registry(out), out, keep=keep, delete=delete)
    answer(found.to_json(), garbage(found), as_json)


@models.command()
def register(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: its id, the beginning of it, a path, or `latest`.")],
    out: Out = RUNS,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Put a finished run's result into the registry, as every run does at its end."""
    from fulltune.cli.render.registry import registered
    from fulltune.store.registry.register import register_run
    from fulltune.store.runs import resolve

    with answering(as_json, verbose):
        found = register_run(out, resolve(run, out))
    answer(found.to_json(), registered(found), as_json)


@models.command()
def interpolate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: its id, the beginning of it, a path, or `latest`.")],
    alphas: Annotated[
        str | None, typer.Option("--alphas", metavar="A,B,…", help="Points between 0 (base) and 1 (tuned).")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder of the chosen model.")] = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Go back from the tuned model towards the base: the best point inside the budget of forgetting."""
    from fulltune.cli.render import runs

    with answering(as_json, verbose, quiet) as progress:
        chosen = {} if alphas is None else {"alphas": _numbers(alphas)}
        found = fulltune.interpolate(run, out=out, to=to, progress=progress, **chosen)
    answer(found.to_json(), runs.interpolation(found), as_json)


@models.command()
def soup(
    sources: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Runs, or folders with a checkpoint.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder of the mean.")] = None,
    out: Out = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Average the weights of several runs or checkpoints of one architecture."""
    from fulltune.cli.render import runs

    with answering(as_json, verbose, quiet) as progress:
        found = fulltune.soup(sources, out=out, to=to, progress=progress)
    answer(found.to_json(), runs.soup(found), as_json)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r}", expected="numbers with commas, like 0,0.5,1", where="--alphas") from None
