"""`python -m demo` tells the story and keeps the server running; `--once` ends after it.

The exit status is 0 if every check passed, else 1.
"""

from __future__ import annotations

import sys

from demo.stage import Stage
from demo.story import play
from demo.theatre import perform


def main() -> int:
    """Run the demo and return its exit status."""
    return perform("python -m demo", "Show live sync under two keys.", Stage, play, _next_steps)


def _next_steps(stage: Stage) -> list[str]:
    command = ".venv/bin/python -m twinlock"
    return [
        f"The server keeps running at {stage.url} until Ctrl-C. In two other terminals:",
        "",
        f"  {command} watch atlas/notes --profile {stage.c.profile}",
        f"""  {command} put atlas/notes/1 '{{"text": "hello"}}' --profile {stage.a.profile}""",
        "",
        f"  {command} query atlas/quakes -w 'properties.mag >= 5' --profile {stage.a.profile}",
        f"  {command} inspect {stage.server.data}",
        "",
        f"An application of your own: {command} dev, then the four lines of README.md.",
    ]


if __name__ == "__main__":
    sys.exit(main())
