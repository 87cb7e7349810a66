"""Give advice on a config: values that are unusual for a model of this size."""

from __future__ import annotations

from fulltune.config import Config
from fulltune.training.arguments import warmup_steps

#: Models with fewer parameters need higher learning rates.
SMALL_MODEL = 50_000_000

#: And those with fewer than this, such as the starters, higher ones still.
TINY_MODEL = 10_000_000

#: Usual learning rates of the methods that train few parameters; ten times as high for small models. Hu et al.
#: 2022 and Dettmers et al. 2023 (LoRA: 1e-4 to 5e-4; about ten times full's: Schulman et al. 2025), Ben Zaken et al.
#: 2022 (BitFit: 1e-4 to 1e-3), Lester et al. 2021 (prompts: 0.3 at most).
_USUAL_RATES = {
    "lora": (5e-5, 1e-3),
    "qlora": (5e-5, 1e-3),
    "prompt-tuning": (1e-3, 0.3),
    "linear-probe": (1e-4, 1e-2),
    "bitfit": (1e-4, 1e-2),
}


def usual_rates(parameters: int, *, is_encoder_decoder: bool = False, method: str = "full") -> tuple[float, float]:
    """Return the lowest and the highest usual learning rate for a model of this size.

    Full fine-tuning: Devlin et al. 2019 (BERT), appendix A.3; 1e-4 to 3e-4 for T5 with AdamW (documentation of T5 in
    transformers). Those of the starters are measured (docs/starters.md).
    """
    if method in _USUAL_RATES:
        low, high = _USUAL_RATES[method]
        return low, high * (10 if parameters < SMALL_MODEL and method != "prompt-tuning" else 1)
    if parameters < TINY_MODEL:
        return 2e-5, 5e-3
    if parameters < SMALL_MODEL:
        return 2e-5, 1e-3
    return 2e-5, 3e-4 if is_encoder_decoder else 5e-5


def advice(config: Config, steps: int, parameters: int, *, is_encoder_decoder: bool = False) -> list[str]:
    """Return one line for each value outside the usual range; this is never an error.

    The ranges of batch size, learning rate and weight decay are from Devlin et al. 2019 (BERT), appendix A.3. A warm-up
    of 500 to 2000 steps is usual for runs of tens of thousands of steps, and 1% to 20% of the steps for shorter runs.

    Args:
        config: The config of the run.
        steps: Optimizer steps of the run.
        parameters: Number of parameters of the model.
        is_encoder_decoder: True for a model with two stacks.
    """
    train = config.train
    lines = []
    batch = train.batch_size * train.accumulation
    warmup = warmup_steps(train, steps)
    if not 4 <= batch <= 32:
        lines.append(f"The effective batch is {batch} rows; 4 to 32 is usual.")
    usual = usual_rates(parameters, is_encoder_decoder=is_encoder_decoder, method=config.method)
    lines += _advice_on_rate(train.rate, usual, parameters, config.method)
    if warmup >= steps:
        lines.append(f"Warm-up takes {warmup} of {steps} steps: the learning rate never reaches train.learning_rate.")
    elif not 0.01 * steps <= warmup <= max(1, 0.2 * steps):
        lines.append(f"Warm-up takes {warmup} of {steps} steps; 1% to 20% of them is usual (500 to 2000 in long runs).")
    pulls_to_base = config.regularize.l2_sp and train.weight_decay == 0  # 0 is then what init writes, and right
    if not 0 < train.weight_decay <= 0.1 and not pulls_to_base:
        lines.append(f"train.weight_decay is {train.weight_decay:g}; 0.01 is usual.")
    lines += _advice_on_unread(config)
    lines += [
        f"trainer.{name} computes in less than 32 bits."
        for name in ("bf16", "fp16", "tf32")
        if config.trainer.get(name)
    ]
    return lines


def advice_on_choice(config: Config) -> list[str]:
    """Return one line if the run cannot choose the best step."""
    has_valid = config.data.valid is not None or config.data.split is not None
    if config.guards.overfitting is None or (has_valid and config.train.evaluations):
        return []
    if has_valid:
        return ["train.evaluations is 0: the weights of the last step are used, and overfitting is not detected."]
    curve = (
        "; the evaluation curve uses rows of eval, which must not choose the step" if config.train.evaluations else ""
    )
    return [
        f"Without data.valid the weights of the last step are used{curve}. "
        "With `data.valid: 0.1` the best step is kept, and a run that overfits is stopped."
    ]


#: Options that not all built-in tasks read, with the tasks that do.
_READ_BY = {
    "data.databases": ("text2sql",),
    "data.schemas": ("text2sql",),
    "data.schema_in_prompt": ("text2sql",),
    "data.instruction": ("seq2seq", "text2sql"),
    "data.chat": ("causal-lm", "seq2seq", "text2sql"),
    "data.max_target_length": ("seq2seq", "text2sql"),
    "evaluation.sql_seconds": ("text2sql",),
    "evaluation.continuations": ("causal-lm",),
    "evaluation.max_new_tokens": ("causal-lm", "seq2seq", "text2sql"),
    "speed.packing": ("causal-lm",),
}


def _advice_on_unread(config: Config) -> list[str]:
    """Return one line for each option that is set and that the task does not read."""
    if config.task not in ("classification", "causal-lm", "seq2seq", "text2sql"):
        return []
    lines = []
    for key, tasks in _READ_BY.items():
        section, name = key.split(".")
        options = getattr(config, section)
        default = type(options).model_fields[name].default
        if config.task not in tasks and getattr(options, name) != default:
            lines.append(f"{key} has no effect: the task {config.task} does not read it.")
    return lines


def _advice_on_rate(rate: float, usual: tuple[float, float], parameters: int, method: str) -> list[str]:
    low, high = usual
    if low <= rate <= high:
        return []
    if method in _USUAL_RATES:
        return [f"train.learning_rate is {rate:g}; {low:g} to {high:g} is usual for {method}."]
    if parameters < SMALL_MODEL:
        size = f"a model of {parameters:,} parameters"
        return [f"train.learning_rate is {rate:g}; {low:g} to {high:g} is usual for {size}."]
    risk = "higher rates tend to forget or to diverge" if rate > high else "lower rates train slowly"
    return [f"train.learning_rate is {rate:g}; {low:g} to {high:g} is usual ({risk})."]
