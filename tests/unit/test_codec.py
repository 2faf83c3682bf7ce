"""Frames to bytes and back, and what is no frame."""

import pytest

from twinlock.errors import LimitExceededError, MalformedFrameError
from twinlock.ids import SpaceId
from twinlock.protocol.codec import decode_client, decode_server, encode
from twinlock.protocol.frames import Detach, Goaway, Push
from twinlock.protocol.limits import FRAME_BYTES_MAX

SPACE = SpaceId(b"s" * 16)


def test_frame_comes_back_as_it_went() -> None:
    push = Push(SPACE, [b"one", b"two"])

    assert decode_client(encode(push)) == push


def test_frame_of_the_other_direction_is_refused() -> None:
    with pytest.raises(MalformedFrameError):
        decode_client(encode(Goaway(5)))
    with pytest.raises(MalformedFrameError):
        decode_server(encode(Detach(SPACE)))


def test_surplus_fields_are_passed_over() -> None:
    detach = b"\x93" + encode(Detach(SPACE))[1:] + b"\xa5later"

    assert decode_client(detach) == Detach(SPACE)


def test_surplus_fields_that_nest_without_end_are_refused() -> None:
    bomb = b"\x93" + encode(Detach(SPACE))[1:] + b"\x91" * 100_000 + b"\xc0"

    with pytest.raises(MalformedFrameError):
        decode_client(bomb)


def test_frame_at_the_limit_is_decoded_and_one_byte_more_refused() -> None:
    wrapping = len(encode(Push(SPACE, [bytes(FRAME_BYTES_MAX - 100)]))) - (FRAME_BYTES_MAX - 100)
    largest = encode(Push(SPACE, [bytes(FRAME_BYTES_MAX - wrapping)]))

    assert len(largest) == FRAME_BYTES_MAX
    assert isinstance(decode_client(largest), Push)
    with pytest.raises(LimitExceededError):
        decode_client(largest + b"\0")
