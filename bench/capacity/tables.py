"""The plan as tables, the same in the terminal and in docs/operate/capacity.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.capacity.measured import Measured
from bench.capacity.model import GIB, STEPS, Plan, Step

SHARDS_OF_A_SMALL_CLUSTER = 4


def everything(plan: Plan) -> str:
    """Return all tables, each under its heading."""
    parts = [
        ("What one unit costs", unit_costs(plan.measured)),
        ("What each size needs", growth(plan)),
        ("The nearest wall at each size", nearest_walls(plan)),
        ("Where each wall stands", walls(plan)),
    ]
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts) + "\n"


def unit_costs(measured: Measured) -> str:
    """Return the measured figures."""
    rows = [
        ("a space", "each NATS server that has a replica", f"{measured.space_memory_bytes:,.0f} B memory"),
        ("a space", "the same, on disk, besides its messages", f"{measured.space_disk_bytes:,.0f} B"),
        ("a record of the directory", "the same", f"{measured.record_memory_bytes:,.0f} B memory"),
        ("a record of the directory", "the same, on disk", f"{measured.record_disk_bytes:,.0f} B"),
        ("a replicated stream, idle", "the same", f"{measured.idle_stream_memory_bytes / 1024:,.0f} KiB memory"),
        ("a replicated stream, idle", "the same", f"{measured.idle_stream_cpu:.3%} of a core"),
        ("a subscription to a live space", "its own NATS server", f"{measured.interest_memory_bytes:,.0f} B memory"),
        (
            "a subscription to a live space",
            "every other NATS server",
            f"{measured.interest_elsewhere_memory_bytes:,.0f} B memory",
        ),
        (
            "a million spaces or records",
            "a NATS server that was killed, until it serves",
            f"{measured.restart_s_per_million:.0f} s",
        ),
        ("a connection, idle", "a sync node's process", f"{measured.connection_memory_bytes / 1024:.1f} KiB memory"),
        (
            "a space that is served",
            "a sync node's process",
            f"{measured.served_space_memory_bytes / 1024:.1f} KiB memory",
        ),
        ("nothing at all", "a sync node's process", f"{measured.sync_process_memory_bytes / (1 << 20):.0f} MiB memory"),
        ("one core", "a sync node over three NATS servers", f"{measured.changes_per_core_s:,.0f} durable changes/s"),
        ("a space with one member", "the directory", f"{measured.records_per_space:.0f} records"),
        ("an account with one device", "the directory", f"{measured.records_per_account:.0f} records"),
        ("a space with one member", "the key service's disk", f"{measured.keys_bytes_per_space:,.0f} B"),
        ("an account with one device", "the key service's disk", f"{measured.keys_bytes_per_account:,.0f} B"),
        ("a lease", "the key service's ledger", f"{measured.keys_bytes_per_lease:,.0f} B"),
        ("a lease", "the key service's core", f"{measured.lease_cpu_ms:.2f} ms"),
    ]
    return _table(("unit", "of", "costs"), rows)


def growth(plan: Plan) -> str:
    """Return what each size needs."""
    columns = (
        "spaces",
        "online",
        "changes/s",
        "partitions",
        "shards",
        "NATS servers",
        "memory of each",
        "disk of each",
        "sync processes",
        "leases/s",
        "key service's disk",
        "a killed server is back after",
    )
    return _table(columns, [_row(plan.step(spaces)) for spaces in STEPS])


def _row(step: Step) -> tuple[str, ...]:
    return (
        f"{step.spaces:,}",
        f"{step.connections:,}",
        f"{step.changes_s:,.0f}",
        f"{step.partitions:,}",
        f"{step.shards:,}",
        f"{step.nats_servers:,}",
        _bytes(step.nats_memory_bytes),
        _bytes(step.nats_disk_bytes),
        f"{step.sync_processes:,}",
        f"{step.leases_s:,.1f}",
        _bytes(step.keys_disk_bytes),
        f"{step.restart_s:,.0f} s",
    )


def nearest_walls(plan: Plan) -> str:
    """Return what is used up most at each size of what no machine more solves, with the shards for the largest size."""
    rows, shards = [], plan.shards(STEPS[-1])
    for spaces in STEPS:
        wall = plan.walls(spaces, shards)[0]
        rows.append((f"{spaces:,}", wall.name, f"{wall.used:.1%}", wall.why))
    return _table(("spaces", "nearest wall", "used", "because"), rows)


def walls(plan: Plan) -> str:
    """Return at how many spaces each wall stands, the nearest first."""
    small = SHARDS_OF_A_SMALL_CLUSTER
    shards = "shards of the directory"
    found = {wall.name: wall for wall in plan.walls(STEPS[-1], plan.shards(STEPS[-1]))}
    rows = [
        (plan.reached_at(shards, small), f"{shards}: {small}, as by default", found[shards].beyond),
        (
            plan.reached_at(shards, plan.shards(STEPS[-1])),
            f"{shards}: {plan.shards(STEPS[-1])}",
            found[shards].beyond,
        ),
    ]
    rows += [(plan.reached_at(name), name, wall.beyond) for name, wall in found.items() if name != shards]
    rows.sort()
    return _table(("at spaces", "wall", "beyond it"), [(_rounded(at), name, beyond) for at, name, beyond in rows])


def _rounded(count: int) -> str:
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}"


def _bytes(count: float) -> str:
    for unit, size in (("TiB", GIB << 10), ("GiB", GIB)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / (1 << 20):,.0f} MiB"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
