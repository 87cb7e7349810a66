"""Checks that a faster way of computing gives a model's plain answers; each is made once per model and length.

The plain way is one row at a time, without padding. Padding, batches and shared computations are used for a model only
after they gave the same answers on that very model. Windows, chunks and positions show themselves only in long rows,
so what was checked on short rows is checked again when longer ones come.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from fulltune.errors import ModelError
from fulltune.models.bundle import quiet
from fulltune.models.padding import pad
from fulltune.models.reconcile import own_limit
from fulltune.models.teacher_forcing import decoder_input_ids
from fulltune.runtime.log_once import log_once

Item = TypeVar("Item")
Answer = TypeVar("Answer")

#: A way and the sizes, in tokens, that it was checked at.
Key = tuple[Any, ...]

_log = logging.getLogger(__name__)

#: Largest relative difference, in the Euclidean norm of one position, between answers that count as equal. Float32
#: leaves about 1e-6; a single token of padding that is read leaves more than 1e-3.
TOLERANCE = 1e-4

#: Rows up to this many tokens are checked at this length; longer ones at the next power of two.
SHORTEST = 32

#: Models keep up to this many positions for themselves (RoBERTa: pad id + 1).
_RESERVED_POSITIONS = 8

#: Lengths of the single rows that a model must compute, as data has them.
_ODD = (11, 17)

#: What models raise over inputs that they cannot take.
FAILURES = (
    *(RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError),
    *(NotImplementedError, AssertionError),
)

#: Models that computed single rows.
_computable: WeakSet[nn.Module] = WeakSet()

#: Results by model.
_results: WeakKeyDictionary[nn.Module, dict[Key, bool]] = WeakKeyDictionary()


def padding_is_neutral(model: PreTrainedModel, length: int, *, is_logged: bool = True) -> bool:
    """Return True if padding on the right leaves the answers of a row as they are without it.

    Args:
        model: Any model that takes ``input_ids`` and ``attention_mask``; its mode and weights are left as they are.
        length: Longest row, in tokens, that is to be padded or to be padded to.
        is_logged: Log that rows are computed without padding where it is not neutral.
    """
    return _checked(model, "padding", length, _padding_agrees, is_logged)


def batching_is_neutral(model: PreTrainedModel, length: int) -> bool:
    """Return True if rows of the same length have the answers in one batch that they have alone.

    Args:
        model: As in :func:`padding_is_neutral`.
        length: Longest row, in tokens.
    """
    return _checked(model, "other rows in a batch", length, _batch_agrees)


def require_computable(model: PreTrainedModel) -> None:
    """Check once that a model computes single rows of odd lengths, as data has them.

    Raises:
        ModelError: It raised an error over one.
    """
    if model in _computable:
        return
    for row in probes(model, _odd_lengths(model)):
        answers, reason = attempt(partial(_answers, model, [row]), model)
        if answers is None:
            raise ModelError(
                f"{type(model).__name__} cannot compute a text of {len(row)} tokens ({reason})",
                expected="a model that takes texts of any length up to its limit",
                fix="choose another checkpoint, or settings in its config.json with which transformers takes such "
                "texts (Nyströmformer: num_landmarks equal to segment_means_seq_len)",
                field="model",
            )
    _computable.add(model)


def _odd_lengths(model: PreTrainedModel) -> list[int]:
    """Return odd lengths of texts, within the model's positions."""
    limit = own_limit(model) or _ODD[-1]
    return sorted({min(length, limit) for length in _ODD})


def require_trainable(model: PreTrainedModel) -> None:
    """Check that a model computes single rows of odd lengths in training mode too.

    Raises:
        ModelError: It raised an error over one that it computes in eval mode (Reformer takes some lengths only).
    """
    state = {name: value.clone() for name, value in model.named_buffers()}
    device = [model.device] if model.device.type == "cuda" else []
    for row in probes(model, _odd_lengths(model)):
        with torch.random.fork_rng(devices=device):
            answers, reason = attempt(partial(_answers, model, [row]), model, is_training=True)
        _restore(model, state)
        if answers is None:
            raise ModelError(
                f"{type(model).__name__} cannot be trained on a text of {len(row)} tokens ({reason})",
                expected="a model that is trained on texts of any length up to its limit",
                fix="choose another checkpoint",
                field="model",
            )


@torch.no_grad()
def _restore(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Give buffers back the values that a pass in training mode may have changed."""
    for name, value in model.named_buffers():
        if name in buffers and value.shape == buffers[name].shape:
            value.copy_(buffers[name])


def batches(
    model: PreTrainedModel, items: Sequence[Item], lengths: Callable[[Item], Sequence[int]]
) -> Iterator[Sequence[Item]]:
    """Cut a batch into consecutive parts whose rows are answered as they would be alone.

    Args:
        model: Asked next.
        items: Rows, best sorted by length.
        lengths: Tokens of a row: of its input and, for an encoder-decoder, of its target.
    """
    sizes = [tuple(lengths(item)) for item in items]
    longest = max((max(size) for size in sizes), default=0)
    if len(items) < 2 or padding_is_neutral(model, longest):
        yield items
        return
    start, together = 0, batching_is_neutral(model, longest)
    for end in range(1, len(items) + 1):
        if end == len(items) or sizes[end] != sizes[start] or not together:
            yield items[start:end]
            start = end


def input_name(model: Any) -> str:
    """Return the name under which a forward pass takes token ids: ``input_ids`` where it has that, else its own."""
    accepted = inspect.signature(model.forward).parameters
    return "input_ids" if "input_ids" in accepted else str(model.main_input_name)


def options(model: Any) -> dict[str, Any]:
    """Return keyword arguments of a forward pass that neither keeps a cache nor computes a router's auxiliary loss."""
    accepted = inspect.signature(model.forward).parameters
    return {name: False for name in ("use_cache", "output_router_logits") if name in accepted}


def agree(plain: Sequence[Tensor], fast: Sequence[Tensor], tolerance: float = TOLERANCE) -> bool:
    """Return True if two lists of answers ``(…, D)`` are equal up to a relative difference; NaN is never equal."""
    return len(plain) == len(fast) and all(_close(*pair, tolerance) for pair in zip(plain, fast, strict=True))


def probe_length(model: PreTrainedModel, length: int) -> int:
    """Return the length at which rows of up to ``length`` tokens are checked, within the model's positions."""
    config: Any = model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings")
    limits = [limit for name in names if isinstance(limit := getattr(config, name, None), int) and limit > 0]
    rounded = max(SHORTEST, 1 << max(0, length - 1).bit_length())
    return max(length, min([rounded, *(limit - _RESERVED_POSITIONS for limit in limits)]))


def verified(
    model: PreTrainedModel,
    way: str,
    sizes: Sequence[int],
    compute: Callable[[], Answer],
    is_plain: Callable[[Answer], bool],
) -> Answer | None:
    """Return what a fast way gives for a batch; None where it does not give this model's plain answers.

    The first batch of each size is compared with the plain way on that batch itself, the first size being rounded up to
    a power of two and others to one of four. A way that failed is not tried again.

    Args:
        model: Computes in eval mode.
        way: What is tried, for the key and the log.
        sizes: Tokens that matter for the way: of the longest row first, then, say, of its padding.
        compute: The fast way.
        is_plain: Compares its result with the plain way's.
    """
    results = _results.setdefault(model, {})
    length = probe_length(model, sizes[0])
    key = way, length, *((size.bit_length() + 1) // 2 for size in sizes[1:])
    if any(name == way and not passed for (name, *_), passed in results.items()):
        return None
    if results.get(key):
        return compute()
    answer, reason = attempt(compute, model)
    results[key] = answer is not None and is_plain(answer)
    if not results[key]:
        _log_failure(model, way, length, reason)
    return answer if results[key] else None


def _log_failure(model: PreTrainedModel, way: str, length: int, reason: str | None) -> None:
    """Log the first length at which a class of models failed; messages of errors differ in sizes, not in kind."""
    name, why = type(model).__name__, reason or "it would change the answers"
    key = name, way, why.partition(":")[0]
    log_once(_log, logging.WARNING, key, "%s computes rows of %d tokens without %s: %s", name, length, way, why)


def _checked(
    model: PreTrainedModel,
    way: str,
    length: int,
    check: Callable[[PreTrainedModel, int], bool],
    is_logged: bool = True,
) -> bool:
    """Return the result of a check on rows of its own, from memory where it was made before; a failure is logged."""
    results = _results.setdefault(model, {})
    key = way, probe_length(model, length)
    if key not in results:
        passed, reason = attempt(lambda: check(model, key[1]), model)
        results[key] = bool(passed)
        if not passed and is_logged:
            _log_failure(model, way, key[1], reason)
    return results[key]


def attempt(
    compute: Callable[[], Answer], model: PreTrainedModel, *, is_training: bool = False
) -> tuple[Answer | None, str | None]:
    """Return what is computed without gradients in eval or training mode, or None and what the model raised."""
    was_training = model.training
    model.train(is_training)
    try:
        with torch.no_grad():
            return compute(), None
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        return None, f"{type(error).__name__}: {error}"
    finally:
        model.train(was_training)


def _padding_agrees(model: PreTrainedModel, length: int) -> bool:
    rows = probes(model, [length, 2 * length // 3 + 1, length // 3])
    return agree([_answers(model, [row])[0] for row in rows[1:]], _answers(model, rows)[1:])


def _batch_agrees(model: PreTrainedModel, length: int) -> bool:
    rows = probes(model, [length] * 3)
    together = _answers(model, rows)
    return agree([_answers(model, [rows[place]])[0] for place in (0, 2)], [together[0], together[2]])


def probes(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    """Return rows of ordinary token ids, always the same; a soft prompt begins them, an end token closes a source."""
    embeddings, special = _embeddings(model), special_ids(model.config)
    vocabulary = getattr(embeddings, "weight", embeddings)  # Perceiver's are a bare parameter
    size = 256 if vocabulary is None else vocabulary.shape[0]
    ordinary = torch.tensor([token for token in range(size) if token not in special])
    end = getattr(model.config, "eos_token_id", None) if model.config.is_encoder_decoder else None
    ends = [int(end)] if isinstance(end, int) else []
    begin, rows = list(getattr(embeddings, "prompt_ids", ())), []
    generator = torch.Generator().manual_seed(17)
    for length in lengths:
        inner = max(1, length - len(begin) - len(ends))
        chosen = torch.randint(len(ordinary), (inner,), generator=generator)
        rows.append(begin + ordinary[chosen].tolist() + ends)
    return rows


def _embeddings(model: PreTrainedModel) -> Any:
    """Return the embeddings of tokens; None where there are none, as in CANINE, which reads characters."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def special_ids(config: PreTrainedConfig) -> set[int]:
    """Return the ids that a config gives a meaning to: padding, ends, masks, images and the like."""
    found: set[int] = set()
    for name, value in config.to_dict().items():
        if name.endswith(("token_id", "token_index", "token_ids")):
            found.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
    text = config.get_text_config()
    return found if text is config else found | special_ids(text)


def _answers(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return what a model computes of each row of a batch, ``(T, D)`` or ``(D,)``, without what belongs to padding.

    The head for words is left out: it reads each position by itself, and its logits would be the largest tensor here.
    """
    fill = int(getattr(model.config, "pad_token_id", None) or 0)
    ids, mask = pad(rows, fill, model.device)
    inputs, widths = {input_name(model): ids, "attention_mask": mask, **options(model)}, [len(row) for row in rows]
    head = model.get_output_embeddings()
    if model.config.is_encoder_decoder and head is not None:
        targets = [list(row[: max(3, len(row) // 4)]) for row in rows]
        labels, _ = pad(targets, -100, model.device)
        inputs["decoder_input_ids"], widths = decoder_input_ids(model, labels), [len(target) for target in targets]
    with _without_head(head) as read:
        outputs = model.forward(**inputs)  # hooks that belong to the user's passes are not called
    hidden = read[0] if read else outputs[0]
    padded = ids.shape[1] if "decoder_input_ids" not in inputs else max(widths)
    return [_narrowed(row, padded, width) for row, width in zip(hidden.float(), widths, strict=True)]


def _narrowed(answer: Tensor, padded: int, width: int) -> Tensor:
    places = [axis for axis, size in enumerate(answer.shape[:-1]) if size == padded]
    return answer.narrow(places[0], 0, width) if places else answer


@contextmanager
def _without_head(head: Any) -> Iterator[list[Tensor]]:
    """While it lasts, a linear ``head`` gives one zero per position; what it reads is collected."""
    read: list[Tensor] = []
    if not isinstance(head, nn.Linear):
        yield read
        return

    def collect(hidden: Tensor) -> Tensor:
        read.append(hidden)
        return hidden.new_zeros(*hidden.shape[:-1], 1)

    with replaced_forward(head, collect):
        yield read


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Call ``forward`` in place of the forward pass of this one module within the block."""
    own = module.__dict__.get("forward")
    # setattr: only this instance gets another forward, which type checkers refuse as an assignment.
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
    error, size = torch.linalg.vector_norm(fast - plain, dim=-1), torch.linalg.vector_norm(plain, dim=-1)
    return bool((error <= tolerance * size).all())


@contextmanager
def asked(model: nn.Module) -> Iterator[None]:
    """Switch a model to eval mode while it is checked, without warnings of the library.

    The modes of its modules, its precision and torch's random state are restored afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _own_precision(model), quiet():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _own_precision(model: nn.Module) -> Iterator[None]:
    """Undo Accelerate's mixed precision, whose rounding would hide what a check looks for."""
    original, wrapped = model.__dict__.get("_original_forward"), model.__dict__.get("forward")
    if original is None or wrapped is None:
        yield
        return
    setattr(model, "forward", original)  # noqa: B010
    try:
        yield
    finally:
        setattr(model, "forward", wrapped)  # noqa: B010
