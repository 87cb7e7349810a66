"""Folk tales: repeatable, complete and unlike each other; ``tests/benchmarks`` measures how little they repeat."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from demo import make
from demo.tales import THEMES, make_tales
from fulltune.data.demo.__main__ import main

SPLITS = make_tales()
TALES = [tale for split in SPLITS.values() for tale in split]


def test_a_fifth_of_every_theme_is_held_out() -> None:
    assert 120 <= len(TALES) <= 200
    assert {len({tale[key] for tale in TALES}) for key in ("id", "title", "text")} == {len(TALES)}
    held_out = Counter(tale["theme"] for tale in SPLITS["eval"])
    for theme, count in Counter(tale["theme"] for tale in TALES).items():
        assert 0.15 <= held_out[theme] / count <= 0.25
    assert set(held_out) == set(THEMES)


@pytest.mark.parametrize("tale", TALES, ids=[tale["id"] for tale in TALES])
def test_a_tale_is_complete_and_clean(tale: dict[str, str]) -> None:
    assert set(tale) == {"id", "title", "text", "theme"}
    assert 70 <= len(tale["text"].split()) <= 280
    assert tale["text"].count("\n\n") >= 2
    assert tale["text"].endswith((".", "?", "!", '"'))
    assert tale["text"].count('"') % 2 == 0
    assert not re.search(r"[^\w\s.,;:!?\"'-]|[^\x00-\x7f]|  | [,.;:!?]|,[.,]|\.\.|[.] [a-z]", tale["text"])


def test_no_run_of_eight_words_occurs_in_two_tales() -> None:
    runs: Counter[tuple[str, ...]] = Counter()
    for tale in TALES:
        words = re.findall(r"[\w']+", tale["text"].lower())
        runs.update({tuple(words[start : start + 8]) for start in range(len(words) - 7)})
    assert len(runs) > 20_000
    assert [run for run, count in runs.items() if count > 1] == []


def test_the_narrator_keeps_to_her_dialect() -> None:
    words = Counter(word for tale in TALES for word in re.findall(r"[\w']+", tale["text"].lower()))
    assert all(words[word] >= 30 for word in ("t'", "nowt", "nobbut", "owd", "wi'", "o'", "says"))
    for standard in ("the", "nothing", "something", "with", "until", "always", "himself", "your", "was", "take"):
        assert words[standard] == 0, standard


def test_the_same_seed_gives_the_same_tales_in_every_process() -> None:
    script = "import json; from demo.tales import make_tales; print(json.dumps(make_tales()))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout
    assert json.loads(printed) == SPLITS
    assert make_tales(seed=1) != make_tales(seed=2)


def test_the_command_writes_the_tales(tmp_path: Path) -> None:
    main(["tales", str(tmp_path)])
    for name, tales in SPLITS.items():
        assert (tmp_path / f"{name}.jsonl").read_bytes() == make.lines(tales)
