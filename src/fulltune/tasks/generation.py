"""Tasks that answer an input with a text: by an encoder-decoder, or by a decoder that continues a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import tee
from typing import ClassVar

from fulltune.models import inference
from fulltune.models.bundle import Bundle
from fulltune.records.run import Prediction
from fulltune.tasks import prompts
from fulltune.tasks.base import Example, Features, Predictor, Task
from fulltune.tasks.prompts import Fitted, Shot, Wording

#: Window of a source. That of a decoder holds the target as well.
_SOURCE_LENGTH, _DECODER_LENGTH = 512, 768


class TextToText(Task):
    """Base of the tasks whose answer is a generated text."""

    families = ("encoder-decoder", "decoder")

    #: What introduces the input and the answer in a decoder's prompt and between shots.
    question: ClassVar[str] = "Input"
    answer: ClassVar[str] = "Output"

    def encode(self, example: Example, bundle: Bundle) -> list[Features]:
        prompt = self._ask(example, bundle)
        if bundle.family == "decoder":
            wording = self.wording(example, bundle)
            return [prompts.prompt_features(bundle, prompt, example, wording, self._window(bundle))]
        answer = prompts.answer_ids(bundle, example.answer)
        kept = answer[: min(self.config.data.max_target_length, inference.most_new_tokens(bundle, len(prompt.ids)))]
        lost = {"answer": len(answer) - len(kept)} if len(kept) < len(answer) else {}
        return [Features(prompt.ids, kept, example.id, {**prompt.cut, **lost})]

    def predictor(self, bundle: Bundle, system: str, shots: Sequence[Example] = ()) -> Predictor:
        settings = self.config.evaluation

        def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
            asked, waiting = tee(self._ask(example, bundle, shots) for example in examples)
            ids = (prompt.ids for prompt in asked)
            answers = inference.generate(bundle, ids, settings.batch_size, settings.max_new_tokens)
            for example, prompt, generated in zip(examples, waiting, answers, strict=True):
                found = self.prediction(system, example, generated)
                yield found.model_copy(update={"values": found.values | prompt.values(len(shots)) | generated.values})

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
            return Wording(instruction=instruction, chat=chat, day=self.day)
        return Wording(instruction, self.question, self.answer)

    def shot(self, shot: Example, asked: Example) -> Shot:
        """A training example as it stands in the context of another."""
        return Shot(shot.input, shot.answer)

    def _ask(self, example: Example, bundle: Bundle, shots: Sequence[Example] = ()) -> Fitted:
        """Return the prompt of a row: cut as in training, and with as many shots as the model's positions hold."""
        wording, window = self.wording(example, bundle), self._window(bundle)
        room, shots_room = window, bundle.window
        if bundle.family == "decoder":
            room = prompts.prompt_room(window, self.config.data.max_target_length)
            shots_room = bundle.window - (window - room)
        shown = [self.shot(shot, example) for shot in shots]
        around = self.wording(example, bundle, shots=bool(shots))
        return prompts.fit(bundle, wording, example.input, room, shown, shots_room, around)

    def _window(self, bundle: Bundle) -> int:
        usual = _DECODER_LENGTH if bundle.family == "decoder" else _SOURCE_LENGTH
        return min(self.config.data.max_length or usual, bundle.window)
