"""A cluster on this machine: three NATS servers, a key service, some sync nodes; none of them is pinned to a core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from bench.machine import CORES, can_pin, cpu_seconds, free_port
from bench.peers.child import PeerMissingError, wait_for_port
from bench.server_process import UNLIMITED
from twinlock.keyservice.key_files import NODE_KEY_NAME, SERVICE_KEY_NAME, open_signing_key, public_key_text
from twinlock.server.secrets_file import FILE_NAME as SERVER_KEY_NAME
from twinlock.server.secrets_file import open_secrets
from twinlock.testing.nats_process import NatsCluster
from twinlock.testing.processes import ProcessFailedError

NATS_SERVERS = 3
STOP_SECONDS_MAX = 15


class RunningCluster(msgspec.Struct, frozen=True):
    """Where the sync nodes listen, and all processes."""

    ports: list[int]
    nodes: list[subprocess.Popen[bytes]]
    keys: subprocess.Popen[bytes]
    nats: NatsCluster
    folder: Path

    async def ready(self) -> None:
        """Return once every sync node listens.

        Raises:
            RuntimeError: one does not, with the end of its log.
        """
        for number, (port, node) in enumerate(zip(self.ports, self.nodes, strict=True)):
            try:
                await wait_for_port(port, node)
            except PeerMissingError as exc:
                log = self.folder / f"node-{number}.log"
                raise RuntimeError(f"a sync node did not start: {log.read_text(encoding='utf-8')[-500:]}") from exc

    def cpu(self) -> Spent:
        """Return the processor time that was used so far."""
        return Spent(
            sum(cpu_seconds(node.pid) for node in self.nats.nodes),
            sum(cpu_seconds(node.pid) for node in self.nodes),
        )


class Spent(msgspec.Struct, frozen=True):
    """Processor time in seconds, of the NATS servers and of the sync nodes."""

    nats: float
    nodes: float

    def since(self, before: Spent) -> Spent:
        """Return what came since an earlier look."""
        return Spent(self.nats - before.nats, self.nodes - before.nodes)


@contextmanager
def clustered(folder: Path, nodes: int) -> Iterator[RunningCluster]:
    """Run a cluster on an empty folder while the block lasts.

    Raises:
        PeerMissingError: nats-server is not installed here.
    """
    node_folders = [folder / f"node-{number}" for number in range(nodes)]
    node_keys = _keys_of(node_folders)
    with ExitStack() as stack:
        stack.enter_context(_unpinned())
        nats = NatsCluster(folder / "nats", NATS_SERVERS)
        try:
            stack.enter_context(nats)
        except ProcessFailedError as exc:
            raise PeerMissingError(str(exc)) from exc
        ports = [free_port() for _ in range(nodes)]
        key_port, service = free_port(), folder / "keys"
        service_pk = public_key_text(open_signing_key(service / SERVICE_KEY_NAME))
        key_settings = {"data": str(service), "port": key_port, "nodes": node_keys, "log_level": "warning"}
        keys = stack.enter_context(_running(folder, "keyservice", "keyservice", key_settings))
        settings = {
            "engine": nats.url,
            "keyservice_url": f"http://127.0.0.1:{key_port}",
            "keyservice_pk": service_pk,
            "log_level": "warning",
            **dict.fromkeys(UNLIMITED, 0),
        }
        children = [
            stack.enter_context(
                _running(folder, f"node-{number}", "serve", {"data": str(data), "port": port, **settings})
            )
            for number, (data, port) in enumerate(zip(node_folders, ports, strict=True))
        ]
        yield RunningCluster(ports, children, keys, nats, folder)


def _keys_of(folders: list[Path]) -> list[str]:
    """Give all nodes one server key, and each a key of its own, whose public part is returned."""
    open_secrets(folders[0])
    for other in folders[1:]:
        other.mkdir(mode=0o700, parents=True)
        shutil.copy2(folders[0] / SERVER_KEY_NAME, other / SERVER_KEY_NAME)
    return [public_key_text(open_signing_key(folder / NODE_KEY_NAME)) for folder in folders]


@contextmanager
def _running(
    folder: Path, name: str, command: str, settings: Mapping[str, object]
) -> Iterator[subprocess.Popen[bytes]]:
    config = folder / f"{name}.toml"
    # JSON's strings, numbers and lists are written in TOML as they are.
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()), encoding="utf-8")
    with (folder / f"{name}.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "twinlock", command, "--config", str(config)], stdout=log, stderr=log
        )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def _unpinned() -> Iterator[None]:
    """Let this process and its children use every core: there are more of them than cores."""
    if not can_pin():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(CORES))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
