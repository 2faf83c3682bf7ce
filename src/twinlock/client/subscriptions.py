"""Who is told when a result changes: live queries and watched documents of one space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from twinlock.client.status import call_safely
from twinlock.document.query import Query
from twinlock.replica.live import LiveQuery, QuerySnapshot
from twinlock.replica.replica import Replica
from twinlock.replica.store import ReplicaStore, decode_value

Listener = Callable[[Any], object]


class DocumentState(msgspec.Struct, frozen=True):
    """One document as it is shown now."""

    value: dict[str, Any] | None
    pending: bool
    syncing: bool


class Subscription:
    """A live query and its listener. It outlives the replica: while locked it waits."""

    __slots__ = ("listener", "live", "query")

    def __init__(self, query: Query, listener: Listener) -> None:
        self.query = query
        self.listener = listener
        self.live: LiveQuery | None = None


class DocumentWatch:
    """A watched document and its listener."""

    __slots__ = ("collection", "id", "last", "listener")

    def __init__(self, collection: str, id: str, listener: Listener) -> None:
        self.collection = collection
        self.id = id
        self.listener = listener
        self.last: DocumentState | None = None


class Subscriptions:
    """All of one space. What a listener raises is logged and stays with it."""

    __slots__ = ("_queries", "_replica", "_store", "_watches")

    def __init__(self) -> None:
        self._queries: list[Subscription] = []
        self._watches: list[DocumentWatch] = []
        self._replica: Replica | None = None
        self._store: ReplicaStore | None = None

    def open(self, replica: Replica, store: ReplicaStore, now_ms: int) -> None:
        """The space is readable now: everyone is told what there is."""
        self._replica = replica
        self._store = store
        for subscription in self._queries:
            subscription.live = replica.live(subscription.query, now_ms)
        self.publish(now_ms)

    def close(self) -> None:
        """The space is locked or closed: nobody is told anything until it opens again."""
        self._replica = None
        self._store = None
        for subscription in self._queries:
            subscription.live = None
        for watch in self._watches:
            watch.last = None

    def add(self, query: Query, listener: Listener, now_ms: int) -> Callable[[], None]:
        """Tell a listener the query's result now and whenever it changes; return what ends it."""
        subscription = Subscription(query, listener)
        if self._replica is not None:
            subscription.live = self._replica.live(query, now_ms)
        self._queries.append(subscription)
        self.publish(now_ms)

        def unsubscribe() -> None:
            if subscription in self._queries:
                self._queries.remove(subscription)
                if subscription.live is not None:
                    subscription.live.close()

        return unsubscribe

    def watch(self, collection: str, id: str, listener: Listener) -> Callable[[], None]:
        """Tell a listener the document now and whenever it changes; return what ends it."""
        watch = DocumentWatch(collection, id, listener)
        self._watches.append(watch)
        self._publish_watch(watch)

        def unsubscribe() -> None:
            if watch in self._watches:
                self._watches.remove(watch)

        return unsubscribe

    def publish(self, now_ms: int) -> None:
        """Tell whose result has changed."""
        if self._replica is None:
            return
        for live, snapshot in self._replica.take_snapshots(now_ms):
            self._deliver(live, snapshot)
        for watch in list(self._watches):
            self._publish_watch(watch)

    def _deliver(self, live: LiveQuery, snapshot: QuerySnapshot) -> None:
        for subscription in self._queries:
            if subscription.live is live:
                call_safely(subscription.listener, snapshot)
                return

    def _publish_watch(self, watch: DocumentWatch) -> None:
        if self._replica is None or self._store is None:
            return
        stored = self._store.get_document(watch.collection, watch.id)
        value = decode_value(stored.value) if stored is not None and stored.value is not None else None
        state = DocumentState(value, stored is not None and stored.pending > 0, self._replica.syncing)
        if state != watch.last:
            watch.last = state
            call_safely(watch.listener, state)
