"""The growth of a cluster, computed: what each step needs of every machine, and which wall comes next.

The same figures and the same workload give the same plan. What a machine more solves is multiplied; what no machine
more solves is a wall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from bench.capacity.measured import Measured

REPLICAS = 3
GIB = 1 << 30
DAY_S = 86_400


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What people do, at the busiest hour. Assumed, not measured: put in your own."""

    spaces_per_connection: int = 100
    """Spaces that exist for each device that is online at once."""
    spaces_per_account: float = 4.0
    attached_per_connection: float = 6.0
    changes_per_connection_s: float = 0.1
    log_bytes_per_space: int = 128 << 10
    """Of sealed changes and snapshots, after compaction, on average over all spaces, old ones included."""
    members_per_space: float = 2.0
    lease_hours: float = 24.0
    """A device renews a lease when half of it has passed."""


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """What the machines are, and how much of them may be used. Chosen, not measured."""

    nats_memory_bytes: int = 64 * GIB
    nats_disk_bytes: int = 4 << 40
    sync_memory_bytes: int = 4 * GIB
    """For each process of a sync node, which uses one core."""
    connections_per_process: int = 20_000
    keys_disk_bytes: int = 4 << 40
    share_used: float = 0.5
    """What stays free takes over from a machine that fails, bursts, and the page cache."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How a cluster is laid out."""

    spaces_per_partition: int = 1_000_000
    records_per_shard: int = 4_000_000
    partitions_first: int = 16
    shards_first: int = 4
    partitions_max: int = 65_536
    """A space's id has two bytes for its partition."""
    streams_max: int = 1_000
    """Replicated streams of one NATS cluster: each is a Raft group that every machine's meta group keeps track of."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One size of the cluster, and what it takes."""

    spaces: int
    connections: int
    changes_s: float
    sync_processes: int
    nats_servers: int
    partitions: int
    shards: int
    nats_memory_bytes: float
    nats_disk_bytes: float
    """Of each NATS server; the disk without the files of the people, which lie in the object storage."""
    keys_disk_bytes: float
    """With one year of the ledger."""
    leases_s: float
    restart_s: float
    """Until a NATS server that was killed serves again; its replicas do meanwhile."""


class Wall(msgspec.Struct, frozen=True):
    """Something that more machines do not solve: how much of it a step uses, and what lies behind."""

    name: str
    used: float
    why: str
    beyond: str


class Plan(msgspec.Struct, frozen=True):
    """What the plan is computed from."""

    measured: Measured
    workload: Workload = Workload()
    machines: Machines = Machines()
    rules: Rules = Rules()

    def step(self, spaces: int) -> Step:
        """Return what a number of spaces needs."""
        measured, load, machines = self.measured, self.workload, self.machines
        connections = max(1, spaces // load.spaces_per_connection)
        changes_s = connections * load.changes_per_connection_s
        records = self._records(spaces)
        partitions = max(self.rules.partitions_first, math.ceil(spaces / self.rules.spaces_per_partition))
        shards = self.shards(spaces)
        subscriptions = connections * load.attached_per_connection
        streams = partitions + shards
        on_every = subscriptions * measured.interest_elsewhere_memory_bytes
        spread = REPLICAS * (
            spaces * measured.space_memory_bytes
            + records * measured.record_memory_bytes
            + streams * measured.idle_stream_memory_bytes
        )
        disk = REPLICAS * (
            spaces * (load.log_bytes_per_space + measured.space_disk_bytes) + records * measured.record_disk_bytes
        )
        room = max(machines.nats_memory_bytes * machines.share_used - on_every, 1.0)
        servers = max(
            REPLICAS, math.ceil(spread / room), math.ceil(disk / (machines.nats_disk_bytes * machines.share_used))
        )
        leases_s = self._leases_s(connections)
        return Step(
            spaces=spaces,
            connections=connections,
            changes_s=changes_s,
            sync_processes=self._sync_processes(connections, changes_s),
            nats_servers=servers,
            partitions=partitions,
            shards=shards,
            nats_memory_bytes=spread / servers + on_every,
            nats_disk_bytes=disk / servers,
            keys_disk_bytes=self._keys_bytes(spaces, leases_s),
            leases_s=leases_s,
            restart_s=REPLICAS * (spaces + records) / servers / 1e6 * measured.restart_s_per_million,
        )

    def walls(self, spaces: int, shards: int | None = None) -> list[Wall]:
        """Return every wall and how near a number of spaces is to it, the nearest first.

        `shards` are those that the cluster was created with; None for as many as it needs.
        """
        step, machines, rules = self.step(spaces), self.machines, self.rules
        shards = shards or step.shards
        subscriptions = step.connections * self.workload.attached_per_connection
        found = [
            Wall(
                "ledger and database of the key service",
                step.keys_disk_bytes / (machines.keys_disk_bytes * machines.share_used),
                "one process writes one SQLite file, and the ledger keeps every lease",
                "archive the ledger's years, lengthen leases, or divide the people among several clusters",
            ),
            Wall(
                "leases a second of the key service",
                step.leases_s * self.measured.lease_cpu_ms / 1000 / machines.share_used,
                "one process proves and seals every lease on one core",
                "lengthen leases, or divide the people among several clusters",
            ),
            Wall(
                "shards of the directory",
                self._records(spaces) / shards / rules.records_per_shard,
                "they are fixed when the cluster is created",
                "create the cluster with more, or move into one that has (`twinlock migrate`)",
            ),
            Wall(
                "streams of one NATS cluster",
                (step.partitions + shards) / rules.streams_max,
                "each is a Raft group, and one meta group places them all",
                "divide the people among several clusters",
            ),
            Wall(
                "live spaces that every NATS server knows of",
                subscriptions
                * self.measured.interest_elsewhere_memory_bytes
                / (machines.nats_memory_bytes * machines.share_used),
                "each server holds the subscriptions of all sync nodes, so that more servers do not help",
                "servers with more memory, or several clusters",
            ),
            Wall(
                "numbers of partitions",
                step.partitions / rules.partitions_max,
                "a space's id has two bytes for its partition",
                "several clusters",
            ),
        ]
        return sorted(found, key=lambda wall: -wall.used)

    def reached_at(self, name: str, shards: int | None = None) -> int:
        """Return at how many spaces a wall stands."""

        def is_behind(spaces: int) -> bool:
            return any(wall.used > 1 for wall in self.walls(spaces, shards) if wall.name == name)

        return _first(is_behind)

    def shards(self, spaces: int) -> int:
        """Return into how many streams the directory must be divided, a power of two."""
        needed = max(1.0, self._records(spaces) / self.rules.records_per_shard)
        return max(self.rules.shards_first, 1 << math.ceil(math.log2(needed)))

    def _records(self, spaces: int) -> float:
        measured, load = self.measured, self.workload
        # A member more has a signed entry, a place in the account's list of spaces, and a row of the keyring.
        members = (load.members_per_space - 1) * 3
        return spaces * (measured.records_per_space + members + measured.records_per_account / load.spaces_per_account)

    def _sync_processes(self, connections: int, changes_s: float) -> int:
        measured, machines = self.measured, self.machines
        each = (
            measured.connection_memory_bytes
            + self.workload.attached_per_connection * measured.served_space_memory_bytes
        )
        room = machines.sync_memory_bytes * machines.share_used - measured.sync_process_memory_bytes
        held = min(machines.connections_per_process * machines.share_used, room / each)
        # One process more than is needed takes over when one fails.
        return 1 + max(
            1, math.ceil(connections / held), math.ceil(changes_s / (measured.changes_per_core_s * machines.share_used))
        )

    def _leases_s(self, connections: int) -> float:
        load = self.workload
        return connections * load.attached_per_connection / (load.lease_hours / 2 * 3600)

    def _keys_bytes(self, spaces: int, leases_s: float) -> float:
        measured, load = self.measured, self.workload
        kept = spaces * (measured.keys_bytes_per_space + measured.keys_bytes_per_account / load.spaces_per_account)
        return kept + leases_s * 365 * DAY_S * measured.keys_bytes_per_lease


def _first(is_so: Callable[[int], bool]) -> int:
    """Return the smallest number of which something is so, exact to a thousandth."""
    low, high = 1, 1 << 45
    if not is_so(high):
        return high
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if is_so(middle) else (middle, high)
    return high


STEPS: Sequence[int] = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
