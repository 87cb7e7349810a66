"""Wrap the collator of a trainer as far as the code of its user permits."""

from __future__ import annotations

from typing import Any

from transformers import DataCollatorForLanguageModeling

from fulltune.training.batch_loss import BatchLoss
from fulltune.training.batches.collate import RowCollator
from fulltune.training.user_code import UserCode


def row_collator(inner: Any, given: Any, description: str | None, user: UserCode, loss: BatchLoss) -> RowCollator:
    """Return a collator that adds labels, removes padding and numbers rows, where nothing of the user prevents it.

    Args:
        inner: The collator to wrap.
        given: The collator that the trainer was given, which the library may have wrapped already.
        description: Name of the loader, as the library gives it.
        user: Knows what the user has replaced in the trainer.
        loss: The loss of the trainer.
    """
    is_ours = not user.replaces_loss()
    # A hook does not change what the labels of a text are.
    has_kind = is_ours or user.replaced_loss_reason() == user.hook_reason()
    return RowCollator(
        collate=inner,
        kind=loss.kind() if has_kind else None,
        trim=is_ours and not user.keeps_padding(given, description),
        relabel=type(given) is DataCollatorForLanguageModeling and not given.mlm,
    )
