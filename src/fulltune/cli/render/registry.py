"""Show the results of ``fulltune models``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from fulltune.metrics.wording import metric_label
from fulltune.runtime.terminal import wrapping_table
from fulltune.store.delta import Restored
from fulltune.store.registry.gc import Garbage
from fulltune.store.registry.overview import Listing, Origin, Story, Verified
from fulltune.store.registry.promotion import refusal
from fulltune.store.registry.registry import Move, Registry, Version

if TYPE_CHECKING:
    from fulltune.pipeline.publish import Published


def listing(versions: Listing) -> RenderableType:
    """Show every model, its aliases, and the base, the data and the score of every version."""
    if not versions.models:
        return Text("The registry is empty: `fulltune run` fills it; --out says where it is.")
    parts: list[RenderableType] = []
    for model in versions.models:
        aliases = ", ".join(f"{alias} → {number}" for alias, number in model.aliases.items()) or "no alias"
        parts.append(Text(f"{model.name}: {aliases}", style="bold", overflow="fold"))
        parts += [_made(one, ref) for ref, one in versions.versions.items() if ref.rpartition("@")[0] == model.name]
    return Group(*parts)


def _made(origin: Origin, ref: str) -> RenderableType:
    """Show the base, the data and the score of a version, as a paragraph: names may be longer than any column."""
    of = f" on {origin.data} ({origin.rows:,} rows)" if origin.data else ""
    score = ", not scored"
    if origin.score is not None:
        low, high = (f"{bound:.3f}" for bound in (origin.score.low, origin.score.high))
        score = f": {metric_label(origin.metric)} {origin.score.value:.3f} [{low}, {high}]"
    return Padding(Text(f"@{ref.rpartition('@')[2]}  {origin.base}{of}{score}", overflow="fold"), (0, 0, 0, 2))


def story(history: Story) -> RenderableType:
    """Show the versions of a model with their origins, and the history of its aliases."""
    table = wrapping_table("version", "outcome", "made", "from", "bytes", "aliases")
    for version in history.versions:
        aliases = ", ".join(alias for alias, number in history.aliases.items() if number == version.number)
        size = "deleted" if version.ref in history.collected else f"{version.size:,}"
        table.add_row(version.ref, version.outcome, version.created, _origin(version), size, aliases)
    made = [_made(one, ref) for ref, one in history.origins.items()]
    newest = history.versions[-1]
    headline = [Text(f"{newest.ref}: {newest.headline}")] if newest.headline else []
    formats = [
        f"{ref} as {one.format}: {one.size:,} bytes, {one.verdict}{f' (forced: {one.forced})' if one.forced else ''}"
        for ref, kept in history.artifacts.items()
        for one in kept
    ]
    return Group(table, *made, *headline, *map(Text, formats), *(Text(_described(move)) for move in history.history))


def move(moved: Move, name: str) -> RenderableType:
    """Show the effect of a promotion or a rollback."""
    removed = f"; {name} has no {moved.alias} now" if moved.after is None else ""
    return Text(f"{name}: {_described(moved)}{removed}", overflow="fold")


def registered(version: Version) -> RenderableType:
    """Show a version that was registered."""
    return Text(f"{version.ref} ({version.outcome}), from {_origin(version)}", overflow="fold")


def after_run(run_id: str, out: Path) -> str:
    """Return the version that a run was registered as, and how to use it if the gate lets it pass.

    Empty if it was not registered.
    """
    registry = Registry(out)
    version = registry.of_run(run_id)
    if version is None:
        return ""
    if refusal(registry, version):
        return f"Version: {version.ref} ({version.outcome})"
    return f"Version: {version.ref}; `fulltune models promote {version.ref}` to use it as {version.name}"


def verified(result: Verified) -> RenderableType:
    """Show that no file is missing or corrupt."""
    return Text(f"{len(result.versions)} versions, {result.files} files, {result.bytes:,} bytes read: all as written")


def garbage(removable: Garbage) -> RenderableType:
    """Show what is deleted, what is kept, and why."""
    table = wrapping_table("version", "", "why")
    for ref in removable.dropped:
        table.add_row(ref, "goes", "nothing needs it")
    for ref, why in removable.kept.items():
        table.add_row(ref, "stays", why)
    freed = f"{len(removable.dropped)} versions, {removable.files} files, {removable.freed_bytes:,} bytes"
    if removable.deleted:
        return Group(table, Text(f"Deleted: {freed}"))
    hint = "; add --delete to do it" if removable.dropped or removable.files else ""
    return Group(table, Text(f"Would delete: {freed}{hint}"))


def published(result: Published) -> RenderableType:
    """Show where a version was written, and the size of a delta."""
    lines = [f"{result.version} is in {result.folder}"] if result.folder else []
    if result.delta:
        delta = result.delta
        lines.append(
            f"{delta.path}: {delta.delta_bytes:,} bytes, {delta.ratio:.1%} of the model's {delta.tuned_bytes:,}; "
            f"{delta.as_difference} of {delta.tensors} tensors as a difference; both directions checked"
        )
    lines += [f"{result.version} is at {result.pushed}"] if result.pushed else []
    return Text("\n".join(lines), overflow="fold")


def restored(result: Restored) -> RenderableType:
    """Show what a delta restored."""
    return Text(f"The {result.side} model, SHA-256 {result.sha256}, is in {result.folder}", overflow="fold")


def _origin(version: Version) -> str:
    parents = f", of {', '.join(version.lineage.parents)}" if version.lineage.parents else ""
    return f"{version.lineage.source}{parents}"


def _described(move: Move) -> str:
    before, after = ("nothing" if number is None else str(number) for number in (move.before, move.after))
    return f"{move.at} {move.alias} {before} → {after} ({move.action} by {move.who}): {move.reason}"
