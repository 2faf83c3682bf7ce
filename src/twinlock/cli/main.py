"""The `twinlock` command: says plainly what to install where its optional parts are missing."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec

NEEDED_PACKAGES = ("typer", "rich")


def app() -> None:
    """Run the command line; its exit status is 0, 1 for an error that has a remedy, 2 for wrong usage."""
    missing = [name for name in NEEDED_PACKAGES if find_spec(name) is None]
    if missing:
        print(f"twinlock: the command line needs {' and '.join(missing)}.", file=sys.stderr)
        print(
            "Install them with: pip install 'twinlock[cli]'  (or 'twinlock[server]' to run a server)", file=sys.stderr
        )
        sys.exit(2)
    from twinlock.cli.commands import commands

    # What the SDK logs is for applications: a command tells by itself what came of it. Servers add handlers of theirs.
    logging.getLogger("twinlock").addHandler(logging.NullHandler())
    commands(prog_name="twinlock")
