"""Sign-in by a token of the application's own issuer, and the sessions that end with one. See spec/protocol.md, 3."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twinlock.errors import TokenError
from twinlock.ids import AccountId
from twinlock.protocol.calls import Nothing
from twinlock.protocol.device_calls import OpenToken, OpenTokenResult, RefreshToken
from twinlock.protocol.server import Stage
from twinlock.server.authorize import Authority, device_of
from twinlock.server.methods import Method
from twinlock.server.names import Names
from twinlock.server.peer import Peer
from twinlock.server.settings import Settings
from twinlock.server.tokens import Claims
from twinlock.server.tries import Tries

Verify = Callable[[str], Awaitable[Claims]]


class SessionEnds:
    """When sessions end that stand on a token; a session without one is not in here."""

    __slots__ = ("_ends", "_peers")

    def __init__(self) -> None:
        self._ends: dict[Peer, int] = {}
        self._peers: dict[int, set[Peer]] = {}

    def set(self, peer: Peer, ends_ms: int) -> None:
        """End a session at a time, or at another one than before."""
        self.forget(peer)
        # Rounded up: no session ends before its token.
        second = -(-ends_ms // 1000)
        self._ends[peer] = second
        self._peers.setdefault(second, set()).add(peer)

    def forget(self, peer: Peer) -> None:
        """Note that a session is over, or stands on no token."""
        second = self._ends.pop(peer, None)
        if second is not None:
            peers = self._peers[second]
            peers.discard(peer)
            if not peers:
                del self._peers[second]

    def end_ms(self, peer: Peer) -> int:
        """Return when a session ends; 0 if it stands on no token."""
        return 1000 * self._ends.get(peer, 0)

    def take_due(self, now_ms: int) -> list[Peer]:
        """Return the sessions whose time has come, once."""
        due = [peer for second in self._peers if second <= now_ms // 1000 for peer in self._peers[second]]
        for peer in due:
            self.forget(peer)
        return due

    def __len__(self) -> int:
        return len(self._ends)


class TokenSignIn:
    """Says what a token is worth here, and answers the calls about tokens.

    Args:
        verify: checks a token against its issuer; None where the server takes none.
        addresses: how often an address may show a token.
    """

    __slots__ = ("_addresses", "_authority", "_ends", "_is_required", "_names", "_verify")

    def __init__(
        self,
        verify: Verify | None,
        names: Names,
        authority: Authority,
        ends: SessionEnds,
        settings: Settings,
        addresses: Tries,
    ) -> None:
        self._verify = verify
        self._names = names
        self._authority = authority
        self._ends = ends
        self._is_required = settings.oidc_required
        self._addresses = addresses

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "token.open": Method(OpenToken, self._open),
            "session.refresh": Method(RefreshToken, self._refresh),
        }

    def looks_at(self, token: str) -> bool:
        """Tell whether a hello with this token, or with none, has to be checked."""
        return bool(token) or self._is_required

    async def subject_of_sign_up(self, token: str) -> bytes:
        """Return the hash of the subject for whom an account is made; empty where no token was asked for and given.

        Raises:
            TokenError, IssuerError: the token is not valid, or missing.
        """
        return (await self._claims(token)).subject if self.looks_at(token) else b""

    async def check(self, token: str, account: AccountId) -> int:
        """Return when a session of an account ends that stands on a token.

        Raises:
            TokenError, IssuerError: the token is not valid, missing, or somebody else's.
        """
        claims = await self._claims(token)
        if await self._names.account_of(claims.subject) != account:
            raise TokenError("it is not of this account's subject")
        return claims.ends_ms

    async def _claims(self, token: str) -> Claims:
        if self._verify is None:
            raise TokenError("this server takes no tokens")
        if not token:
            raise TokenError("this server asks for one")
        return await self._verify(token)

    async def _open(self, peer: Peer, request: OpenToken) -> OpenTokenResult:
        self._addresses.count(peer.address)
        claims = await self._claims(request.token)
        account = await self._names.account_of(claims.subject)
        if account is None:
            return OpenTokenResult()
        name, entries = await self._names.name_of(account), await self._authority.log(account)
        if not peer.session.device:
            peer.session.account = account
        return OpenTokenResult(account, name, entries)

    async def _refresh(self, peer: Peer, request: RefreshToken) -> Nothing:
        author = device_of(peer)
        ends_ms = await self.check(request.token, author.account)
        if peer.session.stage is Stage.WELCOMED:
            self._ends.set(peer, ends_ms)
        return Nothing()
