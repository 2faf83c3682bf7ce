"""A cluster on this machine that runs the shipped configuration of NATS, with certificates and keys of its own."""

import json
import shutil
import ssl
import time
from pathlib import Path

import msgspec
import nats

from twinlock.cli.cluster_keys import Members, Ports, ServerPlace, make_keys
from twinlock.engines.jetstream_options import NatsOptions
from twinlock.testing.nats_process import NatsCluster, NatsProcess, steady_port
from twinlock.testing.traffic_tap import LOOPBACK

DEPLOY = Path(__file__).parents[2] / "deploy"
SHIPPED = DEPLOY / "nats"


class ShippedServer(NatsProcess):
    """One server with `deploy/nats/server.conf` as it is; what is of this machine comes from `keys/`."""

    def __init__(self, folder, name):
        super().__init__(folder, name)
        self.leaves_port = steady_port()

    def place(self, keys):
        ports = Ports(self.port, self.route_port, self.leaves_port, self.monitor_port)
        return ServerPlace(LOOPBACK, LOOPBACK, ports, str(self.store), str(keys / self.name))

    def _configuration(self):
        for file in SHIPPED.glob("*permissions.conf"):
            shutil.copy(file, self.folder)
        return (SHIPPED / "server.conf").read_text(encoding="utf-8")


class ShippedCluster(NatsCluster):
    """Servers of one site with nodes' keys; `keys` is the folder that `twinlock cluster keys` would make."""

    def __init__(self, folder, servers, *, site="here", nodes=("sync-1",)):
        super().__init__(folder, 0, name=site)
        self.keys = folder / f"{site}-keys"
        self.keys.mkdir(parents=True)
        self.nodes = [ShippedServer(folder / f"{site}-{place}", f"{site}-{place}") for place in range(servers)]
        places = {node.name: node.place(self.keys) for node in self.nodes}
        members = Members(site=site, servers=places, nodes=dict.fromkeys(nodes, ""))
        members = msgspec.structs.replace(members, hosts=dict.fromkeys(nodes, LOOPBACK))
        self.members = make_keys(self.keys, members)
        for node in self.nodes:
            (node.folder / "keys").symlink_to(self.keys / node.name)

    @property
    def authority(self):
        return self.keys / "ca.pem"

    @property
    def url(self):
        return "tls://" + ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes)

    def seed_of(self, name, file="nats.nk"):
        return self.keys / name / file

    def options(self, seed):
        """Return how the engine reaches this cluster with the key in a file."""
        return NatsOptions.from_url(self.url, ca_file=str(self.authority), nkey_file=str(seed))

    async def dial(self, seed, **options):
        """Open a plain connection of NATS with the key in a file."""
        tls = ssl.create_default_context(cafile=self.authority)
        return await nats.connect(
            [f"tls://{LOOPBACK}:{node.port}" for node in self.nodes],
            tls=tls,
            nkeys_seed=str(seed),
            allow_reconnect=False,
            connect_timeout=5,
            **options,
        )


async def ask(connection, subject, **body):
    """Ask JetStream something, and return its answer."""
    answer = await connection.request(subject, json.dumps(body).encode() if body else b"", timeout=5)
    return json.loads(answer.data)


def wait_for_text(server, text):
    """Wait until a server has written something into its log."""
    give_up = time.monotonic() + 20
    while text.lower() not in server.log_path.read_text(errors="replace").lower():
        assert time.monotonic() < give_up, server.failure()
        time.sleep(0.02)
