"""Many small calls of a store at once, so that one commit of its carries them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def together(calls: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Run calls side by side and wait for all of them; the first that failed is raised then."""
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
