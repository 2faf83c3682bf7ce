"""A real SeaweedFS with its S3 side, as a process of its own: object storage to test against."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obstore.exceptions import BaseError
from obstore.store import S3Store

from twinlock.testing.processes import ProcessFailedError
from twinlock.testing.traffic_tap import LOOPBACK, free_port

BINARY = "weed"
BUCKET = "bucket"
"""The one bucket to use: every other has volumes of its own, which take time and room."""

START_S_MAX = 60.0
POLL_S = 0.05
_PORTS = ("master", "volume", "filer", "s3")


class SeaweedProcess:
    """One SeaweedFS on one folder and one set of ports, with the bucket BUCKET.

    Args:
        folder: where its data and its log lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = {name: free_port() for name in (*_PORTS, *(f"{name}.grpc" for name in _PORTS))}
        self._child: subprocess.Popen[bytes] | None = None
        self.credentials = {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(8),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_REGION": "us-east-1",
        }
        """What a client has in its environment."""

    @property
    def endpoint(self) -> str:
        """The address of its S3 side."""
        return f"http://{LOOPBACK}:{self._ports['s3']}"

    @property
    def log_path(self) -> Path:
        """Where everything goes that it prints."""
        return self.folder / "weed.log"

    def start(self) -> None:
        """Start it, and return once it takes objects.

        Raises:
            ProcessFailedError: it ended, or was not ready in time.
        """
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(  # noqa: S603 - a binary of the development environment
                self._command(data),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.credentials},
            )
        give_up = time.monotonic() + START_S_MAX
        while time.monotonic() < give_up and self._child.poll() is None:
            if self._is_ready():
                return
            time.sleep(POLL_S)
        self.kill()
        raise ProcessFailedError(f"SeaweedFS did not start: {self.log_path.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """End it at once."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        # It leaves its sockets behind, outside of its folder.
        for port in self._ports.values():
            for socket in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Have its credentials in this process's environment, as an operator has those of a bucket."""
        before = {name: os.environ.get(name) for name in self.credentials}
        os.environ.update(self.credentials)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def _command(self, data: Path) -> list[str]:
        options = [f"-{name}.port={port}" for name, port in self._ports.items() if not name.endswith(".grpc")]
        grpc = [f"-{name.removesuffix('.grpc')}.port.grpc={port}" for name, port in self._ports.items() if "." in name]
        quiet = ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.preStopSeconds=0"]
        small = ["-volume.max=8", "-master.volumeSizeLimitMB=64"]
        here = [f"-dir={data}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"]
        return [_binary(), "-logtostderr=true", "server", "-s3", *here, *options, *grpc, *quiet, *small]

    def _is_ready(self) -> bool:
        """Tell whether it takes an object: its S3 side answers long before there is a volume to write to."""
        store = S3Store(
            BUCKET,
            endpoint=self.endpoint,
            access_key_id=self.credentials["AWS_ACCESS_KEY_ID"],
            secret_access_key=self.credentials["AWS_SECRET_ACCESS_KEY"],
            region=self.credentials["AWS_REGION"],
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        try:
            store.put("ready", b"ready")
        except (BaseError, OSError):
            return False
        return True


def _binary() -> str:
    """Return the path of the binary: beside this interpreter, or wherever commands are found."""
    beside = Path(sys.executable).parent / BINARY
    found = str(beside) if beside.exists() else shutil.which(BINARY)
    if found is None:
        raise ProcessFailedError("the command weed is not there: install the development parts")
    return found
