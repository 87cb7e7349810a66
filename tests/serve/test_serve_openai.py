"""The paths under /v1, asked by the official client over a port of this machine, and their refusals."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import httpx
import openai
import pytest
from answering import sentence
from hypothesis import given
from hypothesis import strategies as st
from serving import Site, listening, server_of, site

from fulltune.models import inference
from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.serve.batching import first_stop
from fulltune.serve.limits import Limits
from fulltune.serve.streaming import Piece, Stream
from fulltune.tasks.chat import chat_ids

TEXTS = [sentence(index) for index in range(6)]


def client_of(url: str, token: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)


@pytest.fixture(scope="module")
def writing(writer: LoadedModel) -> Iterator[openai.OpenAI]:
    with (
        listening(server_of(writer)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def talking(talker: LoadedModel) -> Iterator[openai.OpenAI]:
    with (
        listening(server_of(talker)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_models_are_listed(writing: openai.OpenAI, writer: LoadedModel) -> None:
    [model] = writing.models.list().data
    assert (model.id, model.object, model.owned_by) == (writer.name, "model", "fulltune")
    assert model.created > 1_700_000_000


def test_completions_are_those_of_predict(writing: openai.OpenAI, writer: LoadedModel) -> None:
    expected = [answer["text"] for answer in writer(TEXTS)]
    found = writing.completions.create(model=writer.name, prompt=TEXTS)
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == list(range(len(TEXTS)))
    assert found.model == writer.name
    assert found.usage is not None
    assert found.usage.prompt_tokens == sum(len(writer.tokenizer(text).input_ids) for text in TEXTS)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    one = writing.completions.create(model=writer.name, prompt=TEXTS[0], max_tokens=3, temperature=0, seed=1, n=1)
    assert expected[0].startswith(one.choices[0].text)
    assert one.choices[0].finish_reason == "length"
    assert one.usage is not None
    assert one.usage.completion_tokens == 3


@pytest.mark.parametrize("times", [1, 2], ids=["first", "again"])
def test_a_streamed_completion_is_the_same_text(writing: openai.OpenAI, writer: LoadedModel, times: int) -> None:
    complete = writing.completions.create(model=writer.name, prompt=TEXTS)
    options = {"include_usage": True}
    chunks = list(writing.completions.create(model=writer.name, prompt=TEXTS, stream=True, stream_options=options))  # type: ignore[call-overload]
    texts = [""] * len(TEXTS)
    ends = {}
    for chunk in chunks[:-1]:
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in complete.choices]
    assert [ends[index] for index in range(len(TEXTS))] == [choice.finish_reason for choice in complete.choices]
    assert (chunks[-1].choices, chunks[-1].usage) == ([], complete.usage)
    assert len({chunk.id for chunk in chunks}) == 1
    if times == 2:  # lengths that were checked before arrive token by token
        assert len(chunks) > 3 * len(TEXTS)


def test_a_chat_gets_the_answer_of_its_template(talking: openai.OpenAI, talker: LoadedModel) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a fox"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "king"}]},
    ]
    plain = [*messages[:3], {"role": "user", "content": "a king"}]
    ids = chat_ids(talker._bundle, plain, talker.task.day)
    [expected] = inference.generate(talker._bundle, [ids], 1, 12)
    found = talking.chat.completions.create(model=talker.name, messages=messages)
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].message.role == "assistant"
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(ids)
    chunks = list(talking.chat.completions.create(model=talker.name, messages=messages, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason == found.choices[0].finish_reason


def test_one_message_is_a_row_of_predict(talking: openai.OpenAI, talker: LoadedModel) -> None:
    [expected] = talker([{"prompt": TEXTS[0]}])
    found = talking.chat.completions.create(
        model=talker.name, messages=[{"role": "user", "content": TEXTS[0]}], max_completion_tokens=12
    )
    assert found.choices[0].message.content == expected["text"]


def test_answers_end_at_stop_texts(writing: openai.OpenAI, writer: LoadedModel) -> None:
    [answer] = writer(TEXTS[1:2])
    stop = answer["text"][3:5]
    expected = answer["text"][: answer["text"].index(stop)]
    for stops in (stop, ["never", stop]):
        found = writing.completions.create(model=writer.name, prompt=TEXTS[1], stop=stops)
        assert (found.choices[0].text, found.choices[0].finish_reason) == (expected, "stop")
        chunks = list(writing.completions.create(model=writer.name, prompt=TEXTS[1], stop=stops, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected


@given(st.text("ab", max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_growing_text_ends_where_the_complete_one_does(text: str, stops: list[str]) -> None:
    growing = (text[:size] for size in range(len(text) + 1))
    at_once = first_stop(text, stops)
    stopped = next((part[:end] for part in growing if (end := first_stop(part, stops)) is not None), None)
    assert stopped == (None if at_once is None else text[:at_once])


def _doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every token be one that a batch could change."""
    monkeypatch.setattr("fulltune.models.greedy.BATCH_ERROR", 1e9)


def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no fast path agree with plain decoding."""
    monkeypatch.setattr("fulltune.models.fast_paths.verified", lambda *_: None)


@pytest.mark.parametrize("change", [None, _doubtful, _plain], ids=["batches", "doubtful", "plain"])
def test_many_streams_at_once_are_those_of_single_requests(
    writer: LoadedModel, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    expected = [answer["text"] for answer in writer(TEXTS)]
    if change is not None:
        change(monkeypatch)

    async def stream(client: httpx.AsyncClient, text: str) -> str:
        body = {"model": writer.name, "prompt": text, "stream": True}
        lines = (await client.post("/v1/completions", json=body)).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-2])

    async def talk(client: httpx.AsyncClient) -> list[str]:
        return await asyncio.gather(*(stream(client, text) for text in TEXTS))

    with site(server_of(writer)) as place:
        assert place.ask(talk) == expected


@pytest.mark.parametrize("stream", [False, True], ids=["complete", "stream"])
def test_a_client_that_goes_ends_the_generation(
    writer: LoadedModel, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    begun, gone, ended = threading.Event(), threading.Event(), threading.Event()
    lengths, counts = list[int](), list[int]()
    generations = writer.generations

    def held_back(examples: Any, most: Any, watch: Any, **options: Any) -> Any:
        def watched(number: int, prompt_tokens: int, tokens: Any) -> None:
            lengths.append(len(tokens))
            watch(number, prompt_tokens, tokens)
            if examples[0].input == "gone" and len(lengths) == 2:
                begun.set()
                assert gone.wait(60)

        try:
            yield from generations(examples, most, watched, **options)
        finally:
            counts.append(len(lengths))
            ended.set()

    server = server_of(writer)
    body = json.dumps({"model": writer.name, "prompt": "gone", "max_tokens": 100, "stream": stream})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with listening(server) as url:
        monkeypatch.setattr(writer, "generations", held_back)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
            assert begun.wait(60)
            [row] = server.batcher.running
            row.job.future.add_done_callback(lambda _: gone.set())
        assert ended.wait(60)
        assert httpx.post(f"{url}/predict", json={"inputs": ["a fox"]}, timeout=60).status_code == 200
    assert counts[0] <= 3  # of 100 tokens
    with pytest.raises(CancelledError):
        row.job.future.result()


def test_a_stream_ends_at_the_time_limit(writer: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(stream: Stream) -> AsyncIterator[Piece]:
        yield Piece(0, "a")
        await asyncio.Event().wait()

    monkeypatch.setattr(Stream, "pieces", endless)
    with site(server_of(writer, limits=Limits(seconds=1.5))) as place:
        answer = place.post("/v1/completions", {"model": writer.name, "prompt": "a", "stream": True})
    first, last, end = answer.text.split("\n\n")
    assert json.loads(first[6:])["choices"][0]["text"] == "a"
    assert json.loads(last[6:])["error"]["code"] == "timeout"
    assert end == ""


def test_a_body_that_ends_early_leaves_no_trace_in_the_log(
    writer: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with caplog.at_level(logging.WARNING), listening(server_of(writer)) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.sendall(head + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")
            connection.sendall(b'{"model": "')
        while 'path="/v1/completions",status="499"' not in httpx.get(f"{url}/metrics").text:
            pass
    assert caplog.records == []


UNSUPPORTED: dict[str, tuple[dict[str, Any], str, str]] = {
    "n": ({"n": 2}, "n", "field 'n': 2; expected 1. Leave it out: decoding is greedy"),
    "temperature": ({"temperature": 0.7}, "temperature", "field 'temperature': 0.7; expected 0"),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "expected []"),
    "top_p": ({"top_p": 0.5}, "top_p", "0.5; expected 1"),
    "logprobs": ({"logprobs": True}, "logprobs", "True; expected False"),
    "json": ({"response_format": {"type": "json_object"}}, "response_format", "expected {'type': 'text'}"),
    "penalty": ({"presence_penalty": 1}, "presence_penalty", "expected 0"),
    "tokens": ({"max_tokens": 2000}, "max_tokens", "2,000 tokens; expected 1 to 1,024"),
    "no-tokens": ({"max_tokens": 0}, "max_tokens", "0 tokens; expected 1 to 1,024"),
    "stops": ({"stop": ["a"] * 5}, "stop", "5 texts; expected at most 4"),
    "empty-stop": ({"stop": ""}, "stop", "an empty text"),
    "unknown": ({"top_k": 5}, "top_k", "an unknown field"),
    "model": ({"model": "gpt-4o"}, "model", "'gpt-4o'; expected"),
    "role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "'tool'"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content.str", "image"),
    "blank": ({"messages": [{"role": "user", "content": " "}]}, "messages", "text of whitespace only"),
    "turns": ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "one message of the role user"),
    "database": ({"database": "zoo"}, "database", "expected no database"),
    "long": ({"messages": [{"role": "user", "content": "a" * 200}]}, None, "tokens too long; expected at most"),
}  # type: ignore[dict-item]


@pytest.mark.parametrize("stream", [False, True], ids=["complete", "stream"])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused(place: Site, writer: LoadedModel, name: str, stream: bool) -> None:
    change, param, message = UNSUPPORTED[name]
    body = {"model": writer.name, "messages": [{"role": "user", "content": "a"}], "stream": stream} | change
    answer = place.post("/v1/chat/completions", body)
    error = answer.json()["error"]
    assert answer.status_code == (404 if name == "model" else 400)
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]


@pytest.fixture(scope="module")
def place(writer: LoadedModel) -> Iterator[Site]:
    with site(server_of(writer)) as found:
        yield found


def test_refusals_are_errors_of_the_client(writing: openai.OpenAI, writer: LoadedModel) -> None:
    with pytest.raises(openai.BadRequestError, match="Leave it out: decoding is greedy"):
        writing.completions.create(model=writer.name, prompt="a", temperature=1.5)
    with pytest.raises(openai.NotFoundError, match="model") as error:
        writing.completions.create(model="other", prompt="a")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="valid string"):
        writing.completions.create(model=writer.name, prompt=[1, 2])


def test_a_classifier_generates_nothing(classifier: LoadedModel) -> None:
    with site(server_of(classifier)) as place:
        answer = place.post("/v1/completions", {"model": classifier.name, "prompt": "a"})
    assert answer.status_code == 400
    assert "the task classification; expected a task that generates text. Use POST /predict" in answer.text


def test_a_wrong_token_is_an_error_of_the_client(writer: LoadedModel) -> None:
    with listening(server_of(writer, token="0123456789abcdef")) as url:
        with (
            client_of(url, "another") as client,
            pytest.raises(openai.AuthenticationError, match="another token"),
        ):
            client.models.list()
        with client_of(url, "0123456789abcdef") as client:
            assert client.models.list().data


def test_questions_are_answered_about_their_database(questions: LoadedModel) -> None:
    [expected] = questions(["How many?"], database="zoo")
    chat = {"model": questions.name, "messages": [{"role": "user", "content": "How many?"}]}
    with site(server_of(questions, limits=Limits(tokens=6))) as place:
        found = place.post("/v1/chat/completions", chat | {"database": "zoo"}).json()
        streamed = place.post("/v1/chat/completions", chat | {"database": "zoo", "stream": True}).text
        unnamed = place.post("/v1/chat/completions", chat)
    assert found["choices"][0]["message"]["content"] == expected["sql"]
    pieces = [json.loads(line[6:]) for line in streamed.split("\n\n")[:-2]]
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == expected["sql"]
    assert unnamed.status_code == 400
    assert "2 databases; expected the database to ask" in unnamed.text
