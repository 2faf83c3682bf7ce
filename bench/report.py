"""Figures shown to a person (table), kept for a program (JSON) and drawn (PNG, where matplotlib is installed)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.figure import Figure

RESULTS = Path(__file__).parent / "results"


class Report(msgspec.Struct, frozen=True):
    """All that one run of the benchmarks found, and where."""

    made: str
    machine: dict[str, str]
    quick: bool
    figures: list[Figure]
    left_out: dict[str, str]


def written(value: float, unit: str) -> str:
    """Return a figure as a person reads it."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    gap = "" if unit.startswith("/") else " "
    return f"{value:,.{digits}f}{gap}{unit}"


def show(console: Console, report: Report) -> None:
    """Print the figures with their targets, the ratios against peers, and what was left out."""
    table = Table(title="Twinlock, measured", title_justify="left", header_style="bold", box=SIMPLE)
    for column, justify in (("scenario", "left"), ("figure", "left"), ("load", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]  # rich takes the words as literals
    for column in ("measured", "target"):
        table.add_column(column, justify="right")
    table.add_column("")
    for figure in report.figures:
        if figure.system == "twinlock":
            table.add_row(*_row(figure))
    console.print(table)
    _show_peers(console, report.figures)
    for what, why in report.left_out.items():
        console.print(f"[yellow]left out[/] {what}: {why}")


def _row(figure: Figure) -> tuple[str, ...]:
    verdict = {True: "[green]reached[/]", False: "[red]not reached[/]", None: ""}[figure.reached]
    target = "" if figure.target is None else written(figure.target, figure.unit)
    note = f"[dim]{figure.note}[/]" if figure.note else ""
    load = f"{figure.growth:g}x"
    return figure.scenario, figure.name, load, written(figure.value, figure.unit), target, f"{verdict} {note}".strip()


def _show_peers(console: Console, figures: Sequence[Figure]) -> None:
    peers = [figure for figure in figures if figure.system != "twinlock"]
    if not peers:
        return
    table = Table(title="Beside peers, in the same run", title_justify="left", header_style="bold", box=SIMPLE)
    for column in ("scenario", "system", "figure", "measured", "Twinlock", "ratio", ""):
        table.add_column(column, justify="right" if column in {"measured", "Twinlock", "ratio"} else "left")
    for peer in peers:
        own = comparable(peer, figures)
        table.add_row(
            peer.scenario,
            peer.system,
            peer.name,
            written(peer.value, peer.unit),
            "" if own is None else written(own.value, own.unit),
            "" if own is None else f"{own.value / peer.value:.2f}x",
            f"[dim]{peer.note}[/]",
        )
    console.print(table)


def comparable(peer: Figure, figures: Sequence[Figure]) -> Figure | None:
    """Return Twinlock's own figure of the same scenario and unit, the first one if there are several."""
    own = (
        figure
        for figure in figures
        if figure.system == "twinlock" and figure.scenario == peer.scenario and figure.unit == peer.unit
    )
    return next(own, None)


def keep(report: Report) -> Path:
    """Write the report as JSON and return where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y-%m-%d-%H%M%S')}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    return path


def draw(report: Report, path: Path) -> bool:
    """Draw figures against their targets, and their growth with the load; False without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    drawing, places = pyplot.subplots(3, 1, figsize=(14, 19), height_ratios=(10, 3, 6))
    _draw_targets(places[0], report.figures)
    _draw_peers(places[1], report.figures)
    _draw_growth(places[2], report.figures)
    what = "quick smoke run: means little" if report.quick else "median of runs"
    drawing.suptitle(f"Twinlock, {report.made}, {report.machine.get('processor', '')}: {what}")
    drawing.tight_layout(rect=(0, 0, 1, 0.98))
    drawing.savefig(path, dpi=100)
    pyplot.close(drawing)
    return True


def _draw_targets(axes: Any, figures: Sequence[Figure]) -> None:
    # Every bar shows how far the target is reached: above 1 is better, whichever way the figure counts.
    rows = [figure for figure in figures if figure.target and figure.value]
    scores = [f.value / f.target if f.better == "higher" else f.target / f.value for f in rows if f.target]
    labels = [f"{f.name}: {written(f.value, f.unit)} (target {written(f.target or 0, f.unit)})" for f in rows]
    colors = ["tab:green" if figure.reached else "tab:red" for figure in rows]
    axes.barh(labels[::-1], scores[::-1], color=colors[::-1])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times the target (right of 1: reached)")


def _draw_peers(axes: Any, figures: Sequence[Figure]) -> None:
    peers = [figure for figure in figures if figure.system != "twinlock"]
    rows = [figure for peer in peers if (figure := comparable(peer, figures)) is not None]
    # Each of Twinlock's own figures once, above the peers that it stands beside.
    shown = sorted({id(row): row for row in [*rows, *peers]}.values(), key=lambda row: (row.scenario, row.system))
    labels = [f"{row.system}: {row.name}, {written(row.value, row.unit)}" for row in shown]
    colors = ["tab:blue" if row.system == "twinlock" else "tab:gray" for row in shown]
    axes.barh(labels[::-1], [row.value for row in shown][::-1], color=colors[::-1])
    axes.set(xscale="log", xlabel="a second, beside peers in the same run")


def _draw_growth(axes: Any, figures: Sequence[Figure]) -> None:
    lines: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.system == "twinlock":
            lines.setdefault(f"{figure.name} [{figure.unit}]", []).append(figure)
    for name, points in lines.items():
        points.sort(key=lambda point: point.growth)
        if len(points) > 1 and points[0].value:
            values = [point.value / points[0].value for point in points]
            axes.plot([point.growth / points[0].growth for point in points], values, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="times the smallest load", ylabel="times the figure there")
    if axes.get_lines():
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.25, -0.12))
