"""Every limit of the protocol, in one place; the same numbers stand in spec/protocol.md, section 8."""

from __future__ import annotations

from typing import Final

ENVELOPE_BYTES_MAX: Final = 1 << 20
PUSH_ENVELOPES_MAX: Final = 64
PUSH_BYTES_MAX: Final = 4 << 20
FRAME_BYTES_MAX: Final = PUSH_BYTES_MAX + (64 << 10)
"""A frame is at most a full push and its wrapping; longer messages close the connection."""

CONNECTION_SPACES_MAX: Final = 512
CONNECTION_PUSHES_IN_FLIGHT_MAX: Final = 64
CONNECTION_CALLS_IN_FLIGHT_MAX: Final = 64
SIGNAL_BYTES_MAX: Final = 16 << 10
LEASE_EPOCHS_MAX: Final = 64
LOG_ENTRY_BYTES_MAX: Final = 64 << 10
LOG_PAGE_ENTRIES_MAX: Final = 512
SPACE_MEMBERS_MAX: Final = 10_000
SPACE_INVITES_MAX: Final = 256
"""Invites of a space that are open at once; those that have expired count until they are withdrawn."""

INVITE_USES_MAX: Final = 10_000
KEYRING_ROWS_MAX: Final = SPACE_MEMBERS_MAX + SPACE_INVITES_MAX
"""Rows in one request: a rotation wraps the new key to every member and every open invite."""

ENTRIES_PAGE_BYTES_MAX: Final = 1 << 20
"""Catch-up reads and sends pages of about this many bytes of envelopes (always at least one)."""

READER_BUFFER_BYTES_MAX: Final = 4 << 20
"""Unsent bytes of a connection above which live delivery stops and it catches up from the log."""

HELLO_TIMEOUT_MS: Final = 10_000
PING_INTERVAL_MS: Final = 25_000
CHALLENGE_TTL_MS: Final = 30_000
RECONNECT_DELAY_MS_MAX: Final = 30_000
RECONNECT_STABLE_MS: Final = 60_000
CLOCK_SKEW_MS_MAX: Final = 5 * 60_000
"""How far a stamp may lie after the entry's receive time before every reader refuses it."""

LEASE_REQUEST_SKEW_MS_MAX: Final = 120_000
DEVICE_KEY_SEALS_MAX: Final = 1 << 32
DEVICE_KEY_BYTES_MAX: Final = 1 << 40
"""Envelopes, and their bytes, sealed under a device's key of one epoch; at half of either a new epoch is asked for."""

TOKEN_BYTES_MAX: Final = 8 << 10
"""A token of the application's own issuer."""

DOCUMENT_ID_BYTES_MAX: Final = 256
COLLECTION_NAME_BYTES_MAX: Final = 256
DOCUMENT_DEPTH_MAX: Final = 32
ACCOUNT_NAME_BYTES_MAX: Final = 128
SPACE_TITLE_BYTES_MAX: Final = 256

BLOB_CHUNK_BYTES: Final = 1 << 20
"""Plaintext of one chunk of a blob; all but the last are full."""

BLOB_CHUNK_TAG_BYTES: Final = 16
BLOB_PART_CHUNKS: Final = 8
BLOB_PART_BYTES: Final = BLOB_PART_CHUNKS * (BLOB_CHUNK_BYTES + BLOB_CHUNK_TAG_BYTES)
"""Sealed bytes of one part of a blob; all but the last are full."""

BLOB_BYTES_MAX: Final = 1 << 40
BLOB_PAGE_COUNT_MAX: Final = 256
HTTP_TOKEN_TTL_MS: Final = 15 * 60_000
