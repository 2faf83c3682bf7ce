"""Names of accounts, in the one form in which every side hashes and compares them. See spec/sealing.md, section 1."""

from __future__ import annotations

import re

from twinlock.errors import NameInvalidError
from twinlock.protocol.limits import ACCOUNT_NAME_BYTES_MAX

_ALLOWED = re.compile(r"[a-z0-9._@+-]+")


def account_name(text: str) -> str:
    """Return a name lower-cased and checked.

    Raises:
        NameInvalidError: empty, too long, or other characters than ASCII `a-z 0-9 . _ @ + -`.
    """
    # Only ASCII is lowered: a letter such as the Kelvin sign must not turn into an allowed one.
    name = text.lower() if text.isascii() else text
    if len(name) > ACCOUNT_NAME_BYTES_MAX or _ALLOWED.fullmatch(name) is None:
        raise NameInvalidError
    return name
