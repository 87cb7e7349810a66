"""Promote versions through a gate, and roll them back.

A version is promoted if its run was accepted, if it lost no more than the budget allows, and if it is better than the
current version of the alias, by the paired test on the deciding metric; with ``promote.require: not-worse`` in its
config, if it is not worse by ``promote.margin``. Anything else needs ``force``: a reason, which is recorded.
"""

from __future__ import annotations

from pathlib import Path

from fulltune.config import PromoteConfig
from fulltune.errors import IncompatibleError, Problem, PromotionRefused, StoreError
from fulltune.metrics.run_comparison import compare
from fulltune.records.run import read_record
from fulltune.runtime.config_file import read_mapping
from fulltune.store.registry.registry import PRODUCTION, Move, Registry, Version

_FORCE = 'or give a reason with --force "…", which is recorded in the history'


def promote(
    registry: Registry, version: Version, alias: str = PRODUCTION, *, force: str | None = None, who: str | None = None
) -> Move:
    """Point an alias at a version that is intact and passes the gate.

    Args:
        registry: Registry of the version and the alias.
        version: The version to promote.
        alias: The alias.
        force: Reason for bypassing the gate; None applies the gate.
        who: The user who promotes it; the current one by default.

    Raises:
        PromotionRefused: The gate failed; lists all reasons.
        StoreError: The version is damaged, or the alias was moved in the meantime.
    """
    if force is not None and not force.strip():
        raise PromotionRefused("the reason is empty", expected='a reason, as in --force "the data has changed"')
    current = registry.aliases(version.name).get(alias)
    if current == version.number:
        raise StoreError(f"{version.ref} is {alias} already", fix="there is nothing to do")
    folder = registry.checkout(version)
    if force is not None:
        reason = f"forced: {force.strip()}"
    else:
        before = None if current is None else registry.version(f"{version.name}@{current}")
        reason = _passed(registry, version, folder, before)
    return registry.move(version, alias, expected=current, action="promote", reason=reason, who=who)


def refusal(registry: Registry, version: Version, alias: str = PRODUCTION) -> str:
    """Return why the gate would refuse a version; empty if it would pass. Its own bytes are not verified."""
    current = registry.aliases(version.name).get(alias)
    before = None if current in (None, version.number) else registry.version(f"{version.name}@{current}")
    try:
        _passed(registry, version, registry.folder(version), before)
    except PromotionRefused as error:
        return "; ".join(problem.found for problem in error.problems)
    return ""


def rollback(
    registry: Registry,
    name: str,
    alias: str = PRODUCTION,
    *,
    to: int | None = None,
    reason: str = "",
    who: str | None = None,
) -> Move:
    """Point an alias back at its previous version, after reading all bytes of that version.

    An alias that has pointed at no other version before is removed.

    Args:
        registry: Registry of the model.
        name: The model.
        alias: The alias.
        to: Number of a version that the alias pointed at before; by default the previous one.
        reason: Recorded in the history.
        who: The user who rolls it back; the current one by default.

    Raises:
        StoreError: There is no such model or alias, the alias was rolled back already, or the target is damaged.
    """
    registry.versions(name)  # an unknown model is another error than a missing alias
    moves = registry.history(name, alias)
    current = registry.aliases(name).get(alias)
    if current is None:
        raise StoreError(
            f"{name} has no alias {alias!r}",
            expected="an alias to point back at an earlier version",
            fix=registry.creating(name, alias),
        )
    number = _before(moves, name, alias) if to is None else _earlier(moves, to, current, name, alias)
    if number is None:
        why = reason.strip() or f"version {current} was the first"
        return registry.remove(name, alias, expected=current, reason=why, who=who)
    version = registry.version(f"{name}@{number}")
    registry.checkout(version)
    why = reason.strip() or f"back from version {current}"
    return registry.move(version, alias, expected=current, action="rollback", reason=why, who=who)


def _before(moves: list[Move], name: str, alias: str) -> int | None:
    """Return the number of the previous version; None if there was no alias before."""
    last = moves[-1]
    if last.action == "rollback":
        raise StoreError(
            f"{alias} of {name} was rolled back already, from version {last.before} to {last.after}",
            expected="one roll-back per promotion",
            fix="name the version to go back to with --to, or promote one",
        )
    return last.before


def _earlier(moves: list[Move], to: int, current: int, name: str, alias: str) -> int:
    known = sorted({number for move in moves for number in (move.before, move.after) if number not in (None, current)})
    if to in known:
        return to
    problem = f"{alias} of {name} is version {to} now"
    if to != current:
        problem = f"{alias} of {name} was never version {to}"
    expected = f"one of {', '.join(map(str, known))}" if known else "a version that it pointed at before"
    raise StoreError(problem, expected=expected, fix=f"to promote it, use `fulltune models promote {name}@{to}`")


def _passed(registry: Registry, version: Version, folder: Path, before: Version | None) -> str:
    """Return the reason, in one sentence, for which the gate accepts a version."""
    problems = [*_unfit(version), *_forgotten(version, folder)]
    headline = f"{version.outcome}; {version.name} had no such alias before"
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
        expected = "a run that was scored against its baselines, which averaged and interpolated models are not"
    if version.outcome == "undecided":
        expected = "a run that shows that tuning helped"
    headline = f": {version.headline.rstrip('.')}" if version.outcome == "undecided" else ""
    return [Problem(f"{version.ref} is {version.outcome}{headline}", expected, f"promote another version, {_FORCE}")]


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
        if lost.verdict == "lost"
    ]


def _settings(folder: Path) -> PromoteConfig:
    """Return the section ``promote`` of the config of a run; its defaults for a version without a config."""
    path = folder / "config.yaml"
    return PromoteConfig.model_validate(read_mapping(path).get("promote") or {}) if path.is_file() else PromoteConfig()


def _better(folder: Path, before: Path, version: Version, current: Version) -> tuple[str, list[Problem]]:
    if "record.json" not in current.files:
        missing = f"{current.ref}, the current version, has no predictions to compare with"
        return "", [Problem(missing, "a run", f"promote {version.ref} with --force and a reason")]
    settings = _settings(folder)
    margin = settings.margin if settings.require == "not-worse" else None
    try:
        comparison = compare(before, folder, margin=margin)
    except IncompatibleError as error:
        fix = f"score both on the same rows, {_FORCE}"
        return "", [Problem(problem.found, problem.expected, fix, field=problem.field) for problem in error.problems]
    except StoreError as error:
        return "", [Problem(str(error), f"predictions of {version.ref} and {current.ref}", f"promote {_FORCE[3:]}")]
    sentence = comparison.headline.replace(comparison.b, version.ref).replace(comparison.a, current.ref)
    if comparison.differences[0].verdict == "improved":
        return sentence, []
    expected = f"better than {current.ref} in {comparison.metric} by the paired test"
    if margin is not None and comparison.not_worse is not None:
        if comparison.not_worse.verdict == "not worse":
            return f"{sentence.rstrip('.')}; not worse by {margin:g} or more (p = {comparison.not_worse.p:.2g}).", []
        expected = f"not worse than {current.ref} in {comparison.metric} by {margin:g} (promote.margin)"
    return "", [Problem(sentence.rstrip("."), expected, f"tune further, score on more rows, {_FORCE}")]
