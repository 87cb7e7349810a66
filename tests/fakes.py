"""Two-layer models of every family with tokenizers, made in milliseconds: no network, always the same weights.

model, tokenizer = fakes.gpt2()
bundle = fakes.bundle("bert", head="classification", labels=("no", "yes"))
folder = fakes.save("t5", tmp_path / "base")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    TrainingArguments,
)

from fulltune.models.bundle import Bundle, Family
from fulltune.records.run import ModelInfo

WINDOW = 128
HIDDEN = 32

#: Words that the BERT-like tokenizer knows; others become [UNK].
WORDS = (
    *(
        "a",
        "all",
        "and",
        "are",
        "as",
        "bad",
        "be",
        "by",
        "court",
        "date",
        "film",
        "for",
        "from",
        "good",
        "great",
        "has",
    ),
    *("he", "in", "is", "it", "law", "may", "movie", "no", "not", "of", "on", "or", "party", "poor", "shall", "she"),
    *("state", "term", "text", "that", "the", "this", "to", "was", "we", "which", "will", "with", "yes", "you"),
    *(
        "class",
        "label",
        "topic",
        "about",
        "answer",
        "question",
        "positive",
        "negative",
        "sports",
        "science",
        "politics",
    ),
    *("music", "red", "blue", "green", "cat", "dog", "fox", "king", "tale"),
    *(".", ",", ":", ";", "?", "!", "'", "-", "(", ")"),
)

FAMILIES: dict[str, Family] = {
    "gpt2": "decoder",
    "llama": "decoder",
    "bert": "encoder",
    "t5": "encoder-decoder",
    "bart": "encoder-decoder",
}


def byte_tokenizer(special: Sequence[str], template: str | None = None, **roles: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE without merges: every text survives encoding and decoding; one token per byte.

    Args:
        special: Special tokens in the order of their ids, before the 256 bytes.
        template: What is put around a text, e.g. ``"$A </s>"``.
        roles: Which token is what, e.g. ``eos_token="</s>"``.
    """
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, special, template, roles)


def word_tokenizer(
    special: Sequence[str], template: str, words: Sequence[str] = WORDS, **roles: str
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of lowercase words; words outside ``words`` become the unknown token."""
    names = dict.fromkeys([*special, *words])
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=roles["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _wrap(tokenizer, special, template, roles)


def _wrap(
    tokenizer: Tokenizer, special: Sequence[str], template: str | None, roles: dict[str, str]
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(list(special))
    if template:
        used = [(name, tokenizer.token_to_id(name)) for name in special if name in template]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=WINDOW, **roles)


def gpt2_tokenizer(pad_is_eos: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer that adds no special tokens by itself, like GPT-2's."""
    end = "<|endoftext|>"
    special = [end] if pad_is_eos else [end, "<pad>"]
    return byte_tokenizer(
        special, bos_token=end, eos_token=end, unk_token=end, pad_token=end if pad_is_eos else "<pad>"
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that adds a start token, like Llama's; it pads with the end-of-text token."""
    return byte_tokenizer(
        ["<s>", "</s>"], "<s> $A", bos_token="<s>", eos_token="</s>", unk_token="</s>", pad_token="</s>"
    )


def bert_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    return word_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS] $A [SEP]", words, **roles)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def bart_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return byte_tokenizer(
        special,
        "<s> $A </s>",
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def _gpt2_config(tokenizer: PreTrainedTokenizerBase, **options: Any) -> GPT2Config:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return GPT2Config(
        vocab_size=len(tokenizer), n_positions=WINDOW, n_embd=HIDDEN, n_layer=2, n_head=2,
        bos_token_id=end, eos_token_id=end, pad_token_id=pad, **options,
    )  # fmt: skip


def _llama_config(tokenizer: PreTrainedTokenizerBase, **options: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=WINDOW, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **options,
    )  # fmt: skip


def _bert_config(tokenizer: PreTrainedTokenizerBase, **options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=WINDOW, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN,
        num_hidden_layers=2, num_attention_heads=2, pad_token_id=tokenizer.pad_token_id, **options,
    )  # fmt: skip


def _t5_config(tokenizer: PreTrainedTokenizerBase, **options: Any) -> T5Config:
    return T5Config(
        vocab_size=len(tokenizer), d_model=HIDDEN, d_kv=HIDDEN // 2, d_ff=2 * HIDDEN, num_layers=2, num_heads=2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id, **options,
    )  # fmt: skip


def _bart_config(tokenizer: PreTrainedTokenizerBase, **options: Any) -> BartConfig:
    end = tokenizer.eos_token_id
    return BartConfig(
        vocab_size=len(tokenizer), max_position_embeddings=WINDOW, d_model=HIDDEN, encoder_ffn_dim=2 * HIDDEN,
        decoder_ffn_dim=2 * HIDDEN, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end, decoder_start_token_id=end, forced_eos_token_id=end, **options,
    )  # fmt: skip


_CONFIGS: dict[str, Callable[..., Any]] = {
    "gpt2": _gpt2_config,
    "llama": _llama_config,
    "bert": _bert_config,
    "t5": _t5_config,
    "bart": _bart_config,
}
_TOKENIZERS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "gpt2": gpt2_tokenizer,
    "llama": llama_tokenizer,
    "bert": bert_tokenizer,
    "t5": t5_tokenizer,
    "bart": bart_tokenizer,
}
_CLASSES: dict[tuple[str, str], type[PreTrainedModel]] = {
    ("gpt2", "lm"): GPT2LMHeadModel,
    ("llama", "lm"): LlamaForCausalLM,
    ("bert", "lm"): BertForMaskedLM,
    ("t5", "lm"): T5ForConditionalGeneration,
    ("bart", "lm"): BartForConditionalGeneration,
    ("gpt2", "classification"): GPT2ForSequenceClassification,
    ("llama", "classification"): LlamaForSequenceClassification,
    ("bert", "classification"): BertForSequenceClassification,
    ("t5", "classification"): T5ForSequenceClassification,
    ("bart", "classification"): BartForSequenceClassification,
}


def make(
    kind: str,
    head: str = "lm",
    *,
    labels: Sequence[str] = (),
    multi_label: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model with random weights (the same for the same seed) in eval mode, and its tokenizer.

    Args:
        kind: ``gpt2``, ``llama``, ``bert``, ``t5`` or ``bart``.
        head: ``lm`` or ``classification``.
        labels: Names of the classes (default: two).
        options: Fields of the model's config, e.g. ``resid_pdrop=0.0``.
    """
    tokenizer = tokenizer or _TOKENIZERS[kind]()
    if head == "classification":
        names = tuple(labels) or ("no", "yes")
        problem = "multi_label_classification" if multi_label else "single_label_classification"
        options = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": problem,
        } | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _CLASSES[kind, head](_CONFIGS[kind](tokenizer, **options)).eval(), tokenizer


def gpt2(pad_is_eos: bool = True, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a decoder with learned positions; padding is end-of-text by default."""
    return make("gpt2", tokenizer=gpt2_tokenizer(pad_is_eos), **options)


def llama(**options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a decoder with rotary positions and grouped key-value heads."""
    return make("llama", **options)


def bert(**options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return an encoder with a masked-LM head."""
    return make("bert", **options)


def t5(**options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return an encoder-decoder with relative positions."""
    return make("t5", **options)


def bart(**options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return an encoder-decoder with learned positions."""
    return make("bart", **options)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Return quiet training arguments for the CPU that write no files; ``options`` override them."""
    quiet = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "use_cpu": True, "logging_steps": 1}
    return TrainingArguments(**({"output_dir": str(folder)} | quiet | options))


def bundle(kind: str, head: str = "lm", **options: Any) -> Bundle:
    """Return the model as a bundle of fulltune; options as in :func:`make`."""
    model, tokenizer = make(kind, head, **options)
    info = ModelInfo(source=f"fake-{kind}", sha256="0" * 64, family=FAMILIES[kind], architecture=type(model).__name__)
    window = 512 if kind == "t5" else WINDOW
    return Bundle(model, tokenizer, FAMILIES[kind], head, window, info)  # type: ignore[arg-type]


def save(kind: str, folder: Path, head: str = "lm", **options: Any) -> Path:
    """Write a model and its tokenizer as ``save_pretrained`` does; return the folder."""
    model, tokenizer = make(kind, head, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_with_tokens(kind: str, folder: Path, tokens: Sequence[str], head: str = "lm", **options: Any) -> Path:
    """Write a checkpoint whose tokenizer has tokens that its embeddings lack."""
    model, tokenizer = make(kind, head, **options)
    model.save_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)
    return folder
