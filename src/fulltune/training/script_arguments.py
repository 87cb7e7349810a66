"""Define ``fulltune.TrainingArguments``, which accepts the arguments of scripts written since 2020."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import transformers

from fulltune.training.old_arguments import OLD_ARGUMENTS, note, translated, translated_values


@dataclass
class OldArguments:
    """Arguments of earlier versions with their defaults, which :mod:`fulltune.training.old_arguments` translates."""

    adafactor: bool = False
    dispatch_batches: bool | None = None
    evaluate_during_training: bool = False
    evaluation_strategy: str | None = None
    fp16_backend: str = "auto"
    fp16_opt_level: str = "O1"
    fsdp_min_num_params: int = 0
    fsdp_transformer_layer_cls_to_wrap: str | None = None
    group_by_length: bool = False
    half_precision_backend: str = "auto"
    include_inputs_for_metrics: bool = False
    include_tokens_per_second: bool = False
    jit_mode_eval: bool = False
    logging_dir: str | None = None
    model_parallel: bool = False
    mp_parameters: str = ""
    no_cuda: bool = False
    overwrite_output_dir: bool = False
    past_index: int = -1
    per_gpu_eval_batch_size: int | None = None
    per_gpu_train_batch_size: int | None = None
    push_to_hub_model_id: str | None = None
    push_to_hub_organization: str | None = None
    push_to_hub_token: str | None = None
    ray_scope: str = "last"
    save_safetensors: bool = True
    sharded_ddp: str = ""
    split_batches: bool | None = None
    torchdynamo: str | None = None
    tpu_metrics_debug: bool = False
    tpu_num_cores: int | None = None
    use_ipex: bool = False
    use_legacy_prediction_loop: bool = False
    use_mps_device: bool = False
    warmup_ratio: float = 0.0
    xpu_backend: str | None = None


class _Fields:
    """Return the dataclass fields of a class with the old arguments, and those of an object without them.

    Parsers of a command line read the fields of the class. An object has only current arguments, so that a copy or a
    file of it is the same as that of the library.
    """

    def __init__(self, fields: dict[str, dataclasses.Field[Any]]) -> None:
        self._of_class = fields
        self._of_objects = {name: one for name, one in fields.items() if name not in OLD_ARGUMENTS}

    def __get__(self, instance: Any, owner: type) -> dict[str, dataclasses.Field[Any]]:
        return self._of_class if instance is None else self._of_objects


class _Translating:
    """Translate the old arguments before the library reads the current ones."""

    _given: frozenset[str] = frozenset()
    _is_ready = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # A subclass that is no dataclass has the fields of its base.
        for kind in cls.__mro__:
            fields = vars(kind).get("__dataclass_fields__")
            if issubclass(kind, _Translating) and isinstance(fields, dict):
                type.__setattr__(kind, "__dataclass_fields__", _Fields(fields))
        self = super().__new__(cls)
        self._given = frozenset(kwargs)
        return self

    def __post_init__(self) -> None:
        old = _defaults(type(self), is_old=True)
        new = _defaults(type(self), is_old=False)
        given = self._given
        self._given = frozenset()
        # A parser and a subclass pass every argument; an argument with its default is then treated as not passed.
        knows = given and not given >= {*old, *new}
        passed = {name for name in (*old, *new) if name in given} if knows else set()
        passed |= {name for name, default in (old | new).items() if getattr(self, name) != default}
        asked = {name: getattr(self, name) for name in old if name in passed and getattr(self, name) is not None}
        self._translate(asked, new, passed & new.keys())
        # Any other value takes precedence over a default of a subclass.
        known = _defaults(OldArguments, is_old=True)
        weak = {name: value for name, value in old.items() if name not in asked and value != known[name]}
        self._translate({name: value for name, value in weak.items() if self._is_free(name, new)}, new, ())
        for name, value in translated_values({name: getattr(self, name) for name in new}).items():
            setattr(self, name, value)
        if not passed & {"save_strategy", "save_steps"}:
            self._save_where_evaluated()
        super().__post_init__()  # type: ignore[misc]
        for name, entry in OLD_ARGUMENTS.items():
            if entry.mirrors is not None:
                setattr(self, name, getattr(self, entry.mirrors))
        self._is_ready = True

    def _save_where_evaluated(self: Any) -> None:
        """Write checkpoints after each evaluation, of which the best one is loaded, as versions up to 4.8 did."""
        if not self.load_best_model_at_end:
            return
        outcome = "checkpoints are written after each evaluation; now `save_strategy` must equal `eval_strategy`"
        if self.eval_strategy == "epoch":
            self.save_strategy = "epoch"
            note("load_best_model_at_end without save_strategy", outcome)
        elif self.eval_strategy == "steps" and self.eval_steps and self.save_steps % self.eval_steps:
            self.save_steps = self.eval_steps
            note("load_best_model_at_end without save_steps", outcome)

    def _translate(self, old: dict[str, Any], new: Iterable[str], given: Collection[str]) -> None:
        for name, value in translated(old, {name: getattr(self, name) for name in new}, given).items():
            setattr(self, name, value)

    def _is_free(self, name: str, new: dict[str, Any]) -> bool:
        """Return True if no other argument sets what an old argument sets."""
        return all(getattr(self, key) == new[key] for key in OLD_ARGUMENTS[name].new(getattr(self, name)))

    def __setattr__(self, name: str, value: Any) -> None:
        """Translate an old argument that is set later, as a hyperparameter search does; keep both names equal."""
        super().__setattr__(name, value)
        if not self._is_ready:
            return
        if name in OLD_ARGUMENTS and value is not None:
            for key, one in translated({name: value}, vars(self), ()).items():
                setattr(self, key, one)
        for old, entry in OLD_ARGUMENTS.items():
            if entry.mirrors == name:
                super().__setattr__(old, value)


def _defaults(kind: Any, *, is_old: bool) -> dict[str, Any]:
    """Return the defaults of a class's arguments."""
    defaults = {}
    for one in dataclasses.fields(kind):
        if one.init and (one.name in OLD_ARGUMENTS) == is_old:
            defaults[one.name] = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
    return defaults


@dataclass
class TrainingArguments(_Translating, OldArguments, transformers.TrainingArguments):
    """:class:`transformers.TrainingArguments` that accepts arguments of versions since 3.0."""


@dataclass
class Seq2SeqTrainingArguments(_Translating, OldArguments, transformers.Seq2SeqTrainingArguments):
    """:class:`transformers.Seq2SeqTrainingArguments` that accepts arguments of versions since 3.0."""
