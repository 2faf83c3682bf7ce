"""The other nodes of the cluster: which of them are alive, and the news that nodes tell one another.

News may be lost. Whoever hears of a gap looks up what it told; nothing that must hold depends on news alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import structlog

from twinlock.contracts import Broker
from twinlock.ids import AccountId, DeviceId, SpaceId
from twinlock.server.metrics import Metrics
from twinlock.server.new_rules import Telling
from twinlock.server.shared_rates import SharedRates, Spent

logger = structlog.get_logger(__name__)

SUBJECT = "tw.account"
BEAT_S = 0.25
"""How often a node tells what its accounts and spaces used."""

SILENT_BEATS_MAX = 4
"""A node with nothing to tell says so much less often."""

ALIVE_S = 4.0
"""A node that was not heard for so long is taken for dead."""

NODES_MAX = 1_000
"""Nodes that are counted at most: names that somebody made up must not fill the memory."""

NAME_BYTES_MAX = 32
ANSWER_S = 0.25
"""How long the other nodes have to say who is there."""


class Beat(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A node is alive, and its accounts and spaces have used this much of their rates."""

    node: bytes
    spent: list[Spent]


class Left(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A node has gone down in good order."""

    node: bytes


class AccountGrown(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """An account's log has grown, and revokes devices perhaps."""

    account: AccountId
    revoked: list[DeviceId]


class SignedOut(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A secret that signed in to an account holds no more."""

    account: AccountId


class SpaceGrown(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A space's log has grown to a length, and this is what devices are to hear of it."""

    space: SpaceId
    seq: int
    tellings: list[Telling]


class AskPresence(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """A node asks which of some devices are with others."""

    node: bytes
    number: int
    devices: list[DeviceId]


class Present(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The answer: which are there, and when others were there, where that is not written down yet."""

    node: bytes
    to: bytes
    number: int
    online: list[DeviceId]
    seen_ms: dict[DeviceId, int]


News = Beat | Left | AccountGrown | SignedOut | SpaceGrown | AskPresence | Present
Kind = TypeVar("Kind", Beat, Left, AccountGrown, SignedOut, SpaceGrown, AskPresence, Present)
_decode = msgspec.msgpack.Decoder(News).decode
_encode = msgspec.msgpack.Encoder().encode


class Neighbours:
    """Tells and hears news, and knows who is alive.

    Args:
        node: the name of this node, which no other has.
        is_shared: whether there can be other nodes; if not, nothing is told.
    """

    __slots__ = (
        "_answers",
        "_asked_count",
        "_beats_silent",
        "_broker",
        "_handlers",
        "_heard_s",
        "_is_shared",
        "_loop",
        "_metrics",
        "gap_callbacks",
        "node",
        "rates",
    )

    def __init__(self, broker: Broker, node: bytes, rates: SharedRates, metrics: Metrics, *, is_shared: bool) -> None:
        self._broker = broker
        self._is_shared = is_shared
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[type, Callable[[News], None]] = {}
        self._heard_s: dict[bytes, float] = {}
        self._answers: dict[int, _Answers] = {}
        self._asked_count = 0
        self._beats_silent = SILENT_BEATS_MAX
        self.gap_callbacks: list[Callable[[], None]] = []
        """What is called when news may have been missed."""

        self.node = node
        self.rates = rates
        metrics.nodes.set(1)
        if is_shared:
            broker.subscribe(SUBJECT, self._hear)
            broker.on_gap(self._missed)

    @property
    def count(self) -> int:
        """How many nodes are alive, this one counted."""
        return 1 + len(self._heard_s)

    def is_alive(self, node: bytes) -> bool:
        """Tell whether another node was heard lately."""
        return node in self._heard_s

    def on(self, kind: type[Kind], handler: Callable[[Kind], None]) -> None:
        """Have news of a kind handled."""
        self._handlers[kind] = handler  # type: ignore[assignment]  # it is called with its own kind only

    def tell(self, news: News) -> None:
        """Tell every other node."""
        if self._is_shared:
            self._broker.publish(SUBJECT, _encode(news))

    def signal(self, subject: str, sealed: bytes) -> None:
        """Hand a space's signal to the nodes that serve it."""
        if self._is_shared:
            self._broker.publish(subject, sealed)

    def beat(self) -> None:
        """Say that this node is alive and what was used of rates; called every BEAT_S."""
        if not self._is_shared:
            return
        spent = self.rates.take_spent()
        self._beats_silent += 1
        if spent or self._beats_silent >= SILENT_BEATS_MAX:
            self._beats_silent = 0
            self.tell(Beat(self.node, spent))
        dead_s = self._loop.time() - ALIVE_S
        for node in [node for node, heard_s in self._heard_s.items() if heard_s < dead_s]:
            del self._heard_s[node]
        self._metrics.nodes.set(self.count)

    def leave(self) -> None:
        """Say that this node goes down."""
        self.tell(Left(self.node))

    async def who_is_there(self, devices: Sequence[DeviceId]) -> tuple[frozenset[DeviceId], Mapping[DeviceId, int]]:
        """Ask the other nodes which devices are with them, and when others were lately there."""
        if not self._heard_s:
            return frozenset(), {}
        self._asked_count += 1
        number, answers = self._asked_count, _Answers(set(self._heard_s))
        self._answers[number] = answers
        try:
            self.tell(AskPresence(self.node, number, list(devices)))
            async with asyncio.timeout(ANSWER_S):
                await answers.are_complete.wait()
        except TimeoutError:
            # Whoever did not answer is hanging; its devices will be elsewhere soon.
            pass
        finally:
            del self._answers[number]
        return frozenset(answers.online), answers.seen_ms

    def _hear(self, message: bytes) -> None:
        try:
            news = _decode(message)
        except (msgspec.DecodeError, RecursionError):
            # A node of a later version tells what this one does not know, or it is no node.
            self.refuse("unknown")
            return
        match news:
            case Beat():
                self._take_beat(news)
            case Left():
                self._heard_s.pop(news.node, None)
            case Present():
                if news.to == self.node and news.number in self._answers:
                    self._answers[news.number].take(news)
            case _:
                handler = self._handlers.get(type(news))
                if handler is not None:
                    handler(news)

    def refuse(self, reason: str) -> None:
        """Count a message of the broker that no node sends in good order, and do nothing else with it."""
        self._metrics.news_refused.inc()
        # Whoever sends many of them must not fill the log.
        logger.debug("news of another node are not taken", reason=reason)

    def _take_beat(self, beat: Beat) -> None:
        is_known = beat.node in self._heard_s
        if len(beat.node) > NAME_BYTES_MAX or (not is_known and len(self._heard_s) >= NODES_MAX):
            self.refuse("name")
            return
        self._heard_s[beat.node] = self._loop.time()
        self.rates.charge(beat.spent)

    def _missed(self) -> None:
        self._metrics.broker_gaps.inc()
        for callback in self.gap_callbacks:
            callback()


class _Answers:
    __slots__ = ("_missing", "are_complete", "online", "seen_ms")

    def __init__(self, nodes: set[bytes]) -> None:
        self._missing = nodes
        self.are_complete = asyncio.Event()
        self.online: set[DeviceId] = set()
        self.seen_ms: dict[DeviceId, int] = {}

    def take(self, answer: Present) -> None:
        self.online.update(answer.online)
        for device, seen_ms in answer.seen_ms.items():
            self.seen_ms[device] = max(seen_ms, self.seen_ms.get(device, 0))
        self._missing.discard(answer.node)
        if not self._missing:
            self.are_complete.set()
