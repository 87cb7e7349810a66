"""The cache returns exactly what was stored, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulltune.errors import StoreError
from fulltune.records.run import Prediction
from fulltune.store.cache import cache_key, cache_path, read_cache, write_cache

ROWS = [{"id": f"r{index}", "text": "ж" * index} for index in range(5)]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)


def entry(folder: Path) -> Path:
    path = cache_path(folder, cache_key({"base": "abc", "prompt": 1}))
    assert write_cache(path, iter(ROWS)) == len(ROWS)
    return path


def test_key_depends_on_the_parts_and_not_on_their_order() -> None:
    assert cache_key({"a": 1, "b": [2]}) == cache_key({"b": [2], "a": 1})
    keys = [cache_key(parts) for parts in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {})]
    assert len(set(keys)) == len(keys) == 5


def test_round_trip(tmp_path: Path) -> None:
    rows = read_cache(entry(tmp_path))
    assert rows is not None
    assert list(rows) == ROWS


@given(rows=st.lists(json_values, max_size=4))
def test_any_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[object]) -> None:
    path = cache_path(tmp_path_factory.mktemp("cache"), "key")
    write_cache(path, rows)
    found = read_cache(path)
    assert found is not None
    assert list(found) == rows


def test_predictions_are_stored_as_they_are(tmp_path: Path) -> None:
    prediction = Prediction(
        system="tfidf", id="1", input="x", reference="a", output=("b",), values={"nll": float("nan")}
    )
    path = cache_path(tmp_path, "key")
    write_cache(path, [prediction])
    found = read_cache(path)
    assert found is not None
    assert next(found)["values"] == {"nll": "NaN"}


def test_a_missing_entry_is_not_an_error(tmp_path: Path) -> None:
    assert read_cache(cache_path(tmp_path, "key")) is None


def test_every_single_byte_flip_is_detected(tmp_path: Path) -> None:
    path = entry(tmp_path)
    whole = path.read_bytes()
    assert len(whole) > 100
    for position in range(len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert read_cache(path) is None, position


def test_every_truncation_is_detected(tmp_path: Path) -> None:
    path = entry(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        assert read_cache(path) is None, length


def test_rows_that_fail_leave_no_entry(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield ROWS[0]
        raise RuntimeError("the model failed")

    path = cache_path(tmp_path, "key")
    with pytest.raises(RuntimeError, match="the model failed"):
        write_cache(path, rows())
    assert list(path.parent.iterdir()) == []


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_cache(cache_path(tmp_path, "key"), ROWS)
