"""The reference page of errors, made from the spec: `python -m tests.docs.errors_page` writes it."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "spec" / "errors.json"
PAGE = ROOT / "docs" / "reference" / "errors.md"

RETRY_WORDS = {
    "no": "no",
    "now": "at once",
    "later": "later (after `retry_after_ms` if it is told)",
    "reseal": "the SDK seals again and retries",
}
HEAD = """\
# Errors

Every error has a code, a sentence, and what to do about it. In Python each is a class of `twinlock.errors` under
`TwinlockError`, with `code`, `fix`, `detail` and `retry_after_ms`; the command line prints code, sentence and fix, and
ends with status 1. This page is made from [errors.json](../../spec/errors.json) by `python -m tests.docs.errors_page`.
"""


def page() -> str:
    """Return the page for the errors that the spec lists now."""
    entries = json.loads(REGISTRY.read_text(encoding="utf-8"))
    return "\n".join([HEAD, *(section(entry) for entry in entries)])


def section(entry: dict[str, str]) -> str:
    """Return what the page says about one error."""
    return (
        f"## {entry['code']}\n\n{entry['text']}\n\n"
        f"- **What to do:** {entry['fix']}\n"
        f"- **Retry:** {RETRY_WORDS[entry['retry']]}\n"
        f"- **Python:** `{entry['name']}`; caused by: {entry['fault']}\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
