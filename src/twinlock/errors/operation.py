"""Errors that an operator meets who keeps a server's data safe."""

from __future__ import annotations

from twinlock.errors.root import TwinlockError


class BackupDamagedError(TwinlockError):
    """A backup is not whole: something in it is missing or altered."""

    code, retry = "backup_damaged", "no"
    fix = "Restore an older generation (`--generation`) or another copy of the backup; devices heal what it lacks."
