"""From a code, as it travels, to the error that it names."""

from __future__ import annotations

from twinlock.errors.root import TwinlockError
from twinlock.errors.session import InternalError


def error_from_code(code: str, detail: str = "", retry_after_ms: int = 0) -> TwinlockError:
    """Return the error that another side named by its code; an unknown code becomes an `InternalError` that says it."""
    known = next((error for error in TwinlockError.__subclasses__() if error.code == code), None)
    if known is None:
        return InternalError(f"{code}: {detail}", retry_after_ms=retry_after_ms)
    return known(detail, retry_after_ms=retry_after_ms)
