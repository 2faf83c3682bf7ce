"""Errors of a cluster's partitions."""

from __future__ import annotations

from twinlock.errors.root import TwinlockError


class PartitionClosedError(TwinlockError):
    """The partition of a new space takes no new spaces."""

    code, retry = "partition_closed", "now"
    fix = "Ask `space.partitions` again and make the space in one of those; the SDK does it by itself."
