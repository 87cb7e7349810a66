"""What is wrong with a request is answered with a status and a message, never with a failure of the server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Site, server_of, site

from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.serve.limits import Limits

TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def place(shared_classifier: LoadedModel) -> Iterator[Site]:
    with site(server_of(shared_classifier)) as found:
        yield found


@pytest.fixture(scope="module")
def asked(questions: LoadedModel) -> Iterator[Site]:
    with site(server_of(questions)) as found:
        yield found


def row(**values: Any) -> bytes:
    return json.dumps({"inputs": [values]}).encode()


BAD: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "an empty body; expected a JSON object. Such as {\"inputs\": [\"a text\"]}."),
    "truncated": (b'{"inputs": ["a fi', 400, "body: not valid JSON (Unterminated string starting at at position 12)"),
    "utf-8": (b'{"inputs": ["caf\xe9"]}', 400, "body: the byte 0xE9, which is not UTF-8, at position 16"),
    "deep": (b"[" * 200_000, 400, "a body that cannot be parsed"),
    "number": (b'{"inputs": [' + b"1" * 5000 + b"]}", 400, "a body that cannot be parsed"),
    "list": (b"[1]", 422, "expected input should be a valid dictionary"),
    "no-inputs": (b"{}", 422, "inputs: missing; expected field required"),
    "no-list": (b'{"inputs": "text"}', 422, "inputs: 'text'; expected input should be a valid list"),
    "none": (b'{"inputs": []}', 422, "inputs: []; expected list should have at least 1 item"),
    "field": (b'{"inputs": ["a"], "n": 1}', 422, "n: an unknown field; expected extra inputs are not permitted"),
    "nan": (b'{"inputs": [NaN]}', 422, "inputs[0]: a number (nan); expected a text, or a row such as {'body': '…'}"),
    "integer": (b'{"inputs": [5, true, null]}', 422, "inputs[1]: a boolean (true)"),
    "nested": (b'{"inputs": [["a"]]}', 422, "inputs[0]: a list of 1"),
    "blank": (b'{"inputs": ["a", " "]}', 422, "inputs[1], field 'text': text of whitespace only"),
    "surrogate": (b'{"inputs": ["a\\ud83d"]}', 422, "half of a surrogate pair"),
    "nul": (b'{"inputs": ["a\\u0000b"]}', 422, "a NUL character at position 1"),
    "column": (row(bdoy="a film"), 422, "inputs[0]: the column 'bdoy'; expected 'body'. Did you mean 'body'?"),
    "label": (row(body="a film", label="opera"), 422, "the column 'label'; expected 'body'. Leave it out"),
    "no-column": (row(), 422, "inputs[0]: nothing (the column is missing or null)"),
    "null": (row(body=None), 422, "inputs[0], field 'body': nothing"),
    "value": (row(body=5), 422, "inputs[0], field 'body': a number (5); expected text"),
    "long": (json.dumps({"inputs": ["a" * 100_001]}).encode(), 413, "inputs[0]: 100,001 characters; expected at most"),
    "many": (json.dumps({"inputs": ["a"] * 100_000}).encode(), 413, "100,000 inputs; expected at most 256 per request"),
    "10-mb": (json.dumps({"inputs": ["a" * 10_000_000]}).encode(), 413, "expected at most 8 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused_with_its_reason(place: Site, caplog: pytest.LogCaptureFixture, name: str) -> None:
    body, status, message = BAD[name]
    with caplog.at_level(logging.INFO):
        answer = place.raw("/predict", body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) == {"type", "message", "problems"}
    assert [record for record in caplog.records if record.exc_info] == []


def test_all_problems_are_listed_at_once(place: Site) -> None:
    answer = place.post("/predict", {"inputs": ["a film", 5, "", {"other": "a"}]})
    assert [problem["where"] for problem in answer.json()["error"]["problems"]] == [f"inputs[{n}]" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("content_type", "found"),
    [
        ("text/plain", "the content type 'text/plain'"),
        ("", "no content type"),
        ("application/x-www-form-urlencoded", "the content type 'application/x-www-form-urlencoded'"),
        ("multipart/form-data; boundary=x", "the content type 'multipart/form-data'"),
    ],
    ids=["plain", "none", "form", "multipart"],
)
def test_another_content_type_is_refused(place: Site, content_type: str, found: str) -> None:
    answer = place.raw("/predict", b'{"inputs": ["a"]}', content_type)
    assert answer.status_code == 415
    assert answer.json()["error"]["message"].startswith(f"{found}; expected application/json")


def test_a_compressed_body_is_refused(place: Site) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = place.request("POST", "/predict", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415


def test_unknown_paths_and_methods_are_refused(place: Site) -> None:
    assert place.get("/nowhere").status_code == 404
    assert place.get("/nowhere").json()["error"]["message"].startswith("the path '/nowhere'; expected a path of this")
    assert place.get("/predict").status_code == 405
    assert place.request("PUT", "/predict", json={}).status_code == 405


def test_a_database_that_does_not_exist_is_refused(asked: Site) -> None:
    for body in (
        {"inputs": [{"question": "How many?", "db_id": "zoos"}]},
        {"inputs": ["How many?"], "database": "../zoo"},
        {"inputs": ["How many?"]},
    ):
        answer = asked.post("/predict", body)
        assert answer.status_code == 422
        assert answer.json()["error"]["problems"][0]["where"] == "inputs[0]"
    assert "2 databases; expected the database to ask" in answer.json()["error"]["message"]


def test_a_database_needs_text2sql(place: Site) -> None:
    answer = place.post("/predict", {"inputs": ["a film"], "database": "zoo"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("database: 'zoo'; expected no database: the task is")


def test_another_host_name_is_refused_without_a_token(place: Site) -> None:
    for host, status in {
        "evil.example": 403,
        "127.0.0.1:8000": 200,
        "[::1]:80": 200,
        "localhost": 200,
        "[": 403,
    }.items():
        assert place.get("/health", headers={"Host": host}).status_code == status, host


def test_a_token_is_asked_for(classifier: LoadedModel) -> None:
    with site(server_of(classifier, token=TOKEN)) as place:
        for header, found in {
            "": "no token",
            "Bearer": "another token",
            f"Bearer {TOKEN}x": "another token",
            f"Basic {TOKEN}": "another token",
            "Bearer жжж": "another token",
        }.items():
            headers = {"Authorization": header.encode()} if header else {}
            answer = place.request("POST", "/predict", json={"inputs": ["a film"]}, headers=headers)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert (
                f"header Authorization: {found}; expected Authorization: Bearer …" in answer.json()["error"]["message"]
            )
            assert place.get("/metrics", headers=headers).status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert place.post("/predict", {"inputs": ["a film"]}, headers=right).status_code == 200
        assert place.get("/health", headers={"Host": "models.example"}).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("body", "text", "inputs", "x")), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=40)
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps({"inputs": value}).encode()))
def test_no_body_makes_the_server_fail(place: Site, body: bytes) -> None:
    answer = place.raw("/predict", body)
    assert answer.status_code in (200, 400, 413, 422)
    assert ("outputs" in answer.json()) == (answer.status_code == 200)


def test_limits_can_be_lowered(classifier: LoadedModel) -> None:
    with site(server_of(classifier, limits=Limits(inputs=1, characters=5, body_mb=1))) as place:
        assert place.post("/predict", {"inputs": ["a", "b"]}).status_code == 413
        assert place.post("/predict", {"inputs": ["a film"]}).status_code == 413
        assert place.raw("/predict", b" " * (1 << 20) + b"{}").status_code == 413
        assert place.post("/predict", {"inputs": ["film"]}).status_code == 200
