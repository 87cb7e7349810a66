"""Define the base of all records."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Base of all records: frozen, no unknown keys, NaN kept."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=(), allow_inf_nan=True
    )

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"
