"""The whole way of a move: rounds beside a live server, its end, the last round, the change of marks. A shell."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

import msgspec

from twinlock.backup.holdings import Holdings
from twinlock.backup.moving import Move, Round, Verified
from twinlock.backup.places import EnginePlace, open_reading, open_writing
from twinlock.backup.spool import new_spool
from twinlock.contracts import Broker
from twinlock.errors import StoreError
from twinlock.server.neighbours import ALIVE_S, SUBJECT, Beat, Left

ROUNDS_MAX = 20
ROUND_S_MAX = 1.0
"""A round that took less leaves so little that the server may stop."""

SHORTER = 0.8
"""A round that took more than this share of the one before shows that rounds do not get shorter any more."""

LOCK_PAUSE_S = 0.02
MEET_S = 2.0
"""Every node of a cluster tells of itself at least once in this time, also when it has nothing else to tell."""


class Moved(msgspec.Struct, frozen=True):
    """A move that was made. `cutover_ms` is how long nobody was served, from the end of the source's server on."""

    rounds: list[Round]
    verified: Verified
    cutover_ms: int


class Steps(msgspec.Struct, frozen=True):
    """What a move asks of whoever runs it.

    Args:
        say: is told what happens.
        stop: ends every server of the source, or asks for that; returns when it has begun.
        stopped_s_max: how long those servers may take to end.
    """

    say: Callable[[str], None]
    stop: Callable[[], Awaitable[None]]
    stopped_s_max: float = 600.0


class Nodes:
    """Hears which nodes of a cluster are alive, and when all of them have gone."""

    __slots__ = ("_alive", "_began_s", "_end", "_heard_s")

    def __init__(self, broker: Broker) -> None:
        self._alive: set[bytes] = set()
        self._began_s = self._heard_s = time.monotonic()
        self._end = broker.subscribe(SUBJECT, self._hear)

    async def met(self) -> None:
        """Wait until every node that is alive was heard: one that was not must not be taken for gone."""
        await asyncio.sleep(self._began_s + MEET_S - time.monotonic())

    async def gone(self, s_max: float) -> None:
        """Wait until every node has said that it goes, or none was heard for as long as a live one is never silent.

        Raises:
            StoreError: some are still alive.
        """
        deadline_s = time.monotonic() + s_max
        while self._alive and time.monotonic() - self._heard_s < ALIVE_S:
            if time.monotonic() > deadline_s:
                raise StoreError(f"{len(self._alive)} nodes of the cluster still serve: stop them")
            await asyncio.sleep(LOCK_PAUSE_S)
        self._end()

    def _hear(self, message: bytes) -> None:
        try:
            news = msgspec.msgpack.decode(message, type=Beat | Left)
        except msgspec.MsgspecError:
            # Of what else nodes tell one another nothing says who is alive.
            return
        self._heard_s = time.monotonic()
        if isinstance(news, Beat):
            self._alive.add(news.node)
        else:
            self._alive.discard(news.node)


async def migrate(source: EnginePlace, target: EnginePlace, steps: Steps, now_ms: Callable[[], int]) -> Moved:
    """Move what a server or cluster holds into an empty engine.

    Devices write on until `stop` is called. If anything fails before the marks change places, the source may be served
    again, and the move begun anew into the same target.

    Raises:
        StoreError: one of the two fails, or the source's servers do not end.
    """
    with ExitStack() as stack:
        spools = (
            stack.enter_context(new_spool()),
            stack.enter_context(new_spool()),
            stack.enter_context(new_spool()),
        )
        async with open_reading(source) as reading, open_writing(target, even_moved=True) as writing:
            nodes = Nodes(reading.broker)
            move = Move(reading, writing, spools, source.blob_place == target.blob_place)
            await move.begin(source.shown, now_ms)
            rounds = await _rounds(move, steps.say)
            await move.rehearse()
            if source.is_cluster:
                await nodes.met()
            began = time.monotonic()
            await steps.stop()
            async with _ended(source, reading, nodes, steps.stopped_s_max) as ended:
                stopped = time.monotonic()
                steps.say(f"nobody serves {source.shown} any more, {stopped - began:.1f} s after it was asked to stop")
                move.read_from(ended)
                rounds.append(await move.copy())
                verified = await move.finish(source.shown, target.shown, now_ms)
            return Moved(rounds, verified, int((time.monotonic() - stopped) * 1000))


async def _rounds(move: Move, say: Callable[[str], None]) -> list[Round]:
    """Copy until so little is left that it is copied in a moment."""
    rounds: list[Round] = []
    before_s = 0.0
    for number in range(1, ROUNDS_MAX + 1):
        began = time.monotonic()
        done = await move.copy()
        took_s = time.monotonic() - began
        rounds.append(done)
        say(
            f"round {number}: {done.entries_count} entries, {done.records_count} records, {done.blobs_count} parts of"
            f" files in {took_s:.1f} s"
        )
        # It is short enough, or will not get shorter: looking through everything takes that long, or the source grows
        # as fast as it is copied.
        if number > 1 and (done.is_empty or took_s < ROUND_S_MAX or took_s > before_s * SHORTER):
            return rounds
        before_s = took_s
    return rounds


@asynccontextmanager
async def _ended(source: EnginePlace, reading: Holdings, nodes: Nodes, s_max: float) -> AsyncIterator[Holdings]:
    """Wait until nobody serves the source, and keep it so; give it opened so that its mark can be written."""
    if source.is_cluster:
        await nodes.gone(s_max)
        yield reading
        return
    deadline = time.monotonic() + s_max
    while True:
        try:
            async with open_writing(source, even_moved=True) as holdings:
                yield holdings
                return
        except StoreError as error:
            if "another process" not in error.detail or time.monotonic() > deadline:
                raise
        await asyncio.sleep(LOCK_PAUSE_S)


def terminate(pid: int) -> None:
    """Ask a server of this machine to end in good order.

    Raises:
        StoreError: there is no such process of ours.
    """
    try:
        os.kill(pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError) as exc:
        raise StoreError(f"process {pid} cannot be asked to stop: {exc.strerror}") from exc
