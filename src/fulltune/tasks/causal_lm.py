"""Task ``causal-lm``: learn a language, a style or a collection of texts; scored in bits per byte of held-out text.

Texts are encoded as the tokenizer does. If it adds no token at the start, the first token is given: neither it nor its
bytes are scored, for any system.

A document longer than the window is divided into windows: each token is predicted exactly once, no window spans two
documents, and the end-of-text token is learned even if it is also the padding token (padding is masked by length). For
rows with ``prompt`` and ``completion``, only the completion is learned and scored.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from fulltune.data import chats
from fulltune.data.load import available_columns
from fulltune.errors import DataError
from fulltune.metrics.base import Metric
from fulltune.metrics.likelihood import bits_per_byte, perplexity
from fulltune.metrics.text import continuation_bleu, continuation_rougeL, distinct_2, repetition_4
from fulltune.models.token_ids import Text, decode, most_new_tokens
from fulltune.records.run import Prediction
from fulltune.runtime import distributed
from fulltune.runtime.graphemes import clip
from fulltune.tasks import prompts
from fulltune.tasks.base import Column, Example, Facts, Features, Predictor
from fulltune.tasks.chat import chat_ids
from fulltune.tasks.generating import Generating, Messages
from fulltune.tasks.prompts import Fitted, Shot, Wording

if TYPE_CHECKING:
    from typing_extensions import Self

    from fulltune.data.load import Row
    from fulltune.models.bundle import Bundle

#: Number of tokens of a document that the model reads before it continues.
OPENING_TOKENS = 48


@dataclass(frozen=True)
class ContinuedDocuments(Facts):
    """Ids of the evaluation documents that a model continues."""

    ids: frozenset[str] = frozenset()


class CausalLM(Generating):
    """Causal language modeling on text, or on prompt and completion, with a decoder."""

    name = "causal-lm"
    usual_length = 1024
    version = 4
    families = ("decoder",)
    inputs = ("text", "prompt", "messages")
    baselines = ("ngram", "zero_shot", "few_shot")
    facts: ContinuedDocuments = ContinuedDocuments()

    def columns(self, available: Sequence[str]) -> tuple[Column, ...]:
        data = self.config.data
        if data.has_chats(("text", "prompt"), available):
            return (Column("messages", list),)
        if data.text not in available and {data.prompt, data.completion} <= set(available):
            return Column("prompt", str, may_be_empty=True), Column("completion", str)
        return (Column("text", str),)

    def example(self, row: Row) -> Example:
        if "text" in row.fields:
            return Example(row.id, "", row.fields["text"])
        return Example(row.id, row.fields["prompt"], row.fields["completion"], prompts.chat_meta(row.fields))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return bits_per_byte, perplexity, distinct_2, repetition_4, continuation_bleu, continuation_rougeL

    def encode(self, example: Example, bundle: Bundle) -> list[Features]:
        window = self.window(bundle)
        if example.input:
            prompt = self._prompt(example, bundle)
            return [prompts.prompt_features(bundle, prompt, example, self._wording(example, bundle)[0], window)]
        tokens = prompts.text_ids(bundle, example.answer) + prompts.end_ids(bundle)
        return [
            Features(text.context + text.target, [-100] * len(text.context) + text.target, example.id)
            for text in windows(prompts.start_ids(bundle), tokens, window, is_given=not prompts.start_ids(bundle))
        ]

    def predictor(self, bundle: Bundle, system: str, shots: Sequence[Example] = ()) -> Predictor:
        from fulltune.models import inference

        size = self.config.evaluation.batch_size

        def predict(examples: Sequence[Example]) -> Iterator[Prediction]:
            documents = self._documents(bundle, shots, self.window(bundle) // 2)
            continued = self._continuations(bundle, self._opened(examples), shots)
            iterator = iter(examples)
            while chunk := list(islice(iterator, size * 8)):
                fitted = [self._prompt(example, bundle, shots) if example.input else documents for example in chunk]
                pieces = [self._pieces(*pair, bundle) for pair in zip(chunk, fitted, strict=True)]
                scored = inference.likelihoods(bundle, (text for texts in pieces for text in texts), size)
                for example, prompt, texts in zip(chunk, fitted, pieces, strict=True):
                    parts = list(islice(scored, len(texts)))
                    values = {
                        "nll": sum(part.nll for part in parts),
                        "tokens": sum(part.tokens for part in parts),
                        "bytes": len(self.scored_bytes(example, bundle)[1]),
                    }
                    extra = continued.get(example.id, {})
                    yield Prediction(
                        system=system,
                        id=example.id,
                        input=str(extra.get("opening", example.input)),
                        reference=str(extra.get("continuation_reference", "")),
                        output=str(extra.get("continuation", "")),
                        values=values | extra | prompt.values(len(shots)),
                    )

        return predict

    def scored_bytes(self, example: Example, bundle: Bundle) -> tuple[bytes, bytes]:
        """Return what is given and what is scored of an example: all but a first token that nothing predicts."""
        given, text = example.input.encode(), example.answer.encode()
        if example.input or prompts.start_ids(bundle):
            return given, text
        size = _first_token_bytes(bundle, example.answer)
        return text[:size], text[size:]

    def request(self, row: Mapping[str, Any], place: str = "") -> Example:
        """Return the example of a text to continue or of a prompt; a row alone says which by its column."""
        is_prompt = {} if "text" in row else {"is_prompt": True}
        return Example("asked", next(iter(row.values())), "", is_prompt | prompts.chat_meta(row))

    def prompt(self, example: Example, bundle: Bundle) -> Fitted:
        """Return the prompt of a text to continue, of a prompt, or of a chat."""
        if "chat" in example.meta:
            return self._conversation(example.meta["chat"], bundle)
        if chats.MESSAGES in example.meta:
            return self._prompt(example, bundle)
        return self._asked(example.input, bundle, example.meta.get("is_prompt", self._has_prompts))

    def continuation(self, text: str, place: str = "") -> Example:
        """Return the example of a text to continue as it is, also if the model was trained on prompts."""
        return Example("asked", text, "", {"is_prompt": False})

    def conversation(self, messages: Messages, bundle: Bundle, place: str = "") -> Example:
        """Return the example of a chat; without a chat template, of a single message, which is a prompt.

        A model that was trained on chats takes several messages without a template too.
        """
        if not prompts.wants_chat(bundle, self.config.data.chat):
            fields = chats.asked(messages) if len(messages) > 1 and self._input == chats.MESSAGES else None
            if isinstance(fields, dict):
                return self.request(fields, place)
            return replace(super().conversation(messages, bundle, place), meta={"is_prompt": True})
        if not messages or messages[-1]["role"] != "user":
            found = f"the role {messages[-1]['role']}" if messages else "no message"
            raise DataError(found, expected="a last message of the role user", field="messages")
        text = "\n".join(message["content"] for message in messages)
        return Example("asked", text, "", {"chat": tuple(messages)})

    def _conversation(self, messages: Messages, bundle: Bundle) -> Fitted:
        """Return the prompt of a chat; it is not shortened, but reported as too long."""
        ids = chat_ids(bundle, messages, self.day)
        lost = max(0, len(ids) - bundle.window)
        return Fitted(ids[lost:], removed={"input": lost} if lost else {})

    def _asked(self, text: str, bundle: Bundle, has_prompts: bool) -> Fitted:
        """Return the prompt of a text: as in training if that had prompts, otherwise the text itself."""
        return self._prompt(Example("asked", text, ""), bundle) if has_prompts else self._end_of(text, bundle)

    @property
    def _has_prompts(self) -> bool:
        return self._input in ("prompt", chats.MESSAGES)

    def ask(self, bundle: Bundle, system: str, text: str, place: str = "") -> Prediction:
        """Continue a text: as the user's turn of a chat if the model was trained on prompts, otherwise as it is."""
        from fulltune.models import inference

        cap = self.config.evaluation.max_new_tokens
        prompt = self._asked(text, bundle, self._has_prompts)
        if self.config.generation.temperature > 0:
            [answer] = inference.drawn(bundle, [prompt.ids], cap, self.config.generation)
        else:
            [answer] = inference.generate(bundle, [prompt.ids], 1, cap)
        values = {"tokens": answer.tokens, "capped": answer.capped} | prompt.values() | answer.values
        return Prediction(system=system, id="asked", input=text, reference="", output=answer.text, values=values)

    def _end_of(self, text: str, bundle: Bundle) -> Fitted:
        """Return the prompt of a bare text; only the end of a text that is too long is kept."""
        start = prompts.start_ids(bundle) if text else prompts.opening_ids(bundle)
        ids = prompts.text_ids(bundle, text)
        room = bundle.window - self._reserve(bundle) - len(start)
        lost = max(0, len(ids) - room)
        return Fitted(start + ids[lost:], removed={"input": lost} if lost else {})

    def _reserve(self, bundle: Bundle) -> int:
        """Return the number of tokens that are reserved for a continuation."""
        return min(self.config.evaluation.max_new_tokens, bundle.window // prompts.ANSWER_PART)

    @cached_property
    def _input(self) -> str:
        """Role of the input in training."""
        try:
            columns = self.columns(available_columns(self.config.data.train, data=self.config.data))
        except DataError:  # the rows may not exist where the model is used
            return "text"
        return columns[0].role

    def _pieces(self, example: Example, prompt: Fitted, bundle: Bundle) -> list[Text]:
        """Return the parts of an example that are scored, without the end-of-text token, which has no bytes.

        A completion that does not fit behind its prompt is scored in parts, each behind the prompt.
        """
        if not example.input:
            tokens = prompts.text_ids(bundle, example.answer)
            is_given = not prompts.start_ids(bundle)
            return windows(prompt.ids, tokens, self.window(bundle), is_given=is_given)
        answer = prompts.answer_ids(bundle, example.answer, self._wording(example, bundle)[0])
        tokens = answer[: len(answer) - len(prompts.end_ids(bundle))]
        without_shots = self._prompt(example, bundle) if prompt.shots else prompt
        return windows(prompt.ids, tokens, self.window(bundle) + len(prompt.ids) - len(without_shots.ids))

    def _documents(self, bundle: Bundle, shots: Sequence[Example], room: int) -> Fitted:
        """Return the shots as documents before a text: as many as fit into ``room`` tokens, at least the end of one."""
        start = prompts.start_ids(bundle)
        documents = []
        for shot in shots:
            documents.append(prompts.text_ids(bundle, shot.answer) + prompts.end_ids(bundle))
        room -= len(start)
        while len(documents) > 1 and sum(map(len, documents)) > room:
            documents.pop()
        ids = list(chain.from_iterable(documents))
        return Fitted(start + ids[max(0, len(ids) - max(0, room)) :], len(documents))

    def scoring(self, evaluation: Sequence[Example]) -> Self:
        return self.with_facts(ContinuedDocuments(ids=self._chosen(evaluation)))

    def _opened(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Return the documents to continue: the same ones of all rows if processes share the rows."""
        ids = self._chosen(examples) if distributed.size() == 1 else self.facts.ids
        return [example for example in examples if example.id in ids]

    def _chosen(self, examples: Sequence[Example]) -> frozenset[str]:
        """Return random documents, as many of each group or folder as possible; the same ones for every training.

        The order depends on ids and ``data.seed`` alone, so that systems which answer a part of the rows share them.
        """
        seed = self.config.data.seed or 0

        def lot(example: Example) -> str:
            return hashlib.sha256(f"{seed} {example.id}".encode()).hexdigest()

        drawn = Counter[str]()
        ranked = list[tuple[int, Example]]()
        for example in sorted(examples, key=lot):
            ranked.append((drawn[example.part], example))
            drawn[example.part] += 1
        ranked.sort(key=lambda item: item[0])  # stable: in the order of their lots
        return frozenset(example.id for _, example in ranked[: self.config.evaluation.continuations])

    def _continuations(
        self, bundle: Bundle, examples: Sequence[Example], shots: Sequence[Example]
    ) -> dict[str, dict[str, Any]]:
        """Return greedy continuations of documents by row id."""
        from fulltune.models import inference

        cap = self.config.evaluation.max_new_tokens
        openings = [self._opening(example, bundle, shots, cap) for example in examples]
        answers = inference.generate(bundle, (context for context, _, _ in openings), len(openings) or 1, cap)
        return {
            example.id: {"opening": opening, "continuation": answer.text, "continuation_reference": reference}
            | answer.values
            for example, (_, opening, reference), answer in zip(examples, openings, answers, strict=True)
        }

    def _opening(
        self, example: Example, bundle: Bundle, shots: Sequence[Example], cap: int
    ) -> tuple[list[int], str, str]:
        """Return the opening of an example (token ids and text), and its reference continuation.

        The opening of a document ends with a complete word, so that the continuation begins with a word, too.
        """
        if example.input:
            return self._prompt(example, bundle, shots, self._reserve(bundle)).ids, example.input, example.answer
        tokens = prompts.text_ids(bundle, example.answer)
        size = min(OPENING_TOKENS, max(1, len(tokens) // 2), bundle.window // prompts.ANSWER_PART)
        shown = _whole_words(_decoded(bundle, tokens, size), _decoded(bundle, tokens, size + _COMPLETING))
        # Encode the displayed text: a cut inside a word or a character could give other tokens.
        opening = prompts.text_ids(bundle, shown) or tokens[:size]
        room = bundle.window - self._reserve(bundle) - len(opening)
        context = self._documents(bundle, shots, room).ids + opening
        end = size + min(cap, most_new_tokens(bundle, len(context)))
        until_end = _decoded(bundle, tokens, end)
        if until_end.startswith(shown):
            return context, shown, until_end.removeprefix(shown)
        return context, shown, _decoded(bundle, tokens[size:], end - size)

    def _prompt(self, example: Example, bundle: Bundle, shots: Sequence[Example] = (), reserve: int = 0) -> Fitted:
        """Return the prompt of a row, as in training, with as many shots as fit.

        The model's positions must hold prompt and completion, or prompt and ``reserve`` tokens if those are more.
        """
        wording, question = self._wording(example, bundle)
        window = self.window(bundle)
        room = prompts.prompt_room(window, self.config.data.max_target_length)
        plain = prompts.fit(bundle, wording, question, room)
        if not shots:
            return plain
        answer = min(len(prompts.answer_ids(bundle, example.answer, wording)), window - len(plain.ids))
        shown = [Shot(shot.input, shot.answer) for shot in shots]
        return prompts.fit(bundle, wording, question, room, shown, bundle.window - max(answer, reserve))

    def _wording(self, example: Example, bundle: Bundle) -> tuple[Wording, str]:
        """Return the words around a prompt, and the prompt; without a template, the roles of a chat are words."""
        chat = prompts.wants_chat(bundle, self.config.data.chat)
        labeled = not chat and len([role for role, _ in prompts.chat_turns(example.meta) if role != "system"]) > 1
        wording = Wording(answer="Assistant" if labeled else "", chat=chat, keeps_end=True, day=self.day)
        return prompts.worded(wording, example)

    def reads(self, example: Example) -> str:
        return str(example.meta.get(chats.MESSAGES, ""))


#: Number of further tokens that complete a character, as a reader sees it.
_COMPLETING = 16


def _decoded(bundle: Bundle, tokens: list[int], size: int) -> str:
    """Return the text of the first ``size`` tokens up to its last complete character."""
    text = decode(bundle, tokens[:size]).rstrip("\ufffd")
    longer = decode(bundle, tokens[: size + _COMPLETING])
    return clip(longer, len(text)) if longer.startswith(text) else text


def _whole_words(opening: str, longer: str) -> str:
    """Return an opening without the beginning of a word at its end, unless it has no other words."""
    is_cut = opening[-1:].isalnum() and longer[len(opening) : len(opening) + 1].isalnum()
    words = re.fullmatch(r"(.*\S)\s+\S+", opening, re.DOTALL) if is_cut else None
    return words[1] if words else opening


def windows(context: list[int], tokens: list[int], window: int, *, is_given: bool = False) -> list[Text]:
    """Divide a document so that every token is a target once; later windows begin with the preceding token.

    Args:
        context: Tokens before the document, in each window.
        tokens: Tokens of the document.
        window: Longest sequence in tokens.
        is_given: The tokenizer adds no token that predicts the first one, which is then context itself.
    """
    fits = len(context) + len(tokens) <= window
    room = max(1, window - len(context) - (0 if fits else 1))
    texts = []
    for start in range(0, len(tokens), room):
        before = context + tokens[start - 1 : start] if start else context
        texts.append(Text(before, tokens[start : start + room]))
    if texts and is_given:
        first = texts[0]
        texts[0] = Text(first.context + first.target[:1], first.target[1:])
    return [text for text in texts if text.target]


def window_count(tokens: int, window: int) -> int:
    """Return the number of :func:`windows` of a document without context, whose first token is given."""
    room = window if tokens <= window else max(1, window - 1)
    count = -(-tokens // room)
    return count - 1 if min(tokens, room) == 1 else count  # the first window has no target


def _first_token_bytes(bundle: Bundle, text: str) -> int:
    if not bundle.tokenizer.is_fast:
        return len(decode(bundle, prompts.text_ids(bundle, text)[:1]).encode())
    tokenizer: Any = bundle.tokenizer
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = encoded.offset_mapping
    if not places:
        return 0
    size = len(text[: places[0][1]].encode())
    if len(places) < 2 or places[1][0] >= places[0][1]:
        return size
    # The next token has the rest of the same character: the first one is written as its bytes.
    return min(size, written_bytes(tokenizer.convert_ids_to_tokens(encoded.input_ids[0]), text))


def written_bytes(token: str, text: str) -> int:
    """Return the number of bytes of a token with a part of a character: ``<0xE2>``, or a letter for each byte."""
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return 1
    added = token.startswith("Ġ") and not text.startswith(" ")  # the tokenizer puts a space before a text
    return len(token) - added
