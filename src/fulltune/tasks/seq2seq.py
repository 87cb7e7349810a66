"""``seq2seq``: any text to text (summaries, translations, rewriting), by an encoder-decoder or by a decoder that
continues a prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fulltune import inference
from fulltune.metrics import text
from fulltune.metrics.base import Metric
from fulltune.model import Bundle
from fulltune.records import Prediction
from fulltune.tasks import prompts
from fulltune.tasks.base import Column, Example, Features, Predictor, Task
from fulltune.tasks.prompts import Shot, ShotCount, Wording

if TYPE_CHECKING:
    from fulltune.data.load import Row

_DEFAULT_LENGTH = 512


class Seq2Seq(Task):
    """Columns ``source`` and ``target``."""

    name = "seq2seq"
    version = 1
    families = ("encoder-decoder", "decoder")

    #: What introduces the input and the answer in a decoder's prompt and between shots.
    question = "Input"
    answer = "Output"

    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        return Column("source", str), Column("target", str)

    def example(self, row: Row) -> Example:
        return Example(row.id, row.fields["source"], row.fields["target"])

    def fit(self, train: Sequence[Example], evaluation: Sequence[Example]) -> None:
        """Say once where word-based metrics read the references' script in another way than Latin."""
        warning = text.script_warning(example.answer for example in evaluation)
        if warning:
            warnings.warn(warning, stacklevel=2)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (
            text.rougeLsum,
            text.rouge1,
            text.rouge2,
            text.rougeL,
            text.bleu,
            text.chrf,
            text.exact_match,
            text.length_ratio,
            text.capped,
        )

    def encode(self, example: Example, bundle: Bundle) -> list[Features]:
        wording, window = self.wording(example, bundle), self._window(bundle)
        prompt = prompts.prompt_ids(bundle, wording, example.input)
        if bundle.family == "decoder":
            return [prompts.prompt_features(bundle, prompt, example, wording, window)]
        answer = prompts.answer_ids(bundle, example.answer)
        room = self.config.data.max_target_length
        kept = prompts.cut(prompt, window)
        lost = len(prompt) - len(kept) + max(0, len(answer) - room)
        return [Features(kept, answer[:room], example.id, truncated=lost)]

    def predictor(self, bundle: Bundle, system: str, shots: Sequence[Example] = ()) -> Predictor:
        settings = self.config.evaluation

        def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
            fitted = ShotCount(len(shots))
            asked = (fitted.ids(self._ask(example, bundle, shots)) for example in examples)
            answers = inference.generate(bundle, asked, settings.batch_size, settings.max_new_tokens)
            for example, generated in zip(examples, answers, strict=True):
                yield self.prediction(system, example, generated)
            fitted.warn()

        return predict

    def prediction(self, system: str, example: Example, generated: inference.Generated) -> Prediction:
        """A generated answer as a prediction, with what the metrics read."""
        return Prediction(
            system=system,
            id=example.id,
            input=example.input,
            reference=example.target,
            output=generated.text.strip(),
            values={"capped": generated.capped, "tokens": generated.tokens},
        )

    def wording(self, example: Example, bundle: Bundle, *, shots: bool = False) -> Wording:
        """The words around this example's input; an encoder-decoder gets its input bare unless shots must be told
        apart.
        """
        instruction = self.config.data.instruction or ""
        chat = prompts.wants_chat(bundle, self.config.data.chat)
        if chat or (bundle.family == "encoder-decoder" and not shots):
            return Wording(instruction=instruction, chat=chat)
        return Wording(instruction, self.question, self.answer)

    def shot(self, shot: Example, asked: Example) -> Shot:
        """A training example as it stands in the context of another."""
        return Shot(shot.input, shot.answer)

    def _ask(self, example: Example, bundle: Bundle, shots: Sequence[Example]) -> tuple[list[int], int]:
        reserve = self.config.evaluation.max_new_tokens if bundle.family == "decoder" else 0
        room = max(1, bundle.window - reserve)
        wording = self.wording(example, bundle, shots=bool(shots))
        return prompts.fit_shots(bundle, wording, example.input, [self.shot(shot, example) for shot in shots], room)

    def _window(self, bundle: Bundle) -> int:
        return min(self.config.data.max_length or _DEFAULT_LENGTH, bundle.window)
