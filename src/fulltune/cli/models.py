"""``fulltune models``: the registry of tuned models."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

import fulltune
from fulltune.cli.options import Common, RunName, refuse_unread, with_common_options
from fulltune.cli.verbs import Models
from fulltune.errors import ConfigError

models = typer.Typer(help="List, promote, verify, export and average tuned models.", cls=Models, no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model of the registry.")]
Ref = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A model, or one version: NAME@3, NAME@production, NAME@latest.")
]
Alias = Annotated[str, typer.Option("--alias", metavar="ALIAS", help="The alias.")]

PRODUCTION = "production"


@models.command("list")
@with_common_options
def list_models(common: Common) -> None:
    """List the models of the registry with their aliases, and every version with its base, data and score."""
    from fulltune.cli.render import registry as render
    from fulltune.store.registry.overview import listing
    from fulltune.store.registry.registry import Registry

    with common.answering():
        result = listing(Registry(common.out))
    common.answer(result.to_json(), render.listing(result))


@models.command()
@with_common_options
def show(common: Common, name: Ref) -> None:
    """Show the origin of a model's versions and the history of its aliases."""
    from fulltune.cli.render import registry as render
    from fulltune.store.registry.overview import story
    from fulltune.store.registry.registry import Registry

    with common.answering():
        result = story(Registry(common.out), name)
    common.answer(result.to_json(), render.story(result))


@models.command()
@with_common_options
def promote(
    common: Common,
    name: Ref,
    alias: Alias = PRODUCTION,
    force: Annotated[
        str | None, typer.Option("--force", metavar="REASON", help="Bypass the promotion gate; REASON is recorded.")
    ] = None,
) -> None:
    """Point an alias at a version (default: the newest) that is better than the current one."""
    from fulltune.cli.render.registry import move
    from fulltune.store.registry.promotion import promote
    from fulltune.store.registry.registry import LATEST, Registry

    with common.answering():
        registry = Registry(common.out)
        version = registry.version(name if "@" in name else f"{name}@{LATEST}")
        result = promote(registry, version, alias, force=force)
    common.answer(result.to_json(), move(result, version.name))


@models.command()
@with_common_options
def rollback(
    common: Common,
    name: Name,
    alias: Alias = PRODUCTION,
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="N", help="A version that the alias pointed at; default: the previous one."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Recorded in the history.")] = "",
) -> None:
    """Point an alias back at the previous version, after all its files were verified; the first one removes it."""
    from fulltune.cli.render.registry import move
    from fulltune.store.registry.promotion import rollback
    from fulltune.store.registry.registry import Registry

    with common.answering():
        result = rollback(Registry(common.out), name, alias, to=to, reason=reason)
    common.answer(result.to_json(), move(result, name))


@models.command()
@with_common_options
def verify(
    common: Common,
    name: Annotated[str | None, typer.Argument(metavar="NAME[@VERSION]", help="Default: all.")] = None,
) -> None:
    """Verify the files of versions, and report what is missing or corrupt."""
    from fulltune.cli.render.registry import verified
    from fulltune.store.registry.overview import verify
    from fulltune.store.registry.registry import Registry

    with common.answering():
        result = verify(Registry(common.out), name)
    common.answer(result.to_json(), verified(result))


@models.command()
@with_common_options
def export(
    common: Common,
    name: Ref,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Write a folder with a model card.")] = None,
    artifact: Annotated[
        str | None,
        typer.Option("--artifact", metavar="FORMAT", help="Write the version to --to as it was exported to FORMAT."),
    ] = None,
    delta: Annotated[
        Path | None, typer.Option("--delta", metavar="FILE", help="Write the difference from the base.")
    ] = None,
    push: Annotated[str | None, typer.Option("--push", metavar="REPO", help="Push to a repository of the hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository private.")] = False,
) -> None:
    """Write a version as a plain folder, as a delta that restores it bit for bit, or to the hub."""
    from fulltune.cli.render.registry import published

    if push is None:
        refuse_unread("with --push", private=private)
    if to is None:
        refuse_unread("with --to", artifact=artifact)
    with common.answering():
        from fulltune.pipeline.publish import publish

        result = publish(name, out=common.out, to=to, artifact=artifact, delta_file=delta, push=push, private=private)
    common.answer(result.to_json(), published(result))


@models.command("apply-delta")
@with_common_options
def apply_delta(
    common: Common,
    source: Annotated[str, typer.Argument(metavar="MODEL", help="The base, or the tuned model.")],
    delta: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `export --delta`.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder of the restored model.")],
) -> None:
    """Restore the tuned model from its base, or the base from the tuned model, bit for bit."""
    from fulltune.cli.render.registry import restored

    with common.answering():
        from fulltune.pipeline.publish import restore

        result = restore(source, delta, to, out=common.out)
    common.answer(result.to_json(), restored(result))


@models.command()
@with_common_options
def gc(
    common: Common,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=0, help="Number of newest versions to keep per model.")
    ] = 3,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; otherwise they are only listed.")] = False,
) -> None:
    """List or delete the files of versions that no alias, rollback, child or unfinished run needs."""
    from fulltune.cli.render.registry import garbage
    from fulltune.store.registry.gc import collect
    from fulltune.store.registry.registry import Registry

    with common.answering():
        result = collect(Registry(common.out), common.out, keep=keep, delete=delete)
    common.answer(result.to_json(), garbage(result))


@models.command()
@with_common_options
def register(
    common: Common,
    run: RunName,
) -> None:
    """Register the result of a finished run; a run registers itself when it ends."""
    from fulltune.cli.render.registry import registered
    from fulltune.store.registry.register import register_run
    from fulltune.store.runs import resolve

    with common.answering():
        result = register_run(common.out, resolve(run, common.out))
    common.answer(result.to_json(), registered(result))


@models.command()
@with_common_options
def interpolate(
    common: Common,
    run: RunName,
    alphas: Annotated[
        str | None, typer.Option("--alphas", metavar="A,B,…", help="Points between 0 (base) and 1 (tuned).")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder of the chosen model.")] = None,
) -> None:
    """Interpolate between the base and the tuned model: the best point within the forgetting budget."""
    from fulltune.cli.render import runs

    with common.answering() as progress:
        chosen = {} if alphas is None else {"alphas": _numbers(alphas)}
        result = fulltune.interpolate(run, out=common.out, to=to, progress=progress, **chosen)
    common.answer(result.to_json(), runs.interpolation(result, _use(common, result.version)))


@models.command()
@with_common_options
def soup(
    common: Common,
    sources: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Runs, or folders with a checkpoint.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder of the averaged model.")] = None,
) -> None:
    """Average the weights of several runs or checkpoints of one architecture."""
    from fulltune.cli.render import runs

    with common.answering() as progress:
        result = fulltune.soup(sources, out=common.out, to=to, progress=progress)
    common.answer(result.to_json(), runs.soup(result, _use(common, result.version)))


def _use(common: Common, version: str) -> str:
    """Return the command that uses a version; empty without one."""
    return shlex.join(["fulltune", "predict", version, "DATA", *common.words()]) if version else ""


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r}", expected="numbers with commas, like 0,0.5,1", where="--alphas") from None
