"""Write models as ONNX graphs with torch's exporter: batch and length of all inputs are dynamic."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from fulltune.errors import ModelError
from fulltune.models import fast_paths
from fulltune.models.bundle import Bundle, quiet
from fulltune.models.cache_names import cache_argument, cache_of
from fulltune.models.onnx_model import DECODER, ENCODER, MODEL, past_names

#: Sizes of the example inputs. They differ from each other and from 0 and 1, which torch would take for constants.
_BATCH, _LENGTH, _SOURCE, _PAST = 2, 3, 7, 5


def write_onnx(bundle: Bundle, folder: Path) -> None:
    """Write a classifier or a decoder as ``model.onnx``, an encoder-decoder as two graphs; with config and tokenizer.

    Raises:
        ModelError: torch cannot export this type of model.
    """
    with quiet(), _exporting(bundle):
        if bundle.head == "classification":
            _write(_Classifier(bundle.model), _tokens("tokens"), ["logits"], folder / MODEL)
        elif bundle.family == "decoder":
            _write_decoder(bundle, folder)
        elif bundle.family == "encoder-decoder":
            _write(_Encoder(bundle.model), _tokens("source"), ["last_hidden_state"], folder / ENCODER)
            _write_seq2seq_decoder(bundle, folder)
        else:
            raise ModelError(
                f"{type(bundle.model).__name__} has no exporter",
                expected="a classifier, a decoder or an encoder-decoder",
                field="MODEL",
            )
    write_settings(bundle, folder)


def write_settings(bundle: Bundle, folder: Path) -> None:
    """Write config, generation settings and tokenizer of a model."""
    with quiet():
        bundle.model.config.save_pretrained(folder)
        if bundle.model.can_generate():
            bundle.model.generation_config.save_pretrained(folder)
        bundle.tokenizer.save_pretrained(folder)


#: An example input, and the names of its dynamic axes.
_Input = tuple[Tensor, dict[int, str]]


def _tokens(length: str) -> dict[str, _Input]:
    """Return token ids and their mask."""
    axes = {0: "batch", 1: length}
    mask = torch.ones(_BATCH, _SOURCE, dtype=torch.long)
    return {"input_ids": (mask.clone(), axes), "attention_mask": (mask, axes)}


def _past(bundle: Bundle, batch: int) -> list[_Input]:
    """Return keys and values of earlier tokens, one of each for each layer."""
    model: Any = bundle.model
    ids = torch.ones(1, 1, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": ids, "use_cache": True}
    inputs |= {"decoder_input_ids": ids} if bundle.family == "encoder-decoder" else {}
    with torch.no_grad():
        cache = cache_of(model(**inputs))
    values = [value for layer in _own(cache).layers for value in (layer.keys, layer.values)]
    axes = {0: "batch", 2: "past"}
    return [(torch.zeros(batch, value.shape[1], _PAST, value.shape[3]), axes) for value in values]


def _write_decoder(bundle: Bundle, folder: Path) -> None:
    past = _past(bundle, _BATCH)
    both = torch.ones(_BATCH, _PAST + _LENGTH, dtype=torch.long)
    axes = {0: "batch", 1: "tokens"}
    inputs: dict[str, Any] = {
        "input_ids": (both[:, :_LENGTH].clone(), axes),
        "attention_mask": (both, {0: "batch", 1: "past_and_tokens"}),
        "position_ids": (torch.arange(_PAST, _PAST + _LENGTH).repeat(_BATCH, 1), axes),
        "past": past,
    }
    outputs = ["logits", *past_names(len(past) // 2, "present")]
    takes_positions = "position_ids" in inspect.signature(bundle.model.forward).parameters
    if not takes_positions:
        del inputs["position_ids"]
    _write(_Decoder(bundle.model), inputs, outputs, folder / MODEL)


def _write_seq2seq_decoder(bundle: Bundle, folder: Path) -> None:
    past = _past(bundle, _BATCH)
    mask = torch.ones(_BATCH, _SOURCE, dtype=torch.long)
    source = {0: "batch", 1: "source"}
    hidden = bundle.model.config.hidden_size
    inputs: dict[str, Any] = {
        "decoder_input_ids": (torch.ones(_BATCH, _LENGTH, dtype=torch.long), {0: "batch", 1: "tokens"}),
        "encoder_hidden_states": (torch.zeros(_BATCH, _SOURCE, hidden), source),
        "encoder_attention_mask": (mask, source),
        "past": past,
    }
    outputs = ["logits", *past_names(len(past) // 2, "present")]
    _write(_Seq2SeqDecoder(bundle.model), inputs, outputs, folder / DECODER)


def _write(module: nn.Module, inputs: Mapping[str, Any], outputs: Sequence[str], path: Path) -> None:
    """Export a module.

    Raises:
        ModelError: torch cannot export it.
    """
    examples, axes, names = dict[str, Any](), dict[str, Any](), list[str]()
    for name, value in inputs.items():
        if isinstance(value, list):
            examples[name], axes[name] = [one for one, _ in value], [dynamic for _, dynamic in value]
            names += past_names(len(value) // 2)
        else:
            examples[name], axes[name] = value
            names.append(name)
    try:
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=examples,
            dynamo=True,
            dynamic_shapes=axes,
            input_names=names,
            output_names=list(outputs),
            verbose=False,
        )
    except (torch.onnx.OnnxExporterError, *fast_paths.FAILURES) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"torch cannot export {type(module.model).__name__} ({reason})",
            expected="a type of model that torch.onnx supports",
            fix="choose another format",
            field="MODEL",
        ) from error
    assert program is not None
    program.save(str(path))


@contextmanager
def _exporting(bundle: Bundle) -> Iterator[None]:
    """Prepare a model for export within the block: plain attention, which every exporter can translate; no messages."""
    model: Any = bundle.model
    own = model.config._attn_implementation
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    model.set_attn_implementation("eager")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        model.set_attn_implementation(own)
        logger.setLevel(level)


def _own(cache: Any) -> Any:
    """Return the cache of a decoder's own tokens."""
    return getattr(cache, "self_attention_cache", cache)


def _filled(past: Sequence[Tensor]) -> DynamicCache:
    """Return a cache with the keys and values of all layers."""
    return DynamicCache(list(zip(past[::2], past[1::2], strict=True)))


def _present(cache: Any) -> list[Tensor]:
    return [value for layer in _own(cache).layers for value in (layer.keys, layer.values)]


class _Part(nn.Module):
    """A part of a model as a function of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model


class _Classifier(_Part):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).logits


class _Decoder(_Part):
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor], position_ids: Tensor | None = None
    ) -> Any:
        positions = {} if position_ids is None else {"position_ids": position_ids}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=True,
            return_dict=True,
            **{cache_argument(self.model): _filled(past)},
            **positions,
        )
        return outputs.logits, _present(cache_of(outputs))


class _Encoder(_Part):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        encoder = self.model.get_encoder()
        return encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state


class _Seq2SeqDecoder(_Part):
    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        past: list[Tensor],
    ) -> Any:
        outputs = self.model(
            encoder_outputs=(encoder_hidden_states,),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=decoder_input_ids,
            use_cache=True,
            return_dict=True,
            **{cache_argument(self.model): EncoderDecoderCache(_filled(past), DynamicCache())},
        )
        return outputs.logits, _present(cache_of(outputs))
