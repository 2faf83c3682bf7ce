"""Backup sheets at the command line: printed once to the standard output, read back from the standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twinlock.cli.output import people

if TYPE_CHECKING:
    from twinlock.keyservice.sheets import Sheet

INPUT_CHARACTERS_MAX = 1 << 16

ADVICE = """[bold]Write each sheet down by hand, or print it on a printer that keeps no copy, and give each to another
person or place.[/] They are shown this once and kept nowhere. Whoever holds {needed} of them and a backup holds the
root key; with fewer than {needed} left, nobody can bring it back. Clear this terminal afterwards.
"""


def print_sheets(sheets: Sequence[Sheet]) -> None:
    """Print the sheets, and what to do with them beside them."""
    people.print(ADVICE.format(needed=sheets[0].needed_count))
    for sheet in sheets:
        print(sheet.text)
    # What could not be printed must not count: the caller goes on only after this.
    sys.stdout.flush()


def ask_for_sheets() -> list[str]:
    """Read sheets from the standard input until it ends."""
    from twinlock.keyservice.sheets import read_sheets

    if sys.stdin.isatty():
        people.print("Type or paste the sheets, an empty line after each; then Ctrl-D.")
    return read_sheets(sys.stdin.read(INPUT_CHARACTERS_MAX))
