"""The written capacity plan is what the model says, and the model grows as a cluster does."""

import itertools
import subprocess
import sys
from pathlib import Path

import msgspec

from bench.capacity.measured import load
from bench.capacity.model import STEPS, Plan, Workload
from bench.capacity.page import PAGE, tables_in

ROOT = Path(__file__).parents[2]


def test_the_page_shows_what_the_program_prints():
    command = [sys.executable, "-m", "bench.capacity"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert tables_in(PAGE.read_text(encoding="utf-8")) == printed, "run: python -m bench.capacity --write"


def test_no_step_needs_less_than_the_one_before():
    plan = Plan(load())
    steps = [plan.step(spaces) for spaces in STEPS]

    for before, after in itertools.pairwise(steps):
        for name in ("connections", "changes_s", "sync_processes", "nats_servers", "partitions", "shards", "leases_s"):
            assert getattr(before, name) <= getattr(after, name), name
        assert before.nats_servers * before.nats_disk_bytes < after.nats_servers * after.nats_disk_bytes


def test_no_machine_is_given_more_than_its_share():
    plan = Plan(load())

    for spaces in STEPS:
        step, machines = plan.step(spaces), plan.machines
        assert step.nats_memory_bytes <= machines.nats_memory_bytes * machines.share_used
        assert step.nats_disk_bytes <= machines.nats_disk_bytes * machines.share_used
        assert step.spaces / step.partitions <= plan.rules.spaces_per_partition


def test_a_wall_stands_where_it_is_just_used_up():
    plan = Plan(load())

    for wall in plan.walls(STEPS[-1], 256):
        at = plan.reached_at(wall.name, 256)
        [before] = [each for each in plan.walls(int(at * 0.99), 256) if each.name == wall.name]
        [behind] = [each for each in plan.walls(int(at * 1.01), 256) if each.name == wall.name]
        assert before.used <= 1 < behind.used


def test_the_cluster_of_the_promise_stands_before_every_wall():
    """100 million spaces and 1 million connections."""
    plan = Plan(load())

    step = plan.step(100_000_000)

    assert step.connections == 1_000_000
    assert all(wall.used <= 1 for wall in plan.walls(step.spaces))


def test_a_busier_workload_needs_more_sync_processes_and_no_more_partitions():
    calm, busy = Plan(load()), Plan(load(), Workload(changes_per_connection_s=10.0))

    assert busy.step(STEPS[3]).sync_processes > calm.step(STEPS[3]).sync_processes
    assert busy.step(STEPS[3]).partitions == calm.step(STEPS[3]).partitions


def test_every_figure_is_a_number_above_zero():
    figures = msgspec.structs.asdict(load())

    assert all(value > 0 for value in figures.values() if not isinstance(value, str))
