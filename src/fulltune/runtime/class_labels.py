"""Read class names from ``ClassLabel`` features of ``datasets``: of a ``Dataset``, or of the schema of its files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

_LOG = logging.getLogger(__name__)


def features_of(metadata: Mapping[bytes, bytes], name: str) -> Mapping[str, Any]:
    """Return the features that ``datasets`` stored in the schema of an Arrow or Parquet file.

    Args:
        metadata: Metadata of the Arrow schema.
        name: Name of the file, for the log.

    Returns:
        Feature by column; empty if there are none or they cannot be read.
    """
    if b"huggingface" not in metadata:
        return {}
    from datasets import Features

    try:
        return dict(Features.from_dict(json.loads(metadata[b"huggingface"])["info"]["features"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _LOG.warning("%s: the `datasets` metadata cannot be read (%r); labels are read without it", name, error)
        return {}


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the class names of each column of class labels, or of lists of class labels, ordered by class id.

    Args:
        features: Features of a ``datasets.Dataset``, by column.
    """
    from datasets import ClassLabel

    names = {}
    for column, feature in features.items():
        element = _element(feature)
        if isinstance(element, ClassLabel):
            names[column] = tuple(map(str, element.names or ()))
    return names


def _element(feature: Any) -> Any:
    """Return the feature of a list's elements; any other feature unchanged."""
    if isinstance(feature, list) and feature:
        return feature[0]
    return getattr(feature, "feature", feature)


def ids_to_names(value: Any, names: Sequence[str]) -> Any:
    """Replace a class id, or each id in a list, by its name.

    Ids without a name become None; values that are not integers are returned unchanged.
    """
    if isinstance(value, list):
        return [ids_to_names(item, names) for item in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None
