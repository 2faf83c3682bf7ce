"""Frames to bytes and back. See spec/protocol.md, section 2."""

from __future__ import annotations

import msgspec

from twinlock.errors import LimitExceededError, MalformedFrameError
from twinlock.protocol.frames import ClientFrame, Hello, ServerFrame
from twinlock.protocol.limits import FRAME_BYTES_MAX

_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[ClientFrame] = msgspec.msgpack.Decoder(ClientFrame)
_server_decoder: msgspec.msgpack.Decoder[ServerFrame] = msgspec.msgpack.Decoder(ServerFrame)

NIL = msgspec.Raw(b"\xc0")


def encode(frame: ClientFrame | ServerFrame) -> bytes:
    """Return a frame's bytes."""
    if type(frame) is Hello and not frame.token:
        # There was no such field at first, and what has no token to show is still written as it was then.
        return _encoder.encode((Hello.__struct_config__.tag, *msgspec.structs.astuple(frame)[:-1]))
    return _encoder.encode(frame)


def decode_client(data: bytes | bytearray | memoryview) -> ClientFrame:
    """Read a frame that a client sent.

    Raises:
        MalformedFrameError, LimitExceededError: the connection must be closed.
    """
    _check_bytes(data)
    try:
        return _client_decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise MalformedFrameError(str(exc)) from exc


def decode_server(data: bytes | bytearray | memoryview) -> ServerFrame:
    """Read a frame that the server sent; raises as `decode_client`."""
    _check_bytes(data)
    try:
        return _server_decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise MalformedFrameError(str(exc)) from exc


def _check_bytes(data: bytes | bytearray | memoryview) -> None:
    if len(data) > FRAME_BYTES_MAX:
        raise LimitExceededError(f"a frame of {len(data)} bytes, {FRAME_BYTES_MAX} at most")
