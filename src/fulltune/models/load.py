"""Load any pretrained checkpoint in float32; its files are hashed and never written to.

A source is a hub id, a local folder (one or many safetensors files, any dtype), a GGUF file (dequantized), a run id in
the runs folder, ``NAME``, ``NAME@ALIAS`` or ``NAME@N`` of its registry, ``starter:NAME`` for a small checkpoint that
comes with fulltune, or ``package:NAME/PATH`` for weights inside another installed Python package.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fulltune.errors import ModelError, abridged
from fulltune.models import files, gguf_header, heads, reconcile, stored_weights
from fulltune.models.bundle import Bundle, Head, family_of, quiet
from fulltune.models.languages import set_languages
from fulltune.models.sources import ModelFiles, find
from fulltune.models.sparse_attention import choose_attention_by_length
from fulltune.records.run import ModelInfo

#: Positions assumed for models without a limit (T5 has relative positions).
_DEFAULT_WINDOW = 512


def load(
    name: str,
    head: Head = "lm",
    *,
    labels: Sequence[str] = (),
    multi_label: bool = False,
    runs: Path | None = None,
    seed: int = 17,
    source_language: str | None = None,
    target_language: str | None = None,
) -> Bundle:
    """Load a checkpoint in float32, whatever dtype it is stored in, with its tokenizer.

    Args:
        name: Any source that :func:`find` accepts.
        head: ``lm`` for the checkpoint's own head, ``classification`` for one logit per label on the pretrained body.
        labels: Label names in the order of the logits; empty keeps the head and the names of the checkpoint.
        multi_label: True if a row may have several labels.
        runs: Folder of runs, so that run ids and names of the registry are accepted.
        seed: Seed of the weights of a new head.
        source_language: Language of inputs, for a tokenizer with language codes; default: that of the tokenizer.
        target_language: Language of outputs, likewise.

    Raises:
        ConfigError: The tokenizer does not support languages, or not these.
        ModelError: The files cannot be found or read, or the architecture is not supported.
        MissingDependencyError: A GGUF file needs the ``gguf`` package.
    """
    source = find(name, runs)
    if source.is_adapter:
        return _load_adapter(source, head, labels, multi_label, runs, seed, (source_language, target_language))
    exported = source.sha256() if source.export is not None else ""  # its files are checked before they are read
    with files.errors_of(name, source.folder):
        config = AutoConfig.from_pretrained(**source.settings)
        stored_head = heads.StoredHead.of(config, source.folder)
        _check(source, config, head)
        tokenizer = AutoTokenizer.from_pretrained(**source.settings)
        files.check_tokenizer(tokenizer, name, source.folder)
        family = family_of(config)
        overrides, replaced = reconcile.config_overrides(config, tokenizer, family)
        with quiet():
            settings, invalid = reconcile.generation_override(source.folder)
        overrides |= settings
        if source.gguf and source.export is None:
            overrides |= gguf_header.config_overrides(source.folder / source.gguf, config)
        model, fresh, head_changes = _load_model(source, config, head, labels, multi_label, seed, overrides)
        settled = reconcile.reconcile(model, tokenizer, family, is_classifier=head == "classification")
    languages = set_languages(model, tokenizer, source_language, target_language)
    info = ModelInfo(
        source=name,
        sha256=exported or source.sha256(),
        family=family,
        architecture=type(model).__name__,
        reconciled=(*replaced, *invalid, *head_changes, *settled.changes, *languages),
    )
    window = position_window(model, tokenizer)
    return Bundle(
        *(model, tokenizer, family, head, window, info),
        fresh=fresh,
        grown=settled.grown,
        closing=settled.closing,
        stored_head=stored_head,
    )


def _load_adapter(
    source: ModelFiles,
    head: Head,
    labels: Sequence[str],
    multi_label: bool,
    runs: Path | None,
    seed: int,
    languages: tuple[str | None, str | None],
) -> Bundle:
    """Load the base of an adapter, and apply the adapter.

    The adapter's classification head is used if the labels are the same, or none are given.
    """
    from fulltune.models.adapters.files import Origin

    origin = Origin.read(source.folder)
    has_head = head == origin.head == "classification" and list(labels or origin.labels) == list(origin.labels)
    if has_head:
        labels = origin.labels
        multi_label = origin.multi_label
    try:
        base = load(
            origin.source,
            head,
            labels=labels,
            multi_label=multi_label,
            runs=runs,
            seed=seed,
            source_language=languages[0],
            target_language=languages[1],
        )
    except ModelError as error:
        raise ModelError(
            f"the base of the adapter {source.name!r} cannot be loaded ({error.problems[0].found})",
            expected=origin.source,
            fix="restore the base, or change its path in base.json of the adapter",
            field="model",
        ) from error
    origin.check(base.info.sha256, source.name)
    with files.errors_of(source.name, source.folder):
        tuned = origin.apply(base, source.folder, with_head=has_head)
    stored_head = heads.StoredHead(origin.labels, origin.multi_label) if origin.labels else None
    facts = (*base.info.reconciled, *filter(None, [origin.unused_head(source.folder)]))
    info = base.info.model_copy(update={"source": source.name, "sha256": source.sha256(), "reconciled": facts})
    return replace(tuned, info=info, stored_head=stored_head)


def load_own_head(name: str, labels: Sequence[str], *, runs: Path | None = None, seed: int = 17) -> Bundle:
    """Load a checkpoint with its own classification head, reordered to these labels by name.

    Raises:
        ModelError: The checkpoint has no classification head, or cannot be loaded.
    """
    bundle = load(name, "classification", runs=runs, seed=seed)
    if bundle.stored_head is None:
        raise ModelError(f"{name!r} has no classification head", expected="one for these labels", field="model")
    heads.relabel(bundle.model, bundle.stored_head.labels, labels, seed)
    return bundle


def _load_onnx(source: ModelFiles, config: PretrainedConfig, overrides: dict[str, Any]) -> PreTrainedModel:
    """Return an exported graph as a model, with the generation settings of its folder."""
    from fulltune.models.onnx_model import onnx_model

    config.update({name: value for name, value in overrides.items() if name != "generation_config"})
    alone = source.export is not None and source.export.quantization is not None
    with quiet():
        model = onnx_model(source.folder, config, alone=alone)
        if model.can_generate() and (source.folder / "generation_config.json").is_file():
            stored = overrides.get("generation_config") or GenerationConfig.from_pretrained(source.folder)
            model.generation_config = stored
    return model


def _load_model(
    source: ModelFiles,
    config: PretrainedConfig,
    head: Head,
    labels: Sequence[str],
    multi_label: bool,
    seed: int,
    overrides: dict[str, Any],
) -> tuple[PreTrainedModel, tuple[str, ...], tuple[str, ...]]:
    """Return the model, the names of parameters that the checkpoint lacks, and the changes of a stored head."""
    if source.is_onnx:
        return _load_onnx(source, config, overrides), (), ()
    kwargs = source.kwargs | {"dtype": torch.float32, "use_safetensors": True} | overrides
    if source.export is not None and source.gguf:
        kwargs |= {"config": config}  # the format has no place for some of its settings
    if head == "classification":
        return _load_classifier(config, kwargs, labels, multi_label, seed)
    with quiet():
        model, fresh, facts = _loaded(_lm_class(config), kwargs, is_classifier=False)
        # A discriminator (ELECTRA, Funnel) has no masked-LM head: a random one would predict its masks.
        is_bare = family_of(config) == "encoder" and model.get_output_embeddings() is not None
        body = f"{model.base_model_prefix}."
        if is_bare and any(not name.startswith(body) for name in fresh):
            model, fresh, facts = _loaded(AutoModel, kwargs, is_classifier=False)
        return model, fresh, facts


def _load_classifier(
    config: PretrainedConfig, kwargs: dict[str, Any], labels: Sequence[str], multi_label: bool, seed: int
) -> tuple[PreTrainedModel, tuple[str, ...], tuple[str, ...]]:
    """Load a checkpoint with a classification head; see :func:`_load_model`."""
    stored = heads.stored_labels(config)
    folder = Path(kwargs["pretrained_model_name_or_path"])
    rows = heads.stored_rows(config, folder)
    size_mismatch = f"the stored classification head has {rows} classes, config.json {len(stored)}"
    if rows is not None and not labels:
        raise ModelError(
            size_mismatch,
            expected="the same number",
            fix="list the classes in id2label of config.json",
            where=str(kwargs["pretrained_model_name_or_path"]),
            field="model",
        )
    stored = () if rows is not None else stored
    if labels:
        kwargs |= {"problem_type": "multi_label_classification" if multi_label else "single_label_classification"}
    if labels and not stored:
        kwargs |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "num_labels": len(labels),
        }
    # Runs with the same config must start from the same head.
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        may_differ = bool(labels) and not stored
        model, fresh, facts = _loaded(
            AutoModelForSequenceClassification, kwargs, is_classifier=True, head_may_differ=may_differ
        )
    change = None
    if labels and stored:
        change = heads.relabel(model, stored, labels, seed)
    elif labels and not rows:
        change = heads.renewed(model, fresh, labels, folder, seed)
    if rows:
        change = f"{size_mismatch}: a new head was created for {abridged([repr(label) for label in labels])}"
    return model, fresh, (*facts, *filter(None, (change,)))


def _check(source: ModelFiles, config: PretrainedConfig, head: Head) -> None:
    """Check that a checkpoint can be loaded, before its weights are read.

    Raises:
        ModelError: It cannot be loaded.
    """
    if source.gguf is None and not source.is_onnx:
        files.check_files(source.name, source.folder)
    own = {"decoder": "causal-lm", "encoder-decoder": "seq2seq", "encoder": None}[family_of(config)]
    files.check_config(source.name, config, "classification" if head == "classification" else own)


def _loaded(
    auto: Any, kwargs: dict[str, Any], *, is_classifier: bool, head_may_differ: bool = False
) -> tuple[PreTrainedModel, tuple[str, ...], tuple[str, ...]]:
    """Return the model, the names of the parameters that the checkpoint lacks, and facts on its weights.

    Args:
        auto: Auto class of transformers.
        kwargs: Options of its ``from_pretrained``.
        is_classifier: True if the head is a new one where the checkpoint lacks it.
        head_may_differ: True if a stored head with other shapes is replaced by a new one.
    """
    is_gguf = "gguf_file" in kwargs
    # transformers shows a progress bar for GGUF files that cannot be disabled.
    with redirect_stderr(io.StringIO()) if is_gguf else nullcontext():
        # Shapes are compared below: the library's own error does not name them.
        model, loading = auto.from_pretrained(**kwargs, output_loading_info=True, ignore_mismatched_sizes=True)
    if is_gguf:
        _remove_quantizer(model)
    choose_attention_by_length(model.eval())
    name = str(Path(kwargs["pretrained_model_name_or_path"], kwargs.get("gguf_file", "")))
    stored_weights.check(name, model, loading, head_may_differ=head_may_differ)
    fresh = stored_weights.fresh_names(model, loading)
    return model, tuple(sorted(fresh)), stored_weights.facts(model, loading, is_classifier=is_classifier)


def _remove_quantizer(model: PreTrainedModel) -> None:
    """Remove the mark of quantization from a model of a GGUF file: its tensors are float32, and can be trained."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in model.__dict__:
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _lm_class(config: PretrainedConfig) -> Any:
    """Return the auto class of a config's own language-modeling head."""
    family = family_of(config)
    if family == "encoder":
        has_head = _has_head(config, "MaskedLM") or _has_head(config, "ForPreTraining")
        return AutoModelForMaskedLM if has_head else AutoModel
    return AutoModelForSeq2SeqLM if family == "encoder-decoder" else AutoModelForCausalLM


def _has_head(config: PretrainedConfig, ending: str) -> bool:
    return any(name.endswith(ending) for name in config.architectures or [])


def position_window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the longest input of a model in tokens."""
    limit = reconcile.position_limit(model, tokenizer) or _DEFAULT_WINDOW
    # T5 has relative positions: longer inputs work, but the tokenizer's limit is the length of pretraining.
    return max(_DEFAULT_WINDOW, limit) if model.config.model_type in ("t5", "mt5", "longt5", "umt5") else limit
