"""What every story of the demo needs around it: a folder, a way to end, an exit status."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from demo.device_process import DeviceProcess
from demo.screen import Screen

INTERRUPTED = 130


class AnyStage(Protocol):
    """What stands on a stage, as far as it must be ended."""

    @property
    def devices(self) -> Sequence[DeviceProcess]:
        """All devices."""

    async def close(self) -> None:
        """End every process."""


StageT = TypeVar("StageT", bound=AnyStage)
Play = Callable[[Screen, StageT, int | None], Awaitable[None]]


def perform(
    program: str,
    what: str,
    build: Callable[[Path], StageT],
    play: Play[StageT],
    next_steps: Callable[[StageT], list[str]],
) -> int:
    """Read the options, play a story in a folder of its own, and return the exit status."""
    parser = argparse.ArgumentParser(prog=program, description=what)
    parser.add_argument("--once", action="store_true", help="end after the story instead of keeping everything running")
    parser.add_argument("--quakes", type=int, default=0, metavar="N", help="import only so many (all 1,707 by default)")
    options = parser.parse_args()
    folder, status = Path(tempfile.mkdtemp(prefix="twinlock-demo-")), 1

    async def run() -> int:
        stage = build(folder)
        tell = (lambda stage: []) if options.once else next_steps
        return await _run(folder, stage, lambda screen: play(screen, stage, options.quakes or None), tell)

    try:
        status = asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = INTERRUPTED
    finally:
        # A story that failed leaves its logs to whoever wants to know why.
        if status != 1:
            shutil.rmtree(folder, ignore_errors=True)
    return status


async def _run(
    folder: Path,
    stage: StageT,
    play: Callable[[Screen], Awaitable[None]],
    next_steps: Callable[[StageT], list[str]],
) -> int:
    screen, started = Screen(), time.perf_counter()
    whole = asyncio.current_task()
    assert whole is not None
    # However it is ended, no process of it is left behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, whole.cancel)
    try:
        screen.open()
        try:
            await play(screen)
        except Exception as exc:
            # A story that breaks off has failed; what broke is said, whatever it was.
            screen.check(False, f"the story broke off: {exc or type(exc).__name__}")
        for device in stage.devices:
            await device.stop()
        if screen.failed:
            screen.note(f"every process's log is in {folder}")
        lines = next_steps(stage)
        screen.end(time.perf_counter() - started, lines)
        if lines:
            await asyncio.Event().wait()
    finally:
        await stage.close()
    return 1 if screen.failed else 0
