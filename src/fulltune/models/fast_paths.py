"""Check that faster computations give the same outputs as the plain one, once per model and length.

The plain computation runs one row at a time, without padding. Padding, batches and shared prefixes are used for a model
only after they gave the same outputs on that model. Effects of attention windows, chunks and positions appear only in
long rows, so a check on short rows is repeated when longer rows arrive.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import groupby
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from fulltune.errors import ModelError
from fulltune.models.bundle import quiet
from fulltune.models.modes import in_mode
from fulltune.models.padding import pad
from fulltune.models.reconcile import input_embeddings, own_limit
from fulltune.models.sparse_attention import attention_type_kept
from fulltune.models.teacher_forcing import decoder_input_ids
from fulltune.runtime.log_once import log_once

Item = TypeVar("Item")
Output = TypeVar("Output")

#: Name of a fast path, and the sizes in tokens at which it was checked.
Key = tuple[Any, ...]

_log = logging.getLogger(__name__)

#: Largest accepted difference of outputs, relative to the Euclidean norm of one position. Float32 rounding causes about
#: 1e-6; attention to a single padding token causes more than 1e-3.
TOLERANCE = 1e-4

#: The same for weights in 16 bits, in units of their rounding: T5 with two layers causes 1.2 of them.
_ROUNDINGS = 8

#: Length at which rows of up to this many tokens are checked; longer rows are checked at the next power of two.
SHORTEST = 32

#: Number of positions that models may reserve (RoBERTa: pad id + 1).
_RESERVED_POSITIONS = 8

#: Lengths of single rows that a model must be able to compute: data has rows of odd lengths.
_ODD = (11, 17)

#: Errors that models raise for inputs that they do not support.
FAILURES = (
    *(RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError),
    *(NotImplementedError, AssertionError),
)

#: Models that passed :func:`require_computable`.
_computable: WeakSet[nn.Module] = WeakSet()

#: Results by model.
_results: WeakKeyDictionary[nn.Module, dict[Key, bool]] = WeakKeyDictionary()


def padding_is_neutral(
    model: PreTrainedModel, length: int, *, in_training: bool = False, is_logged: bool = True
) -> bool:
    """Return whether padding on the right leaves the outputs of a row unchanged.

    Args:
        model: Any model that takes ``input_ids`` and ``attention_mask``; its mode and weights are not changed.
        length: Longest padded row in tokens.
        in_training: The model is being trained; if it has not been checked at this length, it is prepared for that by
            :func:`checking`.
        is_logged: Log a failed check.
    """
    return _checked(model, "padding", length, _padding_agrees, in_training, is_logged)


def batching_is_neutral(model: PreTrainedModel, length: int, *, in_training: bool = False) -> bool:
    """Return whether rows of the same length have the same outputs in a batch as alone.

    Args:
        model: As in :func:`padding_is_neutral`.
        length: Longest row in tokens.
        in_training: As in :func:`padding_is_neutral`.
    """
    return _checked(model, "other rows in a batch", length, _batch_agrees, in_training)


def require_computable(model: PreTrainedModel) -> None:
    """Check once that a model can compute single rows of odd lengths.

    Raises:
        ModelError: The model raised an error.
    """
    if model in _computable:
        return
    for row in probes(model, _odd_lengths(model)):
        outputs, reason = attempt(partial(_outputs, model, [row]), model)
        if outputs is None:
            raise ModelError(
                f"{type(model).__name__} cannot compute a text of {len(row)} tokens ({reason})",
                expected="a model that supports texts of any length up to its limit",
                fix="choose another checkpoint, or change its config.json so that transformers supports such texts "
                "(Nyströmformer: num_landmarks equal to segment_means_seq_len)",
                field="model",
            )
    _computable.add(model)


def _odd_lengths(model: PreTrainedModel) -> list[int]:
    """Return odd lengths of texts, within the model's positions."""
    limit = own_limit(model) or _ODD[-1]
    return sorted({min(length, limit) for length in _ODD})


def require_trainable(model: PreTrainedModel) -> None:
    """Check that a model can compute single rows of odd lengths in training mode.

    Raises:
        ModelError: The model raised an error (in training mode, Reformer supports some lengths only), or its loss
            depends on the batches that it computed before, or has no value for texts alone (GIT leaves out the first
            tokens, where it expects those of an image).
    """
    _require_own_capacity(model)
    state = {name: value.clone() for name, value in model.named_buffers()}
    device = [model.device] if model.device.type == "cuda" else []
    for row in probes(model, _odd_lengths(model)):
        with torch.random.fork_rng(devices=device):
            outputs, reason = attempt(partial(_outputs, model, [row]), model, is_training=True)
        _restore(model, state)
        if outputs is None:
            raise ModelError(
                f"{type(model).__name__} cannot be trained on a text of {len(row)} tokens ({reason})",
                expected="a model that can be trained on texts of any length up to its limit",
                fix="choose another checkpoint",
                field="model",
            )
    if model.get_output_embeddings() is not None and "labels" in inspect.signature(model.forward).parameters:
        _require_loss(model, probes(model, _odd_lengths(model)[:1]))


def _require_loss(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
    """Check that a language model computes its own loss on texts.

    Raises:
        ModelError: The model raised an error.
    """
    inputs, _ = _padded(model, rows)
    labels = inputs.get("decoder_input_ids", inputs[input_name(model)])
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if weight is not None:  # inputs may have ids that the head lacks, such as those of a soft prompt
        labels = labels % weight.shape[0]
    loss, reason = attempt(lambda: model.forward(**inputs, labels=labels), model)
    if loss is None:
        raise ModelError(
            f"{type(model).__name__} cannot compute its loss on a text alone ({reason})",
            expected="a model that can be trained on texts",
            fix="choose another checkpoint",
            field="model",
        )


def _require_own_capacity(model: PreTrainedModel) -> None:
    """Refuse routers whose evaluation overwrites the capacity of their experts in training (NLLB-MoE).

    Raises:
        ModelError: The model has such a router.
    """
    if any(hasattr(module, "moe_eval_capacity_token_fraction") for module in model.modules()):
        raise ModelError(
            f"{type(model).__name__} cannot be trained reproducibly: each evaluation overwrites the capacity that its "
            "experts have in training, and a full expert drops tokens",
            expected="a model whose loss depends on its weights and the batch alone",
            fix="choose a checkpoint without experts, such as facebook/nllb-200-distilled-600M",
            field="model",
        )


@torch.no_grad()
def _restore(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Restore buffers, which a forward pass in training mode may have changed."""
    for name, value in model.named_buffers():
        if name in buffers and value.shape == buffers[name].shape:
            value.copy_(buffers[name])


def batches(
    model: PreTrainedModel, items: Sequence[Item], lengths: Callable[[Item], Sequence[int]]
) -> Iterator[Sequence[Item]]:
    """Split a batch into consecutive parts whose rows have the same outputs as alone.

    Args:
        model: Model that will run on the parts.
        items: Rows, preferably sorted by length.
        lengths: Returns the number of tokens of a row: of its input and, for an encoder-decoder, of its target.
    """
    sizes = [tuple(lengths(item)) for item in items]
    for _, numbers in groupby(range(len(items)), key=lambda number: [side(model, size) for size in sizes[number]]):
        run = list(numbers)
        chosen = slice(run[0], run[-1] + 1)
        yield from _batches_on_a_side(model, items[chosen], sizes[chosen])


def _batches_on_a_side(
    model: PreTrainedModel, items: Sequence[Item], sizes: Sequence[tuple[int, ...]]
) -> Iterator[Sequence[Item]]:
    """Split a batch of rows on the same :func:`side` as :func:`batches` does."""
    longest = max(max(size) for size in sizes)
    if len(items) < 2 or padding_is_neutral(model, longest):
        yield items
        return
    start = 0
    can_batch = batching_is_neutral(model, longest)
    for end in range(1, len(items) + 1):
        if end == len(items) or sizes[end] != sizes[start] or not can_batch:
            yield items[start:end]
            start = end


def side(model: Any, length: int) -> tuple[bool, ...]:
    """Return on which side of each change of the positions a row of ``length`` tokens is.

    With ``longrope`` (Phi-3, Phi-4-mini), all tokens of a batch get other positions if the longest row has more tokens
    than in pretraining. Rows on different sides therefore share no batch, and no keys and values.
    """
    return tuple(length > change for change in _changes(model))


def on_one_side(model: Any, lengths: Iterable[int]) -> bool:
    """Return whether rows of these lengths are on the same :func:`side`."""
    return len({side(model, length) for length in lengths}) < 2


def _changes(model: Any) -> list[int]:
    """Return the longest lengths of rows with the original positions; empty if positions never change.

    Those of the type ``dynamic`` change beyond the limit of the model only.
    """
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    by_layer = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return sorted({one["original_max_position_embeddings"] for one in by_layer if one.get("rope_type") == "longrope"})


def input_name(model: Any) -> str:
    """Return the name of the argument for token ids: ``input_ids`` if accepted, else the model's main input."""
    accepted = inspect.signature(model.forward).parameters
    return "input_ids" if "input_ids" in accepted else str(model.main_input_name)


def options(model: Any) -> dict[str, Any]:
    """Return keyword arguments that disable the cache and the auxiliary loss of a router, where supported."""
    accepted = inspect.signature(model.forward).parameters
    return {name: False for name in ("use_cache", "output_router_logits") if name in accepted}


def agree(plain: Sequence[Tensor], fast: Sequence[Tensor], tolerance: float = TOLERANCE) -> bool:
    """Return whether two lists of tensors ``(…, D)`` are equal up to a relative tolerance; NaN is never equal."""
    return len(plain) == len(fast) and all(_close(*pair, tolerance) for pair in zip(plain, fast, strict=True))


def tolerance_of(model: nn.Module) -> float:
    """Return the largest accepted relative difference of outputs for the precision of a model's weights."""
    types = {parameter.dtype for parameter in model.parameters()} & {torch.float16, torch.bfloat16}
    return max([TOLERANCE, *(_ROUNDINGS * torch.finfo(one).eps for one in types)])


def probe_length(model: PreTrainedModel, length: int) -> int:
    """Return the length at which rows of up to ``length`` tokens are checked: within the positions, on one side."""
    config: Any = model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings")
    values = [getattr(config, name, None) for name in names]
    limits = [value for value in values if isinstance(value, int) and value > 0]
    rounded = max(SHORTEST, 1 << max(0, length - 1).bit_length())
    changes = [change for change in _changes(model) if length <= change]
    return max(length, min([rounded, *changes, *(limit - _RESERVED_POSITIONS for limit in limits)]))


def verified(
    model: PreTrainedModel,
    path: str,
    sizes: Sequence[int],
    compute: Callable[[], Output],
    is_plain: Callable[[Output], bool],
) -> Output | None:
    """Return the output of a fast path for a batch; None if it differs from the plain output.

    The first batch of each size is compared with the plain computation on the same batch. The first size is rounded up
    to a power of two, others to a power of four. A path that failed is not tried again.

    Args:
        model: Runs in eval mode.
        path: Name of the fast path, for the key and the log.
        sizes: Numbers of tokens that affect the path: that of the longest row first, then e.g. that of its padding.
        compute: Runs the fast path.
        is_plain: Compares its output with the plain one.
    """
    results = _results.setdefault(model, {})
    key = _key(model, path, sizes)
    if any(name == path and not passed for (name, *_), passed in results.items()):
        return None
    if results.get(key):
        return compute()
    output, reason = attempt(compute, model)
    results[key] = output is not None and is_plain(output)
    if not results[key]:
        _log_failure(model, path, probe_length(model, sizes[0]), reason)
    return output if results[key] else None


def has_passed(model: PreTrainedModel, path: str, sizes: Sequence[int]) -> bool:
    """Return True if :func:`verified` has compared batches of these sizes, and they agreed."""
    return _results.get(model, {}).get(_key(model, path, sizes), False)


def _key(model: PreTrainedModel, path: str, sizes: Sequence[int]) -> Key:
    return path, probe_length(model, sizes[0]), *((size.bit_length() + 1) // 2 for size in sizes[1:])


def _log_failure(model: PreTrainedModel, path: str, length: int, reason: str | None) -> None:
    """Log the first length at which a model class failed a check."""
    name = type(model).__name__
    explanation = reason or "it would change the answers"
    # Messages of the same kind of error differ in sizes only.
    key = name, path, explanation.partition(":")[0]
    message = "%s computes rows of %d tokens without %s: %s"
    log_once(_log, logging.WARNING, key, message, name, length, path, explanation)


def _checked(
    model: PreTrainedModel,
    path: str,
    length: int,
    check: Callable[[PreTrainedModel, int], bool],
    in_training: bool = False,
    is_logged: bool = True,
) -> bool:
    """Return the cached result of a check on probe rows; a failure is logged."""
    results = _results.setdefault(model, {})
    key = path, probe_length(model, length)
    if key not in results:
        with checking(model) if in_training else nullcontext():
            passed, reason = attempt(lambda: check(model, key[1]), model)
        results[key] = bool(passed)
        if not passed and is_logged:
            _log_failure(model, path, key[1], reason)
    return results[key]


def attempt(
    compute: Callable[[], Output], model: PreTrainedModel, *, is_training: bool = False
) -> tuple[Output | None, str | None]:
    """Run a computation without gradients in eval or training mode.

    Returns:
        The output and None; None and the error if the model raised one.

    Raises:
        torch.OutOfMemoryError: There is not enough memory.
    """
    try:
        with in_mode(model, training=is_training), torch.no_grad():
            return compute(), None
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        return None, f"{type(error).__name__}: {error}"


def _padding_agrees(model: PreTrainedModel, length: int) -> bool:
    shortest = max((change + 1 for change in _changes(model) if length > change), default=1)
    rows = probes(model, [max(shortest, one) for one in (length, 2 * length // 3 + 1, length // 3)])
    alone = [_outputs(model, [row])[0] for row in rows[1:]]
    return agree(alone, _outputs(model, rows)[1:], tolerance_of(model))


def _batch_agrees(model: PreTrainedModel, length: int) -> bool:
    rows = probes(model, [length] * 3)
    batched = _outputs(model, rows)
    alone = [_outputs(model, [rows[index]])[0] for index in (0, 2)]
    return agree(alone, [batched[0], batched[2]], tolerance_of(model))


def probes(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    """Return deterministic rows of ordinary token ids, with a soft prompt first, and the end token of a source last."""
    embeddings: Any = input_embeddings(model)
    special = special_ids(model.config)
    vocabulary = getattr(embeddings, "weight", embeddings)  # Perceiver's embeddings are a bare parameter
    size = 256 if vocabulary is None else vocabulary.shape[0]
    ordinary = torch.tensor([token for token in range(size) if token not in special])
    end = getattr(model.config, "eos_token_id", None) if model.config.is_encoder_decoder else None
    ends = [int(end)] if isinstance(end, int) else []
    prompt = list(getattr(embeddings, "prompt_ids", ()))
    generator = torch.Generator().manual_seed(17)
    rows = []
    for length in lengths:
        inner = max(1, length - len(prompt) - len(ends))
        chosen = torch.randint(len(ordinary), (inner,), generator=generator)
        rows.append(prompt + ordinary[chosen].tolist() + ends)
    return rows


def special_ids(config: PreTrainedConfig) -> set[int]:
    """Return all token ids with a special role in a config: padding, end of text, masks, images and so on."""
    special: set[int] = set()
    for name, value in config.to_dict().items():
        if name.endswith(("token_id", "token_index", "token_ids")):
            values = value if isinstance(value, list) else [value]
            special.update(token for token in values if isinstance(token, int))
    text = config.get_text_config()
    return special if text is config else special | special_ids(text)


def _outputs(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the hidden states of each row of a batch, ``(T, D)`` or ``(D,)``, without those of padding.

    The language-modeling head is skipped: it maps each position independently, and its logits would be the largest
    tensor.
    """
    head = model.get_output_embeddings()
    inputs, widths = _padded(model, rows)
    with _without_head(head) as head_inputs:
        outputs = model.forward(**inputs)  # not model(…): the user's forward hooks must not be called
    hidden = head_inputs[0] if head_inputs else outputs[0]
    padded = max(widths)
    return [_without_padding(row, padded, width) for row, width in zip(hidden.float(), widths, strict=True)]


def _padded(model: Any, rows: Sequence[Sequence[int]]) -> tuple[dict[str, Any], list[int]]:
    """Return padded inputs, and the number of positions of each row that have outputs."""
    ids, mask = pad(rows, _fill(model), model.device)
    inputs = {input_name(model): ids, "attention_mask": mask, **options(model)}
    if not model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        return inputs, [len(row) for row in rows]
    targets = [list(row[: max(3, len(row) // 4)]) for row in rows]
    labels, _ = pad(targets, -100, model.device)
    return inputs | {"decoder_input_ids": decoder_input_ids(model, labels)}, [len(target) for target in targets]


def _fill(model: Any) -> int:
    """Return the id for padding: that of the config, or 0 if it belongs to the vocabulary of another tokenizer."""
    own: Any = getattr(model.config, "pad_token_id", None)
    weight = getattr(input_embeddings(model), "weight", None)
    if not isinstance(own, int) or own < 0:
        return 0
    return own if weight is None or own < weight.shape[0] else 0


def _without_padding(output: Tensor, padded: int, width: int) -> Tensor:
    """Return the first ``width`` positions along the axis of size ``padded``, if there is one."""
    axes = [axis for axis, size in enumerate(output.shape[:-1]) if size == padded]
    return output.narrow(axes[0], 0, width) if axes else output


@contextmanager
def _without_head(head: Any) -> Iterator[list[Tensor]]:
    """Make a linear head return one zero per position within the block; yield the list of its inputs."""
    head_inputs: list[Tensor] = []
    if not isinstance(head, nn.Linear):
        yield head_inputs
        return

    def collect(hidden: Tensor) -> Tensor:
        head_inputs.append(hidden)
        return hidden.new_zeros(*hidden.shape[:-1], 1)

    with replaced_forward(head, collect):
        yield head_inputs


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the ``forward`` of one module within the block."""
    own = module.__dict__.get("forward")
    # setattr, because type checkers reject the assignment of a method.
    setattr(module, "forward", forward)  # noqa: B010
    try:
        yield
    finally:
        delattr(module, "forward")
        if own is not None:
            setattr(module, "forward", own)  # noqa: B010


def _close(plain: Tensor, fast: Tensor, tolerance: float) -> bool:
    if plain.shape != fast.shape:
        return False
    error = torch.linalg.vector_norm(fast - plain, dim=-1)
    size = torch.linalg.vector_norm(plain, dim=-1)
    return bool((error <= tolerance * size).all())


@contextmanager
def checking(model: nn.Module) -> Iterator[None]:
    """Prepare a model for a check within the block: eval mode, own precision, no messages of transformers.

    The modes of its modules, its precision, its kind of attention and torch's random state are restored afterwards.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    random_state = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    # The attention is restored after the modes, because its new modules take the mode of their parents.
    with attention_type_kept(model), in_mode(model, training=False), random_state, _own_precision(model), quiet():
        yield


@contextmanager
def _own_precision(model: nn.Module) -> Iterator[None]:
    """Disable Accelerate's mixed precision within the block: its rounding would hide differences."""
    original = model.__dict__.get("_original_forward")
    wrapped = model.__dict__.get("forward")
    if original is None or wrapped is None:
        yield
        return
    setattr(model, "forward", original)  # noqa: B010
    try:
        yield
    finally:
        setattr(model, "forward", wrapped)  # noqa: B010
