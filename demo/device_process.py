"""The director's end of a device: starts its process, gives orders, hears events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ORDER_SECONDS_MAX = 40.0
LINE_BYTES_MAX = 1 << 24


class DeviceFailedError(Exception):
    """A device answered with an error; `code` is that of the SDK."""

    def __init__(self, device: str, code: str, text: str) -> None:
        super().__init__(f"device {device}: {text}")
        self.code = code


class DeviceProcess:
    """A device in a process of its own."""

    def __init__(self, name: str, profile: Path, log: Path) -> None:
        self.name = name
        self.profile = profile
        self.on_event: Callable[[dict[str, Any]], None] = lambda event: None
        self._log = log
        self._child: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._child is not None
        return self._child.pid

    async def start(self) -> None:
        """Start the process."""
        with self._log.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "demo.device",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=LINE_BYTES_MAX,
                start_new_session=True,
            )
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def tell(self, job: str, **details: Any) -> dict[str, Any]:
        """Give an order and return the answer.

        Raises:
            DeviceFailedError: the SDK raised an error, the process ended, or it did not answer in time.
        """
        assert self._child is not None
        assert self._child.stdin is not None
        self._number += 1
        number = self._number
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        order = {"number": number, "job": job, "details": details}
        self._child.stdin.write(json.dumps(order).encode() + b"\n")
        try:
            async with asyncio.timeout(ORDER_SECONDS_MAX):
                message = await answer
        except TimeoutError as exc:
            text = f"no answer to '{job}' in {ORDER_SECONDS_MAX:.0f} s; its log is {self._log}"
            raise DeviceFailedError(self.name, "no_answer", text) from exc
        finally:
            # An answer that comes too late is nobody's.
            del self._answers[number]
        if "code" in message:
            raise DeviceFailedError(self.name, message["code"], message["error"])
        result: dict[str, Any] = message["result"]
        return result

    async def stop(self) -> None:
        """Let the device close its profile and end."""
        if self._child is None:
            return
        if self._child.returncode is None:
            try:
                await self.tell("close")
                async with asyncio.timeout(5):
                    await self._child.wait()
            except (DeviceFailedError, TimeoutError, OSError):
                with contextlib.suppress(ProcessLookupError):
                    self._child.kill()
                await self._child.wait()
        if self._listening is not None:
            await self._listening
        self._child = None

    async def _listen(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        while line := await self._child.stdout.readline():
            message = json.loads(line)
            if "event" in message:
                self.on_event(message)
            elif (answer := self._answers.get(message["number"])) and not answer.done():
                answer.set_result(message)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result({"code": "ended", "error": f"the process ended; its log is {self._log}"})
