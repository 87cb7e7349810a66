"""The three starters: their shape, their tokenizer and their pretraining objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from fulltune.training.regularization.denoising import CORRUPTED, MEAN_SPAN, corrupt
from starters.positions import attend_to_neighbors

Batch = dict[str, Any]
Rows = Sequence[dict[str, Any]]
Collate = Callable[[Rows], Batch]

#: Tokens that all starters share, and rows of their embeddings: the rest is reserved for special tokens.
WORDS, VOCABULARY = 6080, 6144

#: Longest input in tokens.
WINDOW = 512

#: Sentinels of T5; enough for the spans of a window of 512 tokens.
SENTINELS = tuple(f"<extra_id_{index}>" for index in range(48))

#: Fraction of tokens that BERT must restore in training, and in held-out text.
MASKED, MASKED_HELD_OUT = 0.25, 0.2

#: Lengths of the pieces that T5 writes out completely: copying is learned on short ones first.
PIECES = (16, 32, 64, 128)


class Seeded:
    """A collator whose random numbers depend only on the epoch and the rows, so that a resumed run repeats them."""

    def __init__(self, collate: Collate) -> None:
        self.collate, self.epoch = collate, 0

    def __call__(self, rows: Rows) -> Batch:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.epoch << 32 | rows[0]["index"])
            return self.collate([{"input_ids": row["input_ids"]} for row in rows])


@dataclass(frozen=True)
class Family:
    """The settings of one starter.

    Attributes:
        specials: Special tokens by the name that the tokenizer gives them; the first ends a text, and has the same id
            in every family.
        templates: How one text and a pair are framed, in the notation of ``tokenizers``; None adds nothing.
        build: An untrained model, for a tokenizer.
        collator: Windows of tokens to batches with labels, for a tokenizer.
        objective: The pretraining objective in words.
        unit: What one loss counts.
        window: Tokens of a training sequence.
        learning_rate: Highest rate of the cosine.
        batch: Windows per step.
        scored: Collator of held-out windows, where it is not that of training.
        embedding_rate: Factor on the learning rate of the embeddings.
        prepare: Changes a model before training, given the number of occurrences of each token in the text.
    """

    name: str
    specials: dict[str, str]
    templates: tuple[str, str] | None
    build: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    collator: Callable[[PreTrainedTokenizerFast], Collate]
    objective: str
    unit: str
    window: int
    learning_rate: float
    batch: int = 16
    scored: Callable[[PreTrainedTokenizerFast], Collate] | None = None
    embedding_rate: float = 1.0
    prepare: Callable[[PreTrainedModel, torch.Tensor], None] | None = None

    @property
    def longest(self) -> int:
        """Return the longest input in tokens: relative positions (T5) reach further than the training windows."""
        return WINDOW if self.name == "t5" else self.window

    def tokenizer(self, shared: Tokenizer) -> PreTrainedTokenizerFast:
        """Return the shared tokenizer with this family's special tokens after the words."""
        own = Tokenizer.from_str(shared.to_str())
        more = list(SENTINELS) if self.name == "t5" else []
        own.add_special_tokens([AddedToken(text, special=True) for text in (*self.specials.values(), *more)])
        if self.templates:
            framing = [text for text in self.specials.values() if text in self.templates[0].split()]
            own.post_processor = processors.TemplateProcessing(
                single=self.templates[0],
                pair=self.templates[1],
                special_tokens=[(text, own.token_to_id(text)) for text in framing],
            )
        kwargs: dict[str, Any] = {"extra_special_tokens": more} if more else {}
        return PreTrainedTokenizerFast(
            tokenizer_object=own,
            model_max_length=self.longest,
            clean_up_tokenization_spaces=False,
            **self.specials,
            **kwargs,
        )


def train_tokenizer(text: Iterator[str]) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): every text survives encoding and decoding.

    Digits are separate tokens, so that numbers are copied digit by digit.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


# ---- GPT-2: the next token ----


def _gpt2(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=WINDOW,
        n_embd=256,
        n_layer=4,
        n_head=4,
        # The corpus is seen about twice: there is nothing to overfit, and dropout would only slow it down.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    return GPT2LMHeadModel(config)


def _next_token(tokenizer: PreTrainedTokenizerFast) -> Collate:
    def collate(rows: Rows) -> Batch:
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}

    return collate


# ---- BERT: masked tokens ----


def _bert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForMaskedLM(config)


def _masked(tokenizer: PreTrainedTokenizerFast) -> Collate:
    collate: Collate = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=MASKED)
    return collate


def _masked_held_out(tokenizer: PreTrainedTokenizerFast) -> Collate:
    collate: Collate = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=MASKED_HELD_OUT)
    return collate


# ---- T5: corrupted spans, and complete texts out of them ----


def _t5(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=128,
        d_kv=32,
        d_ff=512,
        num_heads=4,
        num_layers=4,
        num_decoder_layers=3,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
    )
    return T5ForConditionalGeneration(config)


def _marks(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """Return the ids of the sentinels, and of the end of a text."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[text] for text in SENTINELS], int(tokenizer.eos_token_id)


def _spans(tokenizer: PreTrainedTokenizerFast) -> Collate:
    """Return batches of the objective of T5's paper: the target is the text that the sentinels replace."""
    sentinels, end = _marks(tokenizer)

    def collate(rows: Rows) -> Batch:
        random = np.random.default_rng(int(torch.randint(2**31, ())))
        return _pairs([corrupt(np.array(row["input_ids"]), sentinels, end, random) for row in rows])

    return collate


def _spans_and_wholes(tokenizer: PreTrainedTokenizerFast) -> Collate:
    """Return batches of spans and, half of the time, of complete pieces of text.

    In the latter a half of each window is cut in pieces, and the target is the complete piece, as in BART (Lewis et al.
    2020, "text infilling"). Spans alone can be guessed from the words before them, and a T5 of this size never learned
    to read its source from them; a complete text cannot be guessed.
    """
    sentinels, end = _marks(tokenizer)
    spans = _spans(tokenizer)

    def collate(rows: Rows) -> Batch:
        random = np.random.default_rng(int(torch.randint(2**31, ())))
        if random.random() < 0.5:
            return spans(rows)
        half = len(rows[0]["input_ids"]) // 2
        length = min(int(random.choice(PIECES)), half)
        windows = np.array([row["input_ids"] for row in rows])[:, int(random.integers(half + 1)) :]
        pieces = windows[:, : half // length * length].reshape(-1, length)
        return _pairs([(corrupt(piece, sentinels, end, random)[0], np.append(piece, end)) for piece in pieces])

    return collate


def _pairs(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Batch:
    inputs = torch.tensor(np.stack([source for source, _ in pairs]))
    labels = torch.tensor(np.stack([target for _, target in pairs]))
    return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "labels": labels}


FAMILIES = {
    "gpt2": Family(
        name="gpt2",
        specials={"eos_token": "<|endoftext|>"},
        templates=None,
        build=_gpt2,
        collator=_next_token,
        objective="next token",
        unit="token",
        window=512,
        learning_rate=2e-3,
    ),
    "bert": Family(
        name="bert",
        specials={
            "sep_token": "[SEP]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
        },
        templates=("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        build=_bert,
        collator=_masked,
        objective=f"{MASKED:.0%} of tokens masked",
        unit="masked token",
        window=256,
        learning_rate=8e-4,
        scored=_masked_held_out,
        prepare=attend_to_neighbors,
    ),
    "t5": Family(
        name="t5",
        specials={"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        templates=("$A </s>", "$A </s> $B </s>"),
        build=_t5,
        collator=_spans_and_wholes,
        objective=f"{CORRUPTED:.0%} of tokens corrupted in spans of {MEAN_SPAN:.0f}; restored, or the whole text",
        unit="target token of spans",
        window=256,
        learning_rate=1.5e-3,
        batch=8,
        scored=_spans,
        # They start ten to sixty times larger than other weights, and AdamW moves all equally. T5 was trained with
        # Adafactor, whose steps are relative to the size of a weight.
        embedding_rate=40.0,
    ),
}
