"""A name of the registry is followed: promotions and roll-backs change the model without a lost request."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import fakes
import httpx
import pytest
from answering import sentence
from serving import Gate, Site, server_of, site, until

from fulltune.errors import FulltuneError
from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.records.run import ModelInfo
from fulltune.serve import server as servers
from fulltune.serve.limits import Limits
from fulltune.serve.server import Server
from fulltune.store.registry.promotion import rollback
from fulltune.store.registry.registry import Lineage, Registry, Version
from fulltune.tasks.generating import Generation

NAME = "classification-tiny"
TEXTS = [sentence(index) for index in range(12)]


def add(registry: Registry, folder: Path, seed: int) -> Version:
    """Add a classifier with random weights as a version."""
    place = fakes.save("bert", folder / f"model-{seed}", head="classification", labels=("film", "law"), seed=seed)
    data = {"train": "gone.jsonl", "eval": "gone.jsonl", "label_names": ["film", "law"]}
    config = folder / "config.json"
    config.write_text(json.dumps({"model": "gone", "task": "classification", "data": data}), encoding="utf-8")
    base = ModelInfo(source="tiny", sha256="b" * 64, family="encoder", architecture="Tiny")
    facts = {"source": f"run-{seed}", "task": "classification", "method": "full", "base": base, "fulltune": "0"}
    facts |= {"train_sha256": "t", "eval_sha256": "e", "config_sha256": "c"}
    files = {f"model/{path.name}": path for path in place.iterdir()} | {"config.yaml": config}
    lineage = Lineage.model_validate(facts)
    return registry.add(NAME, files, sha256=str(seed) * 64, outcome="unjudged", lineage=lineage)


def promote(registry: Registry, version: Version, before: int | None) -> None:
    registry.move(version, "production", expected=before, action="promote", reason="a test")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    found = Registry(tmp_path / "runs")
    for seed in (1, 2):
        add(found, tmp_path, seed)
    promote(found, found.version(f"{NAME}@1"), None)
    return found


@pytest.fixture(autouse=True)
def known_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the label names from the model: these versions have no record, and their rows are gone."""
    monkeypatch.setattr("fulltune.pipeline.loaded_model.with_labels", lambda task, settings, run: task)


def following(registry: Registry, name: str = f"{NAME}@production", limits: Limits | None = None) -> Server:
    return servers.server_of(name, None, registry.root.parent, (), {}, limits=limits)


def answer(place: Site) -> dict[str, Any]:
    found: dict[str, Any] = place.post("/predict", {"inputs": TEXTS}).json()
    return found


def test_promotion_and_rollback_change_the_model(registry: Registry) -> None:
    with site(following(registry)) as place:
        first = answer(place)
        place.server.models.check()
        promote(registry, registry.version(f"{NAME}@2"), 1)
        assert answer(place) == first
        place.server.models.check()
        second = answer(place)
        rollback(registry, NAME)
        place.server.models.check()
        third = answer(place)
        page = place.get("/metrics").text
    assert (first["model"], second["model"]) == (f"{NAME}@1", f"{NAME}@2")
    assert first["outputs"] != second["outputs"]
    assert third == first
    assert 'fulltune_model_changes_total{result="done"} 2.0' in page
    assert f'fulltune_model{{version="{NAME}@1"}} 1.0' in page
    assert f'version="{NAME}@2"' not in page


def test_requests_under_way_finish_on_the_version_that_they_began_with(registry: Registry) -> None:
    size = len(TEXTS)
    server = following(registry, limits=Limits(inputs=size, queue=2 * size))  # full while the version changes

    async def talk(client: httpx.AsyncClient) -> list[dict[str, Any]]:
        def send() -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post("/predict", json={"inputs": TEXTS}))

        gate = Gate(server.models.current)
        running = [send()]
        await until(gate.entered)
        running += [send(), send()]  # wait for the model
        while server.batcher.waiting < 2 * size:
            await asyncio.sleep(0)
        promote(registry, registry.version(f"{NAME}@2"), 1)
        change = asyncio.create_task(asyncio.to_thread(server.models.check))
        while server.batcher.waiting < 2 * size + 1:  # its first answer waits as well
            await asyncio.sleep(0)
        gate.opened.set()
        await change
        answers = [(await one).json() for one in running]
        return [*answers, (await send()).json()]

    with site(server) as place:
        before = answer(place)
        found = place.ask(talk)
    assert [one["model"] for one in found] == [f"{NAME}@1"] * 3 + [f"{NAME}@2"]
    assert found[:3] == [before] * 3


def test_no_request_is_lost_while_versions_change(registry: Registry) -> None:
    server = following(registry)

    async def talk(client: httpx.AsyncClient) -> list[tuple[str, str]]:
        found = list[tuple[str, str]]()
        is_over = False

        async def send() -> None:
            while not is_over:
                response = await client.post("/predict", json={"inputs": TEXTS[:2]})
                assert response.status_code == 200, response.text
                found.append((response.json()["model"], json.dumps(response.json()["outputs"])))

        clients = [asyncio.create_task(send()) for _ in range(4)]
        for number, before in ((2, 1), (1, 2), (2, 1)):
            promote(registry, registry.version(f"{NAME}@{number}"), before)
            await asyncio.to_thread(server.models.check)
        is_over = True
        await asyncio.gather(*clients)
        return found

    with site(server) as place:
        found = place.ask(talk)
    assert {model for model, _ in found} == {f"{NAME}@1", f"{NAME}@2"}
    assert len(set(found)) == 2  # each version has one answer


def test_a_version_that_cannot_be_loaded_leaves_the_current_one(registry: Registry) -> None:
    server = following(registry)
    with site(server) as place:
        promote(registry, registry.version(f"{NAME}@2"), 1)
        version = registry.version(f"{NAME}@2")
        shutil.rmtree(registry.folder(version))
        stored = registry.objects.path(version.files["model/model.safetensors"].sha256)
        stored.chmod(0o644)
        stored.write_bytes(b"damaged")
        server.models.check()
        assert answer(place)["model"] == f"{NAME}@1"
        health = place.get("/health")
        assert (health.status_code, health.json()["model"]) == (200, f"{NAME}@1")
        assert health.json()["trouble"].startswith(f"{NAME}@2 cannot be loaded: ")
        rollback(registry, NAME)
        server.models.check()
        assert place.get("/health").json()["trouble"] == ""


@pytest.mark.parametrize(
    ("name", "moves"), [(NAME, True), (f"{NAME}@production", True), (f"{NAME}@latest", True), (f"{NAME}@1", False)]
)
def test_names_without_a_number_are_followed(registry: Registry, name: str, moves: bool) -> None:
    assert following(registry, name).models.can_move() is moves


@pytest.fixture
def echoing(questions: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Return a model that answers with the question itself."""
    monkeypatch.setattr(
        questions,
        "generations",
        lambda examples, *_, **__: [
            Generation(one.input, {"prediction": one.input, "sql": one.input}, 1, 1, False) for one in examples
        ],
    )
    return questions


def test_an_unknown_database_is_refused_at_the_start(questions: LoadedModel) -> None:
    with pytest.raises(FulltuneError, match="zoos"):
        servers.server_of(questions.name, questions.config, "no-runs", (), {}, database="zoos")


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
COUNTING = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 150) SELECT x FROM n"


def test_queries_are_executed_within_limits(echoing: LoadedModel, databases: Path) -> None:
    with site(server_of(echoing, database="zoo", execute=True)) as place:
        _check_executed(place, databases)


def test_queries_that_cannot_be_run_are_marked_without_running_any(echoing: LoadedModel) -> None:
    with site(server_of(echoing, database="zoo")) as place:
        outputs = place.post("/predict", {"inputs": [ENDLESS, "SELECT heads FROM zoo"]}).json()["outputs"]
    assert [set(output) for output in outputs] == [{"prediction", "sql"}, {"prediction", "sql", "sql_error"}]
    assert outputs[1]["sql_error"] == "no such column: heads"


def _check_executed(executing: Site, databases: Path) -> None:
    before = (databases / "zoo.sqlite").read_bytes()
    queries = [
        "SELECT name, legs, photo FROM zoo ORDER BY legs",
        "DELETE FROM zoo",
        "SELECT heads FROM zoo",
        ENDLESS,
        COUNTING,
    ]
    outputs = executing.post("/predict", {"inputs": queries}).json()["outputs"]
    assert [output["sql"] for output in outputs] == queries
    assert outputs[0]["rows"] == [["crane", 2, "01"], ["ant", 6, None]]
    assert "more_rows" not in outputs[0]
    assert [output.get("sql_error", "") for output in outputs[1:]] == [
        "refused: DELETE is not a query",
        "no such column: heads",
        "stopped: it ran longer than 0.2 s",
        "",
    ]
    assert (len(outputs[4]["rows"]), outputs[4]["more_rows"]) == (100, True)
    assert (databases / "zoo.sqlite").read_bytes() == before
    [park] = executing.post("/predict", {"inputs": ["SELECT name FROM park"], "database": "park"}).json()["outputs"]
    assert park["rows"] == [["crane"], ["ant"]]
