"""The written plan, docs/operate/capacity.md, whose tables are those that the program prints."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "operate" / "capacity.md"
BEGINS = "## The figures\n"
ENDS = "## What the figures do not say\n"


def tables_in(text: str) -> str:
    """Return the tables that a page holds."""
    return text.partition(BEGINS)[2].partition(ENDS)[0].strip() + "\n"


def write(tables: str) -> None:
    """Put tables in place of those that the page holds."""
    before, begins, rest = PAGE.read_text(encoding="utf-8").partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    PAGE.write_text(f"{before}{begins}\n{tables}\n{ends}{after}", encoding="utf-8")
