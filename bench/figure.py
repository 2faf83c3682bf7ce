"""What a measurement yields: figures with their targets, and the median of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec

Better = Literal["higher", "lower"]


class Figure(msgspec.Struct, frozen=True):
    """One measured number: what, at which load, in which unit, and what was hoped for.

    `growth` is the factor on the load (1, 10, 100), so that a plot can show how the number grows with it.
    """

    scenario: str
    name: str
    value: float
    unit: str
    better: Better
    target: float | None = None
    system: str = "twinlock"
    growth: float = 1
    note: str = ""
    runs: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, float]:
        """What makes two figures the same measure."""
        return self.scenario, self.name, self.system, self.growth

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def median_of_runs(runs: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Return each figure once, with the median of its runs and the runs themselves."""
    by_key: dict[tuple[str, str, str, float], list[Figure]] = {}
    for run in runs:
        for figure in run:
            by_key.setdefault(figure.key, []).append(figure)
    return [
        msgspec.structs.replace(
            figures[0],
            value=median(figure.value for figure in figures),
            runs=tuple(figure.value for figure in figures),
        )
        for figures in by_key.values()
    ]


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return the value below which a fraction of all values lies (nearest rank); nan without values."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, math.ceil(fraction * len(ranked)) - 1)]
