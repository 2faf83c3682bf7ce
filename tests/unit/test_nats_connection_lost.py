"""A NATS server that dies while a node shakes hands with it: the node goes on to one that lives."""

import asyncio
import json

from twinlock.engines.jetstream_connection import Connection
from twinlock.engines.jetstream_options import NatsOptions

INFO = b"INFO " + json.dumps({"server_id": "x", "headers": True, "jetstream": True}).encode() + b"\r\n"


class DyingServer:
    """Answers the first handshakes and is gone at once; later ones last, and every request is answered."""

    def __init__(self, deaths):
        self.deaths = deaths
        self.writers = []

    async def serve(self, reader, writer):
        self.writers.append(writer)
        writer.write(INFO)
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
                if self.deaths:
                    self.deaths -= 1
                    writer.close()
                    return
            elif line.startswith(b"PUB"):
                _, _, reply, size = line.split()
                await reader.readexactly(int(size) + 2)
                writer.write(b"MSG %b 1 2\r\nok\r\n" % reply)


async def test_a_server_that_dies_at_the_end_of_the_handshake_is_not_taken_for_a_connection():
    server = DyingServer(deaths=0)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    connection = Connection(NatsOptions.from_url(f"nats://127.0.0.1:{port}"))
    await connection.open()

    server.deaths = 1
    server.writers[0].close()
    async with asyncio.timeout(10):
        while (answer := await connection.request(b"anything", b"", 1.0)) is None:
            await connection.wait_up(1.0)
            await asyncio.sleep(0.01)

    assert answer.payload == b"ok"
    await connection.close()
    for writer in server.writers:
        writer.close()
    listener.close()
