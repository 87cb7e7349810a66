"""What regularisers add to a job, from the config alone: sequences, memory, and a word of advice."""

from __future__ import annotations

from fulltune.config import Config

_GIB = 2**30


def needs_general_text(config: Config) -> bool:
    """Whether something is learnt from, or measured on, general text."""
    wanted = config.regularize
    return bool(wanted.replay or wanted.ewc or wanted.distill)


def replayed(config: Config, sequences: int) -> int:
    """Sequences of general text that make up ``regularize.replay`` of an epoch beside ``sequences`` of the task."""
    share = config.regularize.replay
    return round(sequences * share / (1 - share))


def extra_copies(config: Config) -> int:
    """Copies of the weights that stay in memory beside the model: the base's, and what each of them weighs."""
    wanted = config.regularize
    return int(bool(wanted.l2_sp or wanted.ewc)) + int(bool(wanted.ewc)) + int(bool(wanted.distill))


def advice_on_regularizers(config: Config, parameters: int) -> list[str]:
    """One line for each cost that is easily overlooked, and for settings that work against each other."""
    wanted, lines = config.regularize, []
    copies = extra_copies(config)
    if copies:
        words = "1 copy" if copies == 1 else f"{copies} copies"
        lines.append(
            f"The regularizers hold {words} of the weights beside the model: {4 * copies * parameters / _GIB:.1f} GiB."
        )
    if wanted.distill:
        lines.append("regularize.distill reads general text at every step, once by the base and once by the model.")
    if wanted.l2_sp and config.train.weight_decay:
        lines.append("regularize.l2_sp pulls to the base while train.weight_decay pulls to 0; set the latter to 0.")
    return lines
