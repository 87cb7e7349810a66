"""Bodies of the paths under /v1, which follow OpenAI's conventions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool

from fulltune.serve.bodies import Body

Number = Annotated[float, Field(allow_inf_nan=False)]


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class Common(Body):
    """Fields of both kinds of completions. Decoding is greedy: fields that ask for anything else must be neutral."""

    model: Annotated[str, Field(description="A name of /v1/models.")]
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[str | list[str] | None, Field(description="At most 4 texts at which an answer ends.")] = None
    temperature: Annotated[Number | None, Field(description="Only 0.")] = None
    top_p: Number | None = None
    n: int | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    seed: Annotated[int | None, Field(description="Without effect: the same request has the same answer.")] = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    database: Annotated[str, Field(description="text2sql: the database of the question.")] = ""

    @property
    def stops(self) -> list[str]:
        """Texts at which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class CompletionRequest(Common):
    """Texts to continue, or inputs of the task."""

    prompt: Annotated[str | list[str], Field(examples=["Once there lived"])]
    max_tokens: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


class Part(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Common):
    """A chat to answer."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(BaseModel):
    """One of the answers of a response.

    Attributes:
        index: Number of the prompt.
        finish_reason: None while the answer grows.
        logprobs: Not supported.
    """

    index: int
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class Answered(BaseModel):
    """The fields that all responses and chunks have."""

    id: str
    object: str
    created: int
    model: str
    usage: Usage | None = None


class CompletionChoice(Choice):
    """The continuation of a prompt."""

    text: str


class Completion(Answered):
    """Continuations in the order of the prompts."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class AnswerMessage(BaseModel):
    """The answer in a chat."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Choice):
    """The answer of a chat."""

    message: AnswerMessage


class Chat(Answered):
    """The answer to a chat."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Delta(BaseModel):
    """Part that a chunk adds to an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Choice):
    """The next part of an answer."""

    delta: Delta


class ChatChunk(Answered):
    """A part of a streamed answer."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]


class ModelCard(BaseModel):
    """A model that may be asked; `version` is the run or the version that answers under its name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fulltune"
    version: str


class ModelList(BaseModel):
    """The names of the served model."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
