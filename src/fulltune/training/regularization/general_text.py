"""Provide general text to train on in addition to the task: sampled from the base, or from a file; never the probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fulltune.config import Config, DataConfig
from fulltune.data.load import Column, load_table
from fulltune.errors import ConfigError, Problem
from fulltune.models import inference, token_ids
from fulltune.models.bundle import Bundle, Head
from fulltune.models.token_ids import IGNORED
from fulltune.store.cache import cache_key, cache_path, cached_rows
from fulltune.tasks.base import Features
from fulltune.training.regularization.costs import needs_general_text
from fulltune.training.regularization.denoising import corrupted, masked

#: Largest number of tokens of a sequence of general text.
LONGEST = 256

#: Number of texts that are sampled from the base; if more sequences are needed, they are repeated.
SAMPLED = 256

#: Increase it when the texts that are sampled from a base change.
VERSION = 1

_FROM_BASE = "base"


def check(config: Config, head: Head, base: Bundle) -> None:
    """Check that the base and the task support the regularizers of the config.

    Raises:
        ConfigError: They do not; all problems at once.
    """
    wanted = config.regularize
    problems = list[Problem]()
    if wanted.replay and head != "lm":
        problems.append(
            Problem(
                "replay for a model that predicts classes",
                "a task whose output is text",
                "general text has no class to train on; use l2_sp, ewc, distill or layer_decay",
                field="regularize.replay",
            )
        )
    problems += [
        Problem(
            f"{name} with an encoder without a language-model head",
            "a base that computes the likelihood of text",
            "use l2_sp or layer_decay",
            field=f"regularize.{name}",
        )
        for name in ("ewc", "distill")
        if getattr(wanted, name) and not base.has_lm_head
    ]
    if needs_general_text(wanted) and wanted.replay_from == _FROM_BASE and base.family != "decoder":
        problems.append(
            Problem(
                f"general text sampled from a base of the family {base.family}",
                "a file with a `text` column",
                "text can be sampled from a decoder only; set regularize.replay_from to a file",
                field="regularize.replay_from",
            )
        )
    probe = config.guards.forgetting.probe if config.guards.forgetting else ""
    if needs_general_text(wanted) and _same_file(wanted.replay_from, probe):
        problems.append(
            Problem(
                "the probe of guards.forgetting",
                "other general text",
                "text of the training does not measure retention; choose another file",
                field="regularize.replay_from",
            )
        )
    if problems:
        raise ConfigError(problems)


def general_text(config: Config, base: Bundle, out: Path | None = None) -> list[str]:
    """Return the texts of ``regularize.replay_from``; those of a file are shuffled by the seed.

    Args:
        config: The config of the run.
        base: The untrained base, from which texts are sampled unless a file is set.
        out: Runs folder in which sampled texts are cached by the hash of the base; None for no cache.

    Raises:
        DataError: The file is missing or has no column ``text``.
    """
    source = config.regularize.replay_from
    if source != _FROM_BASE:
        table = load_table(source, (Column("text", str),), DataConfig(train=source)).complete()
        return [str(row.fields["text"]) for row in table]
    room = min(LONGEST, base.window) - 1
    return [text for text in _sampled(config, base, room, out) if text.strip()]


def _sampled(config: Config, base: Bundle, room: int, out: Path | None) -> Iterator[str]:
    size = config.evaluation.batch_size
    seed = config.train.seed
    if out is None:
        yield from inference.sample(base, SAMPLED, size, room, seed)
        return
    key = {"general text": VERSION, "base": base.info.sha256, "seed": seed, "batch": size, "tokens": room}
    path = cache_path(out, cache_key(key | {"count": SAMPLED}))
    known = cached_rows(path, lambda: inference.sample(base, SAMPLED, size, room, seed))
    yield from (str(text) for text in known)


def encode(base: Bundle, texts: Sequence[str]) -> list[Features]:
    """Encode texts as training sequences with the objective of the base's pretraining.

    A decoder predicts the next token, an encoder-decoder restores spans, an encoder restores masked tokens. Texts
    without a label are dropped.
    """
    encoded = (_encoded(base, text, row) for row, text in enumerate(texts))
    return [features for features in encoded if features is not None]


def _encoded(base: Bundle, text: str, row: int) -> Features | None:
    name = f"general:{row}"
    if base.family == "encoder-decoder":
        pair = corrupted(base, text, row)
        return Features(pair.context, pair.target, name) if pair.target else None
    if base.family == "encoder":
        ids, hidden = masked(base, text, row)
        labels = [hidden.get(place, IGNORED) for place in range(len(ids))]
        return Features(ids, labels, name) if hidden else None
    start = token_ids.start_ids(base)
    room = min(LONGEST, base.window) - len(start)
    tokens = [*token_ids.text_ids(base, text), *token_ids.end_ids(base)][:room]
    ids = start + tokens
    given = max(1, len(start))  # no token predicts the first one
    return Features(ids, [IGNORED] * given + ids[given:], name) if len(ids) > given else None


def stand_ins(count: int) -> list[Features]:
    """Return placeholders of the largest length, for a plan before there is any general text."""
    return [Features([0] * LONGEST, [0] * LONGEST, "general")] * count


def mixed(features: Sequence[Features], general: Sequence[Features], count: int) -> list[Features]:
    """Return the sequences of the task and ``count`` of general text, which are repeated if there are fewer."""
    return [*features, *(general[index % len(general)] for index in range(count if general else 0))]


def _same_file(a: str, b: str) -> bool:
    if a == b:
        return True
    return Path(a).exists() and Path(b).exists() and Path(a).samefile(b)
