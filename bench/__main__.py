"""`python -m bench [--quick] [scenario ...]`: measure, print, keep and draw. `--list` names the scenarios."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.catalogue import PEERS, SCENARIOS, Measure
from bench.event_loop import runner
from bench.figure import Figure, median_of_runs
from bench.machine import LOAD_CORE, describe, fdatasync_ms, pin_this_process
from bench.peers.child import PeerMissingError
from bench.report import RESULTS, Report, draw, keep, show
from bench.scale import Scale

RUN_SECONDS_MAX = 600
"""A run that takes longer hangs: it is reported as broken down."""


def main(arguments: list[str]) -> int:
    """Measure what was asked for; the status is 0 unless a measurement broke down."""
    options = _options(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if options.list:
        for name, measure in {**SCENARIOS, **PEERS}.items():
            console.print(f"[bold]{name}[/]  {(measure.__doc__ or '').splitlines()[0]}")
        return 0
    chosen = options.scenario or [*SCENARIOS, *PEERS]
    unknown = sorted(set(chosen) - {*SCENARIOS, *PEERS})
    if unknown:
        console.print(f"[red]There is no scenario {', '.join(unknown)}[/]; --list names them.")
        return 2
    scale = Scale(options.quick, options.runs or (1 if options.quick else 3))
    pin_this_process(LOAD_CORE)
    report, broken = _measure_all(console, chosen, scale)
    show(console, report)
    _keep_and_draw(console, report)
    return 1 if broken else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", help="what to measure (everything by default)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean little")
    parser.add_argument("--runs", type=int, default=0, help="how often to measure; the median counts (3 by default)")
    parser.add_argument("--list", action="store_true", help="name the scenarios")
    return parser.parse_args(arguments)


def _measure_all(console: Console, chosen: list[str], scale: Scale) -> tuple[Report, bool]:
    busy = f"{os.getloadavg()[0]:.1f} processes wanted a core before this began" if hasattr(os, "getloadavg") else ""
    figures: list[Figure] = []
    left_out: dict[str, str] = {}
    broken = False
    for name in chosen:
        console.print(f"[bold]{name}[/]", end=" ")
        started = time.perf_counter()
        try:
            figures += _median(console, ({**SCENARIOS, **PEERS})[name], scale)
        except PeerMissingError as exc:
            left_out[name] = str(exc)
        except Exception as exc:
            # One measurement that breaks down must not cost the others; it is reported and decides the exit status.
            left_out[name] = f"it broke down: {type(exc).__name__}: {exc}"
            broken = True
        console.print(f"[dim]{time.perf_counter() - started:.0f} s[/]")
    made = time.strftime("%Y-%m-%d %H:%M:%S")
    return Report(made, {**_machine(), "load": busy}, scale.quick, figures, left_out), broken


def _median(console: Console, measure: Measure, scale: Scale) -> list[Figure]:
    runs = []
    for _ in range(scale.runs):
        with tempfile.TemporaryDirectory(prefix="twinlock-bench-") as folder, runner() as loop:
            runs.append(loop.run(_in_time(measure(Path(folder), scale))))
        console.print(".", end="")
    return median_of_runs(runs)


async def _in_time(work: Coroutine[Any, Any, list[Figure]]) -> list[Figure]:
    async with asyncio.timeout(RUN_SECONDS_MAX):
        return await work


def _machine() -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="twinlock-bench-") as folder:
        return {**describe(), "fdatasync of 4 KiB": f"{fdatasync_ms(Path(folder)):.3f} ms"}


def _keep_and_draw(console: Console, report: Report) -> None:
    for what, value in report.machine.items():
        console.print(f"[dim]{what}: {value}[/]")
    kept = keep(report)
    console.print(f"\nkept in {kept.relative_to(RESULTS.parents[1])}")
    if draw(report, kept.with_suffix(".png")):
        console.print(f"drawn in {kept.with_suffix('.png').relative_to(RESULTS.parents[1])}")
    else:
        console.print("[yellow]left out[/] the plot: matplotlib is not installed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
