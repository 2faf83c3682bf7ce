"""Servers and devices as processes of their own, which can be killed without warning and started again."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from twinlock.testing.traffic_tap import LOOPBACK, free_port

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 15.0
ANSWER_SECONDS_MAX = 60.0
LINE_BYTES_MAX = 1 << 24
LOG_FILE_NAME = "server.log"
_POLL_SECONDS = 0.02


class ProcessFailedError(Exception):
    """A process did not start, ended by itself, or answered with an error; `code` is that of the SDK, if any."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class ListeningProcess:
    """A process on one data folder and one port, through all its lives.

    Args:
        folder: where its settings, its log and its `data` folder lie.
        command: the command of `twinlock` that it runs.
        port: where it listens.
        settings: its settings, as in its TOML file, besides `data` and `port`.
    """

    def __init__(self, folder: Path, command: str, port: int, settings: Mapping[str, object]) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = port
        self.config = folder / "twinlock.toml"
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        chosen = {"data": str(self.data), "port": self.port, **settings}
        folder.mkdir(parents=True, exist_ok=True)
        # JSON's strings, numbers, booleans and lists are written in TOML as they are.
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in chosen.items()]
        self.config.write_text("".join(lines), encoding="utf-8")

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._child is not None
        return self._child.pid

    @property
    def log_path(self) -> Path:
        """Where everything goes that it prints, through all its lives."""
        return self.folder / LOG_FILE_NAME

    def start(self) -> None:
        """Start the process, and return once it is ready to serve.

        Raises:
            ProcessFailedError: it ended, or was not ready in time.
        """
        self._log = self.log_path.open("ab")
        command = [sys.executable, "-m", "twinlock", self._command, "--config", str(self.config)]
        # A session of its own: a Ctrl-C in the terminal is the test's to deal with.
        self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
        )
        give_up = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < give_up and self._child.poll() is None:
            if self._is_ready():
                return
            time.sleep(_POLL_SECONDS)
        self.kill()
        raise ProcessFailedError(f"the process did not start: {self.log_path.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """End the process at once with SIGKILL: it can finish nothing."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._release()

    def stop(self) -> None:
        """Let the process end in good order; its exit status must be 0."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            status = self._child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessFailedError("the process did not end in time") from None
        self._release()
        if status != 0:
            raise ProcessFailedError(f"the process ended with status {status}: {self.log_path.read_text()[-2000:]}")

    def get(self, path: str) -> tuple[int, bytes]:
        """Fetch a page of its HTTP side; return its status and content."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _is_ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def _release(self) -> None:
        self._child = None
        if self._log is not None:
            self._log.close()
            self._log = None


class ServerProcess(ListeningProcess):
    """One server on one data folder and one port, through all its lives.

    Args:
        folder: where its settings, its log and its `data` folder lie.
        origins: what clients dial besides the server's own port, such as a `TrafficTap`.
        settings: settings of the server, as in its TOML file. Limits on rates are off unless given here.
    """

    def __init__(self, folder: Path, origins: Sequence[str] = (), **settings: object) -> None:
        port = free_port()
        own = [f"ws://{LOOPBACK}:{port}", *origins]
        rates = {"sign_ups_per_min": 0, "unlocker_tries_per_min": 0}
        super().__init__(folder, "serve", port, {"origins": own, **rates, **settings})

    @property
    def url(self) -> str:
        """The address that clients dial."""
        return f"ws://{LOOPBACK}:{self.port}"


class DeviceProcess:
    """A device that runs in a process of its own, takes orders and answers them, both as JSON lines.

    An order is `{"number", "job", ...}`, an answer `{"number", "result"}` or `{"number", "code", "error"}`; what comes
    without a number is an event, kept in `events` in order.

    Args:
        command: the program and its arguments, run by this interpreter.
        log: where its standard error goes.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._command = command
        self._log = log
        self._child: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._came = asyncio.Event()
        self._number = 0

    async def start(self) -> None:
        """Start the process."""
        with self._log.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=LINE_BYTES_MAX,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def tell(self, job: str, **details: object) -> Any:
        """Give an order and return the result.

        Raises:
            ProcessFailedError: the device answered with an error, or its process ended.
        """
        assert self._child is not None
        assert self._child.stdin is not None
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        order = {"number": self._number, "job": job, **details}
        self._child.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            message = await answer
        if "error" in message:
            raise ProcessFailedError(message["error"], message["code"])
        return message["result"]

    async def event(self, seen: int) -> None:
        """Wait until more events have come than were seen, or the process has ended."""
        while len(self.events) <= seen and self._listening is not None and not self._listening.done():
            self._came.clear()
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await self._came.wait()

    async def kill(self) -> None:
        """End the process at once with SIGKILL; what it had already written is still heard."""
        if self._child is None:
            return
        if self._child.returncode is None:
            self._child.kill()
        await self._child.wait()
        if self._listening is not None:
            await self._listening
        # The pipe to a dead process has no reader; it is dropped without a fuss.
        if self._child.stdin is not None and not self._child.stdin.is_closing():
            self._child.stdin.transport.abort()
        self._child = None

    async def __aenter__(self) -> DeviceProcess:
        await self.start()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def _listen(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        while line := await self._child.stdout.readline():
            if not line.endswith(b"\n"):
                break
            message = json.loads(line)
            if "number" in message:
                self._answers.pop(message["number"]).set_result(message)
            else:
                self.events.append(message)
            self._came.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result({"code": "ended", "error": f"the process ended; its log is {self._log.name}"})
        self._answers.clear()
        self._came.set()
