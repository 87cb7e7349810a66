"""Bodies of requests and responses, as the OpenAPI documents describe them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema


class Body(BaseModel):
    """Base of request bodies: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


#: A text or a row; its values are checked against the task, with a message for each.
Input = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]})
]


class PredictRequest(Body):
    """Inputs to answer."""

    inputs: Annotated[
        list[Input],
        Field(min_length=1, description="Texts, or rows with the input columns of the task.", examples=[["a text"]]),
    ]
    database: Annotated[str, Field(description="text2sql: the database of inputs that name none.")] = ""


class Output(BaseModel):
    """The answer to an input: the fields that `fulltune predict` adds to a row."""

    model_config = ConfigDict(extra="allow")

    prediction: str | list[str]
    probabilities: Annotated[dict[str, float] | None, Field(description="classification: label → probability")] = None
    text: Annotated[str | None, Field(description="generating tasks: the text")] = None
    sql: Annotated[str | None, Field(description="text2sql: the query")] = None
    truncated: Annotated[int | None, Field(description="Tokens of the input that the model did not read.")] = None
    rows: Annotated[list[list[Any]] | None, Field(description="--execute: rows of the result")] = None
    columns: Annotated[list[str] | None, Field(description="--execute: the names of the columns of the result")] = None
    more_rows: Annotated[bool | None, Field(description="--execute: the result has further rows")] = None
    sql_error: Annotated[str | None, Field(description="text2sql: why the query cannot be run, or failed")] = None
    sql_warning: Annotated[
        str | None, Field(description="text2sql: values that occur neither in the question nor in their column")
    ] = None


class PredictResponse(BaseModel):
    """Answers in the order of the inputs, and the run or version that gave them."""

    model: str
    outputs: list[Output]


class ProblemBody(BaseModel):
    """One problem of a request."""

    found: str
    expected: str
    fix: str
    where: str
    field: str


class ErrorDetail(BaseModel):
    """The reason that a request has no answer."""

    type: str
    message: str
    problems: list[ProblemBody]


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: ErrorDetail


class OpenAIErrorDetail(BaseModel):
    """The reason that a request under /v1 has no answer."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """The body of a refusal under /v1."""

    error: OpenAIErrorDetail


class Health(BaseModel):
    """State of the server; `trouble` says why a newer version does not answer."""

    status: str
    name: str
    model: str = ""
    task: str = ""
    trouble: str = ""
    fulltune: str
