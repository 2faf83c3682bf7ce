"""What every part of an open database shares: the profile, its records, the time and chance."""

from __future__ import annotations

from typing import NamedTuple

from twinlock.client.device_clock import DeviceClock
from twinlock.client.device_state import DeviceState
from twinlock.client.options import FileSettings
from twinlock.client.profile import Profile
from twinlock.sealing.suite import Entropy


class DeviceContext(NamedTuple):
    """Handed in from where the database is opened.

    `is_weak` tells that whoever can read the disk can read the StoreKey; where it is not known it counts as weak.
    `app_url` is the address that invite links lead to, by default the server's own, and
    `files` how files are handled.
    """

    profile: Profile
    state: DeviceState
    clock: DeviceClock
    entropy: Entropy
    is_weak: bool = True
    app_url: str | None = None
    files: FileSettings = FileSettings()
