"""The root of every error that a caller can meet."""

from __future__ import annotations

from typing import ClassVar


class TwinlockError(Exception):
    """The root of every error: a code, a sentence (the docstring), and what to do about it.

    Args:
        detail: what was special this time; without it the standing sentence says it all.
        retry_after_ms: when a retry makes sense, if the other side said so.
    """

    code: ClassVar[str] = "internal"
    fix: ClassVar[str] = ""
    retry: ClassVar[str] = "no"

    def __init__(self, detail: str = "", *, retry_after_ms: int = 0) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        cause = f" ({self.detail})" if self.detail else ""
        return f"{self.code}: {self.__doc__}{cause} {self.fix}".rstrip()
