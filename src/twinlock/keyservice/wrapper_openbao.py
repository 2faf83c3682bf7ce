"""The root key in OpenBao's Transit engine, which never gives it out. See spec/sealing.md, section 7.

The key is of type `aes256-gcm96` and derived, so that each wrapping is bound to its context. What is stored is
Transit's own text, `vault:v<version>:<base64>`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from twinlock.errors import StoreError
from twinlock.keyservice.openbao_client import Answer, OpenBaoClient
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.keyservice.wrapper import Bound, KeyWrapper

BATCH_MAX = 100
"""Rows in one request, so that a rotation of many keys neither meets a limit of OpenBao nor its time limit."""

Form = TypeVar("Form")

_TYPE = "aes256-gcm96"
_WRAPPED = re.compile(rb"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/]+={0,2}")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_MOUNT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")


class _Key(msgspec.Struct, frozen=True):
    """What OpenBao tells of a key."""

    type: str
    derived: bool
    keys: dict[int, object]
    latest_version: int
    min_available_version: int = 0
    exportable: bool = False
    allow_plaintext_backup: bool = False


class _Result(msgspec.Struct, frozen=True):
    """What became of one row."""

    plaintext: str = ""
    ciphertext: str = ""
    error: str = ""


class OpenBaoKeyWrapper(KeyWrapper):
    """Wraps by requests to Transit, many rows in one."""

    __slots__ = ("_client", "_mount", "_name")

    def __init__(self, client: OpenBaoClient, mount: str, name: str) -> None:
        self._client = client
        self._mount = mount
        self._name = name

    @classmethod
    def open(cls, settings: KeyServiceSettings, is_new: bool) -> OpenBaoKeyWrapper:
        """Connect and check the Transit key; it is made if there is none and the database is new as well.

        Raises:
            StoreError: a setting is wrong, the key is lost, or it is not of the kind that keeps service keys safe.
            KeyServiceError: OpenBao does not answer, is sealed, or refuses the token.
        """
        mount, name = settings.openbao_mount.strip("/"), settings.openbao_key
        if not _MOUNT.fullmatch(mount) or not _NAME.fullmatch(name):
            raise StoreError("openbao_mount or openbao_key is no name")
        client = OpenBaoClient(settings)
        try:
            wrapper = cls(client, mount, name)
            wrapper._check_key(is_new)
        except BaseException:
            client.close()
            raise
        return wrapper

    @property
    def versions(self) -> list[int]:
        """The versions that still exist, the active one last."""
        return sorted(self._key().keys)

    def version_of(self, wrapped: bytes) -> int:
        """Return the version that a secret was wrapped under."""
        found = _WRAPPED.fullmatch(wrapped)
        if found is None:
            raise StoreError("a stored key is no key that OpenBao wrapped")
        return int(found.group(1))

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Return the secret wrapped under the active version."""
        rows = [{"plaintext": _text(secret), "context": _text(context)}]
        return self._all("encrypt", rows)[0].ciphertext.encode("ascii")

    def unwrap_many(self, rows: Sequence[Bound]) -> list[bytes]:
        """Return the secrets of wrapped ones with their contexts."""
        results = self._all("decrypt", self._ciphertexts(rows))
        try:
            return [base64.b64decode(result.plaintext, validate=True) for result in results]
        except (binascii.Error, ValueError) as exc:
            raise StoreError("OpenBao returned a key of no proper form") from exc

    def rewrap_many(self, rows: Sequence[Bound]) -> list[bytes]:
        """Return the same secrets wrapped under the active version; OpenBao does it without telling them."""
        return [result.ciphertext.encode("ascii") for result in self._all("rewrap", self._ciphertexts(rows))]

    def rotate(self) -> int:
        """Make a new version and use it from now on."""
        self._done(self._client.call("POST", f"{self._path('keys')}/rotate"))
        return self._key().latest_version

    def destroy_version(self, version: int) -> None:
        """Let Transit refuse a version and all before it, then delete them.

        Raises:
            StoreError: it is the active one, or does not exist.
        """
        key = self._key()
        if version == key.latest_version:
            raise StoreError("the active version of the root key cannot be destroyed")
        # A version that is refused already but not yet deleted was begun with before: it is finished now.
        if not max(1, key.min_available_version) <= version < key.latest_version:
            raise StoreError(f"version {version} of the root key does not exist (any more)")
        least = version + 1
        floor = {"min_decryption_version": least, "min_encryption_version": least}
        self._done(self._client.call("POST", f"{self._path('keys')}/config", floor))
        self._done(self._client.call("POST", f"{self._path('keys')}/trim", {"min_available_version": least}))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _path(self, operation: str) -> str:
        return f"{self._mount}/{operation}/{self._name}"

    def _check_key(self, is_new: bool) -> None:
        answer = self._client.call("GET", self._path("keys"))
        if is_new and not answer.ok and not answer.errors:
            self._done(self._client.call("POST", self._path("keys"), {"type": _TYPE, "derived": True}))
        key = self._key()
        if key.type != _TYPE or not key.derived:
            raise StoreError(f"the Transit key {self._name} is not of type {_TYPE} with derived = true")
        if key.exportable or key.allow_plaintext_backup:
            raise StoreError(f"the Transit key {self._name} can be exported: name one that cannot")

    def _key(self) -> _Key:
        answer = self._client.call("GET", self._path("keys"))
        if not answer.ok and not answer.errors:
            raise StoreError(f"OpenBao has no Transit key {self._name}: the root key of this database is lost")
        self._done(answer)
        return _converted(answer.data, _Key)

    def _ciphertexts(self, rows: Sequence[Bound]) -> list[Mapping[str, str]]:
        # Asked here first, so that bytes of another kind of wrapper are named as such.
        for wrapped, _ in rows:
            self.version_of(wrapped)
        return [{"ciphertext": wrapped.decode("ascii"), "context": _text(context)} for wrapped, context in rows]

    def _all(self, operation: str, rows: Sequence[Mapping[str, str]]) -> list[_Result]:
        return [result for start in range(0, len(rows), BATCH_MAX) for result in self._some(operation, rows, start)]

    def _some(self, operation: str, rows: Sequence[Mapping[str, str]], start: int) -> Iterator[_Result]:
        batch = rows[start : start + BATCH_MAX]
        answer = self._client.call("POST", self._path(operation), {"batch_input": batch})
        if "batch_results" not in answer.data:
            self._done(answer)
        results = _converted(answer.data.get("batch_results"), list[_Result])
        if len(results) != len(batch):
            raise StoreError(f"OpenBao answered {len(results)} of {len(batch)} rows")
        for result in results:
            if result.error:
                raise StoreError(_meaning(result.error))
        return iter(results)

    def _done(self, answer: Answer) -> None:
        if answer.ok:
            return
        if answer.complains_of("key not found"):
            raise StoreError(f"OpenBao has no Transit key {self._name}: the root key of this database is lost")
        if answer.complains_of("no handler for route"):
            raise StoreError(f"OpenBao has no Transit engine at {self._mount}")
        raise StoreError(f"OpenBao refuses: {'; '.join(answer.errors) or answer.status}")


def _meaning(error: str) -> str:
    if "too old" in error:
        return "a stored key was wrapped under a version of the root key that does not exist (any more)"
    if "authentication failed" in error or "ciphertext" in error:
        return "a stored key was wrapped by another root key, or was altered"
    return f"OpenBao refuses a stored key: {error}"


def _converted(value: object, kind: type[Form]) -> Form:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.MsgspecError as exc:
        raise StoreError("OpenBao answered in a form that this version does not know") from exc


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
