"""The server and the key service, each a process of its own, which can be killed and started again on its files."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

START_SECONDS_MAX = 20.0


class ServiceProcess:
    """One service of `twinlock` on one data folder and one port, through all its lives.

    Args:
        folder: where its settings, its log and its `data` folder lie.
        command: the command of `twinlock` that it runs.
        port: where it listens.
        settings: its settings besides those two, as in its TOML file.
    """

    def __init__(self, folder: Path, command: str, port: int, settings: Mapping[str, object]) -> None:
        self.folder = folder
        self.port = port
        self.data = folder / "data"
        self._command = command
        self._config = folder / "twinlock.toml"
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        # JSON's strings, numbers and lists are written in TOML as they are.
        chosen = {"data": str(self.data), "port": port, **settings}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in chosen.items()]
        self._config.write_text("".join(lines), encoding="utf-8")

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._child is not None
        return self._child.pid

    @property
    def log_path(self) -> Path:
        """Where everything goes that it prints."""
        return self.folder / f"{self._command}.log"

    async def start(self) -> float:
        """Start the process and return after how many seconds it answers."""
        started = time.perf_counter()
        self._log = self.log_path.open("ab")
        command = [sys.executable, "-m", "twinlock", self._command, "--config", str(self._config)]
        # A session of its own: Ctrl-C in the terminal is the demo's to deal with.
        self._child = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)  # noqa: ASYNC220
        while time.perf_counter() - started < START_SECONDS_MAX and self._child.poll() is None:
            if await _answers(self.port):
                return time.perf_counter() - started
            await asyncio.sleep(0.02)
        raise RuntimeError(f"twinlock {self._command} did not start; its log is {self.log_path}")

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
