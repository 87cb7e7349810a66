"""The description of a starter: ``training.json`` for programs and a model card for people."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fulltune.runtime.files import atomic_text

_LANGUAGES = "---\nlicense: apache-2.0\nlanguage: [en, ru]\nlibrary_name: transformers\n---\n"

_LIMITS = {
    "gpt2": "It continues text in the manner of old books and knows no facts. It was never taught to follow "
    "instructions or to be safe.",
    "bert": "It has read whole windows of prose, never single sentences, and has no next-sentence head.",
    "t5": "It restores spans of prose; it has seen no task, no table and no SQL.",
}


class Account(BaseModel):
    """Training record of a starter. Losses are nats per ``unit``; ``before`` is the training that it continues."""

    model_config = ConfigDict(frozen=True)

    name: str
    objective: str
    unit: str
    parameters: int
    corpus_sha256: str
    corpus_files: tuple[str, ...]
    held_out_files: tuple[str, ...]
    held_out_windows: int
    windows: int
    window: int
    batch_size: int
    epochs: float
    steps: int
    learning_rate: float
    precision: str
    untrained_loss: float
    trained_loss: float
    tokens_per_byte: float
    curve: tuple[tuple[int, float], ...]
    before: Account | None = None

    def bits_per_byte(self, loss: float) -> float:
        """Return bits per byte of held-out text, for a model that predicts every token."""
        return loss / math.log(2) * self.tokens_per_byte


def write_account(folder: Path, account: Account) -> None:
    """Write ``training.json`` and ``README.md`` next to the weights."""
    atomic_text(folder / "training.json", account.model_dump_json(indent=1) + "\n")
    atomic_text(folder / "README.md", card(account))


def card(account: Account) -> str:
    """Return the model card in Markdown."""
    a = account
    rows = [f"| loss per {a.unit} (nats) | {a.untrained_loss:.3f} | {a.trained_loss:.3f} |"]
    if a.name == "gpt2":
        before, after = a.bits_per_byte(a.untrained_loss), a.bits_per_byte(a.trained_loss)
        rows.append(f"| bits per byte | {before:.3f} | {after:.3f} |")
    table = "\n".join(rows)
    return f"""{_LANGUAGES}
# starter:{a.name}

A small {a.name.upper()} with {a.parameters:,} parameters, stored in half precision, so that fulltune runs offline on
real pretrained weights. It is there to learn the tool with and to test on, not to deploy.

**Made from** public-domain books in English and Russian ({len(a.corpus_files)} files, SHA-256 of all
`{a.corpus_sha256[:16]}`), with `python -m starters.make` (tools/).

{"".join(map(_training, _stages(a)))}The loss curve is in `training.json`.

**Held-out books** ({a.held_out_windows} windows of {", ".join(a.held_out_files)}):

| | {"before" if a.before else "untrained"} | trained |
|---|---|---|
{table}

**Tokenizer.** Byte-level BPE: every text comes back as it was, in any language and in SQL. Digits stand alone.

**Limits.** {_LIMITS[a.name]} Its books are old, and so are their views.
"""


def _stages(account: Account) -> list[Account]:
    """Return the account of every training, the first one first."""
    return [*(_stages(account.before) if account.before else []), account]


def _training(account: Account) -> str:
    a = account
    tokens = a.steps * a.batch_size * a.window
    title = "Training, continued" if a.before else "Training"
    return f"""**{title}.** {a.objective[0].upper()}{a.objective[1:]};
{a.steps:,} steps of {a.batch_size} windows of {a.window} tokens
({tokens / 1e6:.1f} million tokens, {a.epochs:.2g} epochs); AdamW, highest rate {a.learning_rate:g}, cosine;
{a.precision}.
"""
