"""Two processes on the CPU: the memory of each engine, against the formula, and the gain from a second process.

    python benchmarks/two_ranks.py            about twenty minutes on two quiet cores

Memory is the growth over the loaded base. The formula describes the memory in use (glibc's count of allocated bytes, at
its peak in the steps after the first); resident memory, at its peak until the last step, also contains what the engine
used during setup and what the allocator keeps. Two models are measured and their difference counts, in bytes per
parameter: it excludes what an engine's program needs regardless of the model.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from fulltune.pipeline.planning.engine_memory import need
from fulltune.runtime.config_file import to_yaml
from fulltune.runtime.launch import Launch, accelerate_config

HIDDEN = 512
TOKENS = 128
STEPS = 4

#: Layers of the smaller and the larger model.
SIZES = 8, 24


def model(layers: int) -> tuple[Any, Any]:
    """Return a decoder of some 30 or 80 million parameters, with random weights, and a minimal tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>")
    config = GPT2Config(
        vocab_size=8192, n_positions=TOKENS, n_embd=HIDDEN, n_layer=layers, n_head=8, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config), tokenizer


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 and later."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    )


_mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
_mallinfo2.restype = _MallInfo


def in_use() -> int:
    """Return the bytes that are allocated and not freed, in all arenas and in separate mappings."""
    info = _mallinfo2()
    return int(info.uordblks + info.hblkhd)


class Peak(threading.Thread):
    """The peak memory of this process inside the context."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.resident = self.used = 0
        self.ends = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self.ends.wait(0.01):
            self.resident = max(self.resident, process.memory_info().rss)
            self.used = max(self.used, in_use())


def work(out: Path, layers: int) -> None:
    """Measure in one process: train a few steps, and write the memory used."""
    import torch

    from fulltune.config import Config
    from fulltune.models.bundle import Bundle
    from fulltune.records.run import ModelInfo
    from fulltune.runtime import distributed
    from fulltune.tasks.base import Features
    from fulltune.training.fit import fit
    from fulltune.training.methods.full import Full

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with distributed.joined():
        network, tokenizer = model(layers)
        info = ModelInfo(source="made", sha256="0" * 64, family="decoder", architecture="GPT2LMHeadModel")
        bundle = Bundle(network, tokenizer, "decoder", "lm", TOKENS, info)
        rows = [Features([7] * TOKENS, [7] * TOKENS, str(number)) for number in range(8 * STEPS)]
        train = {"max_steps": STEPS, "batch_size": 8, "evaluations": 0, "gradient_checkpointing": True}
        config = Config(
            model="made",
            task="causal-lm",
            data={"train": "none"},
            train=train,
            guards={"divergence": None, "overfitting": None, "forgetting": None},
            speed={"packing": "off"},
        )
        before = (psutil.Process().memory_info().rss, in_use())
        peak = Peak()
        taken = list[tuple[int, int]]()

        def on_step(*_: Any) -> None:
            taken.append((peak.resident, peak.used))
            peak.used = 0  # the moments are there since the first step

        peak.start()
        # What is gathered after the last step, to save the model, is not needed by a step.
        result = fit(bundle, Full(config), rows, None, config, output_dir=out, on_step=on_step)
        peak.ends.set()
        found = {
            "resident": taken[-1][0] - before[0],
            "used": max(used for _, used in taken[1:]) - before[1],
            "train_seconds": result.train_seconds,
        }
        (out / f"{distributed.rank()}.json").write_text(json.dumps(found))


def measured(preset: str, layers: int, processes: int, threads: int) -> list[dict[str, float]]:
    """Run one setting; return the memory that each of its processes used."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(Path(__file__).resolve()), folder, str(layers)]
        if processes > 1:
            config = Path(folder) / "accelerate.yaml"
            config.write_text(to_yaml(accelerate_config(Launch(preset, processes))), encoding="utf-8")
            words = ["-m", "accelerate.commands.launch", "--config_file", str(config), *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(processes)]


def main() -> None:
    from fulltune.pipeline.planning.model_shapes import shape_of

    shapes = [shape_of("made", model(layers)[0].config) for layers in SIZES]
    print(f"{' and '.join(f'{shape.parameters:,}' for shape in shapes)} parameters, 2 processes of 1 thread")
    print(f"{'':8} {'MB a process, small and large':>39} {'bytes a parameter':>26}")
    print(f"{'engine':8} {'in use':>12} {'resident':>13} {'formula':>12} {'in use':>8} {'resident':>9} {'formula':>7}")
    more = shapes[1].parameters - shapes[0].parameters
    times = {}
    for preset in ("ddp", "zero1", "zero2", "zero3", "fsdp2"):
        kinds: dict[str, list[float]] = {"used": [], "resident": [], "formula": []}
        for layers, shape in zip(SIZES, shapes, strict=True):
            found = measured(preset, layers, 2, 1)
            times[preset, layers] = max(one["train_seconds"] for one in found)
            for kind in ("used", "resident"):
                kinds[kind].append(max(one[kind] for one in found))
            # The base's weights existed before; an engine that shards makes a copy of them.
            copied = 4 * shape.parameters if preset == "ddp" else 0
            kinds["formula"].append(need(shape, preset, 2, tokens=4 * TOKENS).device - copied)
        sizes = [" ".join(f"{value / 1e6:6.0f}" for value in values) for values in kinds.values()]
        slopes = [f"{(values[1] - values[0]) / more:8.1f}" for values in kinds.values()]
        print(f"{preset:8}", *sizes, *slopes, flush=True)
    alone = measured("ddp", SIZES[0], 1, 2)[0]["train_seconds"]
    two = times["ddp", SIZES[0]]
    print(f"1 process of 2 threads: {alone:.1f} s; 2 processes of 1 thread: {two:.1f} s, {alone / two:.0%} as fast")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
