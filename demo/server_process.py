"""The server as a process of its own, which can be killed without warning and started again on the same files."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

START_SECONDS_MAX = 20.0


class ServerProcess:
    """One server on one data folder and one port, through all its lives."""

    def __init__(self, folder: Path, port: int, origins: list[str]) -> None:
        self.folder = folder
        self.port = port
        self.data = folder / "data"
        self._config = folder / "twinlock.toml"
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        listed = ", ".join(f'"{origin}"' for origin in origins)
        folder.mkdir(parents=True)
        self._config.write_text(
            f'data = "{self.data}"\nport = {port}\norigins = [{listed}]\nsign_ups_per_min = 0\n', encoding="utf-8"
        )

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._child is not None
        return self._child.pid

    async def start(self) -> float:
        """Start the process and return after how many seconds it answers."""
        started = time.perf_counter()
        self._log = (self.folder / "server.log").open("ab")
        command = [sys.executable, "-m", "twinlock", "serve", "--config", str(self._config)]
        # A session of its own: Ctrl-C in the terminal is the demo's to deal with.
        self._child = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)  # noqa: ASYNC220
        while time.perf_counter() - started < START_SECONDS_MAX and self._child.poll() is None:
            if await _answers(self.port):
                return time.perf_counter() - started
            await asyncio.sleep(0.02)
        raise RuntimeError(f"the server did not start; its log is {self.folder / 'server.log'}")

    def kill(self) -> None:
        """End the process at once with SIGKILL: it can finish nothing."""
        assert self._child is not None
        self._child.send_signal(signal.SIGKILL)
        self._child.wait()
        self._close_log()

    def stop(self) -> None:
        """Let the process end in good order."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._close_log()

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


async def _answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        status = await reader.readline()
        writer.close()
    except OSError:
        return False
    return b" 200 " in status
