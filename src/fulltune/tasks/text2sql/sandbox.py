"""Run untrusted SQL in a separate process, which is reused, and killed if a statement exceeds its time limit."""

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

#: Time limit in seconds for the start of the process.
_START = 60.0

_TIME_SIGNALS = {-getattr(signal, name) for name in ("SIGALRM", "SIGXCPU") if hasattr(signal, name)}


class Sandbox:
    """One worker process (:mod:`fulltune.tasks.text2sql.worker`) with a time limit for every request.

    The first request starts the process. It ends with :meth:`close`, at exit, or with this process, because its stdin
    is closed then.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the worker's answer, or an ``error`` and its ``limit`` if the worker was killed or died.

        Args:
            request: Request for the worker, without ``seconds``.
            seconds: Limit on wall time. If SQLite does not stop by itself, the process is killed :data:`worker.GRACE`
                seconds later, and the next request starts another.

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
        """End the process; a later request starts another. Has no effect in a fork."""
        if os.getpid() == self._pid:
            with self._lock:
                self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        # Without the site module and the user's Python environment, the process starts in about 30 ms.
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
        """Send a line and return the reply (empty if the process ended first), and True if the timer killed it."""
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        late = threading.Event()
        reply = b""
        returned = False

        def kill() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(seconds, kill)
        clock.daemon = True
        clock.start()
        try:
            with suppress(OSError):  # broken pipe: the process has ended
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
                with suppress(OSError):  # unwritten data for a process that has ended
                    pipe.close()
        process.wait()


def sandbox() -> Sandbox:
    """Return the sandbox of this process; a fork has its own."""
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
        expected=f"{sys.executable} can run a script with sqlite3",
        fix="check that Python's sqlite3 module can be imported there",
    )
