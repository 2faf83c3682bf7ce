"""`python -m demo` tells the story and keeps the server running; `--once` ends after it.

The exit status is 0 if every check passed, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from demo.screen import Screen
from demo.stage import Stage
from demo.story import play

INTERRUPTED = 130


def main() -> int:
    """Run the demo and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Show live sync under two keys.")
    parser.add_argument("--once", action="store_true", help="end after the story instead of keeping the server running")
    parser.add_argument("--quakes", type=int, default=0, metavar="N", help="import only so many (all 1,707 by default)")
    options = parser.parse_args()
    folder, status = Path(tempfile.mkdtemp(prefix="twinlock-demo-")), 1
    try:
        status = asyncio.run(_run(folder, options.once, options.quakes or None))
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = INTERRUPTED
    finally:
        # A story that failed leaves its logs to whoever wants to know why.
        if status != 1:
            shutil.rmtree(folder, ignore_errors=True)
    return status


async def _run(folder: Path, once: bool, quakes: int | None) -> int:
    screen, started = Screen(), time.perf_counter()
    whole = asyncio.current_task()
    assert whole is not None
    # However it is ended, no process of it is left behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, whole.cancel)
    stage = Stage(folder)
    try:
        screen.open()
        try:
            await play(screen, stage, quakes)
        except Exception as exc:
            # A story that breaks off has failed; what broke is said, whatever it was.
            screen.check(False, f"the story broke off: {exc or type(exc).__name__}")
        for device in stage.devices:
            await device.stop()
        if screen.failed:
            screen.note(f"every process's log is in {folder}")
        screen.end(time.perf_counter() - started, [] if once else _next_steps(stage))
        if not once:
            await asyncio.Event().wait()
    finally:
        await stage.close()
    return 1 if screen.failed else 0


def _next_steps(stage: Stage) -> list[str]:
    command = ".venv/bin/python -m twinlock"
    return [
        f"The server keeps running at {stage.url} until Ctrl-C. In two other terminals:",
        "",
        f"  {command} watch atlas/notes --profile {stage.c.profile}",
        f"""  {command} put atlas/notes/1 '{{"text": "hello"}}' --profile {stage.a.profile}""",
        "",
        f"  {command} query atlas/quakes -w 'properties.mag >= 5' --profile {stage.a.profile}",
        f"  {command} inspect {stage.server.data}",
        "",
        f"An application of your own: {command} dev, then the four lines of README.md.",
    ]


if __name__ == "__main__":
    sys.exit(main())
