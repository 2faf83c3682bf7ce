"""A whole cluster of real processes: NATS servers, a key service, sync nodes, and proxies between them where asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path

from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, public_key_text
from twinlock.server.secrets_file import FILE_NAME as SERVER_KEY_NAME
from twinlock.server.secrets_file import open_secrets
from twinlock.testing.faulty_proxy import FaultyProxy
from twinlock.testing.keyservice_process import KeyServiceChild
from twinlock.testing.nats_process import NatsCluster, NatsProcess, steady_port
from twinlock.testing.processes import ListeningProcess
from twinlock.testing.traffic_tap import LOOPBACK

NATS_SERVERS = 3


class SyncNode(ListeningProcess):
    """One sync node on a port that stays free while it is down."""

    def __init__(self, folder: Path, settings: dict[str, object], port: int) -> None:
        super().__init__(folder, "serve", port, settings)

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP): its connections stay open and answer nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)


class _RoutedNats(NatsProcess):
    """A NATS server whose routes to the others lead through proxies, and that nobody reaches by another way."""

    def _configuration(self) -> str:
        routes = ", ".join(self.routes)
        # What it tells of its own address leads nowhere: the others know only the proxies.
        self._settings["cluster"] = (
            f"{{ name: {self.cluster_name}, listen: {LOOPBACK}:{self.route_port}, no_advertise: true, "
            f'advertise: "{LOOPBACK}:1", routes: [{routes}] }}'
        )
        return super()._configuration()


class Network:
    """Proxies between all machines of a cluster: one for each pair and direction of dialling."""

    def __init__(self) -> None:
        self.routes: dict[tuple[int, int], FaultyProxy] = {}
        """From a NATS server to another."""

        self.links: dict[tuple[int, int], FaultyProxy] = {}
        """From a sync node to a NATS server."""

    def around_server(self, place: int) -> list[FaultyProxy]:
        """Return all ways from a NATS server to the others and back; sync nodes still reach it."""
        return [proxy for pair, proxy in self.routes.items() if place in pair]

    def around_node(self, place: int) -> list[FaultyProxy]:
        """Return all ways from a sync node to NATS."""
        return [proxy for (node, _), proxy in self.links.items() if node == place]

    def to_server(self, place: int) -> list[FaultyProxy]:
        """Return all ways to and from a NATS server, those of the sync nodes too."""
        return self.around_server(place) + [proxy for (_, server), proxy in self.links.items() if server == place]

    @property
    def everything(self) -> list[FaultyProxy]:
        """All ways."""
        return [*self.routes.values(), *self.links.values()]


class Cluster:
    """Three NATS servers, a key service and some sync nodes; an async context manager that starts and kills them.

    Args:
        folder: where everything lies.
        nodes: how many sync nodes.
        proxied: put a `Network` of proxies between them.
        settings: settings of every sync node.
    """

    def __init__(self, folder: Path, nodes: int = 2, proxied: bool = False, **settings: object) -> None:
        self.folder = folder
        self.nats = NatsCluster(folder / "nats", NATS_SERVERS)
        self.network = Network() if proxied else None
        self.nodes: list[SyncNode] = []
        self._nodes_count = nodes
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        if proxied:
            self._route_through_proxies()
        self.keys = KeyServiceChild(folder / "keys", self._node_keys())

    @property
    def ports(self) -> list[int]:
        """Where the sync nodes listen."""
        return [node.port for node in self.nodes]

    @property
    def processes(self) -> list[ListeningProcess]:
        """The sync nodes and the key service."""
        return [*self.nodes, self.keys]

    async def __aenter__(self) -> Cluster:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _open(self) -> None:
        if self.network is not None:
            await self._open_network(self.network)
        self._stack.callback(self.nats.kill_all)
        await asyncio.to_thread(self.nats.start_all)
        self._stack.callback(self.keys.kill)
        await asyncio.to_thread(self.keys.start)
        ports = [steady_port() for _ in range(self._nodes_count)]
        for place, port in enumerate(ports):
            node = SyncNode(self._node_folder(place), self._node_settings(place, ports), port)
            self._stack.callback(node.kill)
            self.nodes.append(node)
            await asyncio.to_thread(node.start)

    def _node_settings(self, place: int, ports: list[int]) -> dict[str, object]:
        url = self.nats.url
        if self.network is not None:
            proxies = [proxy for (node, _), proxy in self.network.links.items() if node == place]
            url = "nats://" + ",".join(f"{LOOPBACK}:{proxy.port}" for proxy in proxies)
        return {
            "engine": url,
            "keyservice_url": self.keys.url,
            "keyservice_pk": self.keys.public_key,
            "origins": [f"ws://{LOOPBACK}:{port}" for port in ports],
            "sign_ups_per_min": 0,
            **self._settings,
        }

    def _node_folder(self, place: int) -> Path:
        return self.folder / f"node-{place}"

    def _node_keys(self) -> list[str]:
        """Give each node its own key for the key service, and all of them one server key, as an operator would."""
        folders = [self._node_folder(place) / "data" for place in range(self._nodes_count)]
        open_secrets(folders[0])
        for other in folders[1:]:
            other.mkdir(mode=0o700, parents=True)
            shutil.copy2(folders[0] / SERVER_KEY_NAME, other / SERVER_KEY_NAME)
        return [public_key_text(open_signing_key(folder / NODE_KEY_NAME)) for folder in folders]

    def _route_through_proxies(self) -> None:
        for place, node in enumerate(self.nats.nodes):
            routed = _RoutedNats(node.folder, node.name)
            routed.cluster_name = node.cluster_name
            self.nats.nodes[place] = routed

    async def _open_network(self, network: Network) -> None:
        servers = self.nats.nodes
        for dialler, server in enumerate(servers):
            for place, other in enumerate(servers):
                if place != dialler:
                    proxy = await self._stack.enter_async_context(FaultyProxy(other.route_port, steady_port()))
                    network.routes[dialler, place] = proxy
                    server.routes = [
                        f"nats://{LOOPBACK}:{proxy.port}" for (a, _), proxy in network.routes.items() if a == dialler
                    ]
        for node in range(self._nodes_count):
            for place, server in enumerate(servers):
                network.links[node, place] = await self._stack.enter_async_context(
                    FaultyProxy(server.port, steady_port())
                )
