"""A process for SQL that nobody trusts: started once, reused, and killed when a statement does not end in time."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fulltune.errors import ProcessError
from fulltune.tasks.text2sql import worker

#: Seconds that the process may take to start, on a busy machine.
_START = 60.0

_TIME_SIGNALS = {-getattr(signal, name) for name in ("SIGALRM", "SIGXCPU") if hasattr(signal, name)}


class Sandbox:
    """One worker process (:mod:`fulltune.tasks.text2sql.worker`) and the clock that it runs against.

    The process is started by the first request. It ends with :meth:`close`, at exit, or when this process is gone,
    because its stdin ends then.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the worker's answer, or an ``error`` and its ``limit`` when it had to be killed or died.

        Args:
            request: As the worker takes it, without ``seconds``.
            seconds: Wall time that it may take. SQLite stops by itself where it can; :data:`worker.GRACE` later the
                process is killed, and the next request starts another.

        Raises:
            ProcessError: The process cannot be started.
        """
        line = json.dumps({**request, "seconds": seconds}).encode() + b"\n"
        with self._lock:
            process = self._running()
            reply, late = self._exchange(process, line, seconds + worker.GRACE)
        if reply:
            answer: dict[str, Any] = json.loads(reply)
            return answer
        if late or process.returncode in _TIME_SIGNALS:
            return {"error": f"stopped: it ran longer than {seconds:g} s", "limit": "time"}
        return {"error": f"stopped: its process died ({_cause(process.returncode)})", "limit": "crash"}

    def close(self) -> None:
        """End the process; a later request starts another. Does nothing in a fork."""
        if os.getpid() == self._pid:
            with self._lock:
                self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        # Without the site module and the user's environment for Python: it starts in some 30 ms.
        command = [sys.executable, "-I", "-S", str(Path(worker.__file__))]
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        except OSError as error:
            raise _unstarted(str(error)) from error
        process = self._process
        started, _ = self._exchange(process, b"", _START)
        if not started:
            raise _unstarted(_cause(process.returncode))
        return process

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> tuple[bytes, bool]:
        """Send a line and wait for one. Empty when the process ended first; also whether the clock ended it."""
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        late, reply, returned = threading.Event(), b"", False

        def kill() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(seconds, kill)
        clock.daemon = True
        clock.start()
        try:
            with suppress(OSError):  # a broken pipe: it is gone
                stdin.write(line)
                stdin.flush()
                reply = stdout.readline()
            returned = reply.endswith(b"\n")
        finally:
            clock.cancel()
            clock.join()
            if late.is_set() or not returned:
                self._end()
        return (reply if returned else b""), late.is_set()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not written to a process that is gone
                    pipe.close()
        process.wait()


def sandbox() -> Sandbox:
    """The sandbox of this process; a fork has its own."""
    return _of_process(os.getpid())


@cache
def _of_process(pid: int) -> Sandbox:
    return Sandbox()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _unstarted(why: str) -> ProcessError:
    return ProcessError(
        f"the process that runs SQL did not start ({why})",
        expected=f"that {sys.executable} can run a script with sqlite3",
        fix="check that Python's sqlite3 module can be imported there",
    )
