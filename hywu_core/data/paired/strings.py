"""A million strings without a million objects: one block of bytes and the places where each string ends.

A list of a million paths takes a few hundred MB, and every worker process that touches one copies it; this
takes what the letters take, and is shared with forked workers.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence


class Strings(Sequence[str]):
    """Strings one after another; any string that Python can hold, also file names that are not text."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])

    def append(self, text: str) -> None:
        """Add a string at the end."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return len(self._bytes) + len(self._ends) * self._ends.itemsize


class Paths(Sequence[str]):
    """File paths, or paths with more behind them: the folder of many files is kept once."""

    def __init__(self) -> None:
        self._folders: list[str] = []
        self._number: dict[str, int] = {}
        self._which = array("I")
        self._names = Strings()

    def append(self, path: str) -> None:
        """Add a path at the end."""
        cut = max(path.rfind("/"), path.rfind(os.sep)) + 1
        folder = path[:cut]
        if folder not in self._number:
            self._number[folder] = len(self._folders)
            self._folders.append(folder)
        self._which.append(self._number[folder])
        self._names.append(path[cut:])

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, index: int) -> str:
        return self._folders[self._which[index]] + self._names[index]

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about."""
        folders = sum(
            len(folder) + 160 for folder in self._folders
        )  # with a list's and a dictionary's places
        return self._names.nbytes + len(self._which) * self._which.itemsize + folders
