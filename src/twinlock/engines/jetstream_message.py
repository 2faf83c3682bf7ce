"""A message of NATS as the engine sees it, and the names of what it looks for in one."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

STATUS_BATCH_END = 204
STATUS_NOT_FOUND = 404
STATUS_TOO_MANY = 413
STATUS_NO_RESPONDERS = 503

_NO_HEADERS: Mapping[str, str] = {}


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message as it came."""

    subject: str
    payload: bytes
    headers: Mapping[str, str] = _NO_HEADERS

    @property
    def status(self) -> int:
        """The status that the server answered with; 0 for an ordinary message."""
        status = self.headers.get("Status", "")
        return int(status) if status.isdigit() else 0

    def number(self, name: str) -> int:
        """Return the value of a header that is a number; 0 where there is none."""
        return int(self.headers.get(name) or 0)
