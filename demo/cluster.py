"""`python -m demo.cluster` starts a cluster on this machine and tells its story; `--once` ends after it.

The exit status is 0 if every check passed, else 1.
"""

from __future__ import annotations

import sys

from demo.cluster_stage import ClusterStage
from demo.cluster_story import play
from demo.theatre import perform


def main() -> int:
    """Run the story and return its exit status."""
    return perform("python -m demo.cluster", "Show a cluster whose machines die.", ClusterStage, play, _next_steps)


def _next_steps(stage: ClusterStage) -> list[str]:
    command = ".venv/bin/python -m twinlock"
    nodes = " and ".join(stage.url_of(place) for place in range(len(stage.nodes)))
    return [
        f"The cluster keeps running until Ctrl-C: sync nodes at {nodes}. In other terminals:",
        "",
        f"  {command} watch atlas/notes --profile {stage.c.profile}",
        f"""  {command} put atlas/notes/1 '{{"text": "hello"}}' --profile {stage.a.profile}""",
        "",
        f"  {command} cluster status {stage.nats.url}",
        f"  kill -9 any process of the table, and go on writing; {stage.folder} has the logs",
    ]


if __name__ == "__main__":
    sys.exit(main())
