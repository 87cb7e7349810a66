"""``causal-lm``: learn a language, a style, a collection of tales; scored in bits per byte of held-out text.

A document longer than the window becomes several windows: each token is predicted exactly once, no window crosses a
document, and the end-of-text token is learnt even when it is also the padding token (padding is told by length). Rows
with ``prompt`` and ``completion`` learn and are scored on the completion only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from fulltune import distributed, inference
from fulltune.data.load import available_columns
from fulltune.errors import DataError
from fulltune.metrics.base import Metric
from fulltune.metrics.likelihood import bits_per_byte, perplexity
from fulltune.metrics.text import continuation_bleu, continuation_rougeL, distinct_2, repetition_4
from fulltune.model import Bundle
from fulltune.records import Prediction
from fulltune.tasks import prompts
from fulltune.tasks.base import Column, Example, Features, Predictor, Task
from fulltune.tasks.prompts import Shot, Wording

if TYPE_CHECKING:
    from fulltune.data.load import Row

#: Tokens of a document that the model is shown before it continues.
OPENING_TOKENS = 48

_DEFAULT_LENGTH = 1024


class CausalLM(Task):
    """Text, or prompt and completion, for a decoder."""

    name = "causal-lm"
    version = 1
    families = ("decoder",)
    _continued: frozenset[str] = frozenset()

    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        data = self.config.data
        if data.text not in available and {data.prompt, data.completion} <= set(available):
            return Column("prompt", str, may_be_empty=True), Column("completion", str)
        return (Column("text", str),)

    def example(self, row: Row) -> Example:
        if "text" in row.fields:
            return Example(row.id, "", row.fields["text"])
        return Example(row.id, row.fields["prompt"], row.fields["completion"])

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return bits_per_byte, perplexity, distinct_2, repetition_4, continuation_bleu, continuation_rougeL

    def encode(self, example: Example, bundle: Bundle) -> list[Features]:
        window = self._window(bundle)
        if example.input:
            return [
                prompts.prompt_features(bundle, self._prompt(example, bundle), example, self._wording(bundle), window)
            ]
        tokens = prompts.text_ids(bundle, example.answer) + prompts.end_ids(bundle)
        return [
            Features(text.context + text.target, [-100] * len(text.context) + text.target, example.id)
            for text in _windows(prompts.start_ids(bundle), tokens, window)
        ]

    def predictor(self, bundle: Bundle, system: str, shots: Sequence[Example] = ()) -> Predictor:
        size = self.config.evaluation.batch_size

        def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
            continued = self._continuations(bundle, self._opened(examples), shots)
            iterator = iter(examples)
            while chunk := list(islice(iterator, size * 8)):
                pieces = [self._pieces(example, bundle, shots) for example in chunk]
                scored = inference.likelihoods(bundle, (text for texts in pieces for text in texts), size)
                for example, texts in zip(chunk, pieces, strict=True):
                    parts = list(islice(scored, len(texts)))
                    values = {
                        "nll": sum(part.nll for part in parts),
                        "tokens": sum(part.tokens for part in parts),
                        "bytes": len(example.answer.encode()),
                    }
                    extra = continued.get(example.id, {})
                    yield Prediction(
                        system=system,
                        id=example.id,
                        input=str(extra.get("opening", example.input)),
                        reference=str(extra.get("continuation_reference", "")),
                        output=str(extra.get("continuation", "")),
                        values=values | extra,
                    )

        return predict

    def ask(self, bundle: Bundle, system: str, text: str, place: str = "") -> Prediction:
        """A continuation: of a chat's turn where prompts were learnt as such, else of the bare text."""
        cap = self.config.evaluation.max_new_tokens
        context = prompts.start_ids(bundle) + prompts.text_ids(bundle, text)
        if self._learns_prompts():
            context = self._prompt(Example("asked", text, ""), bundle)
        [answer] = inference.generate(bundle, [context[-max(1, bundle.window - cap) :]], 1, cap)
        values = {"tokens": answer.tokens, "capped": answer.capped}
        return Prediction(system=system, id="asked", input=text, reference="", output=answer.text, values=values)

    def _learns_prompts(self) -> bool:
        try:
            columns = self.columns(available_columns(self.config.data.train))
        except DataError:  # the rows need not be where the model is asked
            return False
        return columns[0].role == "prompt"

    def _pieces(self, example: Example, bundle: Bundle, shots: Sequence[Example]) -> list[inference.Text]:
        """What is scored of one example; the end-of-text token is not, since no byte of the text stands for it."""
        if example.input:
            answer = prompts.answer_ids(bundle, example.answer, self._wording(bundle))
            ends = len(prompts.end_ids(bundle))
            context, _ = self._prompt_with_shots(example, bundle, shots, len(answer))
            return [inference.Text(context, answer[: len(answer) - ends])]
        tokens = prompts.text_ids(bundle, example.answer)
        return _windows(self._context(bundle, shots), tokens, self._window(bundle))

    def _context(self, bundle: Bundle, shots: Sequence[Example]) -> list[int]:
        """The shots as documents before the text, at most half a window of them."""
        start, documents = prompts.start_ids(bundle), []
        for shot in shots:
            documents += prompts.text_ids(bundle, shot.answer) + prompts.end_ids(bundle)
        half = self._window(bundle) // 2
        return start + documents[-half:] if documents else start

    def fit(self, train: Sequence[Example], evaluation: Sequence[Example]) -> None:
        first = evaluation[: self.config.evaluation.continuations]
        self._continued = frozenset(example.id for example in first)

    def _opened(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The documents to continue: the first ones, also where other processes are asked the rest of the rows."""
        if distributed.size() == 1:
            return examples[: self.config.evaluation.continuations]
        return [example for example in examples if example.id in self._continued]

    def _continuations(
        self, bundle: Bundle, examples: Sequence[Example], shots: Sequence[Example]
    ) -> dict[str, dict[str, str]]:
        """Greedy continuations from the openings of the first documents, keyed by row id."""
        cap, asked = self.config.evaluation.max_new_tokens, []
        for example in examples:
            if example.input:
                context, _ = self._prompt_with_shots(example, bundle, shots, cap)
                asked.append((example.id, example.input, context, example.answer))
                continue
            tokens = prompts.text_ids(bundle, example.answer)
            opening = tokens[: min(OPENING_TOKENS, len(tokens) // 2)]
            room = max(1, bundle.window - cap - len(opening))
            reference = inference.decode(bundle, tokens[len(opening) : len(opening) + cap])
            context = self._context(bundle, shots)[-room:] + opening
            asked.append((example.id, inference.decode(bundle, opening), context, reference))
        answers = inference.generate(bundle, (context for _, _, context, _ in asked), len(asked) or 1, cap)
        return {
            row: {"opening": opening, "continuation": answer.text, "continuation_reference": reference}
            for (row, opening, _, reference), answer in zip(asked, answers, strict=True)
        }

    def _prompt_with_shots(
        self, example: Example, bundle: Bundle, shots: Sequence[Example], reserve: int
    ) -> tuple[list[int], int]:
        room = max(1, bundle.window - reserve)
        examples = [Shot(shot.input, shot.answer) for shot in shots]
        return prompts.fit_shots(bundle, self._wording(bundle), example.input, examples, room)

    def _prompt(self, example: Example, bundle: Bundle) -> list[int]:
        return prompts.prompt_ids(bundle, self._wording(bundle), example.input)

    def _wording(self, bundle: Bundle) -> Wording:
        return Wording(chat=prompts.wants_chat(bundle, self.config.data.chat))

    def _window(self, bundle: Bundle) -> int:
        return min(self.config.data.max_length or _DEFAULT_LENGTH, bundle.window)


def _windows(context: list[int], tokens: list[int], window: int) -> list[inference.Text]:
    """Cut a document so that every token is a target once; later windows begin with the token before them."""
    room = max(1, window - len(context) - 1)
    texts = []
    for start in range(0, len(tokens), room):
        before = context + tokens[start - 1 : start] if start else context
        texts.append(inference.Text(before, tokens[start : start + room]))
    # A decoder predicts nothing without something before it: a tokenizer with no special tokens loses the first one.
    if texts and not texts[0].context:
        texts[0] = inference.Text(texts[0].target[:1], texts[0].target[1:])
    return [text for text in texts if text.target]
