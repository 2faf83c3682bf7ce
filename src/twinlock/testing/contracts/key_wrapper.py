"""What every key wrapper must do. Subclass with fixtures `wrapper` and `other`: two of a kind, with fresh keys."""

from __future__ import annotations

import os

import pytest

from twinlock.errors import StoreError
from twinlock.ids import Epoch, SpaceId
from twinlock.keyservice.wrapper import KeyWrapper, service_key_context

SECRET = bytes(range(32))
MANY = 250


def context(epoch: int = 1, keyservice_id: bytes = bytes(16)) -> bytes:
    """Return what a service key's wrapping is bound to."""
    return service_key_context(SpaceId(bytes(16)), Epoch(epoch), keyservice_id)


class WrappingContract:
    """Wrapping and unwrapping."""

    def test_a_secret_comes_back(self, wrapper: KeyWrapper) -> None:
        """It is not to be seen in what is stored, and is wrapped differently each time."""
        first, second = wrapper.wrap(SECRET, context()), wrapper.wrap(SECRET, context())

        assert [wrapper.unwrap(wrapped, context()) for wrapped in (first, second)] == [SECRET, SECRET]
        assert first != second
        assert SECRET not in first
        assert wrapper.version_of(first) == wrapper.versions[-1]

    def test_many_come_back_in_order(self, wrapper: KeyWrapper) -> None:
        """More than any batch takes, and none."""
        secrets = [os.urandom(32) for _ in range(MANY)]
        rows = [(wrapper.wrap(secret, context(place)), context(place)) for place, secret in enumerate(secrets)]

        assert wrapper.unwrap_many(rows) == secrets
        assert wrapper.unwrap_many([]) == []
        assert wrapper.rewrap_many([]) == []

    @pytest.mark.parametrize("wrong", [context(epoch=2), context(keyservice_id=bytes([1]) * 16), b"", bytes(61)])
    def test_another_context_is_refused(self, wrapper: KeyWrapper, wrong: bytes) -> None:
        """Another epoch, another key service; one such row refuses all."""
        wrapped = wrapper.wrap(SECRET, context())

        with pytest.raises(StoreError):
            wrapper.unwrap(wrapped, wrong)
        with pytest.raises(StoreError):
            wrapper.rewrap(wrapped, wrong)
        with pytest.raises(StoreError):
            wrapper.unwrap_many([(wrapped, context()), (wrapped, wrong)])

    def test_another_root_key_is_refused(self, wrapper: KeyWrapper, other: KeyWrapper) -> None:
        """Also one with a version of the same number."""
        with pytest.raises(StoreError, match="another root key"):
            other.unwrap(wrapper.wrap(SECRET, context()), context())

    def test_altered_bytes_are_refused(self, wrapper: KeyWrapper) -> None:
        """Wherever they are altered, cut, or made up."""
        wrapped = wrapper.wrap(SECRET, context())
        swapped = {ord("A"): ord("B")}
        altered = [
            wrapped[:place] + bytes([swapped.get(wrapped[place], wrapped[place] ^ 1)]) + wrapped[place + 1 :]
            for place in (0, 5, 12, len(wrapped) // 2)
        ]

        for rubbish in (
            *altered,
            wrapped[:-1],
            wrapped[:10],
            b"",
            bytes(60),
            b"vault:v1:",
            b"vault:v1:AAAA",
            b"\xff" * 90,
        ):
            with pytest.raises(StoreError):
                wrapper.unwrap(rubbish, context())


class VersionContract:
    """Versions of the root key."""

    def test_a_rotation_leaves_the_old_version_readable(self, wrapper: KeyWrapper) -> None:
        """What is wrapped from then on is under the new one."""
        before = wrapper.versions[-1]
        old = wrapper.wrap(SECRET, context())

        version = wrapper.rotate()

        assert version == wrapper.versions[-1] == before + 1
        new = wrapper.wrap(SECRET, context())
        assert [wrapper.version_of(wrapped) for wrapped in (old, new)] == [before, version]
        assert wrapper.unwrap_many([(old, context()), (new, context())]) == [SECRET, SECRET]

    def test_rewrapping_moves_secrets_to_the_active_version(self, wrapper: KeyWrapper) -> None:
        """Many at once, in order."""
        rows = [(wrapper.wrap(bytes([place]) * 32, context(place)), context(place)) for place in range(3)]
        version = wrapper.rotate()

        moved = wrapper.rewrap_many(rows)

        assert {wrapper.version_of(wrapped) for wrapped in moved} == {version}
        secrets = wrapper.unwrap_many([(wrapped, bound) for wrapped, (_, bound) in zip(moved, rows, strict=True)])
        assert secrets == [bytes([place]) * 32 for place in range(3)]

    def test_what_is_wrapped_under_a_destroyed_version_is_lost(self, wrapper: KeyWrapper) -> None:
        """Also under those before it; what was moved on stays."""
        first = wrapper.wrap(SECRET, context())
        second_version = wrapper.rotate()
        second = wrapper.wrap(SECRET, context())
        wrapper.rotate()
        moved = wrapper.rewrap(first, context())

        wrapper.destroy_version(second_version)

        for wrapped in (first, second):
            with pytest.raises(StoreError, match="does not exist"):
                wrapper.unwrap(wrapped, context())
            with pytest.raises(StoreError, match="does not exist"):
                wrapper.rewrap(wrapped, context())
        assert wrapper.unwrap(moved, context()) == SECRET
        assert wrapper.versions == [second_version + 1]

    def test_the_active_version_and_those_that_are_not_there_cannot_be_destroyed(self, wrapper: KeyWrapper) -> None:
        """The active one is what everything hangs on."""
        wrapper.rotate()
        old, active = wrapper.versions
        wrapper.destroy_version(old)

        with pytest.raises(StoreError, match="active"):
            wrapper.destroy_version(active)
        for version in (old, 0, active + 1):
            with pytest.raises(StoreError, match="does not exist"):
                wrapper.destroy_version(version)
        assert wrapper.unwrap(wrapper.wrap(SECRET, context()), context()) == SECRET


class KeyWrapperContract(WrappingContract, VersionContract):
    """Everything that a key wrapper must do."""
