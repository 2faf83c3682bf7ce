"""Full-text search: which text of a document is indexed, and when words match it. See spec/documents.md, section 9."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from twinlock.document.values import Value

_WORDS: Final = re.compile(r"[^\W_]+")
_SEPARATOR: Final = "\n"


def text_of(value: Value) -> str:
    """Return all text of a document, one string a line, in the order of its keys."""
    return _SEPARATOR.join(_texts(value))


def _texts(value: Value) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _texts(value[key])


def words_of(text: str) -> list[str]:
    """Return the words of a text as they are compared: lower case, without accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORDS.findall("".join(char for char in plain if not unicodedata.combining(char)))


def matches_text(value: Value, words: list[str]) -> bool:
    """Tell whether every word begins some word of the document."""
    known = words_of(text_of(value))
    return all(any(word.startswith(wanted) for word in known) for wanted in words)
