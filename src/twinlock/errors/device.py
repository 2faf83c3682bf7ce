"""Errors of this device's files, and the application's own data."""

from __future__ import annotations

from twinlock.errors.root import TwinlockError


class ProfileInUseError(TwinlockError):
    """This profile is open already, in this process or in another one."""

    code, retry = "profile_in_use", "later"
    fix = "Close it there, or use a profile of its own."


class ProfileMissingError(TwinlockError):
    """There is no profile here."""

    code, retry = "profile_missing", "no"
    fix = "Start `twinlock dev`, or sign up, pair or recover with `profile=...`."


class ProfileExistsError(TwinlockError):
    """There is a profile here already."""

    code, retry = "profile_exists", "no"
    fix = "Choose another folder, or remove the profile if it is not needed."


class StoreDamagedError(TwinlockError):
    """A file of this device's store was altered or is damaged."""

    code, retry = "store_damaged", "no"
    fix = "Remove the replica file and connect: the data comes back from the server; unsent writes in it are lost."


class StoreKeyError(TwinlockError):
    """The key of this device's store is not to be had."""

    code, retry = "store_key_unavailable", "no"
    fix = "Unlock the system's keyring, or give the passphrase."


class StoreError(TwinlockError):
    """The disk or the store refused to work."""

    code, retry = "store_failed", "later"
    fix = "Mend what is named; else look at the disk's room and health. Nothing unacknowledged was promised."


class InvalidDataError(TwinlockError):
    """A value cannot be stored."""

    code, retry = "invalid_data", "no"
    fix = (
        "Use null, bool, int of 64 bits, float, str, bytes, datetime, list and dict with string keys, at most 32 deep."
    )


class InvalidQueryError(TwinlockError):
    """A query is not of a form that can be answered."""

    code, retry = "invalid_query", "no"
    fix = "Use the operators of docs/reference/queries.md."


class DocumentTooLargeError(TwinlockError):
    """A document or batch is over the limit of 1 MiB sealed."""

    code, retry = "document_too_large", "no"
    fix = "Split it, or keep large content in a file."


class FileDamagedError(TwinlockError):
    """The server's bytes of a file are not those that were sealed."""

    code, retry = "file_damaged", "no"
    fix = "Put the file again from a device that has it, or have the operator restore the server's blobs."


class FileTooLargeError(TwinlockError):
    """A file is too large for this."""

    code, retry = "file_too_large", "no"
    fix = "Read it with `save` or `stream`, which hold a part of it at a time; a file has at most 1 TiB sealed."


class SchemaError(TwinlockError):
    """A value does not fit the collection's type."""

    code, retry = "schema_mismatch", "no"
    fix = "Correct the value, or the type; reads hand over the raw value with this error."
