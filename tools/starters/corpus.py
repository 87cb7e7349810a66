"""A folder of plain text as windows of tokens: the pretraining data of a starter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from fulltune.errors import DataError
from fulltune.runtime.files import files_sha256, store_errors

#: A file whose name contains this word is never trained on.
HELD_OUT = "valid"

#: Characters that are tokenized at once: long enough to be fast, short enough to need little memory.
_CHUNK = 100_000


@dataclass(frozen=True)
class Corpus:
    """Text files, split by name into those to learn from and those held out."""

    train: tuple[Path, ...]
    held_out: tuple[Path, ...]

    def sha256(self) -> str:
        """Return one hash over all names and bytes."""
        return files_sha256((*self.train, *self.held_out))


def find(folder: Path) -> Corpus:
    """Return all ``.txt`` files below a folder, in the order of their paths.

    Raises:
        DataError: There are none, or none of them is held out.
    """
    files = sorted(folder.rglob("*.txt"))
    held_out = tuple(path for path in files if HELD_OUT in path.name)
    train = tuple(path for path in files if HELD_OUT not in path.name)
    if not train or not held_out:
        raise DataError(
            f"{folder} has {len(train)} text files to learn from and {len(held_out)} held out",
            expected=f"at least one .txt file of each; those with {HELD_OUT!r} in their name are held out",
            fix="put some books aside in a file such as books.valid.txt",
        )
    return Corpus(train, held_out)


def texts(files: Sequence[Path]) -> Iterator[str]:
    """Yield the files in parts that end at the end of a line."""
    for path in files:
        with path.open(encoding="utf-8") as file:
            while lines := file.readlines(_CHUNK):
                yield "".join(lines)


def tokens(files: Sequence[Path], tokenizer: Tokenizer, cache: Path, end: int) -> NDArray[np.uint16]:
    """Return all tokens of the files as an array ``(T,)``, with the id ``end`` after each file; cached in ``cache``."""
    if not cache.exists():
        parts: list[NDArray[np.uint16]] = []
        for path in files:
            encoded = tokenizer.encode_batch(list(texts([path])), add_special_tokens=False)
            parts += [np.array(piece.ids, dtype=np.uint16) for piece in encoded]
            parts.append(np.array([end], dtype=np.uint16))
        with store_errors(cache):
            temporary = cache.with_suffix(".part.npy")
            np.save(temporary, np.concatenate(parts))
            temporary.replace(cache)
    loaded: NDArray[np.uint16] = np.load(cache, mmap_mode="r")
    return loaded


class Windows(Dataset[dict[str, Any]]):
    """An array of tokens cut into windows of ``length``, framed by the ids ``before`` and ``after``.

    The remainder that does not fill a window is left out.
    """

    def __init__(self, array: NDArray[np.uint16], length: int, before: Sequence[int] = (), after: Sequence[int] = ()):
        self.array = array
        self.before = list(before)
        self.after = list(after)
        self.content = length - len(self.before) - len(self.after)

    def __len__(self) -> int:
        return len(self.array) // self.content

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        content = self.array[index * self.content : (index + 1) * self.content].tolist()
        return {"index": index, "input_ids": [*self.before, *content, *self.after]}

    def spread(self, count: int) -> Windows:
        """Return evenly spaced windows, ``count`` at most, as a separate set."""
        step = max(1, len(self) // count)
        chosen = [self.array[i * self.content : (i + 1) * self.content] for i in range(0, len(self), step)][:count]
        return Windows(
            np.concatenate(chosen), self.content + len(self.before) + len(self.after), self.before, self.after
        )

    def tokens_per_byte(self, tokenizer: Tokenizer) -> float:
        """Return tokens over bytes; in byte-level BPE each character of a token is one byte."""
        words = tokenizer.get_vocab_size()
        sizes = np.array([len(tokenizer.id_to_token(index) or "") for index in range(words)])
        ordinary = self.array[self.array < words]
        return len(ordinary) / int(sizes[ordinary].sum())
