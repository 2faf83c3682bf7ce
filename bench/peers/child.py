"""Starting a peer's own program, pinned to the server's core, and ending it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.machine import SERVER_CORE, pinned_to

START_SECONDS_MAX = 20.0


class PeerMissingError(Exception):
    """The peer's program is not installed here."""


def program(name: str) -> str:
    """Return the path of a program beside this Python or on the PATH.

    Raises:
        PeerMissingError: it is in neither place.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise PeerMissingError(f"{name} is not installed: pip install 'twinlock[bench]'")
    return found


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on the server's core while the block lasts; its output goes to a file."""
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=pinned_to(SERVER_CORE))
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


async def wait_for_port(port: int, child: subprocess.Popen[bytes]) -> None:
    """Return once something listens on a port.

    Raises:
        PeerMissingError: the program ended, or did not listen in time.
    """
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and child.poll() is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise PeerMissingError(f"the program did not listen on port {port}")
