"""The parts of `deploy/compose.yml` as processes of this machine: their keys and settings serve devices."""

import os
import re
import ssl
import subprocess
import sys
import time
import urllib.request

import pytest
import yaml

import twinlock
from tests.client_kit import PASSWORD, values
from tests.deploy.cluster_kit import DEPLOY, SHIPPED
from tests.deploy.test_shipped_files import load_script
from twinlock.testing.nats_process import NatsCluster, NatsProcess, steady_port
from twinlock.testing.traffic_tap import LOOPBACK

SERVERS = ("nats-1", "nats-2", "nats-3")
NODES = ("sync-1", "sync-2")
READY_SECONDS = 40


class TrialServer(NatsProcess):
    """A NATS server of the trial: its own keys and part of the configuration, on ports of this machine."""

    def __init__(self, folder, name, keys):
        super().__init__(folder, name)
        self._keys = keys

    def moved(self, others):
        """Write the configuration that its container would read, with the addresses of this machine."""
        conf = (self._keys / "server.conf").read_text()
        conf = conf.replace("0.0.0.0:4222", f"{LOOPBACK}:{self.port}").replace("/etc/nats/keys", str(self._keys))
        conf = conf.replace("0.0.0.0:6222", f"{LOOPBACK}:{self.route_port}").replace("/var/lib/nats", str(self.store))
        conf = conf.replace("127.0.0.1:8222", f"{LOOPBACK}:{self.monitor_port}")
        for other in others:
            conf = conf.replace(f"nats-route://{other.name}:6222", f"nats-route://{LOOPBACK}:{other.route_port}")
        keys = self.folder / "keys"
        keys.mkdir()
        (keys / "server.conf").write_text(conf)
        (keys / "accounts.conf").write_text((self._keys / "accounts.conf").read_text())
        (self.folder / "permissions.conf").write_text((SHIPPED / "permissions.conf").read_text())

    def _configuration(self):
        return (SHIPPED / "server.conf").read_text()


class Part:
    """A service of the compose file, run by this interpreter with its environment."""

    def __init__(self, name, environment, replaced, data, log, port):
        self.port = port
        self.authority = replaced["/keys"] + "/ca.pem"
        prefix = "TWINLOCK_KEYSERVICE_" if name == "keyservice" else "TWINLOCK_"
        values = {key: str(value) for key, value in environment.items()}
        for old, new in replaced.items():
            values = {key: value.replace(old, new) for key, value in values.items()}
        values |= {f"{prefix}DATA": str(data), f"{prefix}PORT": str(self.port), f"{prefix}HOST": LOOPBACK}
        command = "keyservice" if name == "keyservice" else "serve"
        with log.open("wb") as file:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "twinlock", command],
                env={**os.environ, **values},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._log = log

    def wait(self):
        tls = ssl.create_default_context(cafile=self.authority)
        give_up = time.monotonic() + READY_SECONDS
        while time.monotonic() < give_up and self._child.poll() is None:
            try:
                with urllib.request.urlopen(f"https://localhost:{self.port}/readyz", timeout=2, context=tls) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self._log.read_text()[-3000:])

    def kill(self):
        self._child.kill()
        self._child.wait()


def run_command(*words):
    subprocess.run([sys.executable, "-m", "twinlock", *words], check=True, capture_output=True)


@pytest.mark.slow
async def test_a_device_is_served_by_both_sync_servers_of_the_trial(tmp_path, monkeypatch):
    trial = tmp_path / "trial"
    load_script("prepare_trial").main(trial)
    chosen = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    text = re.sub(r"\$\{(\w+)\}", lambda name: chosen[name[1]], (DEPLOY / "compose.yml").read_text())
    services = yaml.safe_load(text)["services"]
    cluster = NatsCluster(tmp_path, 0)
    cluster.nodes = [TrialServer(tmp_path / name, name, trial / "keys" / name) for name in SERVERS]
    for server in cluster.nodes:
        server.moved(cluster.nodes)
    urls = f"tls://{','.join(f'localhost:{server.port}' for server in cluster.nodes)}"
    parts = []
    with cluster:
        run_command("cluster", "init", urls, "--operator", str(trial / "keys" / "operator"))
        try:
            keys = Part(
                "keyservice",
                services["keyservice"]["environment"],
                {"/keys": str(trial / "keys" / "keyservice")},
                trial / "data" / "keyservice",
                tmp_path / "keyservice.log",
                steady_port(),
            )
            parts.append(keys)
            keys.wait()
            ports = [steady_port(), steady_port()]
            for name, port in zip(NODES, ports, strict=True):
                environment = dict(services[name]["environment"])
                # The bucket is a server of another project: a folder stands for it here.
                environment |= {"TWINLOCK_BLOBS": str(tmp_path / "bucket"), "TWINLOCK_BLOBS_ENDPOINT": ""}
                environment["TWINLOCK_ENGINE"] = urls
                environment["TWINLOCK_ORIGINS"] = ",".join(f"wss://localhost:{one}" for one in ports)
                replaced = {
                    "https://keyservice:8766": f"https://localhost:{keys.port}",
                    "/keys": str(trial / "keys" / name),
                }
                part = Part(name, environment, replaced, trial / "data" / name, tmp_path / f"{name}.log", port)
                parts.append(part)
            for part in parts:
                part.wait()
            monkeypatch.setenv("SSL_CERT_FILE", str(trial / "keys" / "ca.pem"))
            docs = await written_and_read(tmp_path, *(f"wss://localhost:{port}" for port in ports))
        finally:
            for part in parts:
                part.kill()

    assert docs == [{"text": "by way of the other server"}]


async def written_and_read(folder, first, second):
    """Write with a device at one server, and read with another at the other."""
    async with await twinlock.sign_up(first, "ann", PASSWORD, profile=folder / "a") as db:
        await db.space("home").collection("todos").add({"text": "by way of the other server"})
        await db.synced()
        kit = db.recovery_kit()
        async with await twinlock.recover(second, "ann", kit, PASSWORD, profile=folder / "b") as other:
            async for snap in other.space("home").collection("todos").watch():
                if snap.docs:
                    return values(snap.docs)
    return []
