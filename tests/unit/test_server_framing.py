"""WebSocket frames: whatever way the bytes are cut, the same messages come out, and nothing wrong gets in."""

import os
import random

import pytest
from websockets.frames import Frame
from websockets.frames import Opcode as TheirOpcode

from twinlock.protocol.limits import FRAME_BYTES_MAX
from twinlock.server.framing import (
    CloseCode,
    FramingError,
    MessageReader,
    Opcode,
    binary_message,
    close_message,
)


def masked(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    """Build a client's frame with the library that clients use."""
    return Frame(TheirOpcode(opcode), payload, fin).serialize(mask=True)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_message_of_any_size_is_read(size):
    payload = os.urandom(size)

    assert MessageReader().feed(masked(Opcode.BINARY, payload)) == [(Opcode.BINARY, payload)]


@pytest.mark.parametrize("seed", range(20))
def test_cuts_in_the_stream_change_nothing(seed):
    chance = random.Random(seed)
    payloads = [chance.randbytes(chance.choice((0, 5, 130, 70_000))) for _ in range(12)]
    stream = b"".join(masked(Opcode.BINARY, payload) for payload in payloads)
    reader, read, place = MessageReader(), [], 0

    while place < len(stream):
        step = chance.choice((1, 3, 100, 5_000, 80_000))
        read += reader.feed(stream[place : place + step])
        place += step

    assert [payload for _, payload in read] == payloads


def test_fragments_come_out_as_one_message_with_controls_between():
    stream = masked(2, b"one ", fin=False) + masked(9, b"ping") + masked(0, b"two ", fin=False) + masked(0, b"three")

    assert MessageReader().feed(stream) == [(Opcode.PING, b"ping"), (Opcode.BINARY, b"one two three")]


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (binary_message(b"unmasked"), CloseCode.PROTOCOL_ERROR),
        (masked(1, b"text"), CloseCode.UNSUPPORTED),
        (masked(0, b"a continuation of nothing"), CloseCode.PROTOCOL_ERROR),
        (masked(2, b"begun", fin=False) + masked(2, b"another"), CloseCode.PROTOCOL_ERROR),
        (b"\xc2\x80\0\0\0\0", CloseCode.PROTOCOL_ERROR),
        (b"\x83\x80\0\0\0\0", CloseCode.PROTOCOL_ERROR),
        (b"\x09\x80\0\0\0\0", CloseCode.PROTOCOL_ERROR),
        (b"\x89\xfe\x00\x80\0\0\0\0", CloseCode.PROTOCOL_ERROR),
    ],
    ids=["unmasked", "text", "stray", "mixed", "reserved", "opcode", "cut control", "long control"],
)
def test_what_breaks_the_websocket_protocol_ends_the_reading(stream, code):
    with pytest.raises(FramingError) as caught:
        MessageReader().feed(stream)

    assert caught.value.code == code


def test_a_message_over_the_limit_is_refused_by_its_header_alone():
    header = b"\x82\xff" + (FRAME_BYTES_MAX + 1).to_bytes(8, "big") + bytes(4)

    with pytest.raises(FramingError) as caught:
        MessageReader().feed(header)

    assert caught.value.code == CloseCode.TOO_BIG


def test_a_message_of_the_limit_is_read():
    [(_, payload)] = MessageReader().feed(masked(2, bytes(FRAME_BYTES_MAX)))

    assert len(payload) == FRAME_BYTES_MAX


def test_fragments_together_keep_to_the_limit():
    reader = MessageReader()
    reader.feed(masked(2, bytes(FRAME_BYTES_MAX), fin=False))

    with pytest.raises(FramingError):
        reader.feed(masked(0, b"x"))


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_what_the_server_builds_is_what_clients_read(size):
    payload = os.urandom(size)

    assert binary_message(payload) == Frame(TheirOpcode.BINARY, payload).serialize(mask=False)


def test_a_long_reason_is_cut_to_what_a_close_can_carry():
    assert len(close_message(CloseCode.POLICY, "x" * 500)) == 2 + 125
