"""Messages as the server builds them are those that the library would."""

import pytest
from websockets.frames import Frame, Opcode

from twinlock.server.framing import PING, binary_message


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_message_of_any_size_is_framed_as_the_library_frames_it(size):
    payload = bytes(size)

    assert binary_message(payload) == Frame(Opcode.BINARY, payload).serialize(mask=False)


def test_a_ping_is_the_librarys():
    assert Frame(Opcode.PING, b"").serialize(mask=False) == PING
