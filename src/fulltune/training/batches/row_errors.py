"""Explain the errors that transformers raises for rows that a model cannot be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fulltune.errors import FulltuneError, RowError, RowLengthError

#: Largest number of rows in a message.
_SHOWN = 10


@contextmanager
def errors_of_rows(model: Any, batch: Mapping[str, Any]) -> Iterator[None]:
    """Replace errors about the end tokens or the length of rows by a clear one.

    Args:
        model: Unwrapped.
        batch: ``(B, …)`` tensors by name, as they are computed.

    Raises:
        RowError: The classifier reads each row at its end token, but a row has none, or their number differs.
        RowLengthError: The model can be trained only on rows of certain lengths, such as Reformer.
    """
    try:
        yield
    except ValueError as error:
        explained = _explained(model, batch, str(error))
        if explained is None:
            raise
        raise explained from error


def _explained(model: Any, batch: Mapping[str, Any], message: str) -> FulltuneError | None:
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return None
    if "<eos> token" in message:
        return _end_tokens(model, ids)
    if "sequence length" in message and ("multiple of" in message or "axial_pos" in message):
        return _wrong_length(model, ids.shape[1], message)
    return None


def _end_tokens(model: Any, ids: Tensor) -> RowError:
    end = int(model.config.eos_token_id)
    counts = (ids == end).sum(dim=1).tolist()
    without = [row for row, count in enumerate(counts) if not count]
    problem = f"{len(without)} of the {len(counts)} rows of a batch have no end token (rows {_named(without)} of it)"
    if not without:
        problem = f"the rows of a batch have {min(counts)} to {max(counts)} end tokens"
    return RowError(
        f"{problem}; {type(model).__name__} reads each text at its end token (id {end})",
        expected="one end token in every row",
        fix="let the tokenizer add it, truncate long texts before it (truncation=True), and remove it from the texts",
        field="input_ids",
    )


def _named(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:_SHOWN])) + (", …" if len(rows) > _SHOWN else "")


def _wrong_length(model: Any, length: int, message: str) -> RowLengthError:
    return RowLengthError(
        f"{type(model).__name__} cannot be trained on a text of {length} tokens ({message.strip().splitlines()[0]})",
        expected="a model that is trained on texts of any length up to its limit",
        fix="choose another model; with fulltune.Trainer, pad every row to a length that its config allows",
        field="model",
    )
