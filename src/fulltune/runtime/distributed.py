"""The processes of one run, as torchrun or ``accelerate launch`` started them: who writes, what all must know.

    with distributed.joined(timeout=1800):
        name = distributed.on_main(new_name)      # made by the first process, known to all
        for answer in distributed.map_sharded(ask, rows): ...

A process that is alone joins nothing and pays nothing; everything here then does what it says with one process. Python
values travel over a gloo group of their own, so gradients may use any other backend.
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

#: Rows that one process answers between two exchanges.
BLOCK = 1024

#: Seconds that one process waits for another.
TIMEOUT = 1800.0

#: What torch says when another process is gone or silent.
_LOST = re.compile(r"timed? ?out|connection (reset|closed|refused)|peer closed|broken pipe|aborted|gloo|nccl", re.I)

_group: Any = None


def launched() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def size() -> int:
    """Processes that work on this run together."""
    return 1 if _group is None else launched()


def rank() -> int:
    """This process's number among them, from 0."""
    return 0 if _group is None else int(os.environ["RANK"])


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def engine() -> Engine:
    """What shares the work, as ``accelerate launch`` wrote it into the environment."""
    if launched() == 1:
        return ""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp2"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        stages: dict[str, Engine] = {"1": "zero1", "2": "zero2", "3": "zero3"}
        return stages.get(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"), "zero2")
    return "ddp"


def restarts() -> int:
    """How often the launcher has started these processes anew, after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str:
    """What tells this launch from others, the same after its processes were started anew; nothing without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}" if name == "none" else name


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[None]:
    """Join the other processes of this run for the block.

    Args:
        timeout: Seconds to wait for another process before giving up.

    Raises:
        ProcessError: Another process died, or did not answer in time.
    """
    if launched() == 1 or _group is not None:
        yield
        return
    with _losses_told(timeout):
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
        # Processes started anew meet in the store of those that died (torch 2.13 keeps it), whose addresses are in it.
        own = dist.PrefixStore(f"start {restarts()}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=own, rank=number, world_size=count, timeout=limit)
    _group = dist.new_group(backend="gloo", timeout=limit)


def _leave() -> None:
    global _group
    _group = None


def _use_cpus() -> None:
    """Let Accelerate shard over the CPU's processes: torch does that with gloo, Accelerate asks for an accelerator."""
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
def _losses_told(timeout: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise ProcessError(
            f"process {os.environ['RANK']} lost another one ({str(error).splitlines()[0]})",
            expected=f"an answer of all {launched()} processes within {timeout:g} s",
            fix="look for the first error above; where a process is only slow, raise trainer.ddp_timeout",
        ) from error


# ---- What all must know ----


def barrier() -> None:
    """Wait until all are here."""
    if size() > 1:
        import torch.distributed as dist

        dist.barrier(group=_group)


def broadcast(value: Value) -> Value:
    """The first process's value."""
    if size() == 1:
        return value
    import torch.distributed as dist

    box: list[Any] = [value if is_main() else None]
    dist.broadcast_object_list(box, src=0, group=_group)
    return box[0]  # type: ignore[no-any-return]


def broadcast_tensor(tensor: Any) -> None:
    """Overwrite a tensor with the first process's."""
    if size() > 1:
        import torch.distributed as dist

        dist.broadcast(tensor, src=0)


def all_gather(value: Value) -> list[Value]:
    """Everyone's value, in the order of their numbers."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value, group=_group)
    return values


def on_main(make: Callable[[], Value]) -> Value:
    """What the first process makes, on all; its error too.

    Raises:
        FulltuneError: As ``make`` does, on every process.
    """
    if size() == 1:
        return make()
    made: Any = None
    error: FulltuneError | None = None
    if is_main():
        try:
            made = make()
        except FulltuneError as raised:
            error = raised
    made, error = broadcast((made, error))
    if error is not None:
        raise error
    return made  # type: ignore[no-any-return]


def main_first(make: Callable[[], Value]) -> Value:
    """What every process makes for itself, the first of each machine before the others, which find what it fetched."""
    if size() == 1:
        return make()
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        found = make() if is_first else None
    finally:
        barrier()
    return make() if found is None else found


def map_sharded(answer: Callable[[Sequence[Item]], Iterator[Result]], items: Sequence[Item]) -> Iterator[Result]:
    """Answers to all items in their order, each process answering its share; every process gets them all.

    Args:
        answer: One result an item.
        items: The same on every process; their number need not divide by that of the processes.
    """
    if size() == 1:
        yield from answer(items)
        return
    for start in range(0, len(items), BLOCK * size()):
        block = items[start : start + BLOCK * size()]
        mine = block[rank() :: size()]
        parts = all_gather(list(answer(mine)) if mine else [])
        yield from (parts[place % size()][place // size()] for place in range(len(block)))


def sharded(answer: Callable[[Sequence[Item]], Iterator[Result]]) -> Callable[[Sequence[Item]], Iterator[Result]]:
    """The same as :func:`map_sharded`, as a function of the items."""
    return lambda items: map_sharded(answer, items)


def shows_output() -> bool:
    """Whether this process is the one that shows progress and answers, before and after the others are joined too."""
    return launched() == 1 or os.environ["RANK"] == "0"


def is_first_to_report() -> bool:
    """Whether this process is the one that tells the user of an error: the first that asks."""
    if launched() == 1:
        return True
    import torch.distributed as dist

    if not dist.is_initialized():
        return shows_output()
    try:
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add("fulltune/errors told", 1) == 1)
    except RuntimeError:  # the store is gone with the process that kept it
        return shows_output()
