"""One timer pings, notices late hellos, and ends closings that nobody answers."""

import asyncio

from twinlock.server.heartbeat import CLOSE_TIMEOUT_TICKS, HELLO_TIMEOUT_TICKS, ROUNDS, Beating, Heartbeat
from twinlock.server.metrics import Metrics

TICK_S = 0.002


class Listed(Beating):
    """A connection that notes what it was told, and at which tick it was opened."""

    __slots__ = ("done", "told")

    def __init__(self):
        self.told = []
        self.done = asyncio.Event()

    def note(self, what):
        self.told.append(what)
        self.done.set()

    def beat(self):
        self.note("beat")

    def hello_is_late(self):
        self.note("late")

    def abort(self):
        self.note("abort")

    def write(self, message): ...
    def send(self, frame): ...
    def settle(self, pushed_bytes): ...
    def refuse(self, error): ...
    def go_away(self, retry_after_ms): ...
    def close_drained(self): ...


async def test_every_connection_is_pinged_once_in_a_round():
    heartbeat = Heartbeat(Metrics(), TICK_S)
    connections = [Listed() for _ in range(50)]
    for connection in connections:
        heartbeat.opened(connection)

    for connection in connections:
        while connection.told.count("beat") < 2:
            connection.done.clear()
            await connection.done.wait()
    heartbeat.stop()

    beats = [connection.told.count("beat") for connection in connections]
    assert max(beats) <= 3
    assert len(heartbeat) == 50


async def test_a_late_hello_is_noticed_after_its_time_and_not_before():
    heartbeat, connection = Heartbeat(Metrics(), TICK_S), Listed()
    started = asyncio.get_running_loop().time()
    heartbeat.opened(connection)

    while "late" not in connection.told:
        connection.done.clear()
        await connection.done.wait()
    heartbeat.stop()

    assert asyncio.get_running_loop().time() - started >= (HELLO_TIMEOUT_TICKS - 1) * TICK_S


async def test_a_closing_that_nobody_answers_is_ended():
    heartbeat, connection = Heartbeat(Metrics(), TICK_S), Listed()
    heartbeat.opened(connection)
    heartbeat.closing(connection)

    await connection.done.wait()
    heartbeat.stop()

    assert connection.told[-1] == "abort"
    assert "late" not in connection.told


async def test_a_closed_connection_is_forgotten():
    heartbeat, gone, there = Heartbeat(Metrics(), TICK_S), Listed(), Listed()
    heartbeat.opened(gone)
    heartbeat.opened(there)
    heartbeat.closed(gone)

    while there.told.count("beat") < 2:
        there.done.clear()
        await there.done.wait()
    heartbeat.stop()

    assert gone.told == []
    assert heartbeat.connections == [there]


def test_the_timer_keeps_the_times_of_the_spec():
    assert (ROUNDS, HELLO_TIMEOUT_TICKS, CLOSE_TIMEOUT_TICKS) == (25, 10, 2)
