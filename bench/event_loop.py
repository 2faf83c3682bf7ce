"""The event loop of everything here: uvloop where it is installed, as with the extra `server`."""

from __future__ import annotations

import asyncio


def runner() -> asyncio.Runner:
    """Return what runs a coroutine on the fastest loop there is."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def loop_name() -> str:
    """Return the name of the running loop, for a figure's note."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]
