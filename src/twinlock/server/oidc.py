"""The issuer of the application's tokens: fetches its public keys, keeps them, and verifies tokens under them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import structlog

from twinlock.errors import IssuerError, TokenError
from twinlock.process import is_loopback_url
from twinlock.server.settings import Settings
from twinlock.server.tasks import Tasks
from twinlock.server.tokens import (
    Claims,
    IssuerKey,
    TokenRules,
    fitting_key,
    read_header,
    read_keys,
    verify_token,
)

logger = structlog.get_logger(__name__)

FETCH_TIMEOUT_S = 5.0
JWKS_BYTES_MAX = 256 << 10
REFRESH_MS = 10 * 60_000
"""Keys older than this are fetched again beside the work, so that one which the issuer withdrew is dropped."""


class Issuer:
    """Verifies tokens; keys that are known serve on while the issuer is out of reach.

    A token that names an unknown key has the keys fetched again, at most once in `oidc_refetch_s`; whoever needs them
    meanwhile waits for that one request.
    """

    __slots__ = (
        "_fetched_ms",
        "_fetching",
        "_is_here",
        "_is_reached",
        "_keys",
        "_now_ms",
        "_refetch_ms",
        "_rules",
        "_tasks",
        "_tls",
        "_tried_ms",
        "_url",
    )

    def __init__(self, settings: Settings, tasks: Tasks, now_ms: Callable[[], int]) -> None:
        self._rules = TokenRules(settings.oidc_issuer, settings.oidc_audience, int(settings.oidc_leeway_s * 1000))
        self._url = settings.oidc_jwks_url
        # A proxy of the environment is not for this machine's own addresses.
        self._is_here = is_loopback_url(self._url)
        # Reading all the certificates of the world takes long: once, and not while sessions wait.
        self._tls = httpx.create_ssl_context() if self._url.startswith("https:") else False
        self._refetch_ms = int(settings.oidc_refetch_s * 1000)
        self._tasks = tasks
        self._now_ms = now_ms
        self._keys: list[IssuerKey] = []
        self._fetched_ms = 0
        self._tried_ms = 0
        self._is_reached = False
        self._fetching: asyncio.Task[None] | None = None

    async def verify(self, token: str) -> Claims:
        """Return what a token says, if it is valid here and now.

        Raises:
            TokenError: it is not.
            IssuerError: it names a key that is not known, and the issuer's keys cannot be fetched now.
        """
        header = read_header(token)
        key = fitting_key(self._keys, header)
        if key is None:
            await self._fetch_for_unknown()
            key = fitting_key(self._keys, header)
            if key is None:
                raise TokenError("it is signed by a key that the issuer does not show")
        elif self._now_ms() - self._fetched_ms > REFRESH_MS and self._wait_ms() == 0:
            self._begin_fetching()
        return verify_token(token, key, self._rules, self._now_ms())

    async def _fetch_for_unknown(self) -> None:
        """Fetch the keys, or wait for those who do.

        Raises:
            IssuerError: it failed, or was tried a moment ago.
        """
        wait_ms = self._wait_ms()
        if wait_ms and self._fetching is None:
            raise IssuerError("its keys were fetched a moment ago", retry_after_ms=wait_ms)
        # The wait may be cancelled with its connection; the request serves others too.
        await asyncio.wait({self._fetching or self._begin_fetching()})
        if not self._is_reached:
            raise IssuerError(retry_after_ms=max(1000, self._wait_ms()))

    def _wait_ms(self) -> int:
        """Return how long the keys may not be fetched again."""
        passed_ms = self._now_ms() - self._tried_ms
        # A clock that was set back ends the wait as well.
        return self._refetch_ms - passed_ms if 0 <= passed_ms < self._refetch_ms else 0

    def _begin_fetching(self) -> asyncio.Task[None]:
        self._tried_ms = self._now_ms()
        self._is_reached = False
        self._fetching = self._tasks.spawn(self._fetch(), "fetch the issuer's keys")
        return self._fetching

    async def _fetch(self) -> None:
        try:
            # No client stays open between two requests that are minutes apart.
            async with httpx.AsyncClient(
                timeout=FETCH_TIMEOUT_S, verify=self._tls, trust_env=not self._is_here, follow_redirects=False
            ) as client:
                self._keys = read_keys(await _download(client, self._url))
            self._fetched_ms, self._is_reached = self._tried_ms, True
        except (httpx.HTTPError, httpx.InvalidURL, IssuerError) as error:
            logger.warning("the issuer's keys cannot be fetched", error=type(error).__name__, detail=str(error))
        finally:
            self._fetching = None


async def _download(client: httpx.AsyncClient, url: str) -> bytes:
    """Return a document of a bounded size within a bounded time."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S), client.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                raise IssuerError(f"it answered {response.status_code}")
            async for part in response.aiter_bytes():
                parts.append(part)
                size += len(part)
                if size > JWKS_BYTES_MAX:
                    raise IssuerError(f"its keys are over {JWKS_BYTES_MAX} bytes")
    except TimeoutError as exc:
        raise IssuerError(f"no answer within {FETCH_TIMEOUT_S:.0f} s") from exc
    return b"".join(parts)
