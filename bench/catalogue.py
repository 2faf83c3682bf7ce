"""All scenarios and peers by name."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from bench.figure import Figure
from bench.peers import nats, pocketbase, pocketbase_files
from bench.scale import Scale
from bench.scenarios.catchup import catch_up
from bench.scenarios.cluster import cluster
from bench.scenarios.connections import connections
from bench.scenarios.devices import sdk_catch_up, seen_on_other_device
from bench.scenarios.fanout import fan_out
from bench.scenarios.files import files
from bench.scenarios.leases import leases
from bench.scenarios.many_documents import many_documents
from bench.scenarios.members import large_space
from bench.scenarios.sealing import seal_and_open
from bench.scenarios.writes import many_spaces, many_writers, one_writer, pushes_of_ten

Measure = Callable[[Path, Scale], Coroutine[Any, Any, list[Figure]]]

SCENARIOS: Mapping[str, Measure] = {
    "ack": one_writer,
    "writers": many_writers,
    "pushes": pushes_of_ten,
    "spaces": many_spaces,
    "fanout": fan_out,
    "catchup": catch_up,
    "latency": seen_on_other_device,
    "sdk-catchup": sdk_catch_up,
    "documents": many_documents,
    "connections": connections,
    "sealing": seal_and_open,
    "leases": leases,
    "members": large_space,
    "cluster": cluster,
    "files": files,
}
PEERS: Mapping[str, Measure] = {
    "nats": nats.measure,
    "pocketbase": pocketbase.measure,
    "pocketbase-files": pocketbase_files.measure,
}
