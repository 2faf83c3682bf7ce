"""One timer for all connections: pings, hellos that do not come, and closings that are not answered."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from twinlock.protocol.limits import HELLO_TIMEOUT_MS, PING_INTERVAL_MS
from twinlock.server.metrics import Metrics
from twinlock.server.peer import Peer

TICK_S = 1.0
ROUNDS = PING_INTERVAL_MS // 1000
CLOSE_TIMEOUT_TICKS = 2
HELLO_TIMEOUT_TICKS = HELLO_TIMEOUT_MS // 1000


class Beating(Peer):
    """A connection as those see it who watch over all of them."""

    __slots__ = ()

    @abstractmethod
    def beat(self) -> None:
        """Ping the other side, or give it up if nothing came since the last time."""

    @abstractmethod
    def hello_is_late(self) -> None:
        """Close if no hello came in time."""

    @abstractmethod
    def go_away(self, retry_after_ms: int) -> None:
        """Say that the server is going down."""

    @abstractmethod
    def close_drained(self) -> None:
        """Close after everything was answered."""

    @abstractmethod
    def abort(self) -> None:
        """End the connection at once."""


class Heartbeat:
    """Ticks once a second and touches a twenty-fifth of the connections each time, so that pings are spread."""

    __slots__ = (
        "_closing",
        "_expected_s",
        "_handle",
        "_hellos",
        "_loop",
        "_metrics",
        "_rounds",
        "_tick_count",
        "_tick_s",
    )

    def __init__(self, metrics: Metrics, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._rounds: list[set[Beating]] = [set() for _ in range(ROUNDS)]
        self._hellos: dict[Beating, int] = {}
        self._closing: dict[Beating, int] = {}
        self._tick_count = 0
        self._expected_s = self._loop.time() + tick_s
        self._handle = self._loop.call_later(tick_s, self._tick)

    @property
    def connections(self) -> list[Beating]:
        """Every connection that is open."""
        return [connection for group in self._rounds for connection in group]

    def __len__(self) -> int:
        return sum(map(len, self._rounds))

    def opened(self, connection: Beating) -> None:
        """Begin to watch over a connection; its hello must come in time."""
        self._rounds[hash(connection) // 16 % ROUNDS].add(connection)
        self._hellos[connection] = self._tick_count + HELLO_TIMEOUT_TICKS

    def closing(self, connection: Beating) -> None:
        """Give the other side a moment to answer the closing, then end it."""
        self._hellos.pop(connection, None)
        self._closing[connection] = self._tick_count + CLOSE_TIMEOUT_TICKS

    def closed(self, connection: Beating) -> None:
        """Watch no longer."""
        self._rounds[hash(connection) // 16 % ROUNDS].discard(connection)
        self._hellos.pop(connection, None)
        self._closing.pop(connection, None)

    def stop(self) -> None:
        """Tick no more."""
        self._handle.cancel()

    def _tick(self) -> None:
        now_s = self._loop.time()
        self._metrics.loop_lag_seconds.observe(max(0.0, now_s - self._expected_s))
        self._metrics.connections.set(len(self))
        self._expected_s = now_s + self._tick_s
        self._handle = self._loop.call_later(self._tick_s, self._tick)
        self._tick_count += 1
        for connection in tuple(self._rounds[self._tick_count % ROUNDS]):
            connection.beat()
        # Both are in order of time, so the first that is not due ends the search.
        for connection in self._due(self._hellos):
            connection.hello_is_late()
        for connection in self._due(self._closing):
            connection.abort()

    def _due(self, waiting: dict[Beating, int]) -> list[Beating]:
        due: list[Beating] = []
        for connection, tick in waiting.items():
            if tick > self._tick_count:
                break
            due.append(connection)
        for connection in due:
            del waiting[connection]
        return due
