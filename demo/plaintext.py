"""The search for plaintext: do files hold any word of the catalogue?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

WORD_LETTERS_MIN = 8
"""Shorter strings occur by chance in random bytes."""


class Search(NamedTuple):
    """How much was searched, and what was found where."""

    files: int
    size: int
    found: list[tuple[Path, str]]


def words_of(catalogue: Path) -> list[str]:
    """Return every distinct string of the catalogue, keys included, that is long enough to mean something."""
    found: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, dict):
            for key, inner in value.items():
                found.add(key)
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    for feature in json.loads(catalogue.read_text(encoding="utf-8"))["features"]:
        collect(feature)
    return sorted(word for word in found if len(word) >= WORD_LETTERS_MIN)


def search(folders: Iterable[Path], words: Iterable[str]) -> Search:
    """Search every file below some folders for any of the words."""
    by_beginning: dict[bytes, list[bytes]] = {}
    letters: set[int] = set()
    for word in words:
        data = word.encode()
        letters.update(data)
        by_beginning.setdefault(data[:WORD_LETTERS_MIN], []).append(data)
    # Sealed bytes seldom have so many in a row that occur in the words at all.
    runs = re.compile(b"[%s]{%d,}" % (re.escape(bytes(sorted(letters))), WORD_LETTERS_MIN))
    files = size = 0
    found: list[tuple[Path, str]] = []
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        files += 1
        size += len(data)
        hit = _first_word(data, runs, by_beginning)
        if hit is not None:
            found.append((path, hit))
    return Search(files, size, found)


def _first_word(data: bytes, runs: re.Pattern[bytes], by_beginning: Mapping[bytes, Sequence[bytes]]) -> str | None:
    # One look-up at each place of a run, however many words there are: far faster than one search for each word.
    for run in runs.finditer(data):
        text = run.group()
        for at in range(len(text) - WORD_LETTERS_MIN + 1):
            for word in by_beginning.get(text[at : at + WORD_LETTERS_MIN], ()):
                if text.startswith(word, at):
                    return word.decode()
    return None
