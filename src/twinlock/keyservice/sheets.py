"""Backup sheets: a secret split into n sheets of words, any k of which bring it back (SLIP-39). Pure, no I/O.

The words are those of SLIP-0039, one group, no passphrase, so that other tools can join them as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from shamir_mnemonic import MnemonicError, Share, combine_mnemonics, generate_mnemonics
from shamir_mnemonic.wordlist import WORDLIST

from twinlock.errors import SheetError

SHEETS_MAX = 16
NEEDED_MIN = 2
SECRET_BYTES = 32
SHEET_WORDS = 33
"""How many words hold 32 bytes, their place in the set, and a checksum."""

HEADING = "twinlock backup sheet"
_LINE_WORDS = 11
_PREFIX_LETTERS = 4
"""No two words of the list begin with the same four letters."""


class Sheet(msgspec.Struct, frozen=True):
    """One sheet: `number` of `sheets_count`, any `needed_count` of which are enough; `set_id` tells sets apart."""

    set_id: int
    number: int
    sheets_count: int
    needed_count: int
    words: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Sheet(set_id={self.set_id}, number={self.number}, ...)"

    @property
    def text(self) -> str:
        """The sheet as it is printed and read back."""
        title = f"{HEADING} {self.number} of {self.sheets_count}, set {self.set_id}, any {self.needed_count} are enough"
        lines = [self.words[start : start + _LINE_WORDS] for start in range(0, len(self.words), _LINE_WORDS)]
        return "\n".join([title, *("  " + " ".join(line) for line in lines)]) + "\n"


def make_sheets(secret: bytes, sheets_count: int, needed_count: int) -> list[Sheet]:
    """Split a secret of 32 bytes. Chance comes from the system, by the library.

    Raises:
        SheetError: there are no such numbers of sheets.
    """
    assert len(secret) == SECRET_BYTES
    if not NEEDED_MIN <= needed_count <= sheets_count <= SHEETS_MAX:
        raise SheetError(
            f"{needed_count} of {sheets_count} sheets cannot be: at least {NEEDED_MIN} are needed, "
            f"and there are at most {SHEETS_MAX}"
        )
    # Stretching is for passphrases, and there is none.
    (texts,) = generate_mnemonics(1, [(needed_count, sheets_count)], secret, iteration_exponent=0)
    sheets = [
        Sheet(Share.from_mnemonic(text).identifier, number, sheets_count, needed_count, tuple(text.split()))
        for number, text in enumerate(texts, 1)
    ]
    # Nothing is entrusted to sheets that were not seen to work.
    for chosen in (sheets[:needed_count], sheets[-needed_count:]):
        if join_sheets([" ".join(sheet.words) for sheet in chosen]) != secret:
            raise SheetError("the sheets that were made do not bring the secret back")
    return sheets


def read_sheets(text: str) -> list[str]:
    """Return the words of each sheet in a text.

    A heading, an empty line, or the full number of words ends the sheet before.
    """
    sheets: list[list[str]] = [[]]
    for line in text.splitlines():
        is_heading = line.strip().lower().startswith(HEADING)
        if is_heading or not line.strip() or len(sheets[-1]) >= SHEET_WORDS:
            sheets.append([])
        if not is_heading:
            sheets[-1].extend(line.split())
    return [" ".join(words) for words in sheets if words]


def join_sheets(sheets: Sequence[str]) -> bytes:
    """Return the secret of as many sheets as the set needs; more are checked but not needed.

    Raises:
        SheetError: a sheet is misspelt, given twice or of another set, or there are too few. No word is told.
    """
    shares = [_share(number, words) for number, words in enumerate(sheets, 1)]
    if not shares:
        raise SheetError("no sheet was given")
    first = shares[0]
    for number, share in enumerate(shares[1:], 2):
        if share.group_parameters() != first.group_parameters():
            raise SheetError(
                f"the sheets 1 and {number} that were given are of different sets ({first.identifier} and "
                f"{share.identifier})"
            )
    places: dict[int, int] = {}
    for number, share in enumerate(shares, 1):
        if share.index in places:
            raise SheetError(f"the sheets {places[share.index]} and {number} that were given are the same one")
        places[share.index] = number
    if len(shares) < first.member_threshold:
        raise SheetError(f"{len(shares)} sheets were given, this set needs {first.member_threshold}")
    return _joined(shares)


def set_of(sheet: str) -> int:
    """Return the number of the set that a sheet's words belong to; it stands in the headings too."""
    return int(_share(1, sheet).identifier)


def _joined(shares: Sequence[Share]) -> bytes:
    needed = shares[0].member_threshold
    try:
        # Each further sheet takes the place of the last one in turn, so that a forged one is noticed as well.
        chosen = [[*shares[: needed - 1], last] for last in shares[needed - 1 :]]
        secrets = {combine_mnemonics([share.mnemonic() for share in some]) for some in chosen}
    except MnemonicError as exc:
        raise SheetError("the sheets do not match: one was altered") from exc
    secret = secrets.pop()
    if secrets or len(secret) != SECRET_BYTES:
        raise SheetError("the sheets do not match: one was altered")
    return bytes(secret)


def _share(number: int, words: str) -> Share:
    full = [_full_word(number, place, word) for place, word in enumerate(words.split(), 1)]
    if len(full) != SHEET_WORDS:
        raise SheetError(f"sheet {number} that was given has {len(full)} words instead of {SHEET_WORDS}")
    try:
        share = Share.from_mnemonic(" ".join(full))
    except MnemonicError as exc:
        raise SheetError(f"the words of sheet {number} that was given do not match: one is wrong") from exc
    if share.group_count != 1 or share.iteration_exponent != 0:
        raise SheetError(f"sheet {number} that was given is of a set that Twinlock did not make")
    return share


def _full_word(number: int, place: int, word: str) -> str:
    start = word.lower()[:_PREFIX_LETTERS]
    found = [known for known in WORDLIST if known[:_PREFIX_LETTERS] == start]
    if not found or not found[0].startswith(word.lower()):
        raise SheetError(f"word {place} of sheet {number} that was given is no word of such sheets")
    return str(found[0])
