"""Compute TF-IDF features of words and characters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

_LOG = logging.getLogger(__name__)

#: From this many texts on, n-grams of characters that occur in a single text are left out.
_MANY = 2000


def text_features(train: Sequence[str], texts: Sequence[str]) -> tuple[Any, Any]:
    """Return sparse TF-IDF matrices of both, ``(rows, features)``.

    Features are words, word pairs, and three to five characters within words. They are only one to four characters
    across words if fewer than half of the texts contain a word of train: emoji, single letters, and scripts without
    spaces, whose sentences are single words.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    options = {"sublinear_tf": True, "dtype": np.float32}
    words = TfidfVectorizer(ngram_range=(1, 2), **options)
    covered = 0
    if any(map(words.build_analyzer(), train)):
        parts = [(words.fit_transform(train), words.transform(texts))]
        covered = int((parts[0][1].getnnz(axis=1) > 0).sum())
        if 2 * covered >= len(texts):
            rarest = 2 if len(train) >= _MANY else 1
            characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=rarest, **options)
            parts.append((characters.fit_transform(train), characters.transform(texts)))
            return tuple(hstack(both, format="csr") for both in zip(*parts, strict=True))
    _LOG.info("TF-IDF reads characters only: %d of %d rows contain a word of train", covered, len(texts))
    characters = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), **options)
    return characters.fit_transform(train), characters.transform(texts)
