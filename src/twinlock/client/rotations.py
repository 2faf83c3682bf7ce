"""Rotating spaces whose log asks for it, on a device that may and whose person gave the password.

Several admins may be at it: each waits a moment of its own, and whoever comes second finds that nothing is missing.
"""

from __future__ import annotations

import logging

from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.space_settings import SpaceSettings
from twinlock.client.sudo import Sudo
from twinlock.errors import TwinlockError

logger = logging.getLogger(__name__)

JITTER_MS_MAX = 1_000
RETRY_MS = 60_000


class Rotations:
    """Looks after the rotations that are due; `tend` is called about once a second."""

    __slots__ = ("_context", "_courier", "_settings", "_sudo")

    def __init__(self, context: DeviceContext, courier: Courier, settings: SpaceSettings, sudo: Sudo) -> None:
        self._context = context
        self._courier = courier
        self._settings = settings
        self._sudo = sudo

    def tend(self, now_ms: int) -> None:
        """Have every space rotated whose time has come."""
        for runtime in self._courier.runtimes.values():
            if not self._is_due(runtime):
                runtime.rotation_ms = None
            elif runtime.rotation_ms is None:
                runtime.rotation_ms = now_ms + self._jitter_ms()
            elif runtime.rotation_ms <= now_ms:
                runtime.rotation_ms = now_ms + RETRY_MS
                self._want(runtime)

    def _is_due(self, runtime: SpaceRuntime) -> bool:
        log = runtime.keyring.log
        role = log.role_of(runtime.keyring.account)
        is_admitting = role is not None and role.may_admit
        return runtime.rotation_wanted and is_admitting and self._sudo.is_granted and self._courier.is_connected

    def _want(self, runtime: SpaceRuntime) -> None:
        async def rotate() -> None:
            if not self._is_due(runtime):
                return
            try:
                await self._settings.rotate(runtime)
            except TwinlockError as exc:
                # The next look at the clock after a while asks again.
                logger.warning("a rotation failed", extra={"space": runtime.space.hex(), "code": exc.code})

        self._courier.want(f"rotate {runtime.space.hex()}", rotate)

    def _jitter_ms(self) -> int:
        return int.from_bytes(self._context.entropy(4), "big") * JITTER_MS_MAX >> 32
