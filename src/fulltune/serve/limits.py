"""Define what one request may ask for, and how much may wait."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fulltune.errors import ConfigError, Problem


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_mb: Size of a request body in MiB.
        inputs: Inputs per request.
        characters: Characters per input.
        tokens: New tokens per answer of a generating task.
        rows: Result rows per query (text2sql with execution).
        queue: Inputs that wait for the model; further ones are refused with 429.
        seconds: Time per request, waiting included.
    """

    body_mb: int = 8
    inputs: int = 256
    characters: int = 100_000
    tokens: int = 1024
    rows: int = 100
    queue: int = 1024
    seconds: float = 60.0

    def __post_init__(self) -> None:
        problems = [
            Problem(f"{getattr(self, field.name)}", "a positive number, at most 1,000,000,000", field=field.name)
            for field in fields(self)
            if not 0 < getattr(self, field.name) <= 1e9
        ]
        if self.queue < self.inputs:
            fix = "raise the length of the queue, or lower the inputs per request"
            problems.append(Problem(f"a queue of {self.queue}", f"at least {self.inputs} inputs", fix, field="queue"))
        if problems:
            raise ConfigError(problems)
