"""A Twinlock server as a process of its own, pinned to the server's core, as an operator would run it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.machine import free_port
from bench.peers.child import PeerMissingError, running, wait_for_port

# A rate of 0 means no limit: the figures are to show what the server can do, not what it is told to allow.
UNLIMITED = (
    "hellos_per_s",
    "catch_ups_per_s",
    "account_changes_per_s",
    "account_bytes_per_s",
    "account_blob_bytes_per_s",
    "space_changes_per_s",
    "space_bytes_per_s",
    "calls_per_s",
    "log_entries_per_hour",
    "unlocker_tries_per_min",
    "sign_ups_per_min",
)


class RunningServer(msgspec.Struct, frozen=True):
    """Where a server listens, and its process."""

    port: int
    child: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """The address that clients dial."""
        return f"ws://127.0.0.1:{self.port}"

    async def ready(self) -> None:
        """Return once it listens.

        Raises:
            RuntimeError: it does not, with the end of its log.
        """
        try:
            await wait_for_port(self.port, self.child)
        except PeerMissingError as exc:
            # Not a missing peer to be left out, but the thing itself that fails.
            raise RuntimeError(f"the server did not start: {self.log.read_text(encoding='utf-8')[-500:]}") from exc


@contextmanager
def serving(folder: Path) -> Iterator[RunningServer]:
    """Run a server on an empty folder while the block lasts."""
    port = free_port()
    config = folder / "twinlock.toml"
    rates = "".join(f"{name} = 0\n" for name in UNLIMITED)
    config.write_text(f'data = "{folder / "data"}"\nport = {port}\nlog_level = "warning"\n{rates}', encoding="utf-8")
    command = [sys.executable, "-m", "twinlock", "serve", "--config", str(config)]
    with running(command, folder / "server.log") as child:
        yield RunningServer(port, child, folder / "server.log")
