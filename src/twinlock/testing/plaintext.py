"""The search for plaintext: whether files, wires or logs hold a word that only members may read, in any coding."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

BASE64_ALIGNMENTS = 3
"""A word may begin at any of three places of a base64 group, and looks different at each."""

_ZEROS = bytes(4096)


class Hit(msgspec.Struct, frozen=True):
    """Plaintext that was found: where, which word, and in what form."""

    place: str
    word: str
    form: str


class Marker(msgspec.Struct, frozen=True):
    """A word to search for, in every form in which it may lie about, by the name of the form."""

    word: str
    forms: Mapping[str, bytes]

    @classmethod
    def of_text(cls, word: str) -> Marker:
        """Make a marker of a text, long and odd enough not to occur by chance."""
        raw = word.encode()
        forms = {
            **_byte_forms(raw),
            "utf-16, little end first": word.encode("utf-16-le"),
            "utf-16, big end first": word.encode("utf-16-be"),
            "JSON": json.dumps(word)[1:-1].encode(),
            "MessagePack": msgspec.msgpack.encode(word),
        }
        return cls(word, {name: form for name, form in forms.items() if name == "raw" or form != raw})

    @classmethod
    def of_bytes(cls, raw: bytes) -> Marker:
        """Make a marker of some bytes, such as a part of a key."""
        return cls(raw.hex(), _byte_forms(raw))


def find(marker: Marker, data: bytes) -> list[str]:
    """Return the forms of a marker that stand in some bytes."""
    return [name for name, form in marker.forms.items() if form in data]


def search(places: Mapping[str, bytes], markers: Iterable[Marker]) -> list[Hit]:
    """Search named pieces of data for all markers."""
    wanted = list(markers)
    return [
        Hit(place, marker.word, form)
        for place, data in places.items()
        for marker in wanted
        for form in find(marker, data)
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, and every name: a name can tell as much as a content."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    names = "\n".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    return {**found, "names of files": names.encode()}


def _byte_forms(raw: bytes) -> dict[str, bytes]:
    forms = {"raw": raw, "hex": raw.hex().encode(), "HEX": raw.hex().upper().encode()}
    for shift in range(BASE64_ALIGNMENTS):
        inside = _inside_base64(raw, shift)
        forms[f"base64 at {shift}"] = inside
        forms[f"base64url at {shift}"] = inside.translate(bytes.maketrans(b"+/", b"-_"))
    return forms


def _inside_base64(raw: bytes, shift: int) -> bytes:
    """Return the letters of base64 that depend on `raw` alone when `shift` unknown bytes stand before it."""
    written = base64.b64encode(bytes(shift) + raw)
    first = (shift * 8 + 5) // 6
    last = (shift + len(raw)) * 8 // 6
    return written[first:last]
