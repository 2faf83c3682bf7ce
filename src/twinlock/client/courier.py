"""Between the connection and the spaces: frames to replicas, pushes to the session, leases and logs when due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from twinlock.client.attachments import Attachments
from twinlock.client.chores import Chore, Chores
from twinlock.client.connection import Connection, Peer
from twinlock.client.device_context import DeviceContext
from twinlock.client.endings import SpaceEnd, reason_of_end
from twinlock.client.leases import LeaseKeeper, LeaseNews
from twinlock.client.log_reader import LogReader
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.status import StatusBoard
from twinlock.client.unknowns import check_log_head, unknown_heads
from twinlock.client.waiters import Waiters
from twinlock.errors import (
    ApprovalPendingError,
    ClosedError,
    DeviceRevokedError,
    KeyWornOutError,
    LeaseExpiredError,
    LogForkError,
    LogInvalidError,
    RemovedError,
    ShreddedError,
    StoreError,
    TwinlockError,
    UnknownSpaceError,
    UpdateNeededError,
    error_from_code,
)
from twinlock.ids import Incarnation, SpaceId
from twinlock.protocol.calls import CutResult
from twinlock.protocol.client import Event, Welcomed
from twinlock.protocol.frames import LOG_GROWN, Ack, Attached, Entries, Leases, Notice, Reject
from twinlock.replica import events
from twinlock.replica.replica import Replica
from twinlock.replica.sender import Sender

logger = logging.getLogger(__name__)

TEND_INTERVAL_MS = 1_000
TEND_INTERVAL_MS_MIN = 20
FLUSH_DELAY_S = 0.03
"""What came from the server is committed together after so long, or with the next write of this device."""


class Courier(Peer):
    """Everything that happens to the open spaces because of the server or of time."""

    def __init__(self, context: DeviceContext, connection: Connection, board: StatusBoard) -> None:
        self._context = context
        self._connection = connection
        self._board = board
        self._logs = LogReader(context, connection)
        self._leases = LeaseKeeper(context, connection)
        self._waiters = Waiters()
        self._chores = Chores(self._on_chore_failed, self._waiters.check)
        self._attachments = Attachments(connection)
        self._flush_timer: asyncio.TimerHandle | None = None
        self.after_account: Chore | None = None
        self.incarnation = Incarnation(b"")
        self.tenders: list[Callable[[int], None]] = []
        """Others who look at the clock whenever this does."""

        self.runtimes: dict[SpaceId, SpaceRuntime] = {}
        self._opening: dict[SpaceId, asyncio.Lock] = {}

    # Life

    def add(self, runtime: SpaceRuntime) -> SpaceRuntime:
        """Look after a space from now on; return what looks after it, which may have been there first."""
        known = self.runtimes.setdefault(runtime.space, runtime)
        if known is not runtime:
            # A space in the making may be found in the account's list: one file, one replica, its maker's keys.
            known.take_keys(runtime, self._now_ms())
            # They may be what opened it: whoever came first had nothing to attach yet, and no lease is waited for now.
            self._attachments.attach_if_new(known)
            self._show_locked()
            return known
        if self._end_if_over(runtime):
            # A crash came between the entry that ends it and the wiping.
            return runtime
        runtime.open(self._now_ms())
        self._show_locked()
        if self._connection.session is not None:
            self._attachments.attach(runtime)
            self._leases.renew(runtime)
        return runtime

    async def adopt(self, runtime: SpaceRuntime) -> SpaceRuntime:
        """Look after a space that this device has just made."""
        await self._logs.fill(runtime)
        return self.add(runtime)

    def renew(self, runtime: SpaceRuntime) -> None:
        """Begin a space anew from its file, after the disk refused a write."""
        if runtime.replica is None:
            return
        self._attachments.detach(runtime)
        runtime.renew(self._now_ms())
        self._attachments.attach(runtime)

    def replicas(self) -> dict[SpaceId, Replica]:
        """Return the replicas that are open."""
        return {space: each.replica for space, each in self.runtimes.items() if each.replica is not None}

    def tend(self) -> None:
        """Look at the clock: lock what has ended, renew what ends soon, push what was held back."""
        now_ms = self._now_ms()
        for runtime in self.runtimes.values():
            if runtime.replica is not None and runtime.keyring.locked(now_ms):
                self._lock(runtime)
            self._leases.renew(runtime)
            for link in runtime.links:
                # A write that cannot be sent brings no answer that would have its events looked at.
                self._take_events(runtime, link)
        for tender in self.tenders:
            tender(now_ms)
        self._show_locked()
        self._flush()
        if self._wake_ms(now_ms) <= now_ms:
            self._connection.wake()

    async def tend_forever(self) -> None:
        """Tend every second, and sooner when a replica wants it."""
        while True:
            wait_ms = self._wake_ms(self._now_ms()) - self._now_ms()
            await asyncio.sleep(min(max(wait_ms, TEND_INTERVAL_MS_MIN), TEND_INTERVAL_MS) / 1000)
            try:
                self.tend()
            except TwinlockError as exc:
                logger.warning("the clock could not be attended to", extra={"code": exc.code})

    async def do_chores(self) -> None:
        """Do what takes calls to the server, one after the other, for ever."""
        await self._chores.run()

    def want(self, name: str, chore: Chore) -> None:
        """Do something that takes calls to the server, after what is wanted already; one of a name waits at a time."""
        self._chores.add(name, chore)

    def _on_chore_failed(self, error: TwinlockError) -> None:
        if isinstance(error, LogForkError | LogInvalidError):
            self._connection.last_error = error

    def close(self) -> None:
        """Close every space."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        for runtime in self.runtimes.values():
            if not runtime.is_locked:
                runtime.keep_keys()
            runtime.close()
            runtime.abandon_writes(ClosedError())
        self._waiters.fail(ClosedError())

    # Peer

    def on_welcomed(self, welcomed: Welcomed) -> None:
        """Attach every space and ask for what may have changed."""
        self.incarnation = welcomed.incarnation
        now_ms = self._now_ms()
        self._context.state.put_clock_offset_ms(welcomed.clock_offset_ms)
        self._context.state.put_url(self._connection.url)
        for runtime in self.runtimes.values():
            runtime.keyring.note_trusted_time(now_ms)
            self._attachments.attach(runtime)
            self._leases.renew(runtime)
        self._chores.add("account", self._read_account)
        self._chores.add_missed()

    def on_event(self, event: Event) -> None:
        """Take in one event of the session."""
        now_ms = self._now_ms()
        if isinstance(event, Notice):
            self._on_notice(event)
            return
        runtime = self.runtimes.get(getattr(event, "space", None) or SpaceId(b""))
        if runtime is None:
            return
        if isinstance(event, Leases):
            self._on_leases(runtime, event, now_ms)
            return
        links = runtime.links
        if links:
            self._deliver(runtime, links, event, now_ms)

    def _deliver(self, runtime: SpaceRuntime, links: Sequence[Replica | Sender], event: Event, now_ms: int) -> None:
        match event:
            case Attached():
                runtime.attached = True
                for link in links:
                    link.on_attached(event, now_ms)
                check_log_head(runtime, event)
                # What lies in quarantine may have waited for a log that the last connection could not read.
                if event.log_seq != runtime.keyring.log.seq or links[0].quarantined():
                    self._want_logs(runtime)
            case Entries():
                links[0].on_entries(event, now_ms)
            case Ack():
                links[-1].on_ack(event, now_ms)
            case Reject():
                links[-1].on_reject(event, now_ms)

    def work(self) -> bool:
        """Do a slice for each space, tell listeners, and push."""
        now_ms = self._now_ms()
        more = False
        for runtime in self.runtimes.values():
            links = runtime.links
            try:
                more = any([link.work(now_ms) for link in links]) or more
            except LeaseExpiredError:
                self.tend()
                continue
            except StoreError:
                # What the replica holds in memory may be ahead of the disk; a new connection begins from the file.
                runtime.renew(now_ms)
                raise
            for link in links:
                self._take_events(runtime, link)
            runtime.subscriptions.publish(now_ms)
        self._attachments.push(self.runtimes.values(), now_ms)
        self._waiters.check()
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_DELAY_S, self._flush)
        return more

    def _flush(self) -> None:
        """Commit what the replicas have taken in."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        for runtime in self.runtimes.values():
            try:
                runtime.flush()
            except StoreError as exc:
                logger.warning("what was received could not be stored", extra={"code": exc.code})
                self.renew(runtime)

    def push(self) -> None:
        """Send what was written."""
        self._attachments.push(self.runtimes.values(), self._now_ms())

    def on_disconnected(self) -> None:
        """What was sent and not acknowledged will be sent again."""
        self._attachments.forget_pushes()
        for runtime in self.runtimes.values():
            runtime.attached = False
            self._leases.forget_requests(runtime)
            for link in runtime.links:
                link.on_disconnected()

    def _wake_ms(self, now_ms: int) -> int:
        # Without a session there is nothing that a replica could do with its turn.
        runtimes = self.runtimes.values() if self._connection.session is not None else ()
        moments = [link.wake_ms() for runtime in runtimes for link in runtime.links]
        return min((moment for moment in moments if moment is not None), default=now_ms + TEND_INTERVAL_MS)

    def on_failure(self, failure: TwinlockError) -> None:
        """Let go of every lease at once when this device was revoked, so that its copy goes dark."""
        if isinstance(failure, DeviceRevokedError):
            for runtime in self.runtimes.values():
                runtime.lock()
            self._show_locked()

    # Waiting

    @property
    def is_synced(self) -> bool:
        """Tell whether the server has all writes, and this device all that the server had."""
        # A log that is being read may open what was delivered before it.
        return self._chores.is_idle and all(
            runtime.attached
            and not runtime.is_locked
            and not any(link.syncing for link in runtime.links)
            and runtime.pending_count == 0
            for runtime in self.runtimes.values()
            # A space that this device is refused is not waited for.
            if not runtime.is_refused
        )

    async def synced(self) -> None:
        """Wait until `is_synced`."""
        await self._waiters.until(lambda: self.is_synced)

    async def sent(self, runtime: SpaceRuntime) -> None:
        """Wait until the server has the writes of a space."""
        await self._waiters.until(lambda: runtime.end is not None or not runtime.pending_count)

    async def opened(self, runtime: SpaceRuntime) -> None:
        """Wait until a space is open, or the lease that it waits for was answered otherwise."""
        await self._waiters.until(lambda: not (runtime.is_locked and runtime.lease_nonce))

    async def settled(self) -> None:
        """Wait until what a new connection asks for has been answered: spaces, logs, keys."""
        await self._waiters.until(lambda: self._chores.is_idle and not self._awaits_leases())

    def _awaits_leases(self) -> bool:
        return any(runtime.lease_nonce for runtime in self.runtimes.values())

    # Leases

    def _lock(self, runtime: SpaceRuntime) -> None:
        logger.info("a lease has ended", extra={"space": runtime.space.hex()})
        self._attachments.detach(runtime)
        runtime.lock()

    def _on_leases(self, runtime: SpaceRuntime, frame: Leases, now_ms: int) -> None:
        news = self._leases.take(runtime, frame, self.incarnation)
        if news is LeaseNews.NOTHING:
            if runtime.is_refused:
                self._want_logs(runtime)
            self._waiters.check()
            return
        if news is LeaseNews.LOG_GROWN:
            self._want_logs(runtime)
        was_locked = runtime.is_locked
        runtime.keys_changed(now_ms)
        if was_locked and not runtime.is_locked:
            self._attachments.attach(runtime)
        self._show_locked()
        self._connection.wake()

    def _show_locked(self) -> None:
        self._board.set_locked(any(self._is_locked_out(runtime) for runtime in self.runtimes.values()))

    def _is_locked_out(self, runtime: SpaceRuntime) -> bool:
        """A space whose keys are on their way for the first time is not locked, it is not there yet."""
        return runtime.is_locked and runtime.was_open

    # What replicas and the server ask for

    def _take_events(self, runtime: SpaceRuntime, link: Replica | Sender) -> None:
        for event in link.take_events():
            match event:
                case events.WritesConfirmed() | events.WritesRefused():
                    runtime.settle(event, link)
                    if isinstance(event, events.WritesRefused):
                        # The role may have changed, or ended.
                        self._want_logs(runtime)
                case events.EnvelopeQuarantined():
                    logger.warning("quarantined", extra={"space": runtime.space.hex(), "reason": event.reason})
                case events.LogsWanted():
                    self._want_logs(runtime)
                case events.LeaseWanted():
                    self._leases.renew(runtime)
                case events.PushHeld():
                    logger.info("held back", extra={"space": runtime.space.hex(), "code": event.code})
                case events.RotationWanted():
                    self._on_worn_key(runtime, event)
                case events.CutWanted() | events.KeyringRowsWanted():
                    self._want_call(runtime, event)

    def _on_worn_key(self, runtime: SpaceRuntime, event: events.RotationWanted) -> None:
        logger.warning(
            "a device's key wants a new epoch", extra={"space": runtime.space.hex(), "is_worn_out": event.is_worn_out}
        )
        if event.is_worn_out:
            self._connection.last_error = KeyWornOutError(f"epoch {event.epoch}")

    def _want_call(self, runtime: SpaceRuntime, event: events.CutWanted | events.KeyringRowsWanted) -> None:
        if isinstance(event, events.KeyringRowsWanted):
            self._chores.add(f"keyring {runtime.space.hex()}", lambda: self._logs.put_keyring_row(runtime))
            return

        async def cut() -> None:
            result: CutResult | None = None
            try:
                result = await self._connection.call("space.cut", event.params, CutResult)
            finally:
                if runtime.replica is not None:
                    runtime.replica.on_cut(result, self._now_ms())
                    self._connection.wake()

        self._chores.add(f"cut {runtime.space.hex()}", cut)

    def _on_notice(self, notice: Notice) -> None:
        runtime = self.runtimes.get(SpaceId(notice.space))
        if notice.code == LOG_GROWN:
            if runtime is not None:
                self._want_logs(runtime)
            else:
                self._chores.add("account", self._read_account)
            return
        error = error_from_code(notice.code, notice.detail, notice.retry_after_ms)
        if runtime is None and notice.space and error.retry == "no":
            # About a space that this device has let go of already.
            return
        self._connection.last_error = error
        if runtime is None or error.retry != "no":
            # The server closes, or could not serve just now: the next connection asks again, after a while.
            raise error
        logger.warning("a space is refused", extra={"space": runtime.space.hex(), "code": notice.code})
        self._attachments.detach(runtime)
        runtime.attached = False
        runtime.is_refused = True
        # Only the signed log can tell that it is over.
        self._want_logs(runtime)
        self._waiters.check()

    def _want_logs(self, runtime: SpaceRuntime) -> None:
        self._chores.add(f"logs {runtime.space.hex()}", lambda: self._read_logs(runtime))

    async def _read_logs(self, runtime: SpaceRuntime) -> None:
        unknown, seq = unknown_heads(runtime), runtime.keyring.log.seq
        is_new = False
        try:
            is_new = await self._logs.read(runtime)
        finally:
            # What was read is acted on even if what belongs to it could not be fetched, or if a crash came in between.
            if is_new or runtime.keyring.log.seq != seq or self._is_over(runtime):
                self.log_changed(runtime)
        if runtime.end is None:
            self._leases.renew(runtime)
        self._connection.wake()
        if unknown & unknown_heads(runtime):
            raise LogForkError("a member's device knows entries of a space's log that the server does not show")

    def log_changed(self, runtime: SpaceRuntime) -> None:
        """Act on what is new in a space's log: keys, or the end of it all."""
        if self._end_if_over(runtime):
            return
        self._leases.ask_anew(runtime)
        links = runtime.links
        runtime.keys_changed(self._now_ms())
        if links and links != runtime.links:
            # The role has changed: what this device is delivered, and what it sends, is something else now.
            self._attachments.attach(runtime)
        self._attachments.attach_if_new(runtime)
        self._leases.renew(runtime)
        self._show_locked()
        self._connection.wake()

    def _is_over(self, runtime: SpaceRuntime) -> bool:
        return reason_of_end(runtime.keyring.log, runtime.keyring.account) is not None

    def _end_if_over(self, runtime: SpaceRuntime) -> bool:
        """Forget a space if its signed log says that this account has no part in it any more."""
        log = runtime.keyring.log
        reason = reason_of_end(log, runtime.keyring.account)
        if reason is None:
            return False
        if self.runtimes.get(runtime.space) is runtime:
            self._attachments.detach(runtime)
            del self.runtimes[runtime.space]
        if runtime.end is None:
            runtime.wipe(SpaceEnd(runtime.space.hex(), reason, 0, self._now_ms(), log.seq, log.head))
        self._show_locked()
        self._waiters.check()
        return True

    async def _read_account(self) -> None:
        """Learn which spaces there are, and open those that are new."""
        await self._logs.read_account()
        listed, failures = await self._logs.spaces(), list[TwinlockError]()
        for space in listed:
            try:
                await self.open_space(space)
            except (RemovedError, ShreddedError, ApprovalPendingError, UnknownSpaceError) as exc:
                logger.info("a space is not opened", extra={"space": space.hex(), "code": exc.code})
            except (LogForkError, LogInvalidError, UpdateNeededError) as exc:
                # One space that is not to be trusted, or not understood, does not keep the others closed.
                logger.warning("a space cannot be opened", extra={"space": space.hex(), "code": exc.code})
                failures.append(exc)
        for runtime in self.runtimes.values():
            if runtime.space not in listed:
                self._want_logs(runtime)
        if self.after_account is not None:
            await self.after_account()
        if failures:
            raise failures[0]

    async def open_space(self, space: SpaceId) -> SpaceRuntime:
        """Return a space of this account, fetched if this device does not know it yet.

        Raises:
            UnknownSpaceError, RemovedError, ShreddedError, ApprovalPendingError: the account has no part in it (yet).
        """
        async with self._opening.setdefault(space, asyncio.Lock()):  # Who joins is told of the space as well.
            known = self.runtimes.get(space)
            return known or self.add(await self._logs.new_space(space))

    @property
    def is_connected(self) -> bool:
        """Whether there is a session."""
        return self._connection.session is not None

    def _now_ms(self) -> int:
        return self._context.clock.now_ms()
