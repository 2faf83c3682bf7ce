"""The key service as a process of its own: a server that uses it, strangers, floods, and days without it."""

import asyncio

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from tests.client_kit import PASSWORD, World, until, values
from tests.keyservice_kit import Node, counted_posts, lease_now, life_of, opened_now
from tests.openbao_kit import write_certificate
from twinlock.cli.commands import commands
from twinlock.errors import (
    KeyServiceError,
    LeaseRefusedError,
    NodeRefusedError,
    StoreError,
)
from twinlock.ids import LogId
from twinlock.keyservice.app import KeyServiceProcess
from twinlock.keyservice.calls import REQUEST_BYTES_MAX, ReadCall
from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, public_key_text
from twinlock.keyservice.node_auth import ANSWER_HEADER, REQUEST_HEADER
from twinlock.keyservice.remote import RemoteKeyService
from twinlock.keyservice.service import wall_clock_ms
from twinlock.keyservice.settings import ProcessSettings
from twinlock.protocol.frames import Leases
from twinlock.sealing.space_entries import config_lease_entry
from twinlock.server import Server, Settings
from twinlock.testing.contracts.key_requests import registered
from twinlock.testing.keyservice_process import KeyServiceChild


@pytest.fixture(scope="module")
def node():
    return Node()


@pytest.fixture(scope="module")
def service(tmp_path_factory, node):
    """A running key service that knows the node; a process takes a second to start, so it serves all tests here."""
    with KeyServiceChild(tmp_path_factory.mktemp("shared") / "keyservice", [node.public_key]) as child:
        yield child


@pytest.fixture
async def keys(service, node):
    keys = node.connect(service)
    yield keys
    await keys.close()


@pytest.fixture
def own_service(tmp_path, node):
    """One that the test may stop and kill."""
    with KeyServiceChild(tmp_path / "keyservice", [node.public_key]) as child:
        yield child


@pytest.fixture
async def own_keys(own_service, node):
    keys = node.connect(own_service)
    yield keys
    await keys.close()


def command(*words: str):
    """Run a command in this process."""
    return CliRunner().invoke(commands, ["keyservice", *words])


class ApartWorld(World):
    """A server whose key service is a process of its own, on the keys of the template."""

    def __init__(self, folder, template) -> None:
        node_key = open_signing_key(folder / "node" / NODE_KEY_NAME)
        self.keys = KeyServiceChild(folder / "apart", [public_key_text(node_key)])
        super().__init__(folder, template)
        # What a server held so far becomes the folder of the key service.
        (folder / "server" / "keyservice").rename(self.keys.data)
        (folder / "node" / NODE_KEY_NAME).rename(folder / "server" / NODE_KEY_NAME)
        self.server = self._server(0)

    def _server(self, port):
        return Server(
            Settings(
                data=str(self.folder / "server"),
                port=port,
                log_level="error",
                drain_ms=200,
                keyservice_url=self.keys.url,
                # Before its folder is in place there is no key yet, and no server is started either.
                keyservice_pk=self.keys.public_key if self.keys.data.exists() else "ab" * 32,
            )
        )


@pytest.fixture
async def apart(tmp_path, account_template):
    """A server with an account and the profiles "a" and "b", and its key service in another process."""
    world = ApartWorld(tmp_path, account_template)
    with world.keys:
        await world.start()
        yield world
        await world.close()


class TestServing:
    async def test_devices_work_with_it_and_without_it_for_a_while(self, apart):
        """The service is killed while they work: the leases that they have go on, also when the server starts again."""
        a, b = await apart.device("a"), await apart.device("b")
        await a.unlock(PASSWORD)
        garden = await a.create_space("garden")
        await (await a.space("home").collection("todos").doc("1").set({"text": "milk"})).durable()
        await until(lambda: len(b.spaces()) == len(a.spaces()))
        assert values(await b.space("home").collection("todos").get()) == [{"text": "milk"}]

        apart.keys.kill()
        await (await garden.collection("plants").doc("1").set({"name": "rose"})).durable()
        with pytest.raises(KeyServiceError):
            await a.create_space("cellar")
        await b.close()
        b = await apart.device("b")
        await until(lambda: b.status == "connected")
        await (await b.space("home").collection("todos").doc("2").set({"text": "bread"})).durable()
        await a.synced()
        assert len(await a.space("home").collection("todos").get()) == 2

        await apart.stop()
        await apart.restart()
        await until(lambda: a.status == b.status == "connected")
        await (await a.space("home").collection("todos").doc("3").set({"text": "salt"})).durable()

        apart.keys.start()
        await until_works(lambda: a.create_space("cellar"))

    async def test_a_server_that_the_key_service_does_not_know_does_not_start(self, tmp_path, service):
        settings = Settings(data=str(tmp_path), port=0, keyservice_url=service.url, keyservice_pk=service.public_key)

        with pytest.raises(NodeRefusedError, match="named"):
            await Server(settings).start()

    async def test_keys_of_one_kind_are_never_sought_with_the_other(self, tmp_path):
        own, url = str(tmp_path / "own"), {"keyservice_url": "http://127.0.0.1:1", "keyservice_pk": "ab" * 32}
        server = Server(Settings(data=own, port=0))
        await server.start()
        await server.stop()

        with pytest.raises(StoreError, match="move it"):
            await Server(Settings(data=own, port=0, **url)).start()

        apart = str(tmp_path / "apart")
        server = Server(Settings(data=apart, port=0, **url))
        await server.start()
        await server.stop()
        with pytest.raises(StoreError, match="keyservice_url"):
            await Server(Settings(data=apart, port=0)).start()


async def until_works(call) -> None:
    """Try again until the key service is tried again."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await call()
            except KeyServiceError as error:
                await asyncio.sleep(error.retry_after_ms / 1000)


class TestProcess:
    def test_it_tells_its_health_and_what_it_counts(self, service):
        assert service.get("/healthz")[0] == 200
        assert service.get("/readyz")[0] == 200
        status, text = service.get("/metrics")
        assert status == 200
        assert b"twinlock_keyservice_in_flight 0.0" in text
        assert service.get("/calls")[0] == 405

    async def test_it_ends_in_good_order_and_its_log_holds_no_secret(self, own_service, own_keys, node):
        space = await opened_now(own_keys)
        leases = await lease_now(own_keys, space.owner, space.id, 1)
        with pytest.raises(LeaseRefusedError):
            await lease_now(own_keys, await registered(own_keys), space.id, 1)
        asked = [asyncio.ensure_future(lease_now(own_keys, space.owner, space.id, 1)) for _ in range(50)]
        await asyncio.sleep(0.01)

        await asyncio.to_thread(own_service.stop)

        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} <= {Leases, KeyServiceError}
        log = own_service.log_path.read_text()
        assert '"message": "stopped"' in log
        secrets = [space.epochs[1].service_key.expose(), leases.grants[0].sealed, node.key.private_bytes_raw()]
        secrets.append((own_service.data / "service.key").read_bytes())
        assert [secret for secret in secrets if secret.hex() in log or repr(secret) in log] == []

    async def test_what_was_answered_survives_a_kill(self, own_service, own_keys):
        space = await opened_now(own_keys)
        refused = await asyncio.to_thread(command, "rotate-root", "--config", str(own_service.config))
        assert refused.exit_code == 1
        assert "stop it first" in refused.stderr
        own_service.kill()
        with pytest.raises(KeyServiceError) as down:
            await own_keys.read_log(space.log, 0)
        assert down.value.retry_after_ms > 0
        with pytest.raises(KeyServiceError, match="a moment ago"):
            await own_keys.read_log(space.log, 0)

        rotated = await asyncio.to_thread(command, "rotate-root", "--config", str(own_service.config))
        own_service.start()
        await until_works(lambda: own_keys.read_log(space.log, 0))

        assert "1 keys are wrapped" in rotated.stdout
        assert await own_keys.read_log(space.log, 0) == space.entries
        assert len((await lease_now(own_keys, space.owner, space.id, 1)).grants) == 1

    async def test_a_long_log_comes_in_pages(self, tmp_path, node, monkeypatch):
        monkeypatch.setattr("twinlock.keyservice.dispatch.LOG_PAGE_BYTES_MAX", 500)
        service = KeyServiceProcess(ProcessSettings(data=str(tmp_path / "keys"), port=0, nodes=[node.public_key]))
        await service.start()
        keys = RemoteKeyService.connect(service.url, node.identity(service.service_pk), wall_clock_ms)
        space = await opened_now(keys)
        for hours in range(8):
            await space.append(keys, config_lease_entry(space.owner.keys, space.state, hours))
        posts = counted_posts(monkeypatch)

        assert await keys.read_log(space.log, 0) == space.entries
        assert len(posts) > 2
        assert await keys.read_log(space.log, 3) == space.entries[3:]
        await keys.close()
        await service.stop()

    @pytest.mark.parametrize(
        ("line", "told"),
        [("host = '0.0.0.0'", "tls_certificate"), ("nodes = []", "nodes is missing"), ("wishes = 3", "wishes")],
    )
    def test_unsafe_settings_are_wrong_usage(self, tmp_path, node, line, told):
        config = tmp_path / "keyservice.toml"
        nodes = "" if "nodes" in line else f'nodes = ["{node.public_key}"]'
        config.write_text(f"data = '{tmp_path / 'data'}'\n{nodes}\n{line}\n")

        refused = command("--config", str(config))

        assert refused.exit_code == 2
        assert told in refused.stderr

    def test_both_sides_keys_are_told_by_commands(self, tmp_path, service):
        data = tmp_path / "server"

        assert command("public-key", "--config", str(service.config)).stdout.strip() == service.public_key
        told = command("node-key", "--data", str(data)).stdout.strip()

        assert told == public_key_text(open_signing_key(data / NODE_KEY_NAME))
        assert (data / NODE_KEY_NAME).stat().st_mode & 0o777 == 0o600

    def test_a_folder_without_a_key_service_has_no_root_key_to_rotate(self, tmp_path):
        assert command("rotate-root", "--data", str(tmp_path)).exit_code == 1
        assert list(tmp_path.iterdir()) == []


class TestStrangers:
    async def test_a_node_that_is_not_named_gets_nothing(self, service, keys):
        space = await opened_now(keys)
        stranger = Node().connect(service)

        with pytest.raises(NodeRefusedError):
            await stranger.probe()
        with pytest.raises(KeyServiceError, match="does not take requests of this node"):
            await stranger.read_log(space.log, 0)
        await stranger.close()

    async def test_a_captured_request_is_refused_the_second_time(self, service, node):
        captured = []

        async def capture(request):
            captured.append((request.headers, await request.aread()))

        keys = node.connect(service, event_hooks={"request": [capture]})
        await registered(keys)
        await keys.close()

        async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
            for headers, body in captured:
                answer = await client.post("/calls", content=body, headers=headers)
                assert answer.status_code in (403, 409)

    @pytest.mark.parametrize("headers", [{}, {REQUEST_HEADER: "?"}, {REQUEST_HEADER: "A" * 5000}])
    async def test_a_request_without_a_proof_is_refused(self, service, headers):
        async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
            answer = await client.post("/calls", content=b"\x90", headers=headers)

        assert answer.status_code == 403
        assert ANSWER_HEADER not in answer.headers

    async def test_a_strangers_body_is_not_read(self, service):
        """However long it says it will be: the answer comes before it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"POST /calls HTTP/1.1\r\nhost: keys\r\ncontent-length: 999999999999\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"403" in await reader.readline()
        writer.close()
        await writer.wait_closed()

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"", 400),
            (b"\x90", 400),
            (b"\x91\x91\x09", 400),
            (b"\xc1", 400),
            (b"\xdc\xff\xff" + b"\x93\x02\xc4\x00\x00" * 65_535, 400),
            (bytes(REQUEST_BYTES_MAX + 1), 413),
        ],
    )
    async def test_a_body_that_is_no_batch_is_refused_with_a_signed_answer(self, service, node, body, status):
        identity = node.identity(bytes.fromhex(service.public_key))
        async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
            life = await life_of(client, identity)
            request = identity.sign(body, life, wall_clock_ms())
            answer = await client.post("/calls", content=body, headers={REQUEST_HEADER: request.header})

        assert answer.status_code == status
        identity.check_answer(request, status, answer.headers[ANSWER_HEADER], answer.content)

    async def test_what_was_refused_by_a_signed_answer_is_not_done_afterwards(self, service, node):
        """Who sits between the two must not get a refusal with which the node believes that nothing was done."""
        identity = node.identity(bytes.fromhex(service.public_key))
        async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
            body = msgspec.msgpack.encode([ReadCall(LogId(bytes(16)), 0)])
            request = identity.sign(body, await life_of(client, identity), wall_clock_ms())
            headers = {REQUEST_HEADER: request.header}
            refused = await client.post("/calls", content=bytes(REQUEST_BYTES_MAX + 1), headers=headers)
            identity.check_answer(request, 413, refused.headers[ANSWER_HEADER], refused.content)

            assert (await client.post("/calls", content=body, headers=headers)).status_code == 403

    async def test_a_captured_header_takes_up_no_room(self, service, node):
        identity = node.identity(bytes.fromhex(service.public_key))
        async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
            request = identity.sign(b"\x90", await life_of(client, identity), wall_clock_ms())
            await client.post("/calls", content=b"\x90", headers={REQUEST_HEADER: request.header})

        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        header = f"{REQUEST_HEADER}: {request.header}".encode()
        writer.write(b"POST /calls HTTP/1.1\r\nhost: keys\r\n" + header + b"\r\ncontent-length: 1000\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"403" in await reader.readline()
        writer.close()
        await writer.wait_closed()

    async def test_an_altered_answer_is_not_believed(self, service, node):
        class Meddler(httpx.AsyncHTTPTransport):
            """Sits between the two and turns a bit of every answer."""

            async def handle_async_request(self, request):
                response = await super().handle_async_request(request)
                data = bytearray(await response.aread())
                data[-1] ^= 1
                return httpx.Response(
                    response.status_code, headers=response.headers, stream=httpx.ByteStream(bytes(data))
                )

        keys = node.connect(service, transport=Meddler())

        with pytest.raises(KeyServiceError, match="not signed by the key that is pinned"):
            await keys.read_log(bytes(16), 0)
        await keys.close()

    async def test_another_service_at_the_address_is_not_believed(self, service, node):
        identity = node.identity(public_bytes(Ed25519PrivateKey.generate()))
        keys = RemoteKeyService.connect(service.url, identity, wall_clock_ms)

        with pytest.raises(KeyServiceError, match="not signed"):
            await keys.probe()
        await keys.close()

    async def test_tls_is_checked_against_the_authority_that_is_named(self, tmp_path, node):
        key_file, certificate_file = write_certificate(tmp_path, tmp_path / "authority.pem")
        other = tmp_path / "other"
        other.mkdir()
        write_certificate(other, other / "authority.pem")
        settings = ProcessSettings(
            data=str(tmp_path / "keys"),
            port=0,
            nodes=[node.public_key],
            tls_certificate=str(certificate_file),
            tls_key=str(key_file),
        )
        service = KeyServiceProcess(settings)
        await service.start()
        for authority, is_taken in ((tmp_path, True), (other, False)):
            identity = node.identity(service.service_pk)
            keys = RemoteKeyService.connect(service.url, identity, wall_clock_ms, str(authority / "authority.pem"))
            if is_taken:
                await keys.probe()
            else:
                with pytest.raises(KeyServiceError, match="CERTIFICATE_VERIFY_FAILED"):
                    await keys.probe()
            await keys.close()
        await service.stop()


def public_bytes(key) -> bytes:
    return key.public_key().public_bytes_raw()
