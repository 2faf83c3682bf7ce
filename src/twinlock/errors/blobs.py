"""Errors of blobs and of the bearer tokens that their parts travel with."""

from __future__ import annotations

from twinlock.errors.root import TwinlockError


class BearerError(TwinlockError):
    """The bearer token is missing, malformed or has ended."""

    code, retry = "bearer_refused", "now"
    fix = "Call `session.token` for a new one and repeat the request; the SDK does it by itself."


class BlobConflictError(TwinlockError):
    """The blob is not as this request expects it: begun otherwise, finished, or deleted."""

    code, retry = "blob_conflict", "no"
    fix = "Ask `blob.info` how it stands; another content takes another blob id."


class BlobIncompleteError(TwinlockError):
    """Parts of the blob are missing."""

    code, retry = "blob_incomplete", "no"
    fix = "Ask `blob.begin` which parts are there, put the others, and finish again."
