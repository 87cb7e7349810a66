"""POST /predict gives the answers of `predict`, in shared batches, within limits; /health and /metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from answering import sentence
from serving import Gate, Site, server_of, site, until

import fulltune
from fulltune.errors import ConfigError
from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.pipeline.output_file import json_line
from fulltune.serve.limits import Limits

TEXTS = [sentence(index) for index in range(20)]


def metric(page: str, name: str) -> float:
    [line] = [line for line in page.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_answers_are_those_of_predict_to_the_byte(classifier: LoadedModel, classifier_folder: Path) -> None:
    found = fulltune.predict(
        classifier_folder / "model",
        [{"body": text} for text in TEXTS],
        config=classifier.config,
        out=classifier_folder / "runs",
    )
    expected = [{name: value for name, value in row.items() if name != "body"} for row in found.rows]
    with site(server_of(classifier)) as place:
        answer = place.post("/predict", {"inputs": TEXTS})
        rows = place.post("/predict", {"inputs": [{"body": text} for text in TEXTS]})
        roles = place.post("/predict", {"inputs": [{"text": text} for text in TEXTS]})
    assert answer.status_code == 200
    assert answer.text == json_line({"model": classifier.name, "outputs": expected})
    assert answer.text == rows.text == roles.text


def test_concurrent_requests_share_batches_and_get_their_own_answers(classifier: LoadedModel) -> None:
    expected = [json_line(answer) for answer in classifier(TEXTS)]
    gate = Gate(classifier)
    gate.opened.set()  # for the first answer of the model

    async def talk(client: httpx.AsyncClient) -> list[Any]:
        gate.opened.clear()
        gate.entered.clear()
        gate.batches.clear()
        tasks = [asyncio.ensure_future(client.post("/predict", json={"inputs": [text]})) for text in TEXTS[:1]]
        await until(gate.entered)
        tasks += [asyncio.ensure_future(client.post("/predict", json={"inputs": [text]})) for text in TEXTS[1:9]]
        while server.batcher.waiting < 8:
            await asyncio.sleep(0)
        gate.opened.set()
        return [(await task).json()["outputs"] for task in tasks]

    server = server_of(classifier)
    with site(server) as place:
        outputs = place.ask(talk)
    assert [json_line(one) for [one] in outputs] == expected[:9]
    assert gate.batches == [1, 4, 4]


def test_a_large_request_does_not_hold_up_a_small_one(classifier: LoadedModel) -> None:
    gate = Gate(classifier)
    gate.opened.set()
    server = server_of(classifier)
    finished = list[str]()

    async def send(client: httpx.AsyncClient, name: str, texts: list[str]) -> None:
        await client.post("/predict", json={"inputs": texts})
        finished.append(name)

    async def talk(client: httpx.AsyncClient) -> None:
        gate.opened.clear()
        gate.entered.clear()
        tasks = [asyncio.ensure_future(send(client, "large", TEXTS))]
        await until(gate.entered)
        tasks.append(asyncio.ensure_future(send(client, "small", TEXTS[:1])))
        while server.batcher.waiting < 17:
            await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(*tasks)

    with site(server) as place:
        place.ask(talk)
    assert finished == ["small", "large"]


def test_a_full_queue_refuses_and_a_cancelled_request_frees_its_places(classifier: LoadedModel) -> None:
    gate = Gate(classifier)
    gate.opened.set()
    server = server_of(classifier, limits=Limits(inputs=4, queue=4))

    async def talk(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        gate.opened.clear()
        gate.entered.clear()
        running = asyncio.ensure_future(client.post("/predict", json={"inputs": TEXTS[:1]}))
        await until(gate.entered)
        waiting = asyncio.ensure_future(client.post("/predict", json={"inputs": TEXTS[:4]}))
        while server.batcher.waiting < 4:
            await asyncio.sleep(0)
        refused = await client.post("/predict", json={"inputs": TEXTS[:1]})
        waiting.cancel()
        while server.batcher.waiting:
            await asyncio.sleep(0)
        taken = asyncio.ensure_future(client.post("/predict", json={"inputs": TEXTS[:4]}))
        while server.batcher.waiting < 4:
            await asyncio.sleep(0)
        gate.opened.set()
        await running
        return refused, await taken

    with site(server) as place:
        refused, taken = place.ask(talk)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["type"] == "queue_full"
    assert "4 inputs wait for the model" in refused.json()["error"]["message"]
    assert taken.status_code == 200


def test_a_request_that_takes_too_long_is_given_up(classifier: LoadedModel) -> None:
    gate = Gate(classifier)
    gate.opened.set()
    server = server_of(classifier, limits=Limits(seconds=0.05))
    with site(server) as place:
        gate.opened.clear()
        late = place.post("/predict", {"inputs": TEXTS})
        assert server.batcher.waiting == 0
        gate.opened.set()
    assert late.status_code == 504
    assert late.json()["error"]["message"] == (
        "no answer after 0.05 s; expected an answer within the time limit. "
        "Send fewer or shorter inputs, or raise the limit of the server (--timeout)."
    )


def test_a_row_that_fails_fails_alone(classifier: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = classifier.answer

    def fragile(examples: Any) -> Any:
        if any("poison" in example.input for example in examples):
            raise RuntimeError("a fault of the model")
        return answer(examples)

    monkeypatch.setattr(classifier, "answer", fragile)

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/predict", json={"inputs": [text]}) for text in ("poison", "film")))

    with site(server_of(classifier)) as place:
        bad, good = place.ask(talk)
    assert (bad.status_code, good.status_code) == (500, 200)
    assert bad.json()["error"]["message"] == "the server failed. Its log has the reason."


def test_health_says_when_the_model_is_ready(classifier: LoadedModel) -> None:
    server = server_of(classifier)
    before = Site(server).get("/health")
    assert before.status_code == 503
    assert before.json()["status"] == "loading"
    refused = Site(server).post("/predict", {"inputs": ["a film"]})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    with site(server) as place:
        after = place.get("/health")
    assert after.status_code == 200
    assert after.json() == {
        "status": "ready",
        "model": classifier.name,
        "task": "classification",
        "name": classifier.name,
        "fulltune": fulltune.__version__,
        "trouble": "",
    }


def test_metrics_count_requests_rows_and_batches(classifier: LoadedModel) -> None:
    with site(server_of(classifier)) as place:
        place.post("/predict", {"inputs": TEXTS})
        place.get("/nowhere/with-an-id-of-its-own")
        page = place.get("/metrics").text
    assert metric(page, 'fulltune_requests_total{path="/predict",status="200"}') == 1
    assert metric(page, 'fulltune_requests_total{path="other",status="404"}') == 1
    assert metric(page, "fulltune_rows_total") == len(TEXTS) + 1  # and the first answer of the model
    assert metric(page, "fulltune_batch_rows_count") == 6
    assert metric(page, "fulltune_queue_rows") == 0
    assert metric(page, f'fulltune_model{{version="{classifier.name}"}}') == 1
    assert metric(page, 'fulltune_request_seconds_count{path="/predict"}') == 1
    tokens = sum(len(classifier.tokenizer(text).input_ids) for text in TEXTS)
    assert metric(page, 'fulltune_tokens_total{kind="input"}') >= tokens


def test_the_documents_describe_bodies_and_refusals(classifier: LoadedModel) -> None:
    with site(server_of(classifier)) as place:
        assert place.get("/docs").status_code == 200
        schema = json.loads(place.get("/openapi.json").text)
    operation = schema["paths"]["/predict"]["post"]
    assert {"200", "400", "401", "413", "415", "422", "429", "503", "504"} == set(operation["responses"])
    body = schema["components"]["schemas"]["PredictRequest"]
    assert [kind["type"] for kind in body["properties"]["inputs"]["items"]["anyOf"]] == ["string", "object"]
    assert "probabilities" in schema["components"]["schemas"]["Output"]["properties"]


@pytest.mark.parametrize("limits", [{"seconds": float("inf")}, {"seconds": float("nan")}, {"queue": 10**30}])
def test_limits_that_no_timer_or_queue_can_keep_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected a positive number, at most"):
        Limits(**limits)
