"""The figures that the capacity plan stands on: what one unit of each thing costs, measured on real processes."""

from __future__ import annotations

from pathlib import Path

import msgspec

MEASURED = Path(__file__).with_name("measured.json")


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit costs; `python -m bench.capacity --measure` measures it again and writes it down.

    Memory is resident memory of the process, a NATS figure one of three replicas' servers.
    """

    made: str
    machine: str
    nats_server: str

    space_memory_bytes: float
    """Of a NATS server, for a subject with one small message: a space is a subject of its partition's stream."""
    space_disk_bytes: float
    """On a NATS server's disk, beyond the message's own bytes."""
    record_memory_bytes: float
    record_disk_bytes: float
    """The same for a record of the directory, its own bytes included."""
    idle_stream_memory_bytes: float
    idle_stream_cpu: float
    """Of a NATS server, for a replicated stream that nobody uses: memory, and the share of a core."""
    interest_memory_bytes: float
    interest_elsewhere_memory_bytes: float
    """For a subscription: of the NATS server that the sync node is connected to, and of every other one."""
    restart_s_per_million: float
    """From the start of a killed NATS server until it serves, for each million spaces and records on it."""

    connection_memory_bytes: float
    served_space_memory_bytes: float
    sync_process_memory_bytes: float
    """Of a sync node's process: an idle connection, a space that it serves, and nothing at all."""
    changes_per_core_s: float
    """Durable changes that one sync node takes in, over three NATS servers, with its core busy."""

    records_per_space: float
    records_per_account: float
    """Of the directory, for a space with one member and for an account with one device."""
    keys_bytes_per_space: float
    keys_bytes_per_account: float
    keys_bytes_per_lease: float
    """On the disk of the key service; the last is the ledger's."""
    lease_cpu_ms: float


def load(path: Path = MEASURED) -> Measured:
    """Read the figures that were measured last."""
    return msgspec.json.decode(path.read_bytes(), type=Measured)


def keep(measured: Measured, path: Path = MEASURED) -> None:
    """Write figures down for the model."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=2) + b"\n")
