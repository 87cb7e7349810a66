"""Names of classes that ``datasets`` keeps beside their numbers: in a ``Dataset``, and in the schema of its files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

_LOG = logging.getLogger(__name__)


def features_of(metadata: Mapping[bytes, bytes], name: str) -> Mapping[str, Any]:
    """Return the features that ``datasets`` wrote into the schema of an Arrow or Parquet file; none where it wrote
    none.
    """
    from datasets import Features

    if b"huggingface" not in metadata:
        return {}
    try:
        return dict(Features.from_dict(json.loads(metadata[b"huggingface"])["info"]["features"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _LOG.warning("%s: the `datasets` metadata cannot be read (%r); labels are read without it", name, error)
        return {}


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the class names of each column of class labels, or of lists of them, in the order of their numbers.

    Args:
        features: Those of a ``datasets.Dataset``, by column.
    """
    from datasets import ClassLabel

    inner = {column: _element(feature) for column, feature in features.items()}
    return {
        column: tuple(map(str, feature.names or ()))
        for column, feature in inner.items()
        if isinstance(feature, ClassLabel)
    }


def _element(feature: Any) -> Any:
    """Return the feature of a list's elements; any other feature itself."""
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)


def named(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class number, or of each in a list; None for a number without a name, and what is no number
    as it is.
    """
    if isinstance(value, list):
        return [named(item, names) for item in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None
