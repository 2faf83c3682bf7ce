"""The list of denied spaces on a disk that fills up."""

import resource
from contextlib import contextmanager

import pytest

from twinlock.errors import StoreError
from twinlock.ids import SpaceId
from twinlock.keyservice.deny_list import DenyList

FIRST, SECOND, THIRD = (SpaceId(bytes([number]) * 16) for number in range(3))


@contextmanager
def room_for(size: int):
    """Let no file grow past a size: the kernel cuts the write short there, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_that_a_full_disk_cut_short_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "denied.txt"
    denied = DenyList(path)
    denied.add(FIRST)
    size = path.stat().st_size

    with room_for(size + 4), pytest.raises(StoreError):
        denied.add(SECOND)

    assert SECOND not in denied
    assert path.stat().st_size == size
    denied.add(THIRD)
    assert list(DenyList(path)) == [FIRST, THIRD]
