"""Define the base of all records."""

from __future__ import annotations

import importlib

from pydantic import BaseModel, ConfigDict

#: Module whose function ``html`` shows a record in a notebook. It is imported by name: it belongs to a higher layer.
_VIEW = "fulltune.report.notebook"


class Model(BaseModel):
    """Base of all records: frozen, no unknown keys, NaN kept."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=(), allow_inf_nan=True
    )

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    def _repr_html_(self) -> str | None:
        """Return the HTML that a notebook shows; None for a record without a view of its own."""
        html: str | None = importlib.import_module(_VIEW).html(self)
        return html
