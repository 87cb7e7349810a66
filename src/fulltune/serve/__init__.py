"""Answer requests over HTTP: ``fulltune serve MODEL``.

Read :mod:`fulltune.serve.server` first: it puts the parts together.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulltune.config import ConfigSource
    from fulltune.records.run import Record
    from fulltune.serve.limits import Limits
    from fulltune.serve.server import Ready


def serve(
    name: str | Path | Record,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | Path | None = None,
    config: ConfigSource | None = None,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    database: str = "",
    execute: bool = False,
    limits: Limits | None = None,
    ready: Callable[[Ready], None] | None = None,
    **options: Any,
) -> None:
    """Answer requests over HTTP until the process gets SIGTERM or Ctrl-C, then finish those that have begun.

    Args:
        name: A run, a version or an alias of the registry, or any other model, which then needs a config. An alias is
            followed: a promotion or a roll-back changes the model without a lost request.
        host: Address to listen at. Any other than this machine's own needs a token.
        port: Port to listen at; 0 for any free one.
        token_file: File with the token that requests must carry.
        config: Task and columns; by default those of the run.
        out: The runs folder.
        overrides: ``a.b=value`` texts, applied last.
        database: text2sql: the database of questions that name none.
        execute: text2sql: run the queries, and answer with their rows.
        limits: Limits of requests.
        ready: Called once the server answers.
        options: Keys of the config, such as ``evaluation={"batch_size": 64}``.

    Raises:
        FulltuneError: The model cannot be loaded, or the address cannot be used.
    """
    from fulltune.serve.access import bound, check_packages, checked_token

    check_packages()
    token = checked_token(host, token_file)
    from fulltune.serve.server import server_of

    server = server_of(
        name, config, out, overrides, options, token=token, database=database, execute=execute, limits=limits
    )
    with bound(host, port) as listening:
        server.run(listening, ready)


class _Callable(ModuleType):
    """A package that can be called, since ``fulltune.serve`` is the name of the package and of its main function."""

    __signature__ = inspect.signature(serve)

    def __call__(self, *arguments: Any, **options: Any) -> None:
        serve(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
