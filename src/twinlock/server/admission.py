"""How many hellos and catch-ups the server takes on per second, so that a storm drains steadily. Pure."""

from __future__ import annotations

import hashlib
import hmac

from twinlock.ids import DeviceId
from twinlock.server.settings import Settings
from twinlock.server.shared_rates import TokenBucket

TICKET_TTL_MS = 24 * 3_600_000
TICKET_RESERVE = 0.25
"""The share of the burst that is kept for devices that were here before."""

RETRY_AFTER_MS_MIN = 500
_EXPIRY_BYTES = 8
_PROOF_BYTES = 16


class Tickets:
    """Proofs that a device was welcomed lately, so that it may come back first. They grant nothing else."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, device: DeviceId, now_ms: int) -> bytes:
        """Return a ticket for a day."""
        expiry = (now_ms + TICKET_TTL_MS).to_bytes(_EXPIRY_BYTES, "big")
        return expiry + self._proof(expiry, device)

    def holds(self, ticket: bytes, device: DeviceId, now_ms: int) -> bool:
        """Tell whether a ticket is this device's and still good."""
        expiry, proof = ticket[:_EXPIRY_BYTES], ticket[_EXPIRY_BYTES:]
        if len(proof) != _PROOF_BYTES or int.from_bytes(expiry, "big") < now_ms:
            return False
        return hmac.compare_digest(proof, self._proof(expiry, device))

    def _proof(self, expiry: bytes, device: DeviceId) -> bytes:
        return hmac.digest(self._key, expiry + device, hashlib.sha256)[:_PROOF_BYTES]


class _Gate:
    """A bucket that gives those whom it turns away appointments one after the other."""

    __slots__ = ("_bucket", "_burst", "_next_ms", "_per_ms", "_rate_per_s", "_reserve", "_seen_ms")

    def __init__(self, rate_per_s: int, burst: int, now_ms: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._next_ms = 0.0
        self._seen_ms = now_ms
        self.share(1, now_ms)

    def share(self, count: int, now_ms: int) -> None:
        """Let in what is one of so many nodes' share, and forget what was let in before."""
        rate_per_s, burst = self._rate_per_s / count, self._burst / count
        self._bucket = TokenBucket(rate_per_s, burst, now_ms)
        self._reserve = burst * TICKET_RESERVE
        self._per_ms = 1000 / rate_per_s if rate_per_s else 0.0

    def take(self, now_ms: int, preferred: bool) -> int:
        if now_ms < self._seen_ms:
            # The clock was set back: nobody is to wait until it is again as late as it was.
            self._next_ms -= self._seen_ms - now_ms
        self._seen_ms = now_ms
        if not self._bucket.take(1, now_ms, 0.0 if preferred else self._reserve):
            return 0
        self._next_ms = max(self._next_ms, float(now_ms + RETRY_AFTER_MS_MIN)) + self._per_ms
        return int(self._next_ms) - now_ms


class Admission:
    """The gates for hellos, for catch-ups and for leases.

    Hellos are each node's own work. Catch-ups burden the engine and leases the key service, which all nodes share:
    their rates are divided among the nodes that are alive.
    """

    __slots__ = ("_catch_ups", "_hellos", "_leases", "_nodes_count")

    def __init__(self, settings: Settings, now_ms: int) -> None:
        self._hellos = _Gate(settings.hellos_per_s, settings.hellos_burst, now_ms)
        self._catch_ups = _Gate(settings.catch_ups_per_s, settings.catch_ups_burst, now_ms)
        self._leases = _Gate(settings.leases_per_s, settings.leases_burst, now_ms)
        self._nodes_count = 1

    def share(self, nodes_count: int, now_ms: int) -> None:
        """Divide what is shared among so many nodes."""
        if nodes_count != self._nodes_count:
            self._nodes_count = nodes_count
            self._catch_ups.share(nodes_count, now_ms)
            self._leases.share(nodes_count, now_ms)

    def lease(self, now_ms: int) -> int:
        """Let a request for leases through and return 0, or return after how many ms to come back."""
        return self._leases.take(now_ms, preferred=True)

    def hello(self, now_ms: int, has_ticket: bool) -> int:
        """Let a hello in and return 0, or return after how many ms to come back."""
        return self._hellos.take(now_ms, has_ticket)

    def catch_up(self, now_ms: int) -> int:
        """Let a catch-up in and return 0, or return after how many ms to come back."""
        return self._catch_ups.take(now_ms, preferred=True)
