"""The root key in a real OpenBao: the contract of every key wrapper, and what only a server of its own can do wrong."""

import socket

import pytest

from tests.openbao_kit import OpenBao
from twinlock.errors import KeyServiceError, StoreError
from twinlock.keyservice import LocalKeyService
from twinlock.keyservice.backup import back_up, restore
from twinlock.keyservice.drill import drill
from twinlock.keyservice.openbao_client import OpenBaoClient
from twinlock.keyservice.wrapper_openbao import OpenBaoKeyWrapper
from twinlock.keyservice.wrappers import open_wrapper
from twinlock.testing.contracts import KeyWrapperContract
from twinlock.testing.contracts.key_requests import lease
from twinlock.testing.contracts.key_requests import opened as opened_space
from twinlock.testing.contracts.key_wrapper import SECRET, context
from twinlock.testing.contracts.members import NOW_MS


@pytest.fixture(scope="module")
def bao(tmp_path_factory):
    server = OpenBao(tmp_path_factory.mktemp("bao"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def settings(bao):
    return bao.settings()


def opened(settings, is_new=True):
    return OpenBaoKeyWrapper.open(settings, is_new)


@pytest.fixture
def wrapper(settings):
    wrapper = opened(settings)
    yield wrapper
    wrapper.close()


class TestOpenBaoWrapper(KeyWrapperContract):
    @pytest.fixture
    def other(self, bao):
        wrapper = opened(bao.settings())
        yield wrapper
        wrapper.close()


class TestServer:
    def test_a_restart_is_survived(self, bao, wrapper):
        wrapped = wrapper.wrap(SECRET, context())

        bao.stop()
        with pytest.raises(KeyServiceError, match="cannot be reached"):
            wrapper.unwrap(wrapped, context())
        bao.start()

        assert wrapper.unwrap(wrapped, context()) == SECRET

    def test_a_connection_that_broke_is_made_anew(self, bao, wrapper):
        """A restart between two calls shows at the second only, and is nobody's affair."""
        wrapped = wrapper.wrap(SECRET, context())
        bao.stop()
        bao.start()

        assert wrapper.unwrap(wrapped, context()) == SECRET

    def test_a_sealed_server_is_named(self, bao, wrapper):
        wrapped = wrapper.wrap(SECRET, context())
        bao.seal()
        try:
            for call in (lambda: wrapper.unwrap(wrapped, context()), lambda: wrapper.wrap(SECRET, context())):
                with pytest.raises(KeyServiceError, match="sealed"):
                    call()
        finally:
            bao.unseal()
        assert wrapper.unwrap(wrapped, context()) == SECRET

    def test_a_silent_server_makes_the_first_caller_wait_and_the_next_ones_not(self, bao):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            client = OpenBaoClient(bao.settings(openbao_url=address, openbao_timeout_ms=200))
            with pytest.raises(KeyServiceError, match="within 200 ms"):
                client.call("GET", "sys/health")
            with pytest.raises(KeyServiceError, match="a moment ago"):
                client.call("GET", "sys/health")
            client.close()

    def test_what_is_no_openbao_is_named(self, bao):
        with pytest.raises((KeyServiceError, StoreError)):
            opened(bao.settings(openbao_url=bao.url + "/ui/nothing"))


class TestKey:
    def test_a_lost_key_is_named_and_never_made_anew(self, bao, settings, wrapper):
        wrapped = wrapper.wrap(SECRET, context())
        bao.delete_key(settings.openbao_key)

        with pytest.raises(StoreError, match="lost"):
            wrapper.unwrap(wrapped, context())
        with pytest.raises(StoreError, match="lost"):
            wrapper.rotate()
        with pytest.raises(StoreError, match="lost"):
            opened(settings, is_new=False)

    def test_with_the_policy_for_operators_a_lost_key_is_not_made_by_using_it(self, bao, settings, wrapper):
        """Transit makes a missing key at the first encryption if the token may create it."""
        token = bao.limited_token(settings.openbao_key)
        with open(settings.openbao_token_file, "w") as file:
            file.write(token)
        limited = opened(settings, is_new=False)
        wrapped = limited.wrap(SECRET, context())
        assert limited.rotate() == 2
        limited.rewrap(wrapped, context())
        limited.destroy_version(1)
        bao.delete_key(settings.openbao_key)

        with pytest.raises(KeyServiceError, match="policy"):
            limited.wrap(SECRET, context())
        limited.close()

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ({"type": "aes256-gcm96", "derived": False}, "derived"),
            ({"type": "chacha20-poly1305", "derived": True}, "aes256-gcm96"),
            ({"type": "aes256-gcm96", "derived": True, "exportable": True}, "exported"),
        ],
    )
    def test_a_key_of_another_kind_is_refused(self, bao, settings, wrong, told):
        bao.call("POST", f"transit/keys/{settings.openbao_key}", **wrong)

        with pytest.raises(StoreError, match=told):
            opened(settings)

    def test_a_missing_engine_is_named(self, bao):
        with pytest.raises(StoreError, match="no Transit engine at elsewhere"):
            opened(bao.settings(openbao_mount="elsewhere"))

    def test_a_destruction_that_was_begun_is_finished(self, bao, settings, wrapper):
        wrapper.rotate()
        bao.call("POST", f"transit/keys/{settings.openbao_key}/config", min_decryption_version=2)

        wrapper.destroy_version(1)

        told = bao.call("GET", f"transit/keys/{settings.openbao_key}")["data"]
        assert told["min_available_version"] == 2


class TestToken:
    def test_a_wrong_token_is_named_and_not_told(self, bao):
        settings = bao.settings()
        with open(settings.openbao_token_file, "w") as file:
            file.write("s.not-the-token")

        with pytest.raises(KeyServiceError, match="refuses the token") as refused:
            opened(settings)
        assert "not-the-token" not in str(refused.value)

    def test_a_token_that_was_replaced_in_its_file_is_taken_up(self, bao, settings, wrapper):
        first = bao.limited_token(settings.openbao_key)
        with open(settings.openbao_token_file, "w") as file:
            file.write(first)
        limited = opened(settings, is_new=False)
        with open(settings.openbao_token_file, "w") as file:
            file.write(bao.limited_token(settings.openbao_key))
        bao.call("POST", "auth/token/revoke", token=first)

        assert limited.unwrap(limited.wrap(SECRET, context()), context()) == SECRET
        limited.close()

    def test_the_token_may_come_from_the_environment(self, bao, monkeypatch):
        settings = bao.settings(openbao_token_file="")
        monkeypatch.delenv("BAO_TOKEN", raising=False)
        with pytest.raises(StoreError, match="BAO_TOKEN"):
            opened(settings)
        monkeypatch.setenv("BAO_TOKEN", bao.token)

        opened(settings).close()

    @pytest.mark.parametrize(
        ("content", "mode", "told"),
        [
            ("t", 0o640, "chmod 600"),
            ("", 0o600, "no token"),
            ("a\nb", 0o600, "no token"),
            ("é", 0o600, "cannot be read"),
        ],
    )
    def test_a_token_file_that_cannot_be_used_is_named(self, bao, tmp_path, content, mode, told):
        file = tmp_path / "token"
        file.write_text(content, "utf-8")
        file.chmod(mode)

        with pytest.raises(StoreError, match=told):
            opened(bao.settings(openbao_token_file=str(file)))


class TestAddress:
    def test_tls_is_checked_against_the_given_authority(self, bao):
        settings = bao.settings(openbao_url=bao.tls_url, openbao_ca_file=str(bao.ca_file))
        wrapper = opened(settings)

        assert wrapper.unwrap(wrapper.wrap(SECRET, context()), context()) == SECRET
        wrapper.close()

    def test_a_certificate_of_another_authority_is_refused(self, bao):
        with pytest.raises(KeyServiceError, match="certificate"):
            opened(bao.settings(openbao_url=bao.tls_url))

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"openbao_url": "http://bao.example.org:8200"}, "without TLS"),
            ({"openbao_url": ""}, "no address"),
            ({"openbao_url": "ftp://127.0.0.1"}, "no address"),
            ({"openbao_url": "http://[::1"}, "no address"),
            ({"openbao_ca_file": "missing.pem"}, "missing.pem cannot be read"),
            ({"openbao_key": "../../sys/seal"}, "no name"),
            ({"openbao_mount": "transit/../sys"}, "no name"),
        ],
    )
    def test_settings_that_cannot_be_used_are_named(self, bao, changed, told):
        with pytest.raises(StoreError, match=told):
            opened(bao.settings(**changed))


class TestKeyService:
    """A whole key service whose root key is in OpenBao."""

    @pytest.fixture
    def folder(self, tmp_path):
        return tmp_path / "keyservice"

    @pytest.fixture
    async def keys(self, folder, settings):
        keys = LocalKeyService.open(folder, settings)
        yield keys
        await keys.close()

    async def test_leases_survive_rotation_destruction_and_a_restart(self, keys, folder, settings):
        space = await opened_space(keys, epochs=3)
        pending, _ = await space.pend(keys)
        assert await keys.rotate_root_key() == 4
        await keys.destroy_root_key_version(1)
        await keys.close()
        again = LocalKeyService.open(folder, settings)

        await again.append_log(space.log, len(space.entries), [space.epoch_entry(pending)])
        assert len((await lease(again, space.owner, space.id, 1, 2, 3, 4)).grants) == 4
        assert (await again.verify_ledger()).intact
        assert not (folder / "root.key").exists()
        await again.close()

    async def test_while_openbao_is_away_nothing_is_released_and_nothing_breaks(self, bao, keys):
        space = await opened_space(keys)
        bao.seal()
        try:
            with pytest.raises(KeyServiceError, match="sealed"):
                await lease(keys, space.owner, space.id, 1)
            with pytest.raises(KeyServiceError, match="sealed"):
                await space.pend(keys)
            with pytest.raises(KeyServiceError, match="sealed"):
                await keys.rotate_root_key()
            with pytest.raises(KeyServiceError, match="sealed"):
                LocalKeyService.open(bao.folder / "fresh", bao.settings())
        finally:
            bao.unseal()

        assert len((await lease(keys, space.owner, space.id, 1)).grants) == 1
        report = await keys.verify_ledger()
        assert (report.records_count, report.intact) == (2, True)

    async def test_the_database_of_another_key_is_refused(self, bao, keys, folder):
        await keys.close()
        other = bao.settings()
        opened(other).close()

        with pytest.raises(StoreError, match="another root key"):
            LocalKeyService.open(folder, other)
        with pytest.raises(StoreError, match="lost"):
            LocalKeyService.open(folder, bao.settings())

    async def test_a_backup_comes_back_with_the_key_where_it_is(self, keys, folder, settings, tmp_path):
        space, shredded = await opened_space(keys, epochs=2), await opened_space(keys)
        back_up(folder, tmp_path / "backup", NOW_MS)
        await shredded.shred(keys)
        wrapper = open_wrapper(settings, tmp_path, is_new=False)

        report = await drill(tmp_path / "backup", wrapper, folder / "denied.txt", settings)
        assert (report.problems, report.keys_count, report.purged_count) == ([], 2, 1)
        await restore(tmp_path / "backup", tmp_path / "to", wrapper, folder / "denied.txt", settings)
        again = LocalKeyService.open(tmp_path / "to", settings)

        assert len((await lease(again, space.owner, space.id, 1, 2)).grants) == 2
        assert not (tmp_path / "to" / "root.key").exists()
        await again.close()
        wrapper.close()
