"""The network cable of a device: bytes pass through it to a server until it is pulled out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 16


class Cable:
    """Listens on a port of its own and passes every connection on; `cut` closes all and listens no more.

    It leads to the first of some servers that answers, as a load balancer does. All that passes is recorded in a file,
    as somebody on the network would.
    """

    def __init__(self, port: int, server_ports: Sequence[int], recording: Path) -> None:
        self.port = port
        self._server_ports = server_ports
        self._recording: BinaryIO = recording.open("wb")
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """The address that the device dials."""
        return f"ws://127.0.0.1:{self.port}"

    async def plug_in(self) -> None:
        """Let connections pass."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Break every connection and let no new one pass."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def close(self) -> None:
        """Cut it for good and finish the recording."""
        await self.cut()
        self._recording.close()

    async def _pass_on(self, device_reader: asyncio.StreamReader, device_writer: asyncio.StreamWriter) -> None:
        connected = await self._dial()
        if connected is None:
            device_writer.transport.abort()
            return
        server_reader, server_writer = connected
        self._open |= {device_writer, server_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(device_reader, server_writer))
                group.create_task(self._pump(server_reader, device_writer))
        finally:
            self._open -= {device_writer, server_writer}

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in self._server_ports:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if not self._recording.closed:
                    self._recording.write(data)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
