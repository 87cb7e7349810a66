"""``fulltune.TrainingArguments``: the library's, which takes the arguments of scripts written since 2020."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import transformers

from fulltune.training.old_arguments import OLD_ARGUMENTS, note, translated, translated_values


@dataclass
class OldArguments:
    """Arguments of earlier versions, with the defaults that they had; :mod:`fulltune.training.old_arguments` lists what
    becomes of each.
    """

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
    """The fields of a class with the old arguments, for parsers of a command line, and of its objects without them.

    An object has only arguments of today: copied or written to a file, it reads as the library's own does.
    """

    def __init__(self, fields: dict[str, dataclasses.Field[Any]]) -> None:
        self._of_class = fields
        self._of_objects = {name: one for name, one in fields.items() if name not in OLD_ARGUMENTS}

    def __get__(self, instance: Any, owner: type) -> dict[str, dataclasses.Field[Any]]:
        return self._of_class if instance is None else self._of_objects


class _Translating:
    """Translates the old arguments before the library looks at those of today."""

    _given: frozenset[str] = frozenset()
    _is_ready = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        fields = cls.__dict__.get("__dataclass_fields__")
        if isinstance(fields, dict):
            type.__setattr__(cls, "__dataclass_fields__", _Fields(fields))
        self = super().__new__(cls)
        self._given = frozenset(kwargs)
        return self

    def __post_init__(self) -> None:
        old, new = _defaults(type(self), is_old=True), _defaults(type(self), is_old=False)
        given, self._given = self._given, frozenset()
        # A parser, and a subclass, pass every argument: those with their default mean nothing then.
        knows = given and not given >= {*old, *new}
        passed = {name for name in (*old, *new) if name in given} if knows else set()
        passed |= {name for name, default in (old | new).items() if getattr(self, name) != default}
        asked = {name: getattr(self, name) for name in old if name in passed and getattr(self, name) is not None}
        self._translate(asked, new, passed & new.keys())
        # Defaults of a subclass give way to all others.
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
        """Write checkpoints after evaluations, as of which the best is loaded: they were, up to version 4.8."""
        if not self.load_best_model_at_end:
            return
        outcome = (
            "checkpoints are written after each evaluation; today `save_strategy` has to be that of the evaluations"
        )
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
        """Return True if nothing else sets what an old argument sets."""
        return all(getattr(self, key) == new[key] for key in OLD_ARGUMENTS[name].new(getattr(self, name)))

    def __setattr__(self, name: str, value: Any) -> None:
        """Translate an old argument that is set later, as a search of hyperparameters does; keep both names equal."""
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
    found = {}
    for one in dataclasses.fields(kind):
        if one.init and (one.name in OLD_ARGUMENTS) == is_old:
            found[one.name] = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
    return found


@dataclass
class TrainingArguments(_Translating, OldArguments, transformers.TrainingArguments):
    """:class:`transformers.TrainingArguments` that takes arguments of versions since 3.0 as well."""


@dataclass
class Seq2SeqTrainingArguments(_Translating, OldArguments, transformers.Seq2SeqTrainingArguments):
    """:class:`transformers.Seq2SeqTrainingArguments` that takes arguments of versions since 3.0 as well."""
