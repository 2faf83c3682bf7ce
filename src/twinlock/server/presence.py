"""Which devices are here, and when each was here last. Pure: the time is handed in."""

from __future__ import annotations

from twinlock.ids import AccountId, DeviceId
from twinlock.server.sequencer import Author

NOTE_INTERVAL_MS = 10 * 60_000
"""How often at most a device's last visit is written down."""

NOTED_MAX = 100_000


class Presence:
    """Counts each device's sessions, and collects what is to be written down of their visits."""

    __slots__ = ("_due", "_noted", "_sessions")

    def __init__(self) -> None:
        self._sessions: dict[DeviceId, int] = {}
        self._noted: dict[DeviceId, int] = {}
        self._due: dict[DeviceId, tuple[AccountId, int]] = {}

    def arrived(self, author: Author, now_ms: int) -> None:
        """Note that a session of a device begins."""
        self._sessions[author.device] = self._sessions.get(author.device, 0) + 1
        self._note(author, now_ms)

    def left(self, author: Author, now_ms: int) -> None:
        """Note that a session of a device ends."""
        count = self._sessions.get(author.device, 0) - 1
        if count > 0:
            self._sessions[author.device] = count
        else:
            self._sessions.pop(author.device, None)
        self._note(author, now_ms)

    def is_online(self, device: DeviceId) -> bool:
        """Tell whether a device has a session now."""
        return device in self._sessions

    def unwritten_ms(self, device: DeviceId) -> int:
        """Return when a device was here, as far as that is not written down yet; else 0."""
        return self._due[device][1] if device in self._due else 0

    def take_due(self) -> dict[DeviceId, tuple[AccountId, int]]:
        """Return the visits that are to be written down: the account of each device, and when."""
        due, self._due = self._due, {}
        return due

    def _note(self, author: Author, now_ms: int) -> None:
        noted_ms = self._noted.get(author.device)
        # A clock that was set back must not keep a device from being noted.
        if noted_ms is not None and 0 <= now_ms - noted_ms < NOTE_INTERVAL_MS:
            return
        if noted_ms is None and len(self._noted) >= NOTED_MAX:
            del self._noted[next(iter(self._noted))]
        self._noted[author.device] = now_ms
        self._due[author.device] = (author.account, now_ms)
