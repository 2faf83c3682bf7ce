"""A process of its own on the load's core that is talked to in lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.machine import LOAD_CORE, pinned_to

ANSWER_SECONDS_MAX = 120.0
LINE_BYTES_MAX = 1 << 20
"""A line may hold every measured value of a run."""


class JsonChild:
    """A running module of this package: `say` puts a line on its standard input, `hear` takes one from its output."""

    __slots__ = ("_process",)

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def say(self, value: Any) -> None:
        """Send one value."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")

    def say_no_more(self) -> None:
        """Ask it to end; what it still has to tell can be heard."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def hear(self) -> Any:
        """Return the next value that it sends.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), ANSWER_SECONDS_MAX)
        if not line:
            raise RuntimeError("a process of the load broke down; its words stand above")
        return json.loads(line)

    async def ask(self, value: Any) -> Any:
        """Send one value and return the answer."""
        self.say(value)
        return await self.hear()


@contextlib.asynccontextmanager
async def talking_to(module: str, *arguments: str) -> AsyncIterator[JsonChild]:
    """Run a module while the block lasts; the end of its standard input asks it to end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        preexec_fn=pinned_to(LOAD_CORE),
        cwd=Path(__file__).parents[1],
    )
    try:
        yield JsonChild(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def hear_parent() -> Any:
    """Return the next value that the parent sends to this process; None at the end."""
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return json.loads(line) if line else None


def tell_parent(value: Any) -> None:
    """Send one value to the parent of this process."""
    print(json.dumps(value), flush=True)
