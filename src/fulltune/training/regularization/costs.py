"""Describe the regularizers of a config, before any model is loaded: strengths, sequences, memory, and advice."""

from __future__ import annotations

from fulltune.config import Config, RegularizeConfig

_GIB = 2**30


def strengths(config: Config) -> dict[str, float]:
    """Return the strength of each active regularizer by its key in ``regularize``, or ``trainer`` for NEFTune."""
    wanted = config.regularize
    values = {name: float(getattr(wanted, name)) for name in ("replay", "l2_sp", "ewc", "distill", "r_drop")}
    active = {name: value for name, value in values.items() if value}
    if wanted.layer_decay != 1:
        active["layer_decay"] = wanted.layer_decay
    if wanted.dropout is not None:
        active["dropout"] = wanted.dropout
    noise = config.trainer.get("neftune_noise_alpha")
    return active | ({"neftune_noise_alpha": float(noise)} if noise else {})


def needs_general_text(regularize: RegularizeConfig) -> bool:
    """Return True if training reads general text, or if Fisher information is estimated on it."""
    return bool(regularize.replay or regularize.ewc or regularize.distill)


def replayed(regularize: RegularizeConfig, sequences: int) -> int:
    """Return the number of general-text sequences per epoch, so that they are the fraction ``replay`` of all.

    Args:
        regularize: The section ``regularize``.
        sequences: Sequences of the task per epoch.
    """
    return round(sequences * regularize.replay / (1 - regularize.replay))


def extra_copies(regularize: RegularizeConfig) -> int:
    """Return how many copies of the weights are kept in memory alongside the model.

    L2-SP and EWC share one copy of the base, EWC adds the Fisher information of each weight, and distillation keeps the
    base as a teacher.
    """
    base = bool(regularize.l2_sp or regularize.ewc)
    fisher = bool(regularize.ewc)
    teacher = bool(regularize.distill)
    return base + fisher + teacher


def advice_on_regularizers(config: Config, parameters: int) -> list[str]:
    """Return one line for each cost that is easily overlooked, and for settings that work against each other."""
    wanted = config.regularize
    lines = []
    copies = extra_copies(wanted)
    if copies:
        words = "1 copy" if copies == 1 else f"{copies} copies"
        size = 4 * copies * parameters
        written = f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{max(1, round(size / 2**20))} MiB"
        lines.append(f"The regularizers keep {words} of the weights alongside the model: {written}.")
    if wanted.distill:
        lines.append("regularize.distill reads general text at every step, once by the base and once by the model.")
    if wanted.l2_sp and config.train.weight_decay:
        lines.append("regularize.l2_sp pulls to the base while train.weight_decay pulls to 0; set the latter to 0.")
    return lines
