"""Names are in the order of a dictionary, whatever their case and their code points."""

from __future__ import annotations

import random

import pytest

from fulltune.runtime.alphabetical import in_order


@pytest.mark.parametrize(
    "expected",
    [
        ["cena", "Čas", "pokuta", "Rozhodčí doložka", "Řešení sporů", "smlouva", "Štítek", "závazek", "Život"],
        ["арбитраж", "Банк", "ёлка", "жалоба", "игра", "Йод", "Кино", "юрист", "Яблоко"],
        ["etude", "étude", "Étude", "Eva", "Zoo"],
        ["Lab", "lis", "Łabędź", "miasto"],
        ["class 2", "Class 10", "class 10b"],
        ["", "!", "a"],
    ],
    ids=lambda names: names[1],
)
def test_names_are_in_the_order_of_a_dictionary(expected: list[str]) -> None:
    for seed in range(5):
        assert in_order(random.Random(seed).sample(expected, len(expected))) == expected
