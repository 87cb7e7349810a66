"""General text to train on beside the task: made up by the base, or from a file. Never the probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fulltune.config import Config, DataConfig
from fulltune.data.load import Column, load_table
from fulltune.errors import ConfigError, Problem
from fulltune.models import inference
from fulltune.models.bundle import Bundle, Head
from fulltune.models.losses import IGNORED
from fulltune.store.cache import cache_key, cache_path, cached_rows
from fulltune.tasks.base import Features
from fulltune.training.regularization.costs import needs_general_text
from fulltune.training.regularization.denoising import corrupted, masked

#: Tokens of a sequence of general text at most.
LONGEST = 256

#: Texts that are made up at most; where more sequences are wanted, they come again.
MADE_UP = 256

#: Raised when the same base would make up other texts.
VERSION = 1

_FROM_BASE = "base"


def check(config: Config, head: Head, base: Bundle) -> None:
    """Whether this base and this task can be regularized as the config asks.

    Raises:
        ConfigError: They cannot; all problems at once.
    """
    wanted, problems = config.regularize, list[Problem]()
    if wanted.replay and head != "lm":
        problems.append(
            Problem(
                "replay for a model that answers with a class",
                "a task that is answered in text",
                "general text has no class, so nothing could be learnt from it; use l2_sp, ewc, distill or layer_decay",
                field="regularize.replay",
            )
        )
    problems += [
        Problem(
            f"{name} with an encoder that has no head for words",
            "a base that gives text a likelihood",
            "use l2_sp or layer_decay",
            field=f"regularize.{name}",
        )
        for name in ("ewc", "distill")
        if getattr(wanted, name) and not base.has_lm_head
    ]
    if needs_general_text(wanted) and wanted.replay_from == _FROM_BASE and base.family != "decoder":
        problems.append(
            Problem(
                f"general text made up by a base of the {base.family} family",
                "a file with a `text` column",
                "only a decoder makes up text from nothing; set regularize.replay_from to a file",
                field="regularize.replay_from",
            )
        )
    probe = config.guards.forgetting.probe if config.guards.forgetting else ""
    if needs_general_text(wanted) and _same_file(wanted.replay_from, probe):
        problems.append(
            Problem(
                "the probe of guards.forgetting",
                "other general text",
                "what is trained on no longer measures retention",
                field="regularize.replay_from",
            )
        )
    if problems:
        raise ConfigError(problems)


def general_text(config: Config, base: Bundle, out: Path | None = None) -> list[str]:
    """The texts of ``regularize.replay_from``, shuffled by the seed where they come from a file.

    Args:
        config: The job.
        base: The untouched base, which makes them up unless a file is named.
        out: Where made-up texts are cached by the base's hash; nowhere by default.

    Raises:
        DataError: The file is missing or has no ``text``.
    """
    source = config.regularize.replay_from
    if source != _FROM_BASE:
        table = load_table(source, (Column("text", str),), DataConfig(train=source))
        return [str(row.fields["text"]) for row in table]
    room = min(LONGEST, base.window) - 1
    made = (text for text in _made_up(config, base, room, out) if text.strip())
    return list(made)


def _made_up(config: Config, base: Bundle, room: int, out: Path | None) -> Iterator[str]:
    size, seed = config.evaluation.batch_size, config.train.seed
    if out is None:
        yield from inference.sample(base, MADE_UP, size, room, seed)
        return
    key = {"general text": VERSION, "base": base.info.sha256, "seed": seed, "batch": size, "tokens": room}
    path = cache_path(out, cache_key(key | {"count": MADE_UP}))
    known = cached_rows(path, lambda: inference.sample(base, MADE_UP, size, room, seed))
    yield from (str(text) for text in known)


def encode(base: Bundle, texts: Sequence[str]) -> list[Features]:
    """Texts as training sequences of the base's own pretraining: the next token for a decoder, restored spans for an
    encoder-decoder, masked tokens for an encoder. Texts with nothing to learn are left out.
    """
    made = (_encoded(base, text, row) for row, text in enumerate(texts))
    return [features for features in made if features is not None]


def _encoded(base: Bundle, text: str, row: int) -> Features | None:
    name = f"general:{row}"
    if base.family == "encoder-decoder":
        pair = corrupted(base, text, row)
        return Features(pair.context, pair.target, name) if pair.target else None
    if base.family == "encoder":
        ids, hidden = masked(base, text, row)
        labels = [hidden.get(place, IGNORED) for place in range(len(ids))]
        return Features(ids, labels, name) if hidden else None
    start = inference.start_ids(base)
    room = min(LONGEST, base.window) - len(start)
    tokens = [*inference.text_ids(base, text), *inference.end_ids(base)][:room]
    ids, given = start + tokens, max(1, len(start))  # nothing predicts the first token of all
    return Features(ids, [IGNORED] * given + ids[given:], name) if len(ids) > given else None


def stand_ins(count: int) -> list[Features]:
    """Sequences as long as general text gets, for a plan that is made before there is any."""
    return [Features([0] * LONGEST, [0] * LONGEST, "general")] * count


def mixed(features: Sequence[Features], general: Sequence[Features], count: int) -> list[Features]:
    """The task's sequences and ``count`` of general text, which come again where there are fewer."""
    return [*features, *(general[index % len(general)] for index in range(count if general else 0))]


def _same_file(a: str, b: str) -> bool:
    if a == b:
        return True
    one, two = Path(a), Path(b)
    return one.exists() and two.exists() and one.samefile(two)
