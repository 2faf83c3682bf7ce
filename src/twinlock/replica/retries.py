"""After how long a push that was refused for now is tried again, whoever pushes."""

from __future__ import annotations

from typing import Final

RETRY_MS_MIN: Final = 250
"""A refused push is not tried again sooner than this."""

ROLE_RETRY_MS: Final = 2_000
"""How long a push that the role forbids waits for a look at the signed log before its writes are refused."""
