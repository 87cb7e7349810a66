"""Run an exported ONNX graph in place of a model of transformers.

The classes have the interface of ``PreTrainedModel``, so that everything that asks a model (likelihoods, greedy
decoding, class logits) asks onnxruntime in the same way. Names of files, inputs and outputs are those of Optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
)

from fulltune.errors import ModelError
from fulltune.models.cache_names import CACHE
from fulltune.models.teacher_forcing import start_id
from fulltune.runtime import extras

#: Names of the graphs in a folder.
MODEL, ENCODER, DECODER = "model.onnx", "encoder_model.onnx", "decoder_model.onnx"

#: Value of a label without a loss.
_IGNORED = -100


def past_names(layers: int, kind: str = "past_key_values") -> list[str]:
    """Return the names of keys and values of all layers: inputs (``past_key_values``) or outputs (``present``)."""
    return [f"{kind}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def onnx_model(folder: Path, config: PretrainedConfig, *, alone: bool) -> PreTrainedModel:
    """Return the model of an exported folder.

    Args:
        folder: The folder.
        config: Config of the model.
        alone: Compute each row alone: the scale of quantized activations is that of a complete batch.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelError: A graph cannot be read.
    """
    config._attn_implementation = "eager"
    model: Any
    if (folder / ENCODER).is_file():
        model = OnnxSeq2Seq(config, _Session(folder / ENCODER), _Session(folder / DECODER))
    else:
        session = _Session(folder / MODEL)
        model = OnnxDecoder(config, session) if session.past else OnnxClassifier(config, session, alone=alone)
    ready: PreTrainedModel = model.eval()
    return ready


class _Session:
    """A graph that onnxruntime has loaded.

    Attributes:
        past: Names of the inputs for keys and values of earlier tokens.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise extras.missing("an ONNX model", ["onnxruntime"], "export", field="model") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"onnxruntime cannot read the graph ({reason})",
                expected="a graph as it was exported",
                fix="export the model again, or install a newer onnxruntime",
                where=str(path),
                field="model",
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._shapes = {one.name: one.shape for one in self._session.get_inputs()}
        self.past = [name for name in self._shapes if name.startswith("past_key_values.")]

    def run(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Return all outputs of the graph."""
        arrays = {name: value.cpu().numpy() for name, value in inputs.items() if name in self._shapes}
        return [torch.from_numpy(output) for output in self._session.run(self._outputs, arrays)]

    def past_inputs(self, cache: Any, batch: int) -> dict[str, Tensor]:
        """Return keys and values of a cache ``(B, heads, P, D)`` as inputs; without a cache, of no position."""
        if cache is not None and cache.get_seq_length() > 0:
            values = [value for layer in cache.layers for value in (layer.keys, layer.values)]
        else:
            values = [torch.zeros(batch, shape[1], 0, shape[3]) for shape in map(self._shapes.__getitem__, self.past)]
        return dict(zip(self.past, values, strict=True))


class _OnnxModel(PreTrainedModel):
    """Base class of all graphs: no parameters, on the CPU, in float32."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        size = config.get_text_config(decoder=True).vocab_size
        # Only its size is asked for. In a list, it is no part of the module.
        self._vocabulary = [nn.Embedding(size, 1, device="meta")]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def get_input_embeddings(self) -> nn.Module:
        return self._vocabulary[0]


class OnnxClassifier(_OnnxModel):
    """A graph with one logit per label.

    Args:
        config: Config of the model.
        session: The graph.
        alone: Compute each row alone and without padding.
    """

    def __init__(self, config: PretrainedConfig, session: _Session, *, alone: bool) -> None:
        super().__init__(config)
        self._session = session
        self._alone = alone

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """Return the logits ``(B, labels)``."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not self._alone:
            return SequenceClassifierOutput(logits=self._logits(input_ids, mask))
        rows = [ids[kept.bool()][None] for ids, kept in zip(input_ids, mask, strict=True)]
        return SequenceClassifierOutput(logits=torch.cat([self._logits(row, torch.ones_like(row)) for row in rows]))

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._session.run({"input_ids": ids, "attention_mask": mask})[0]


class OnnxDecoder(_OnnxModel, GenerationMixin):
    """The graph of a decoder, which takes and returns keys and values; with none, it reads a text at once."""

    def __init__(self, config: PretrainedConfig, session: _Session) -> None:
        super().__init__(config)
        self._session = session

    def get_output_embeddings(self) -> nn.Module:
        return self._vocabulary[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits ``(B, T, V)`` and, unless ``use_cache`` is False, the cache with these tokens."""
        given = past_key_values if cache is None else cache
        past = 0 if given is None else given.get_seq_length()
        batch, length = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones(batch, past + length, dtype=torch.long)
        if position_ids is None:
            position_ids = torch.arange(past, past + length).expand(batch, length)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        logits, *present = self._session.run(inputs | self._session.past_inputs(given, batch))
        kept: dict[str, Any] = {} if use_cache is False else {CACHE: _cache(present)}
        return CausalLMOutputWithPast(logits=logits[:, -logits_to_keep:], **kept)


class _Encoder(nn.Module):
    """The graph of an encoder."""

    main_input_name = "input_ids"

    def __init__(self, session: _Session) -> None:
        super().__init__()
        self._session = session

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """Return the last hidden states ``(B, S, hidden)``."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        [states] = self._session.run({"input_ids": input_ids, "attention_mask": mask})
        return BaseModelOutput(last_hidden_state=states)


class OnnxSeq2Seq(_OnnxModel, GenerationMixin):
    """The graphs of an encoder and of a decoder, which takes and returns keys and values of its own tokens."""

    def __init__(self, config: PretrainedConfig, encoder: _Session, decoder: _Session) -> None:
        super().__init__(config)
        self.encoder = _Encoder(encoder)
        self._session = decoder

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.encoder

    def get_output_embeddings(self) -> nn.Module:
        return self._vocabulary[0]

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return the labels ``(B, T)`` shifted to the right, after the start token."""
        shifted = torch.full_like(labels, start_id(self))
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == _IGNORED, int(self.config.pad_token_id or 0))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        cache: Any = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        """Return the logits ``(B, T, V)`` and, unless ``use_cache`` is False, the cache with these tokens."""
        assert decoder_input_ids is not None
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        states = encoder_outputs[0]
        mask = torch.ones(states.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask
        given = past_key_values if cache is None else cache
        past = getattr(given, "self_attention_cache", given)
        inputs = {"decoder_input_ids": decoder_input_ids, "encoder_hidden_states": states}
        inputs |= {"encoder_attention_mask": mask, **self._session.past_inputs(past, len(states))}
        logits, *present = self._session.run(inputs)
        kept: dict[str, Any] = {}
        if use_cache is not False:
            kept[CACHE] = EncoderDecoderCache(_cache(present), DynamicCache())
        return Seq2SeqLMOutput(logits=logits, encoder_last_hidden_state=states, **kept)


def _cache(present: Sequence[Tensor]) -> DynamicCache:
    """Return keys and values of all layers as a cache."""
    return DynamicCache(list(zip(present[::2], present[1::2], strict=True)))
