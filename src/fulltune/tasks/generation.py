"""Base of tasks that answer an input with a text, with an encoder-decoder or with a decoder that continues a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import tee
from typing import TYPE_CHECKING, ClassVar

from fulltune.models.token_ids import most_new_tokens
from fulltune.records.run import Prediction
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Features, Predictor
from fulltune.tasks.generating import Generating
from fulltune.tasks.prompts import Fitted, Shot, Wording

if TYPE_CHECKING:
    from fulltune.models.bundle import Bundle
    from fulltune.models.inference import Generated

#: Default windows in tokens; that of a decoder includes the target.
_SOURCE_LENGTH = 512
_DECODER_LENGTH = 768


class TextToText(Generating):
    """Base of tasks whose answer is a generated text."""

    families = ("encoder-decoder", "decoder")

    #: Labels before the input and the answer in a decoder's prompt and between shots.
    question: ClassVar[str] = "Input"
    answer: ClassVar[str] = "Output"

    def encode(self, example: Example, bundle: Bundle) -> list[Features]:
        prompt = self._prompt(example, bundle)
        if bundle.family == "decoder":
            wording = self.wording(example, bundle)
            return [prompts.prompt_features(bundle, prompt, example, wording, self.window(bundle))]
        answer = prompts.answer_ids(bundle, example.answer)
        kept = answer[: min(self.config.data.max_target_length, most_new_tokens(bundle, len(prompt.ids)))]
        lost = {"answer": len(answer) - len(kept)} if len(kept) < len(answer) else {}
        return [Features(prompt.ids, kept, example.id, {**prompt.removed, **lost})]

    def predictor(self, bundle: Bundle, system: str, shots: Sequence[Example] = ()) -> Predictor:
        from fulltune.models import inference

        settings = self.config.evaluation

        def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
            prompts_read, prompts_later = tee(self._prompt(example, bundle, shots) for example in examples)
            ids = (prompt.ids for prompt in prompts_read)
            answers = inference.generate(bundle, ids, settings.batch_size, settings.max_new_tokens)
            for example, prompt, generated in zip(examples, prompts_later, answers, strict=True):
                result = self.prediction(system, example, generated)
                values = result.values | prompt.values(len(shots)) | generated.values
                yield result.model_copy(update={"values": values})

        return predict

    def named_values(self, examples: Iterable[Example]) -> Mapping[str, str]:
        """Return texts that inputs and answers name, such as those of a database, by their form in lower case."""
        return {}

    def prompt(self, example: Example, bundle: Bundle) -> Fitted:
        return self._prompt(example, bundle)

    def answer_text(self, text: str) -> str:
        return text.strip()

    def prediction(self, system: str, example: Example, generated: Generated) -> Prediction:
        """Return a generated answer as a prediction, with the values that the metrics read."""
        return Prediction(
            system=system,
            id=example.id,
            input=example.input,
            reference=example.target,
            output=self.answer_text(generated.text),
            values={"capped": generated.capped, "tokens": generated.tokens},
        )

    def wording(self, example: Example, bundle: Bundle, *, shots: bool = False) -> Wording:
        """Return the wording around an input; an encoder-decoder gets the bare input unless there are shots."""
        instruction = self.config.data.instruction or ""
        chat = prompts.wants_chat(bundle, self.config.data.chat)
        if chat or (bundle.family == "encoder-decoder" and not shots):
            return Wording(instruction=instruction, chat=chat, day=self.day)
        return Wording(instruction, self.question, self.answer)

    def shot(self, shot: Example, example: Example) -> Shot:
        """Return a training example as a shot in the prompt of another example."""
        return Shot(shot.input, shot.answer)

    def _prompt(self, example: Example, bundle: Bundle, shots: Sequence[Example] = ()) -> Fitted:
        """Return the prompt of a row: cut as in training, with as many shots as the model's positions allow."""
        wording, question = prompts.worded(self.wording(example, bundle), example)
        window = self.window(bundle)
        room, shots_room = window, bundle.window
        if bundle.family == "decoder":
            room = prompts.prompt_room(window, self.config.data.max_target_length)
            shots_room = bundle.window - (window - room)
        shown = [self.shot(shot, example) for shot in shots]
        around, _ = prompts.worded(self.wording(example, bundle, shots=bool(shots)), example)
        return prompts.fit(bundle, wording, question, room, shown, shots_room, around)

    def longest_input(self, bundle: Bundle) -> int:
        return self.window(bundle) if bundle.family == "encoder-decoder" else bundle.window

    def window(self, bundle: Bundle) -> int:
        usual = _DECODER_LENGTH if bundle.family == "decoder" else _SOURCE_LENGTH
        return min(self.config.data.max_length or usual, bundle.window)
