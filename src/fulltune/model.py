"""The base: any pretrained checkpoint, loaded in float32 and hashed, its files never written to.

A source is a hub id, a local folder (one or many safetensors files, any dtype), a GGUF file (dequantised), a run id
under the runs folder, ``NAME``, ``NAME@ALIAS`` or ``NAME@N`` of the registry there, ``starter:NAME`` for a small
checkpoint that comes with fulltune, or ``package:NAME/PATH`` for weights that lie inside another installed Python
package.
"""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fulltune import paths, starters
from fulltune.errors import ModelError, did_you_mean
from fulltune.models import files, heads, reconcile
from fulltune.models.languages import settle_languages
from fulltune.models.sparse_attention import choose_attention_by_length
from fulltune.records import ModelInfo
from fulltune.store.files import file_sha256
from fulltune.store.objects import CHECKPOINT_FILES, checkpoint_sha256
from fulltune.store.registry import Registry, reference

Family = Literal["decoder", "encoder", "encoder-decoder"]
Head = Literal["lm", "classification"]

#: Positions assumed for models that name no limit (T5 has relative positions).
_DEFAULT_WINDOW = 512

_MISSING = (
    "a folder with config.json, a GGUF file, a hub id, a run id, a name of the registry, starter:NAME, "
    "or package:NAME/PATH"
)


# On some processors bitsandbytes, once imported, tells of a kernel that it could fetch from a hub; nothing is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# DeepSpeed, where it is installed, is imported by others, and then tells that this machine has no accelerator.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


@dataclass(frozen=True)
class Bundle:
    """A loaded checkpoint: everything that a task or a method needs to know of it.

    Attributes:
        model: In float32, in eval mode.
        tokenizer: Fast where there is one; ``pad_token`` is set unless it has no special token at all.
        family: ``decoder``, ``encoder`` or ``encoder-decoder``.
        head: ``lm`` (the checkpoint's own head, or none for an encoder without one) or ``classification``.
        window: Longest input in tokens that the model takes (positions).
        info: Source, hash and architecture, for the record.
        fresh: Names of the parameters that the checkpoint lacks: a new head's, drawn from a seed.
        grown: Rows that were added to the embeddings, for tokens that the checkpoint lacks.
        stored_head: The classification head that the checkpoint holds, whether it was loaded or not; None without one.
        with_own_head: Loads the checkpoint under that head, its classes those of the task; None where it lacks one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    head: Head
    window: int
    info: ModelInfo
    fresh: tuple[str, ...] = ()
    grown: int = 0
    stored_head: heads.StoredHead | None = None
    with_own_head: Callable[[], Bundle] | None = None

    @property
    def prompt_ids(self) -> list[int]:
        """Ids to put before every input, that of the encoder where there is one: those of a soft prompt, if any."""
        return list(getattr(reconcile.input_embeddings(self.model), "prompt_ids", ()))

    @property
    def has_lm_head(self) -> bool:
        """Whether the checkpoint brings its own head for words (an encoder may have none)."""
        return self.model.get_output_embeddings() is not None


@dataclass(frozen=True)
class Source:
    """A source found: the name the user gave, the folder that holds its files, and the name of a GGUF file."""

    name: str
    folder: Path
    gguf: str | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether the files are those of an adapter, which needs its base."""
        return not (self.folder / "config.json").is_file() and (self.folder / "adapter_config.json").is_file()

    @property
    def kwargs(self) -> dict[str, Any]:
        """What ``from_pretrained`` takes: only local files, and never code that came with the weights."""
        found: dict[str, Any] = {"pretrained_model_name_or_path": str(self.folder), "trust_remote_code": False}
        return found | ({"gguf_file": self.gguf} if self.gguf else {"local_files_only": True})

    def sha256(self) -> str:
        """One hash over the names and the bytes of all files of the checkpoint."""
        if self.gguf:
            return file_sha256(self.folder / self.gguf)
        return checkpoint_sha256(self.folder)


def find(name: str, runs: Path | None = None) -> Source:
    """Find the files of a source; a hub id is fetched into the hub's cache. Nothing is loaded yet.

    Raises:
        ModelError: It is none of the known kinds, or what it names (starter, package, folder, hub) cannot be had.
    """
    files.check_name(name)
    if name.startswith("starter:"):
        return _local(name, _starter(name))
    if name.startswith("package:"):
        package, _, inner = name.removeprefix("package:").partition("/")
        return _local(name, _package_folder(package) / inner)
    if runs and (runs / name / "model").is_dir():
        return _local(name, runs / name / "model")
    path = paths.user_path(name)
    if (
        path.exists()
        or path.is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") > 1
        or path.suffix == ".gguf"
    ):
        return _local(name, path)
    version = reference(name, runs) if runs else None
    if runs and version:
        return _local(version.ref, Registry(runs).checkout(version) / "model")
    return Source(name, _fetch(name))


def _local(name: str, path: Path) -> Source:
    if path.is_file() and path.suffix == ".gguf":
        return Source(name, path.parent, path.name)
    if not path.exists():
        raise ModelError(f"{name!r} does not exist", expected=_MISSING, fix="check the path", field="model")
    if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
        raise ModelError(
            f"{name!r} has no config.json", expected="a checkpoint as save_pretrained writes it", field="model"
        )
    return Source(name, path)


def _starter(name: str) -> Path:
    known = [f"starter:{starter}" for starter in starters.NAMES]
    if name not in known:
        raise ModelError(
            f"there is no {name!r}",
            expected=f"one of {', '.join(known)}",
            fix=did_you_mean(name, known) or "choose one of these",
            field="model",
        )
    return starters.folder(name.removeprefix("starter:"))


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"the Python package {package!r} is not installed",
            expected="an installed package that holds a checkpoint",
            fix="install it with pip, or name another model",
            field="model",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(CHECKPOINT_FILES), ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name!r} is no local folder and could not be fetched from the hub ({reason})",
            expected=_MISSING,
            fix="check the name and the connection, or download it beforehand and give its folder",
            field="model",
        ) from error


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
        name: Any source that :func:`find` knows.
        head: ``lm`` for the checkpoint's own head, ``classification`` for one logit a label on the pretrained body.
        labels: Label names in the order of the logits; empty keeps the head and the names that the checkpoint has.
        multi_label: Several labels may hold at once.
        runs: Folder of runs, so that a run id is a source too.
        seed: For the weights of a new head.
        source_language: For a tokenizer that marks the language of a text; default: its own.
        target_language: The same for answers.

    Raises:
        ConfigError: The tokenizer marks no languages, or not these.
        ModelError: The files cannot be found or read, or the architecture does not fit.
        MissingDependencyError: A GGUF file needs the ``gguf`` package.
    """
    source = find(name, runs)
    if source.is_adapter:
        return _load_adapter(source, head, labels, multi_label, runs, seed, (source_language, target_language))
    with files.errors_of(name, source.folder):
        config = AutoConfig.from_pretrained(**source.kwargs)
        stored_head = heads.StoredHead.of(config)
        _check(source, config, head)
        tokenizer = AutoTokenizer.from_pretrained(**source.kwargs)
        family = family_of(config)
        overrides, replaced = reconcile.config_overrides(config, tokenizer, family)
        with quiet():
            settings, invalid = reconcile.generation_override(source.folder)
        overrides |= settings
        model, fresh, head_changes = _load_model(source, config, head, labels, multi_label, seed, overrides)
    settled = reconcile.reconcile(model, tokenizer, family, is_classifier=head == "classification")
    languages = settle_languages(model, tokenizer, source_language, target_language)
    info = ModelInfo(
        source=name,
        sha256=source.sha256(),
        family=family,
        architecture=type(model).__name__,
        reconciled=(*replaced, *invalid, *head_changes, *settled.changes, *languages),
    )
    return Bundle(model, tokenizer, family, head, _window(model, tokenizer), info, fresh, settled.grown, stored_head)


def _load_adapter(
    source: Source,
    head: Head,
    labels: Sequence[str],
    multi_label: bool,
    runs: Path | None,
    seed: int,
    languages: tuple[str | None, str | None],
) -> Bundle:
    """The base that an adapter names, with the adapter in it.

    An adapter's own classification head comes with it when the labels are the same, or none are asked for.
    """
    from fulltune.adapters.files import Origin

    origin = Origin.read(source.folder)
    has_head = head == origin.head == "classification" and list(labels or origin.labels) == list(origin.labels)
    labels, multi_label = (origin.labels, origin.multi_label) if has_head else (labels, multi_label)
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
            f"the base of the adapter {source.name!r} cannot be had ({error.problems[0].found})",
            expected=origin.source,
            fix="put the base back where it was, or name its place in base.json of the adapter",
            field="model",
        ) from error
    origin.check(base.info.sha256, source.name)
    with files.errors_of(source.name, source.folder):
        tuned = origin.apply(base, source.folder, with_head=has_head)
    stored_head = heads.StoredHead(origin.labels, origin.multi_label) if origin.labels else None
    info = base.info.model_copy(update={"source": source.name, "sha256": source.sha256()})
    return replace(tuned, info=info, stored_head=stored_head)


def load_own_head(name: str, labels: Sequence[str], *, runs: Path | None = None, seed: int = 17) -> Bundle:
    """Load a checkpoint with the classification head that it holds, one output for each of these labels, matched by
    name.

    Raises:
        ModelError: The checkpoint holds no such head, or cannot be loaded.
    """
    bundle = load(name, "classification", runs=runs, seed=seed)
    if bundle.stored_head is None:
        raise ModelError(f"{name!r} has no classification head", expected="one for these labels", field="model")
    heads.relabel(bundle.model, bundle.stored_head.labels, labels, seed)
    return bundle


def family_of(config: PretrainedConfig) -> Family:
    """Which of the three families a config belongs to."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    # BERT and its kin can also be built as decoders, but what can fill a mask is an encoder here; so is what cannot
    # continue a text (CANINE).
    fills = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    return "encoder" if fills or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "decoder"


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes in a model: its parameters that are not frozen, each once, and its buffers."""
    chosen = {name for name, value in model.named_parameters() if value.requires_grad}
    chosen |= {name for name, _ in model.named_buffers()}
    return {name: value for name, value in model.state_dict().items() if name in chosen}


@contextmanager
def own_head(base: Bundle, student: Bundle) -> Iterator[Bundle]:
    """The student's body under the base's own head for words, while the block lasts; no weight is copied.

    A student that still has that head is given as it is; a base without one gives the student's bare body. ``base`` is
    borrowed: it must not be used otherwise in the block.
    """
    if student.head == base.head or student.model is base.model:
        yield student
        return
    body: Any = student.model.base_model
    host: Any = base.model
    if host.base_model is host and base.family != "encoder-decoder":
        yield replace(base, model=body)
        return
    # T5 keeps the parts of its body beside its head; others have one module for the body.
    names = [host.base_model_prefix] if host.base_model is not host else [name for name, _ in body.named_children()]
    kept, device = {name: getattr(host, name) for name in names}, host.device
    try:
        for name in names:
            setattr(host, name, body if host.base_model_prefix == name else getattr(body, name))
        yield replace(base, model=host.to(body.device))
    finally:
        for name, part in kept.items():
            setattr(host, name, part)
        host.to(device)


def _load_model(
    source: Source,
    config: PretrainedConfig,
    head: Head,
    labels: Sequence[str],
    multi_label: bool,
    seed: int,
    overrides: dict[str, Any],
) -> tuple[PreTrainedModel, tuple[str, ...], tuple[str, ...]]:
    """Return the model, the names of parameters that the checkpoint lacks, and what became of a stored head."""
    kwargs = source.kwargs | {"dtype": torch.float32, "use_safetensors": True} | overrides
    if head == "classification":
        return _load_classifier(config, kwargs, labels, multi_label, seed)
    with quiet():
        model, fresh = _loaded(_lm_class(config), kwargs)
        # A discriminator (ELECTRA, Funnel) has no head for words: one drawn at random would fill its masks.
        is_bare = family_of(config) == "encoder" and model.get_output_embeddings() is not None
        body = f"{model.base_model_prefix}."
        if is_bare and any(not name.startswith(body) for name in fresh):
            model, fresh = _loaded(AutoModel, kwargs)
        return model, fresh, ()


def _load_classifier(
    config: PretrainedConfig, kwargs: dict[str, Any], labels: Sequence[str], multi_label: bool, seed: int
) -> tuple[PreTrainedModel, tuple[str, ...], tuple[str, ...]]:
    stored = heads.stored_labels(config)
    if labels:
        kwargs |= {"problem_type": "multi_label_classification" if multi_label else "single_label_classification"}
    if labels and not stored:
        kwargs |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "num_labels": len(labels),
            "ignore_mismatched_sizes": True,
        }
    # A fixed seed: two runs with the same config start from the same head.
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model, fresh = _loaded(AutoModelForSequenceClassification, kwargs)
    done = heads.relabel(model, stored, labels, seed) if labels and stored else None
    return model, fresh, (done,) if done else ()


def _check(source: Source, config: PretrainedConfig, head: Head) -> None:
    """Refuse a checkpoint that cannot be loaded, before its weights are read."""
    if source.gguf is None:
        files.check_files(source.name, source.folder)
    own = {"decoder": "causal-lm", "encoder-decoder": "seq2seq", "encoder": None}[family_of(config)]
    files.check_config(source.name, config, "classification" if head == "classification" else own)


def _loaded(auto: Any, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model, and the names of the parameters that were not in the checkpoint."""
    is_gguf = "gguf_file" in kwargs
    # The library draws a bar of its own over the tensors of a GGUF file, and has no switch for it.
    with redirect_stderr(io.StringIO()) if is_gguf else nullcontext():
        model, told = auto.from_pretrained(**kwargs, output_loading_info=True)
    if is_gguf:
        _forget_quantizer(model)
    choose_attention_by_length(model.eval())
    fresh = {*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])}
    fresh &= {name for name, _ in model.named_parameters()}
    files.check_body(str(kwargs["pretrained_model_name_or_path"]), model, fresh)
    return model, tuple(sorted(fresh))


def _forget_quantizer(model: PreTrainedModel) -> None:
    """A GGUF file comes out as plain float32 tensors, yet marked as quantized, which bars training."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in model.__dict__:
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _lm_class(config: PretrainedConfig) -> Any:
    family = family_of(config)
    if family == "encoder":
        own_head = _has_head(config, "MaskedLM") or _has_head(config, "ForPreTraining")
        return AutoModelForMaskedLM if own_head else AutoModel
    return AutoModelForSeq2SeqLM if family == "encoder-decoder" else AutoModelForCausalLM


def _has_head(config: PretrainedConfig, ending: str) -> bool:
    return any(name.endswith(ending) for name in config.architectures or [])


def _window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    limit = reconcile.position_limit(model, tokenizer) or _DEFAULT_WINDOW
    # Relative positions: any length works, this one was trained.
    return max(_DEFAULT_WINDOW, limit) if model.config.model_type in ("t5", "mt5", "longt5", "umt5") else limit


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own bars and tables: a new head, say, is announced by the record."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
