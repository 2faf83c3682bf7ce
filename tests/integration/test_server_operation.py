"""Running a server: health, metrics, origins, admission, quotas, drain, restart."""

import asyncio
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.server_kit import Wire, hello_to, make_world, open_anonymous, open_wire
from twinlock.client.transport import open_transport, parse_address
from twinlock.engines.memory import MemoryDirectory, MemoryLog
from twinlock.errors import OfflineError, StoreError
from twinlock.ids import Incarnation
from twinlock.protocol.envelope import parse
from twinlock.protocol.frames import Challenge, Goaway, Hello, Notice, Push, Reject, Welcome
from twinlock.server import Server, Settings, SettingsError
from twinlock.server.stores import open_stores


@pytest.fixture
async def start():
    """Start servers in memory with some settings, and stop them at the end."""
    running = []

    async def start_one(stores=None, **values):
        server = Server(Settings(engine="memory:", port=0, **values), stores)
        await server.start()
        running.append(server)
        return server

    yield start_one
    for server in running:
        await server.stop()


async def get(server: Server, path: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://127.0.0.1:{server.port}{path}")


async def test_health_and_readiness_are_told(start):
    server = await start()

    assert (await get(server, "/healthz")).status_code == 200
    assert (await get(server, "/readyz")).status_code == 200
    assert (await get(server, "/no-such-page")).status_code == 404


class FailingDirectory(MemoryDirectory):
    """A directory whose disk is full."""

    __slots__ = ()

    async def put(self, key, value, expect_revision=None):
        raise StoreError("no space left")


async def test_a_server_whose_engine_fails_lives_but_is_not_ready(start):
    stores = await open_stores(Settings(engine="memory:"))

    server = await start(msgspec.structs.replace(stores, directory=FailingDirectory()))

    assert (await get(server, "/healthz")).status_code == 200
    assert (await get(server, "/readyz")).status_code == 503


async def test_metrics_count_and_name_nobody(start):
    server = await start()
    world = await make_world(server)
    wire, chain = await world.open(), world.chain()
    await wire.attach(world.space)
    await wire.push(world.space, chain.next(), chain.next())
    await wire.acked(world.space, 2)
    await wire.push(world.space, chain.make(9, bytes(32)))
    await wire.next(Reject)

    text = (await get(server, "/metrics")).text

    for line in (
        "twinlock_pushes_total 2.0",
        "twinlock_envelopes_acknowledged_total 2.0",
        'twinlock_rejects_total{code="counter_gap"} 1.0',
        "twinlock_deliveries_total 2.0",
    ):
        assert line in text
    for secret in (world.space, world.account.account, world.device.device):
        assert secret.hex() not in text
        assert secret.hex()[:8] not in text
    assert world.name not in text


async def refused_upgrade(server: Server, **options) -> int:
    with pytest.raises(InvalidStatus) as caught:
        await open_wire(server.port, **options)
    return caught.value.response.status_code


async def test_pages_of_other_origins_may_not_connect(start):
    server = await start(browser_origins=["https://app.example"])

    assert await refused_upgrade(server, origin="https://evil.example") == 403
    assert await refused_upgrade(server, origin="null") == 403
    for origin in ("https://app.example", f"http://127.0.0.1:{server.port}"):
        await (await open_wire(server.port, origin=origin)).next(Challenge)


async def raw_answer(server: Server, *lines: str) -> str:
    """Send a request as it is and return the status line."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write("\r\n".join((*lines, "", "")).encode())
    status = (await reader.readline()).decode().strip()
    writer.close()
    return status.partition(" ")[2]


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    [
        ("/sync", {}, "101"),
        ("/sync?from=here", {}, "101"),
        ("/other", {}, "404"),
        ("/sync", {"Sec-WebSocket-Protocol": "twinlock.2"}, "400"),
        ("/sync", {"Sec-WebSocket-Protocol": None}, "400"),
        ("/sync", {"Sec-WebSocket-Version": "8"}, "400"),
        ("/sync", {"Sec-WebSocket-Key": "short"}, "400"),
        ("/sync", {"Sec-WebSocket-Key": None}, "400"),
    ],
)
async def test_the_upgrade_asks_for_what_the_protocol_names(start, path, changes, status):
    server = await start()
    headers = {
        "Host": "here",
        "Connection": "keep-alive, Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "other, twinlock.1",
    }
    lines = [f"{name}: {value}" for name, value in {**headers, **changes}.items() if value is not None]

    assert (await raw_answer(server, f"GET {path} HTTP/1.1", *lines)).startswith(status)


async def test_more_connections_than_allowed_are_told_to_come_later(start):
    server = await start(connections_max=1)
    await open_anonymous(server.port)

    assert await refused_upgrade(server) == 503


async def test_hellos_over_the_rate_are_given_an_appointment_and_ticket_holders_come_first(start):
    server = await start(hellos_per_s=1, hellos_burst=8)
    world = await make_world(server)
    wire = await open_wire(server.port)
    await wire.send(hello_to(await wire.next(Challenge), server.port, world.account, world.device))
    ticket = (await wire.next(Welcome)).ticket
    turned_away = None
    while turned_away is None:
        wire = await open_wire(server.port)
        hello = hello_to(await wire.next(Challenge), server.port, world.account, world.device)
        await wire.send(hello)
        code, _ = await wire.closed() if not await welcomed(wire) else (0, "")
        turned_away = wire if code else None

    [notice] = [frame for frame in turned_away.waiting if isinstance(frame, Notice)]
    assert (notice.code, code) == ("overloaded", 1013)
    assert notice.retry_after_ms >= 500
    wire = await open_wire(server.port)
    hello = hello_to(await wire.next(Challenge), server.port, world.account, world.device)
    await wire.send(msgspec.structs.replace(hello, ticket=ticket))
    assert await welcomed(wire)


async def welcomed(wire) -> bool:
    """Tell whether a hello was taken."""
    frame = await wire.next(Welcome | Notice)
    if isinstance(frame, Notice):
        wire.waiting.append(frame)
    return isinstance(frame, Welcome)


async def test_pushes_over_the_rate_wait_and_pass_later(start):
    server = await start(account_changes_per_s=40)
    world = await make_world(server)
    wire, chain = await world.open(), world.chain()
    burst, late = [chain.next() for _ in range(60)], chain.next()
    await wire.push(world.space, *burst)
    await wire.push(world.space, *(chain.next() for _ in range(30)), late)
    await wire.acked(world.space, 60)

    reject = await wire.next(Reject)

    assert reject.code == "quota_exceeded"
    assert reject.own_counter in (0, 60)
    assert 0 < reject.retry_after_ms < 5_000


async def test_a_full_space_takes_no_more_changes(start):
    server = await start(space_bytes_max=10_000)
    world = await make_world(server)
    wire, chain = await world.open(), world.chain()
    await wire.push(world.space, chain.next(9_000))
    await wire.acked(world.space, 1)

    await wire.push(world.space, chain.make(2, chain.prev, 5_000))

    assert (await wire.next(Reject)).code == "space_full"


async def test_a_stopping_server_answers_what_it_took_and_sends_everybody_away(start):
    server = await start()
    world = await make_world(server)
    wires = [await world.open() for _ in range(5)]
    chain = world.chain()
    await wires[0].push(world.space, chain.next())
    await wires[0].acked(world.space, 1)

    await server.stop()

    for wire in wires:
        code, reason = await wire.closed()
        goaway = next(frame for frame in wire.waiting if isinstance(frame, Goaway))
        assert (code, reason) == (1001, "draining")
        assert goaway.retry_after_ms >= 200
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_everything_acknowledged_is_there_after_a_restart(tmp_path):
    settings = Settings(data=str(tmp_path / "data"), port=0)
    server = Server(settings)
    await server.start()
    world = await make_world(server)
    wire, chain = await world.open(), world.chain()
    sent = [chain.next() for _ in range(20)]
    await wire.push(world.space, *sent)
    await wire.acked(world.space, 20)
    await server.stop()

    again = Server(settings)
    await again.start()
    world.port = again.port
    wire = await world.open()
    attached = await wire.attach(world.space)

    assert (attached.own_counter, attached.incarnation) == (20, world.incarnation)
    assert [entry.envelope for entry in await wire.entries(world.space, 20)] == sent
    await wire.push(world.space, sent[-1], chain.next())
    assert set(await wire.acked(world.space, 21)) >= {21}
    await again.stop()


async def test_the_servers_key_is_its_own_and_stays_the_same(tmp_path):
    settings = Settings(data=str(tmp_path / "data"), port=0)
    keys = []
    for _ in range(2):
        server = Server(settings)
        await server.start()
        keys.append((await (await open_wire(server.port)).next(Challenge)).server_pk)
        await server.stop()
    file = tmp_path / "data" / "server.key"

    assert keys[0] == keys[1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    with pytest.raises(StoreError, match="chmod 600"):
        await Server(settings).start()


async def test_a_port_in_use_is_a_clear_error(start):
    server = await start()

    with pytest.raises(SettingsError, match=str(server.port)):
        await Server(Settings(engine="memory:", port=server.port)).start()


async def test_frames_are_taken_all_at_once_or_byte_by_byte(start):
    server = await start()
    world = await make_world(server)
    wire, chain = await world.open(), world.chain()
    transport = wire.socket.transport
    frames = [msgspec.msgpack.encode(Push(world.space, [chain.next()])) for _ in range(3)]
    for frame in frames:
        mask = os.urandom(4)
        body = bytes(byte ^ mask[place % 4] for place, byte in enumerate(frame))
        for byte in b"\x82\xfe" + len(frame).to_bytes(2, "big") + mask + body:
            transport.write(bytes((byte,)))

    assert 3 in await wire.acked(world.space, 3)


async def test_a_restored_server_is_healed_by_its_devices(start):
    stores = await open_stores(Settings(engine="memory:"))
    server = await start(stores)
    world = await make_world(server)
    wire, chain = await world.open(), world.chain()
    sent = [chain.next() for _ in range(5)]
    await wire.push(world.space, *sent)
    acked = await wire.acked(world.space, 5)
    # The backup was taken after the third entry; the directory and the signed logs are those of then.
    restored = MemoryLog(Incarnation(b"B" * 16))
    await restored.append(world.space, [parse(data) for data in sent[:3]], 0)
    again = await start(msgspec.structs.replace(stores, log=restored))
    world.port = again.port

    wire = await world.open()
    attached = await wire.attach(world.space, acked[5], world.incarnation)
    await wire.push(world.space, *sent[3:])

    assert (attached.incarnation, attached.resume, attached.own_counter) == (b"B" * 16, 3, 3)
    assert [entry.envelope for entry in await wire.entries(world.space, 2)] == sent[3:]


def make_certificate(folder: Path) -> tuple[str, str]:
    """Write a certificate of this machine that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    return str(folder / "cert.pem"), str(folder / "key.pem")


async def test_tls_serves_the_same_from_certificate_files(start, tmp_path):
    certificate, key = make_certificate(tmp_path)
    server = await start(tls_certificate=certificate, tls_key=key)
    trust = ssl.create_default_context(cafile=certificate)
    socket = await connect(
        f"wss://localhost:{server.port}/sync", subprotocols=["twinlock.1"], ssl=trust, proxy=None, compression=None
    )
    wire = Wire(socket, server.port)
    await wire.next(Challenge)

    await wire.send(Hello(os.urandom(32), f"wss://localhost:{server.port}", b"", b"", b""))

    await wire.next(Welcome)
    assert server.url.startswith("wss://")
    await wire.close()


async def test_an_older_tls_is_refused_by_the_server_and_by_the_client(start, tmp_path, monkeypatch):
    certificate, key = make_certificate(tmp_path)
    server = await start(tls_certificate=certificate, tls_key=key)
    old = ssl.create_default_context(cafile=certificate)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await connect(f"wss://localhost:{server.port}/sync", ssl=old, proxy=None)

    behind = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    behind.maximum_version = ssl.TLSVersion.TLSv1_2
    behind.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    async with await asyncio.start_server(
        lambda reader, writer: writer.close(), "localhost", 0, ssl=behind
    ) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(OfflineError, match=r"SSLError|ConnectionResetError"):
            async with open_transport(parse_address(f"wss://localhost:{port}")):
                pass


async def test_files_that_are_no_certificate_are_an_error_of_the_settings(start, tmp_path):
    (tmp_path / "empty.pem").touch()

    with pytest.raises(SettingsError, match="no certificate"):
        await start(tls_certificate=str(tmp_path / "empty.pem"), tls_key=str(tmp_path / "empty.pem"))
    with pytest.raises(SettingsError, match="No such file"):
        await start(tls_certificate=str(tmp_path / "none.pem"), tls_key=str(tmp_path / "none.pem"))
