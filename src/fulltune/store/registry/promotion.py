"""The gate before an alias, and the way back.

A version is promoted when it is better than the alias's current one, by the paired test on the metric that decides, and
when it has forgotten no more than its budget allows. Anything else needs ``force``: a reason, which is kept.
"""

from __future__ import annotations

from pathlib import Path

from fulltune.errors import IncompatibleError, Problem, PromotionRefused, StoreError
from fulltune.metrics.compare import compare
from fulltune.records.run import read_record
from fulltune.store.registry.registry import PRODUCTION, Move, Registry, Version

_FORCE = 'or give a reason with --force "…", which is kept in the history'


def promote(
    registry: Registry, version: Version, alias: str = PRODUCTION, *, force: str | None = None, who: str | None = None
) -> Move:
    """Point an alias at a version that is whole and passes the gate.

    Args:
        registry: Where both live.
        version: What to promote.
        alias: Which alias.
        force: Why the gate is passed over; None lets it decide.
        who: Who does it; the user by default.

    Raises:
        PromotionRefused: The gate says no, with every reason at once.
        StoreError: The version is damaged, or the alias moved meanwhile.
    """
    if force is not None and not force.strip():
        raise PromotionRefused("an empty reason", expected='why, as in --force "the data has changed"')
    current = registry.aliases(version.name).get(alias)
    if current == version.number:
        raise StoreError(f"{version.ref} is {alias} already", fix="nothing has to be done")
    folder = registry.checkout(version)
    if force is not None:
        reason = f"forced: {force.strip()}"
    else:
        before = None if current is None else registry.version(f"{version.name}@{current}")
        reason = _passed(registry, version, folder, before)
    return registry.move(version, alias, expected=current, action="promote", reason=reason, who=who)


def rollback(
    registry: Registry,
    name: str,
    alias: str = PRODUCTION,
    *,
    to: int | None = None,
    reason: str = "",
    who: str | None = None,
) -> Move:
    """Point an alias back at what it pointed at before, once every byte of that has been read.

    Args:
        registry: Where the model lives.
        name: The model.
        alias: Which alias.
        to: A number that the alias has pointed at before; the one before the current by default.
        reason: Kept in the history.
        who: Who does it; the user by default.

    Raises:
        StoreError: There is nothing to go back to, it was gone back already, or the target is missing or damaged.
    """
    moves, current = registry.history(name, alias), registry.aliases(name).get(alias)
    if current is None:
        raise StoreError(f"{name} has no {alias!r}", fix=f"`fulltune models promote {name}` makes one")
    number = _before(moves, name, alias) if to is None else _earlier(moves, to, current, name, alias)
    version = registry.version(f"{name}@{number}")
    registry.checkout(version)
    why = reason.strip() or f"back from version {current}"
    return registry.move(version, alias, expected=current, action="rollback", reason=why, who=who)


def _before(moves: list[Move], name: str, alias: str) -> int:
    last = moves[-1]
    if last.action == "rollback":
        raise StoreError(
            f"{alias} of {name} was rolled back already, from version {last.before} to {last.after}",
            expected="one step back after a promotion",
            fix="name the version to go back to with --to, or promote one",
        )
    if last.before is None:
        raise StoreError(
            f"{name}@{last.after} is the first that {alias} pointed at",
            expected="a version before it",
            fix=f"`fulltune models promote {name}@N` moves it to another",
        )
    return last.before


def _earlier(moves: list[Move], to: int, current: int, name: str, alias: str) -> int:
    known = sorted({number for move in moves for number in (move.before, move.after) if number not in (None, current)})
    if to in known:
        return to
    found = f"{alias} of {name} is version {to} now" if to == current else f"{alias} of {name} was never version {to}"
    expected = f"one of {', '.join(map(str, known))}" if known else "a version that it pointed at before"
    raise StoreError(found, expected=expected, fix=f"`fulltune models promote {name}@{to}` if that is what you want")


def _passed(registry: Registry, version: Version, folder: Path, before: Version | None) -> str:
    """Why the gate lets a version through, in a sentence."""
    problems = [*_unfit(version), *_forgotten(version, folder)]
    headline = f"{version.outcome}; nothing was there before"
    if before is not None and "record.json" in version.files:
        headline, worse = _better(folder, registry.checkout(before), version, before)
        problems += worse
    if problems:
        raise PromotionRefused(problems)
    return headline


def _unfit(version: Version) -> list[Problem]:
    if version.outcome == "accepted":
        return []
    expected = "an accepted run"
    if version.outcome == "unjudged":
        expected = "a run that was scored against its baselines: what was averaged or interpolated was not"
    return [Problem(f"{version.ref} is {version.outcome}", expected, f"promote another version, {_FORCE}")]


def _forgotten(version: Version, folder: Path) -> list[Problem]:
    if "record.json" not in version.files:
        return []
    return [
        Problem(
            f"{version.ref} lost {lost.change:.1%} of {name}",
            f"at most {lost.budget:.1%}",
            f"see `fulltune models interpolate {version.lineage.source}`, {_FORCE}",
        )
        for name, lost in read_record(folder / "record.json").retention.items()
        if lost.verdict == "forgotten"
    ]


def _better(folder: Path, before: Path, version: Version, current: Version) -> tuple[str, list[Problem]]:
    if "record.json" not in current.files:
        missing = f"{current.ref}, which is there now, has no predictions to compare with"
        return "", [Problem(missing, "a run", f"promote {version.ref} with --force and a reason")]
    try:
        found = compare(folder, before)
    except IncompatibleError as error:
        fix = f"score both on the same rows, {_FORCE}"
        return "", [Problem(problem.found, problem.expected, fix, field=problem.field) for problem in error.problems]
    except StoreError as error:
        return "", [Problem(str(error), f"predictions of {version.ref} and {current.ref}", f"promote {_FORCE[3:]}")]
    sentence = found.headline.replace(found.a, version.ref).replace(found.b, current.ref)
    if found.differences[0].verdict == "improved":
        return sentence, []
    expected = f"better than {current.ref} in {found.metric} by the paired test"
    return "", [Problem(sentence.rstrip("."), expected, f"tune further, score on more rows, {_FORCE}")]
