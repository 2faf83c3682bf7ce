"""Everything that stands on the stage of the cluster: NATS servers, key service, sync nodes, cables, devices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

from demo.cable import Cable
from demo.device_process import DeviceProcess
from demo.service_process import ServiceProcess
from demo.stage import free_ports
from twinlock.keyservice.key_files import NODE_KEY_NAME, SERVICE_KEY_NAME, open_signing_key, public_key_text
from twinlock.server.secrets_file import FILE_NAME as SERVER_KEY_NAME
from twinlock.server.secrets_file import open_secrets
from twinlock.testing.nats_process import NatsCluster

NATS_SERVERS = 3
NODES = 2


class ClusterStage:
    """The processes of a cluster on this machine and where their files lie.

    Each device's cable leads to a sync node of its own and, when that one does not answer, to the other, as a load
    balancer would have it: A begins on node 1, B, C and the guest on node 2.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nats = NatsCluster(folder / "nats", NATS_SERVERS)
        port_keys, *ports = free_ports(1 + NODES + 3)
        self.node_ports, (port_a, port_b, port_c) = ports[:NODES], ports[NODES:]
        self.keys = ServiceProcess(folder / "key-service", "keyservice", port_keys, {"nodes": self._node_keys()})
        service_pk = public_key_text(open_signing_key(folder / "key-service" / "data" / SERVICE_KEY_NAME))
        settings = {
            "engine": self.nats.url,
            "blobs": str(folder / "files"),
            "keyservice_url": f"http://127.0.0.1:{port_keys}",
            "keyservice_pk": service_pk,
            "origins": [f"ws://127.0.0.1:{each}" for each in (*self.node_ports, port_a, port_b, port_c)],
            "sign_ups_per_min": 0,
        }
        self.nodes = [
            ServiceProcess(self._node_folder(place), "serve", port, settings)
            for place, port in enumerate(self.node_ports)
        ]
        self.wire = folder / "wire"
        self.wire.mkdir()
        first, second = self.node_ports
        self.cable_a = Cable(port_a, [first, second], self.wire / "a.bin")
        self.cable_b = Cable(port_b, [second, first], self.wire / "b.bin")
        self.cable_c = Cable(port_c, [second, first], self.wire / "c.bin")
        self.a, self.b, self.c, self.guest = (
            DeviceProcess(name, folder / f"device-{name}", folder / f"{name}.log") for name in ("A", "B", "C", "guest")
        )
        # Made for this one run, never printed, gone with the folder.
        self.password = os.urandom(12).hex()
        self.kit = ""

    @property
    def devices(self) -> list[DeviceProcess]:
        """All devices."""
        return [self.a, self.b, self.c, self.guest]

    @property
    def cables(self) -> list[Cable]:
        """All cables."""
        return [self.cable_a, self.cable_b, self.cable_c]

    def url_of(self, place: int) -> str:
        """Return the address of a sync node."""
        return f"ws://127.0.0.1:{self.node_ports[place]}"

    async def close(self) -> None:
        """End every process, whatever goes wrong with one of them."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.nats.kill_all)
            stack.callback(self.keys.stop)
            for node in self.nodes:
                stack.push_async_callback(asyncio.to_thread, node.stop)
            for cable in self.cables:
                stack.push_async_callback(cable.close)
            for device in self.devices:
                stack.push_async_callback(device.stop)

    def _node_folder(self, place: int) -> Path:
        return self.folder / f"node-{place + 1}"

    def _node_keys(self) -> list[str]:
        """Give each node its own key for the key service, and all of them one server key, as an operator would."""
        folders = [self._node_folder(place) / "data" for place in range(NODES)]
        open_secrets(folders[0])
        for other in folders[1:]:
            other.mkdir(mode=0o700, parents=True)
            shutil.copy2(folders[0] / SERVER_KEY_NAME, other / SERVER_KEY_NAME)
        return [public_key_text(open_signing_key(folder / NODE_KEY_NAME)) for folder in folders]
