"""What each frame of a client does. States and limits are `twinlock.protocol.server`'s; the work is the services'."""

from __future__ import annotations

import os
from functools import partial

import msgspec

from twinlock.contracts import Asking
from twinlock.errors import (
    InternalError,
    LeaseRefusedError,
    OverloadedError,
    ProofError,
    QuotaExceededError,
    RateLimitedError,
    RemovedError,
    RoleError,
    SignatureError,
    SpaceFullError,
    StaleEpochError,
    StaleLogHeadError,
    TokenError,
    TwinlockError,
    UnknownMethodError,
    UnknownSpaceError,
)
from twinlock.ids import ID_BYTES, NO_ENVELOPE, AccountId, Counter, Seq, SpaceId
from twinlock.protocol import limits, proofs
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.codec import NIL
from twinlock.protocol.envelope import Kind
from twinlock.protocol.frames import (
    Attach,
    Call,
    CallError,
    Challenge,
    ClientFrame,
    Detach,
    Hello,
    Lease,
    Leases,
    Notice,
    Push,
    Reject,
    Reply,
    Signal,
    Signals,
    Welcome,
)
from twinlock.protocol.server import Stage
from twinlock.server.authorize import author_of
from twinlock.server.buckets import AccountQuota
from twinlock.server.methods import entries_in
from twinlock.server.peer import Peer
from twinlock.server.sequencer import HELD_RETRY_MS, Author, Decision, Refusal
from twinlock.server.served_space import ServedSpace, WaitingPush
from twinlock.server.services import Services
from twinlock.server.standing import refusal_of

NONCE_BYTES = 32
CLIENT_NONCE_BYTES_MIN = 16
CLIENT_NONCE_BYTES_MAX = 64
WAITING_BYTES_MAX = 256 << 20
"""Bytes of pushes that wait for the disk, over all connections; above it pushes are asked to come back."""

RETRY_AFTER_MS = 1_000


TOLD_LIMITS = {name.lower(): value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)}
"""What `welcome` tells of the limits in force."""

_JUDGED_BY_THE_LOG = (StaleLogHeadError, StaleEpochError, RoleError, RemovedError, UnknownSpaceError)


class Dispatcher:
    """Acts on frames, for all connections; holds no state of any one of them."""

    __slots__ = ("_is_taking", "_origins", "_services")

    def __init__(self, services: Services, origins: frozenset[str]) -> None:
        self._services = services
        self._origins = origins
        self._is_taking = True

    def stop_taking(self) -> None:
        """Ignore every frame from now on: the server is going down, clients send what was not answered again."""
        self._is_taking = False

    def challenge(self, nonce: bytes) -> Challenge:
        """Return the first frame of a connection."""
        services = self._services
        return Challenge(nonce, services.secrets.server_pk, services.log.incarnation, services.now_ms())

    def handle(self, peer: Peer, frame: ClientFrame) -> None:
        """Act on one frame.

        Raises:
            TwinlockError: the peer broke the protocol, or may not come in: its connection must be closed.
        """
        if not self._is_taking:
            return
        peer.session.take(frame)
        match frame:
            case Push():
                served = self._services.registry.at_hand(frame.space)
                if served is not None:
                    self._push(peer, frame, served)
                else:
                    refuse = partial(self._refuse_push, peer, frame)
                    self._services.registry.use(frame.space, partial(self._push, peer, frame), refuse)
            case Attach():
                self._attach(peer, frame)
            case Detach():
                self._detach(peer, frame.space)
            case Call():
                self._call(peer, frame)
            case Lease():
                self._services.tasks.spawn(self._lease(peer, frame), "lease", partial(_fail, peer))
            case Signal():
                self._signal(peer, frame)
            case Hello():
                self._hello(peer, frame)

    def gone(self, peer: Peer) -> None:
        """Forget a connection that is closed or closing."""
        for space in tuple(peer.session.spaces):
            self._detach(peer, space)
        if peer.session.stage is Stage.WELCOMED and peer.author is not None:
            self._services.presence.left(peer.author, self._services.now_ms())
            self._services.session_ends.forget(peer)
        peer.session.close()

    def paused(self, peer: Peer) -> None:
        """Deliver nothing live to a peer whose buffer is full."""
        for served in self._attached_spaces(peer):
            self._services.hub.pause(served, peer)

    def resumed(self, peer: Peer) -> None:
        """Go on delivering to a peer whose buffer has emptied."""
        for served in self._attached_spaces(peer):
            self._services.hub.resume(served, peer)

    def _attached_spaces(self, peer: Peer) -> list[ServedSpace]:
        served = (self._services.registry.at_hand(space) for space in peer.session.spaces)
        return [space for space in served if space is not None]

    # Hello

    def _hello(self, peer: Peer, hello: Hello) -> None:
        services, now_ms = self._services, self._services.now_ms()
        has_ticket = bool(hello.ticket) and services.tickets.holds(hello.ticket, hello.device, now_ms)
        retry_after_ms = services.admission.hello(now_ms, has_ticket)
        if retry_after_ms:
            raise OverloadedError(retry_after_ms=retry_after_ms)
        nonce = peer.session.take_challenge(now_ms)
        self._check_hello(hello)
        if not hello.device:
            self._welcome(peer, hello, nonce)
            return
        state = services.authority.account_at_hand(hello.account)
        if state is not None and services.is_shared and hello.device not in state.devices:
            # Another node may have certified it just now.
            state = None
        if state is not None and not services.sign_in.looks_at(hello.token):
            peer.author = self._prove(hello, nonce, state)
            self._welcome(peer, hello, nonce)
        else:
            services.tasks.spawn(self._hello_slowly(peer, hello, nonce), "hello", partial(_fail, peer))

    async def _hello_slowly(self, peer: Peer, hello: Hello, nonce: bytes) -> None:
        """Let a device in whose account has to be read, or whose token has to be verified."""
        services = self._services
        try:
            self._prove(hello, nonce, await services.authority.account(hello.account))
            ends_ms = 0
            if services.sign_in.looks_at(hello.token):
                ends_ms = await services.sign_in.check(hello.token, hello.account)
            # The account may have revoked the device while the issuer was asked.
            author = author_of(await services.authority.account(hello.account), hello.device)
        except TwinlockError as error:
            peer.refuse(error)
            return
        if peer.session.stage is Stage.CHALLENGED:
            peer.author = author
            self._welcome(peer, hello, nonce)
            if ends_ms:
                services.session_ends.set(peer, ends_ms)

    def _check_hello(self, hello: Hello) -> None:
        if hello.origin not in self._origins:
            raise ProofError("the address that was dialled is not one of this server's `origins`")
        if not CLIENT_NONCE_BYTES_MIN <= len(hello.client_nonce) <= CLIENT_NONCE_BYTES_MAX:
            raise ProofError(f"a nonce of {len(hello.client_nonce)} bytes")
        if hello.device and (len(hello.device) != ID_BYTES or len(hello.account) != ID_BYTES):
            raise ProofError("ids have 16 bytes")
        if hello.token and not hello.device:
            raise TokenError("a hello without a device shows no token; `token.open` takes it")

    def _prove(self, hello: Hello, nonce: bytes, state: AccountState) -> Author:
        """Return whose device says hello, after its signature was verified."""
        services = self._services
        author = author_of(state, hello.device)
        message = proofs.hello_message(
            server_id=services.secrets.server_id,
            origin=hello.origin,
            incarnation=services.log.incarnation,
            account=hello.account,
            device=hello.device,
            server_nonce=nonce,
            client_nonce=hello.client_nonce,
        )
        try:
            proofs.verify(author.sign_pk, hello.signature, proofs.with_token(message, hello.token))
        except SignatureError as exc:
            raise ProofError from exc
        return author

    def _welcome(self, peer: Peer, hello: Hello, nonce: bytes) -> None:
        services, now_ms = self._services, self._services.now_ms()
        number = int.from_bytes(os.urandom(8), "big") >> 1
        account = peer.author.account if peer.author else peer.session.account
        peer.session.welcome(account, hello.device, number)
        message = proofs.welcome_message(
            server_id=services.secrets.server_id,
            incarnation=services.log.incarnation,
            server_nonce=nonce,
            client_nonce=hello.client_nonce,
            device=hello.device,
        )
        ticket = services.tickets.issue(hello.device, now_ms) if hello.device else b""
        if peer.author is not None:
            services.presence.arrived(peer.author, now_ms)
        services.metrics.hellos.inc()
        peer.send(Welcome(services.secrets.sign(message), now_ms, number, TOLD_LIMITS, ticket))

    # Delivery

    def _attach(self, peer: Peer, frame: Attach) -> None:
        # Counted before the space is loaded, so that the limit holds for those under way too.
        peer.session.attached(frame.space)
        refuse = partial(self._refuse_attach, peer, frame.space)
        self._services.registry.use(frame.space, partial(self._attach_to, peer, frame), refuse)

    def _attach_to(self, peer: Peer, frame: Attach, space: ServedSpace) -> None:
        author, services = peer.author, self._services
        if author is None or space.id not in peer.session.spaces:
            return
        rules = space.sequencer.rules
        refusal = refusal_of(rules, author.account)
        if refusal is not None and not services.is_shared:
            self._refuse_attach(peer, space.id, refusal)
            return
        is_same_life = frame.incarnation == services.log.incarnation
        if services.is_shared or (is_same_life and frame.cursor > space.delivered):
            services.tasks.spawn(self._attach_confirmed(peer, frame, space), "attach", partial(_fail, peer))
            return
        self._attach_known(peer, frame, space, space.delivered)

    def _attach_known(self, peer: Peer, frame: Attach, space: ServedSpace, head: Seq) -> None:
        """Attach to a space of which it is known up to where its log goes, and where the device's chain stands."""
        author, services = peer.author, self._services
        refusal = refusal_of(space.sequencer.rules, peer.session.account)
        if refusal is not None or author is None:
            self._refuse_attach(peer, space.id, refusal or InternalError())
            return
        if not space.sequencer.rules.members[author.account].role.may_lease:
            self._begin(peer, space, min(frame.cursor, head))
            return
        is_same_life = frame.incarnation == services.log.incarnation
        if frame.incarnation and not is_same_life:
            space.sequencer.allow_healing(author.device)
        resume = space.resume_for(frame.incarnation, frame.cursor, head)
        if resume < space.delivered:
            retry_after_ms = services.admission.catch_up(services.now_ms())
            if retry_after_ms:
                peer.refuse(OverloadedError(retry_after_ms=retry_after_ms))
                return
        self._begin(peer, space, resume)

    async def _attach_confirmed(self, peer: Peer, frame: Attach, space: ServedSpace) -> None:
        """Attach once the log itself has said where it stands.

        Needed for a cursor above what was delivered here, and wherever the device may have written by another node
        just now: it seals anew what it is told that the server does not have.
        """
        try:
            state = await self._services.confirmations.of(space)
            refusal = refusal_of(space.sequencer.rules, peer.session.account)
            if refusal is not None and self._services.is_shared:
                # It may have come in by another node just now.
                await self._services.registry.catch_up(space)
        except TwinlockError as error:
            self._refuse_attach(peer, space.id, error)
            return
        if space.id in peer.session.spaces:
            self._attach_known(peer, frame, space, max(state.head, space.delivered))

    def _begin(self, peer: Peer, space: ServedSpace, resume: Seq) -> None:
        rules, session = space.sequencer.rules, peer.session
        refusal = refusal_of(rules, session.account)
        if refusal is not None:
            # The membership has ended while the log was asked.
            self._refuse_attach(peer, space.id, refusal)
            return
        space.sequencer.forget_refusal(session.device)
        peer.send(space.attached(session.device, resume))
        if rules.members[session.account].role.may_lease:
            self._services.hub.attach(space, peer, resume)
        else:
            self._services.hub.attach_sender(space, peer)

    def _refuse_attach(self, peer: Peer, space: SpaceId, error: TwinlockError) -> None:
        peer.session.detached(space)
        peer.send(Notice(error.code, space, error.detail, error.retry_after_ms))

    def _detach(self, peer: Peer, space: SpaceId) -> None:
        peer.session.detached(space)
        served = self._services.registry.at_hand(space)
        if served is not None:
            self._services.hub.detach(served, peer)

    # Pushes

    def _push(self, peer: Peer, push: Push, space: ServedSpace) -> None:
        author = peer.author
        if author is None:
            return
        size = sum(map(len, push.envelopes))
        error = self._over_quota(space, push, size, author.account)
        if error is not None:
            decision = space.sequencer.refuse(push.envelopes, author.device, error)
        else:
            decision = space.sequencer.decide(push.envelopes, author)
            if decision.refusal is not None and self._services.is_shared:
                decision = self._unless_behind(space, push, decision, author)
        self._services.metrics.pushes.inc()
        waiting = WaitingPush(peer, decision.fresh, decision.known, decision.refusal, size)
        self._services.committer.submit(space, waiting)

    def _unless_behind(self, space: ServedSpace, push: Push, decision: Decision, author: Author) -> Decision:
        """Have a push come again that names a place of the signed log which this node may only not yet know."""
        assert decision.refusal is not None
        counter, error = decision.refusal.counter, decision.refusal.error
        place = len(decision.fresh) + len(decision.known)
        is_judged = isinstance(error, _JUDGED_BY_THE_LOG)
        if not is_judged or place >= len(push.envelopes) or not space.sequencer.is_behind(push.envelopes[place]):
            return decision
        if not self._services.changes.may_be_behind(space):
            return decision
        later = OverloadedError("the node looks whether the log has grown", retry_after_ms=HELD_RETRY_MS)
        return Decision(decision.fresh, decision.known, Refusal(counter, later))

    def _over_quota(self, space: ServedSpace, push: Push, size: int, account: AccountId) -> TwinlockError | None:
        services, now_ms, count = self._services, self._services.now_ms(), len(push.envelopes)
        pace = services.quotas.of(account, now_ms).pace
        retry_after_ms = pace.take(count, size, now_ms) or space.pace.take(count, size, now_ms)
        if retry_after_ms:
            return QuotaExceededError(retry_after_ms=retry_after_ms)
        if services.committer.waiting_bytes > WAITING_BYTES_MAX or services.committer.is_stuck(space):
            return OverloadedError(retry_after_ms=RETRY_AFTER_MS)
        room = services.settings.space_bytes_max
        if room and space.log_bytes + size > room:
            # Snapshots are how a full space is compacted: they get as much room again.
            are_snapshots = all(data[1:2] == bytes((Kind.SNAPSHOT,)) for data in push.envelopes)
            if not are_snapshots or space.log_bytes + size > 2 * room:
                return SpaceFullError(f"{space.log_bytes} of {room} bytes are used")
        return None

    def _refuse_push(self, peer: Peer, push: Push, error: TwinlockError) -> None:
        peer.settle(sum(map(len, push.envelopes)))
        self._services.metrics.rejected(error)
        counter = Counter(int.from_bytes(push.envelopes[0][40:48], "big"))
        peer.send(Reject(push.space, counter, error.code, error.detail, error.retry_after_ms, Counter(0), NO_ENVELOPE))

    # Signals, leases, calls

    def _signal(self, peer: Peer, signal: Signal) -> None:
        services, session = self._services, peer.session
        space = services.registry.at_hand(signal.space)
        now_ms = services.now_ms()
        if space is None or signal.space not in session.spaces:
            return
        role = space.sequencer.rules.role_of(session.account)
        is_allowed = role is not None and role.may_write(Kind.SIGNAL)
        if not is_allowed or services.quotas.of(session.account, now_ms).signals.take(1, now_ms):
            services.metrics.signals_dropped.inc()
            return
        services.metrics.signals.inc()
        services.hub.relay(space, peer, Signals(space.id, [signal.sealed]))
        services.neighbours.signal(space.signal_subject, signal.sealed)

    async def _lease(self, peer: Peer, request: Lease) -> None:
        author, services = peer.author, self._services
        assert author is not None
        try:
            retry_after_ms = services.admission.lease(services.now_ms())
            if retry_after_ms:
                raise OverloadedError(retry_after_ms=retry_after_ms)
            asking = Asking(author.account, author.device, services.log.incarnation, services.now_ms())
            leases = await services.keys.lease(asking, request)
            self._compare_heads(leases)
        except TwinlockError as error:
            told = await self._told_for_lease(author, request.space, error)
            leases = Leases(
                request.space, request.nonce, [], 0, b"", 0, b"", told.code, told.detail, told.retry_after_ms
            )
        peer.session.settle_call()
        peer.send(leases)

    def _compare_heads(self, leases: Leases) -> None:
        """Read a space's log again if the key service has more of it; a change that is under way ends by itself."""
        space = self._services.registry.at_hand(leases.space)
        if space is not None and leases.space_log_seq > space.sequencer.rules.seq and not space.log_users:
            self._services.changes.fell_behind(space)

    async def _told_for_lease(self, author: Author, space: SpaceId, error: TwinlockError) -> TwinlockError:
        """Return why an account gets no key; if it is no longer a member it hears that."""
        if not isinstance(error, LeaseRefusedError):
            return error
        try:
            served = await self._services.registry.load(space)
        except TwinlockError as unknown:
            return unknown if isinstance(unknown, UnknownSpaceError) else error
        return refusal_of(served.sequencer.rules, author.account) or error

    def _call(self, peer: Peer, call: Call) -> None:
        services = self._services
        method = services.methods.get(call.method)
        if method is None:
            self._reply_error(peer, call.id, UnknownMethodError(call.method[:64]))
            return
        quota = self._quota_of(peer)
        if quota is not None:
            retry_after_ms = quota.calls.take(1, services.now_ms())
            if retry_after_ms:
                services.metrics.called(call.method, RateLimitedError.code)
                self._reply_error(peer, call.id, RateLimitedError(retry_after_ms=retry_after_ms))
                return
        services.tasks.spawn(self._answer(peer, call), "call", partial(_fail, peer))

    async def _answer(self, peer: Peer, call: Call) -> None:
        services = self._services
        try:
            admit = partial(self._count_entries, peer)
            result = await services.methods[call.method].answer(peer, call.params, admit)
        except TwinlockError as error:
            services.metrics.called(call.method, error.code)
            self._reply_error(peer, call.id, error)
            return
        services.metrics.called(call.method, "ok")
        peer.session.settle_call()
        peer.send(Reply(call.id, result))

    def _count_entries(self, peer: Peer, request: msgspec.Struct) -> None:
        """Take the entries of signed logs that a call brings into account.

        Raises:
            RateLimitedError: the account has brought too many of late.
        """
        quota, count = self._quota_of(peer), entries_in(request)
        retry_after_ms = quota.entries.take(count, self._services.now_ms()) if quota is not None and count else 0
        if retry_after_ms:
            raise RateLimitedError("too many entries of signed logs", retry_after_ms=retry_after_ms)

    def _quota_of(self, peer: Peer) -> AccountQuota | None:
        """Return the rates that hold for a peer; None for one that has not shown whose it is.

        Who has signed in without a device has rates apart: a guessed password must not use up what the devices need.
        """
        account = peer.session.account
        if not account:
            return None
        name = account if peer.author is not None else AccountId(b"signed in" + account)
        return self._services.quotas.of(name, self._services.now_ms())

    def _reply_error(self, peer: Peer, call_id: int, error: TwinlockError) -> None:
        peer.session.settle_call()
        peer.send(Reply(call_id, NIL, CallError(error.code, error.detail, error.retry_after_ms)))


def _fail(peer: Peer, _: Exception) -> None:
    """End a session whose frame met an error of our own: its client sees it and connects anew."""
    peer.refuse(InternalError())
