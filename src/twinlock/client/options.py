"""What the build of an application decides, once, for every way to open a database."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable

import msgspec

from twinlock.client.http import DialStreams
from twinlock.client.http_dial import open_streams
from twinlock.client.transport import Dial, open_transport
from twinlock.sealing.pairing import DEVICE_NAME_BYTES_MAX, check_device_name
from twinlock.sealing.suite import Entropy

FILE_CACHE_BYTES = 256 << 20
UNUSED_FILE_DAYS = 30.0

Token = Callable[[], Awaitable[str]]
"""Gives a fresh token of the application's own issuer, as often as it is asked."""


def wall_clock_ms() -> int:
    """Return this machine's clock."""
    return time.time_ns() // 1_000_000


class FileSettings(msgspec.Struct, frozen=True):
    """What files are handled by: see `Options`."""

    dial_streams: DialStreams = open_streams
    cache_bytes: int = FILE_CACHE_BYTES
    unused_days: float = UNUSED_FILE_DAYS


class Options(msgspec.Struct, frozen=True):
    """What the build of an application decides.

    `password_unlock` lets the password open data too (14 characters at least): two keys then hang on one password
    that can be guessed, whose holder is the operator. `token` signs in at servers that ask for the application's own
    sign-in. `app_url` is where invite links lead, by default to the server. `device_name` is what the account's other
    devices call this one, by default the machine's name. `wall_ms` and `entropy` are where time and chance come from,
    `dial` opens the connection, and `dial_streams` those on which files travel. `file_cache_bytes` bounds what is kept
    of the files that were read, sealed; `unused_file_days` is how long an attached file may be named by no document
    before it is deleted, 0 keeps all.
    """

    password_unlock: bool = False
    token: Token | None = None
    app_url: str | None = None
    device_name: str | None = None
    wall_ms: Callable[[], int] = wall_clock_ms
    entropy: Entropy = os.urandom
    dial: Dial = open_transport
    dial_streams: DialStreams = open_streams
    file_cache_bytes: int = FILE_CACHE_BYTES
    unused_file_days: float = UNUSED_FILE_DAYS

    @property
    def files(self) -> FileSettings:
        """What files are handled by."""
        return FileSettings(self.dial_streams, self.file_cache_bytes, self.unused_file_days)

    @property
    def own_name(self) -> str:
        """The name of a device that is enrolled now.

        Raises:
            LimitExceededError: it is too long.
        """
        if self.device_name is None:
            return socket.gethostname().encode()[:DEVICE_NAME_BYTES_MAX].decode(errors="ignore")
        check_device_name(self.device_name)
        return self.device_name
