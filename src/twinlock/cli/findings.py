"""What the checks of `twinlock doctor` find."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class Verdict(StrEnum):
    """How a check came out."""

    GOOD = "ok"
    NOTE = "note"
    BAD = "fail"


class Finding(NamedTuple):
    """What a check found, and what to do about it."""

    verdict: Verdict
    what: str
    fix: str = ""


def mode_of(path: Path) -> Iterator[Finding]:
    """Tell whether a file of secrets is readable by its owner only."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as exc:
        yield Finding(Verdict.BAD, f"{path}: {exc.strerror}")
        return
    if mode & 0o077:
        yield Finding(Verdict.BAD, f"{path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")
    else:
        yield Finding(Verdict.GOOD, f"{path} has mode {mode:04o}")
