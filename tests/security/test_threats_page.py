"""The page that lists attackers names tests that exist, and leaves none of these folders' attackers out."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "concepts" / "threats-tested.md"


def test_every_attackers_test_exists_and_every_security_test_is_listed():
    named = set(re.findall(r"`(\w+/test_\w+\.py)`", PAGE.read_text(encoding="utf-8")))
    there = {f"security/{path.name}" for path in (TESTS / "security").glob("test_*.py")} - {
        "security/" + Path(__file__).name
    }

    assert [name for name in sorted(named) if not (TESTS / name).exists()] == []
    assert there - named == set()
