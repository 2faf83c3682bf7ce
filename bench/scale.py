"""How much is done: everything in a real run, a few seconds' worth in a smoke run."""

from __future__ import annotations

import msgspec

PAYLOAD_BYTES = 256


class Scale(msgspec.Struct, frozen=True):
    """The size of a run: full, or quick for a smoke test whose figures mean little."""

    quick: bool = False
    runs: int = 3
    """How often everything is measured; the median counts."""

    def count(self, full: int, quick: int) -> int:
        """Return how many, for the size of this run."""
        return quick if self.quick else full
