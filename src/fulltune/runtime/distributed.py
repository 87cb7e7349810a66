"""Coordinate the processes of one run, started by torchrun or ``accelerate launch``.

    with distributed.joined(timeout=1800):
        name = distributed.on_main(new_name)      # computed by the main process, returned on all
        for output in distributed.map_sharded(predict, rows): ...

A single process joins no group, and every function works for one process. Python objects are exchanged over a separate
gloo group, so that gradients may use any other backend.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

from fulltune.errors import FulltuneError, ProcessError

Engine = Literal["", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")

#: Items per process between two exchanges of :func:`map_sharded`.
BLOCK = 1024

#: Seconds that one process waits for another.
TIMEOUT = 1800.0

#: Matches torch's messages about processes that died or do not respond.
_LOST = re.compile(r"timed? ?out|connection (reset|closed|refused)|peer closed|broken pipe|aborted|gloo|nccl", re.I)

_group: Any = None


def launched() -> int:
    """Return the number of processes that the launcher started; 1 without a launcher.

    Raises:
        ProcessError: ``RANK`` and ``WORLD_SIZE`` are no rank and number of processes.
    """
    rank_text, size_text = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank_text is None or size_text is None:
        return 1
    if not _is_rank(rank_text, size_text):
        raise ProcessError(
            f"the variables RANK={rank_text!r} and WORLD_SIZE={size_text!r}",
            expected="the number of a process from 0, and the number of all processes, as a launcher sets them",
            fix="start the processes with `fulltune launch`; for a single process: `unset RANK WORLD_SIZE`",
            where="environment",
        )
    return int(size_text)


def _is_rank(rank_text: str, size_text: str) -> bool:
    """Return True if these are the numbers of a process and of all processes."""
    digits = re.compile(r"[0-9]{1,9}")
    return all(map(digits.fullmatch, (rank_text, size_text))) and int(rank_text) < int(size_text)


def size() -> int:
    """Return the number of joined processes (the world size); 1 outside :func:`joined`."""
    return 1 if _group is None else launched()


def rank() -> int:
    """Return the rank of this process; 0 outside :func:`joined`."""
    return 0 if _group is None else int(os.environ["RANK"])


def is_main() -> bool:
    """Return whether this is the main process, which writes files and prints."""
    return rank() == 0


def engine() -> Engine:
    """Return the engine of distributed training, from the environment variables of ``accelerate launch``."""
    if launched() == 1:
        return ""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp2"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        stages: dict[str, Engine] = {"1": "zero1", "2": "zero2", "3": "zero3"}
        return stages.get(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"), "zero2")
    return "ddp"


def restarts() -> int:
    """Return how many times the launcher has restarted the processes after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str:
    """Return an id of this launch that does not change when its processes restart; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}" if name == "none" else name


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[None]:
    """Join the other processes of this run within the block.

    Args:
        timeout: Seconds to wait for another process before giving up.

    Raises:
        ProcessError: Another process died, or did not respond in time.
    """
    if launched() == 1 or _group is not None:
        yield
        return
    with _lost_peers_reported(timeout):
        _join(timeout)
        try:
            yield
        finally:
            _leave()


def _join(timeout: float) -> None:
    global _group
    import torch
    import torch.distributed as dist

    limit = timedelta(seconds=timeout)
    if not torch.accelerator.is_available():
        _use_cpus()
    if not dist.is_initialized():
        backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        store, number, count = next(dist.rendezvous("env://", timeout=limit))  # type: ignore[attr-defined]
        # After a restart, torch 2.13 reuses the store, which still holds the addresses of processes that died.
        own = dist.PrefixStore(f"start {restarts()}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=own, rank=number, world_size=count, timeout=limit)
    _group = dist.new_group(backend="gloo", timeout=limit)


def _leave() -> None:
    global _group
    _group = None


def _use_cpus() -> None:
    """Let Accelerate use FSDP on CPUs: torch supports it with gloo, but Accelerate requires an accelerator."""
    if engine() != "fsdp2":
        return
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def on_cpu(state: Any) -> None:
        state.device = torch.device("cpu")

    PartialState._prepare_backend = lambda *args, **options: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = on_cpu


@contextmanager
def _lost_peers_reported(timeout: float) -> Iterator[None]:
    """Turn torch's errors about lost processes into a :class:`ProcessError`."""
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise ProcessError(
            f"process {os.environ['RANK']} lost another process ({str(error).splitlines()[0]})",
            expected=f"a response from all {launched()} processes within {timeout:g} s",
            fix="look for the first error above; if a process is only slow, increase trainer.ddp_timeout",
        ) from error


# ---- Collective calls ----
# Not those of accelerate.utils, which fit code within a Trainer: they take no group, so that objects would travel over
# the backend of the gradients, and they create accelerate's state, which starts a process group of its own.


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if size() > 1:
        import torch.distributed as dist

        dist.barrier(group=_group)


def broadcast(value: Value) -> Value:
    """Return the main process's value on all processes."""
    if size() == 1:
        return value
    import torch.distributed as dist

    values: list[Any] = [value if is_main() else None]
    dist.broadcast_object_list(values, src=0, group=_group)
    return values[0]  # type: ignore[no-any-return]


def broadcast_tensor(tensor: Any) -> None:
    """Overwrite a tensor in place with the main process's."""
    if size() > 1:
        import torch.distributed as dist

        dist.broadcast(tensor, src=0)


def all_gather(value: Value) -> list[Value]:
    """Return the values of all processes, ordered by rank."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value, group=_group)
    return values


def on_main(make: Callable[[], Value]) -> Value:
    """Call a function on the main process only, and return its result on all processes.

    Raises:
        FulltuneError: Raised by ``make``; it is raised on every process.
    """
    if size() == 1:
        return make()
    value: Any = None
    error: FulltuneError | None = None
    if is_main():
        try:
            value = make()
        except FulltuneError as raised:
            error = raised
    value, error = broadcast((value, error))
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def main_first(make: Callable[[], Value]) -> Value:
    """Call a function on every process, first on one process per machine, so that the others find its downloads."""
    if size() == 1:
        return make()
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        value = make() if is_first else None
    finally:
        barrier()
    return make() if value is None else value


def map_sharded(function: Callable[[Sequence[Item]], Iterator[Result]], items: Sequence[Item]) -> Iterator[Result]:
    """Yield the results of all items in order on every process; each process computes a shard of them.

    Args:
        function: Yields one result per item.
        items: The same on every process; the number need not be a multiple of the number of processes.
    """
    if size() == 1:
        yield from function(items)
        return
    for start in range(0, len(items), BLOCK * size()):
        block = items[start : start + BLOCK * size()]
        shard = block[rank() :: size()]
        results = all_gather(list(function(shard)) if shard else [])
        for index in range(len(block)):
            yield results[index % size()][index // size()]


def sharded(function: Callable[[Sequence[Item]], Iterator[Result]]) -> Callable[[Sequence[Item]], Iterator[Result]]:
    """Return a function of the items that calls :func:`map_sharded`."""
    return lambda items: map_sharded(function, items)


def shows_output() -> bool:
    """Return whether this process shows progress and results; also valid outside :func:`joined`."""
    return launched() == 1 or os.environ["RANK"] == "0"


def is_first_to_report() -> bool:
    """Return whether this process reports an error to the user: True for the first process that calls this."""
    try:
        if launched() == 1:
            return True
    except ProcessError:  # nobody else could report it
        return True
    import torch.distributed as dist

    if not dist.is_initialized():
        return shows_output()
    try:
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add("fulltune/errors reported", 1) == 1)
    except RuntimeError:  # the process that held the store is gone
        return shows_output()
