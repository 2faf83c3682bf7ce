"""`python -m bench.capacity`: print the capacity plan.

`--measure` measures what it stands on anew, which takes some minutes; `--write` puts the tables into the page.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.capacity.measured import MEASURED, Measured, keep, load
from bench.capacity.model import Plan
from bench.capacity.page import write
from bench.capacity.tables import everything


def main(arguments: list[str]) -> int:
    """Print the plan that follows from the measured figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure on this machine and write the figures down")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/operate/capacity.md")
    options = parser.parse_args(arguments)
    if options.measure:
        keep(_measure())
        print(f"written to {MEASURED.name}", file=sys.stderr)
    tables = everything(Plan(load()))
    if options.write:
        write(tables)
    print(tables, end="")
    return 0


def _measure() -> Measured:
    import msgspec

    from bench.capacity.measure_nats import measure_nats
    from bench.capacity.measure_server import measure_changes, measure_server
    from bench.event_loop import runner
    from bench.machine import describe

    with tempfile.TemporaryDirectory(prefix="twinlock-capacity-") as folder, runner() as loop:
        figures: dict[str, Any] = {}
        for name, measure in (("nats", measure_nats), ("server", measure_server), ("changes", measure_changes)):
            place = Path(folder) / name
            place.mkdir()
            print(f"measuring: {name}", file=sys.stderr)
            figures |= loop.run(measure(place))
    machine = describe()
    figures["machine"] = f"{machine['cores']} cores, {machine['processor']}"
    return msgspec.convert({"made": time.strftime("%Y-%m-%d"), **figures}, Measured)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
