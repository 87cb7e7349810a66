"""Classify with a base model that has no classification head: zero-shot and few-shot for each model family.

- A decoder or an encoder-decoder reads a prompt that lists the labels; each label is scored by the mean log-likelihood
  of its tokens.
- An encoder with a masked-LM head fills a cloze with one mask per label token (Schick & Schütze 2021, "It's Not Just
  Size That Matters").
- An encoder without such a head compares mean-pooled vectors of the text and of the label's name (cosine similarity).
- Few-shot with any encoder is the nearest class mean of the shots' vectors (Snell et al. 2017, "Prototypical
  Networks").

All return probabilities of shape (labels,). With several labels per row, only the few-shot encoder can decide how many
apply (it compares the distances to the means of the shots with and without the label); the others predict the best one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice, tee
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax

from fulltune.config import Config
from fulltune.metrics.base import Array
from fulltune.models import inference
from fulltune.models.bundle import Bundle
from fulltune.tasks import prompts
from fulltune.tasks.base import Example
from fulltune.tasks.prompts import Shot, Wording

#: Probabilities of the labels, and further values for the prediction.
Answer = tuple[Array, dict[str, Any]]

#: Scale of cosine similarities, which are close to each other, to get probabilities that can be calibrated (CLIP
#: learned 100).
_SHARPNESS = 20.0

#: Beginning of the cloze, between the text and one mask per token of the label.
_CLOZE = "Topic:"


@dataclass(frozen=True)
class Asking:
    """The way in which a decoder or an encoder-decoder is asked for a label.

    Attributes:
        chat: Use the tokenizer's chat template.
        ends: Score the end token after the label too. A model that continues after an answer finds it unlikely.
        prior: Log-probabilities of the labels whatever the text is, which are subtracted; may be empty.
    """

    chat: bool
    ends: bool = True
    prior: tuple[float, ...] = ()


class LabelScorer:
    """Scorer of labels with a base model that has no head for them."""

    def __init__(
        self, bundle: Bundle, labels: Sequence[str], multi_label: bool, config: Config, day: date | None = None
    ) -> None:
        self.bundle = bundle
        self.labels = tuple(labels)
        self.multi_label = multi_label
        self.config = config
        self.day = day
        self.batch_size = config.evaluation.batch_size
        self.window = min(config.data.max_length or 512, bundle.window)

    def zero_shot(self, examples: Sequence[Example]) -> Iterator[Answer]:
        """Yield probabilities from the label names only."""
        if self.bundle.family != "encoder":
            return self.asked(examples, (), self.usual)
        has_mask = self.bundle.has_lm_head and self.bundle.tokenizer.mask_token_id is not None
        scores = self._by_cloze(examples) if has_mask else self._by_similarity(examples)
        lost = self._cut([prompts.text_ids(self.bundle, label) for label in self.labels]) if has_mask else {}
        return ((self._best_only(softmax(row)), lost) for row in scores)

    def few_shot(self, examples: Sequence[Example], shots: Sequence[Example]) -> Iterator[Answer]:
        """Yield probabilities from the label names and labeled rows."""
        if self.bundle.family != "encoder":
            return self.asked(examples, shots, self.usual)
        return ((row, {"shots": len(shots)}) for row in self._by_class_means(examples, shots))

    @property
    def usual(self) -> Asking:
        """The default way to ask: the chat template as in ``data.chat``, with end tokens."""
        return Asking(prompts.wants_chat(self.bundle, self.config.data.chat))

    def asked(self, examples: Sequence[Example], shots: Sequence[Example], asking: Asking) -> Iterator[Answer]:
        """Yield probabilities from the likelihoods of the labels after a prompt."""
        prior = np.array(asking.prior or [0.0] * len(self.labels))
        for row, values in self.by_likelihood(examples, shots, asking):
            yield self._best_only(softmax(row - prior)), values

    def by_likelihood(self, examples: Sequence[Example], shots: Sequence[Example], asking: Asking) -> Iterator[Answer]:
        """Yield the mean log-likelihood per token of each label, ``(labels,)``, without the prior."""
        listed = self._listed()
        instruction = _instruction(listed) if listed else ""
        wording = Wording(instruction, "Text", "Label", asking.chat, day=self.day)
        names = [prompts.answer_ids(self.bundle, label, wording) for label in self.labels]
        names = [ids if asking.ends else self._without_end(ids) for ids in names]
        answers = [ids[: self._longest_label()] for ids in names]
        lost = self._cut(names) | _counted("unlisted_labels", len(self.labels) - len(listed))
        shots_room = self.bundle.window - (max(map(len, answers)) if self.bundle.family == "decoder" else 0)
        shown = [Shot(shot.input, shot.answer or "none") for shot in shots]
        room = min(self.window, shots_room)
        prompts_read, prompts_later = tee(
            prompts.fit(self.bundle, wording, example.input, room, shown, shots_room) for example in examples
        )
        texts = (inference.Text(prompt.ids, answer) for prompt in prompts_read for answer in answers)
        results = inference.likelihoods(self.bundle, texts, max(self.batch_size, len(answers)))
        for prompt in prompts_later:
            row = list(islice(results, len(answers)))
            yield np.array([-result.nll / result.tokens for result in row]), prompt.values(len(shots)) | lost

    def _listed(self) -> list[str]:
        """Return all labels, or as many as the instruction has room for in a third of the window."""
        listed = list(self.labels)
        while listed and len(prompts.text_ids(self.bundle, _instruction(listed))) > self.window // prompts.ANSWER_PART:
            listed = listed[: len(listed) // 2]
        return listed

    def _cut(self, names: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return the number of label names that are cut before they are scored, given their tokens."""
        return _counted("cut_labels", sum(len(ids) > self._longest_label() for ids in names))

    def _longest_label(self) -> int:
        """Return the maximum number of tokens of a label name that are scored."""
        limit = self.window // prompts.ANSWER_PART
        return limit if self.bundle.family != "encoder-decoder" else min(limit, self.bundle.answer_window)

    def _by_cloze(self, examples: Sequence[Example]) -> Iterator[Array]:
        words = [prompts.text_ids(self.bundle, label)[: self._longest_label()] for label in self.labels]
        lengths = sorted({len(word) for word in words})
        inputs = (self._cloze(example.input, masks) for example in examples for masks in lengths)
        filled = inference.mask_log_probabilities(self.bundle, inputs, self.batch_size)
        for _ in examples:
            by_length = dict(zip(lengths, islice(filled, len(lengths)), strict=True))
            yield np.array([_mean_log_probability(by_length[len(word)], word) for word in words])

    def _cloze(self, text: str, masks: int) -> list[int]:
        """Return ``text Topic: [MASK]…``; only the text is truncated, never the masks."""
        tokenizer = self.bundle.tokenizer
        ending = " ".join([_CLOZE, *[str(tokenizer.mask_token)] * masks])
        ids = list(tokenizer(f"{text} {ending}", truncation=False, verbose=False).input_ids)
        kept = len(tokenizer(ending).input_ids) - 1
        return ids if len(ids) <= self.window else ids[: self.window - kept] + ids[-kept:]

    def _by_similarity(self, examples: Sequence[Example]) -> Iterator[Array]:
        names = torch.stack(list(self._vectors(self.labels)))
        for vector in self._vectors([example.input for example in examples]):
            yield (_SHARPNESS * (names @ vector)).numpy().astype(np.float64)

    def _by_class_means(self, examples: Sequence[Example], shots: Sequence[Example]) -> Iterator[Array]:
        vectors = torch.stack(list(self._vectors([shot.input for shot in shots])))
        member = torch.tensor([[label in shot.labels for shot in shots] for label in self.labels])
        means = _means(vectors, member)
        others = _means(vectors, ~member)
        for vector in self._vectors([example.input for example in examples]):
            near = (_SHARPNESS * (means @ vector)).numpy().astype(np.float64)
            if self.multi_label:
                yield np.asarray(expit(near - (_SHARPNESS * (others @ vector)).numpy()), dtype=np.float64)
            else:
                yield np.asarray(softmax(near))

    def _vectors(self, texts: Sequence[str]) -> Iterator[torch.Tensor]:
        inputs = (
            prompts.keep_ends(list(self.bundle.tokenizer(text, truncation=False, verbose=False).input_ids), self.window)
            for text in texts
        )
        return inference.sentence_vectors(self.bundle, inputs, self.batch_size)

    def _best_only(self, probabilities: Array) -> Array:
        """With several labels per row, push all probabilities except the best below one half, and the best above."""
        if not self.multi_label:
            return probabilities
        best = probabilities == probabilities.max()
        return np.where(best, 0.5 + probabilities / 2, probabilities / 2)

    def _without_end(self, ids: list[int]) -> list[int]:
        ends = set(prompts.end_ids(self.bundle))
        return [token for token in ids if token not in ends] or ids


def _counted(name: str, count: int) -> dict[str, Any]:
    """Return a count to record with a prediction, unless it is 0."""
    return {name: count} if count else {}


def _instruction(labels: Sequence[str]) -> str:
    return f"Labels: {', '.join(labels)}."


def _mean_log_probability(log_probabilities: torch.Tensor, word: Sequence[int]) -> float:
    masked = log_probabilities[-len(word) :]  # the text itself may contain the mask token
    return float(masked[torch.arange(len(word)), torch.tensor(word)].mean())


def _means(vectors: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """Return the unit mean vector of each class, (labels, hidden); a class without shots gets zeros and never wins."""
    weights = member.float()
    means = weights @ vectors / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.nn.functional.normalize(means, dim=-1)
