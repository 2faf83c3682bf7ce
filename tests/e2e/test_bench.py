"""The benchmarks run, and what they report is what they measured."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.catalogue import SCENARIOS
from bench.envelopes import EnvelopeSource
from bench.figure import Figure, median_of_runs, quantile
from bench.lean_socket import frame_of
from bench.raw_client import count_of
from twinlock.ids import Counter, DeviceId, Seq, SpaceId
from twinlock.protocol import codec
from twinlock.protocol.envelope import parse
from twinlock.protocol.frames import Ack, Entries, Entry

ROOT = Path(__file__).parents[2]
SPACE = SpaceId(bytes(16))


def figure(value: float, target: float | None = None, better: str = "higher") -> Figure:
    """Return a figure of no particular measure."""
    return Figure("writers", "changes", value, "/s", better, target)


def smoke_run(chosen: list[str]) -> dict[str, Any]:
    """Measure some scenarios and return the report, which is not kept."""
    command = [sys.executable, "-m", "bench", "--quick", *chosen]
    measured = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)

    assert measured.returncode == 0, measured.stdout + measured.stderr
    kept = next(line for line in measured.stdout.splitlines() if line.startswith("kept in ")).removeprefix("kept in ")
    report = json.loads((ROOT / kept).read_text(encoding="utf-8"))
    (ROOT / kept).unlink()
    (ROOT / kept).with_suffix(".png").unlink(missing_ok=True)
    assert report["quick"] is True
    assert report["left_out"] == {}
    return report


@pytest.mark.e2e
def test_a_smoke_run_measures_and_keeps_what_it_found():
    chosen = ["ack", "fanout", "sealing"]
    assert set(chosen) <= set(SCENARIOS)

    report = smoke_run(chosen)

    assert {each["scenario"] for each in report["figures"]} == set(chosen)


@pytest.mark.slow
@pytest.mark.e2e
def test_one_scenario_of_each_other_kind_measures_too():
    # The others differ in their numbers only.
    chosen = ["connections", "latency", "documents", "leases", "members"]

    assert {each["scenario"] for each in smoke_run(chosen)["figures"]} == set(chosen)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_cluster_and_files_are_measured_beside_their_peers():
    figures = smoke_run(["cluster", "files", "pocketbase-files"])["figures"]

    by_scenario: dict[str, set[str]] = {}
    for each in figures:
        by_scenario.setdefault(each["scenario"], set()).add(each["system"])
    assert by_scenario["cluster"] == {"twinlock"}
    assert by_scenario["cluster-cost-1"] == by_scenario["cluster-cost-16"] == {"twinlock", "NATS raw"}
    assert by_scenario["upload"] == by_scenario["download"] == {"twinlock", "cp", "PocketBase"}
    assert {each["growth"] for each in figures if "sync nodes" in each["name"]} == {1, 2}


def test_the_median_of_runs_is_kept_with_the_runs():
    [merged] = median_of_runs([[figure(10)], [figure(30)], [figure(20)]])

    assert merged.value == 20
    assert merged.runs == (10, 30, 20)


@pytest.mark.parametrize(
    ("value", "target", "better", "reached"),
    [
        (10, 9, "higher", True),
        (8, 9, "higher", False),
        (8, 9, "lower", True),
        (10, 9, "lower", False),
        (1, None, "lower", None),
    ],
)
def test_a_target_is_reached_or_not(value, target, better, reached):
    assert figure(value, target, better).reached is reached


def test_quantiles_are_values_that_were_measured():
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([*range(1, 101)], 0.99) == 99
    assert math.isnan(quantile([], 0.5))


@pytest.mark.parametrize("count", [1, 15, 16, 300, 70_000])
def test_entries_and_acks_are_counted_without_being_read(count):
    entries = Entries(SPACE, [Entry(Seq(1), 0, b"x")] * count, Seq(count))
    ack = Ack(SPACE, [(Counter(1), Seq(1))] * count)

    assert count_of(memoryview(codec.encode(entries))) == count
    assert count_of(memoryview(codec.encode(ack))) == count


def test_prepared_envelopes_are_what_the_server_checks():
    first, second = (parse(data) for data in EnvelopeSource(SPACE, DeviceId(bytes(16)), bytes(32)).make(2))

    assert (first.header.counter, second.header.counter) == (1, 2)
    assert second.header.prev == first.id


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_the_lean_socket_frames_by_the_standard(size):
    frame = frame_of(bytes(size))
    header_bytes = 2 if size < 126 else 4 if size < 65_536 else 10

    assert frame[0] == 0x82
    assert frame[1] & 0x80
    assert len(frame) == header_bytes + 4 + size
