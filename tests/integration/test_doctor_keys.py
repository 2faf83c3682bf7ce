"""`twinlock doctor` looks after the key service of a server: its folder, or the process that the settings name."""

import asyncio
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from twinlock.cli.commands import commands
from twinlock.keyservice import LocalKeyService
from twinlock.keyservice import service as service_module
from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, public_key_text
from twinlock.testing.contracts.key_requests import opened
from twinlock.testing.keyservice_process import KeyServiceChild


def looked_at(data, *words: str):
    return CliRunner().invoke(commands, ["doctor", "--data", str(data), "--profile", str(data / "none"), *words])


def told(result) -> list[str]:
    """Return the lines about the key service, with their remedies."""
    lines, found = result.stdout.splitlines(), []
    for at, line in enumerate(lines):
        if line.split()[1:2] == ["keys"]:
            found.append(line)
            found += [after for after in lines[at + 1 : at + 2] if "→" in after]
    return found


@pytest.fixture
def data(tmp_path):
    """A server's folder with a key service that has been used."""

    async def use() -> None:
        keys = LocalKeyService.open(tmp_path / "keyservice")
        await opened(keys, now_ms=service_module.wall_clock_ms())
        await keys.close()

    asyncio.run(use())
    return tmp_path


def test_a_folder_in_good_order_is_told_so(data):
    result = looked_at(data)

    assert result.exit_code == 0, result.stdout
    assert "mode 0600" in result.stdout
    assert "names 0 shredded spaces" in result.stdout
    assert "the ledger is whole" in result.stdout


def test_key_files_are_looked_for_in_the_folder_that_the_settings_name(data, tmp_path):
    config = tmp_path / "twinlock.toml"
    config.write_text(f'data = "{data}"\n', encoding="utf-8")
    (data / "server.key").touch(mode=0o644)

    result = CliRunner().invoke(commands, ["doctor", "--config", str(config), "--profile", str(data / "none")])

    assert result.exit_code == 1
    assert f"{data / 'server.key'} can be read by others" in result.stdout


def test_a_server_that_never_ran_has_nothing_to_mend(tmp_path):
    result = looked_at(tmp_path)

    assert result.exit_code == 0, result.stdout
    assert "the server makes them at its first start" in told(result)[0]
    assert not (tmp_path / "keyservice").exists()


def test_a_root_key_that_others_can_read_is_to_be_mended(data):
    root_key = data / "keyservice" / "root.key"
    root_key.chmod(0o640)

    result = looked_at(data)

    assert result.exit_code == 1
    assert any(f"chmod 600 {root_key}" in line for line in told(result))


def test_a_missing_root_key_is_told_with_the_way_back(data):
    (data / "keyservice" / "root.key").unlink()

    result = looked_at(data)

    assert result.exit_code == 1
    assert any("is missing" in line for line in told(result))
    assert any("twinlock keyservice restore" in line for line in told(result))
    assert not (data / "keyservice" / "root.key").exists()


def test_a_missing_deny_list_is_told_and_not_made(data):
    deny_list = data / "keyservice" / "denied.txt"
    deny_list.unlink()

    result = looked_at(data)

    assert result.exit_code == 1
    assert any("shredded spaces back" in line for line in told(result))
    assert not deny_list.exists()


def test_a_ledger_that_was_altered_is_told(data):
    with closing(sqlite3.connect(data / "keyservice" / "keyservice.db")) as database, database:
        database.execute("DELETE FROM ledger WHERE n = (SELECT max(n) FROM ledger)")

    result = looked_at(data)

    assert result.exit_code == 1
    assert any("the ledger is broken" in line for line in told(result))


class Remote:
    """A server's folder whose settings name a key service in a process of its own."""

    def __init__(self, folder) -> None:
        self.data, self.folder = folder / "server", folder / "keyservice"
        self.node_pk = public_key_text(open_signing_key(self.data / NODE_KEY_NAME))
        self.config = folder / "twinlock.toml"

    def point_at(self, child: KeyServiceChild, public_key: str = "") -> None:
        pinned = public_key or child.public_key
        self.config.write_text(f'keyservice_url = "{child.url}"\nkeyservice_pk = "{pinned}"\n', encoding="utf-8")

    def looked_at(self):
        return looked_at(self.data, "--config", str(self.config))


@pytest.fixture
def remote(tmp_path):
    return Remote(tmp_path)


def test_a_key_service_that_takes_this_server_is_told_so_and_one_that_is_down_is_not(remote, monkeypatch):
    with KeyServiceChild(remote.folder, [remote.node_pk]) as child:
        remote.point_at(child)
        content = remote.looked_at()

        remote.point_at(child, remote.node_pk)
        another = remote.looked_at()

        remote.point_at(child)
        clock = service_module.wall_clock_ms
        monkeypatch.setattr(service_module, "wall_clock_ms", lambda: clock() + 90_000)
        ahead = remote.looked_at()
        monkeypatch.setattr(service_module, "wall_clock_ms", lambda: clock() - 200_000)
        far_behind = remote.looked_at()
    down = remote.looked_at()

    assert content.exit_code == 0, content.stdout
    assert any("takes requests of this server" in line for line in told(content))
    assert any("within 60 s" in line for line in told(content))
    assert another.exit_code == 1
    assert any("keyservice_pk" in line for line in told(another))
    assert ahead.exit_code == 0
    assert any("more than 60 s away" in line for line in told(ahead))
    assert far_behind.exit_code == 1
    assert any("NTP" in line for line in told(far_behind))
    assert down.exit_code == 1
    assert any("does not answer" in line for line in told(down))


def test_a_server_that_the_key_service_does_not_name_is_told_what_to_list(remote):
    stranger = public_key_text(open_signing_key(remote.folder / "another.key"))
    with KeyServiceChild(remote.folder, [stranger]) as child:
        remote.point_at(child)
        result = remote.looked_at()

    assert result.exit_code == 1
    assert any(remote.node_pk in line and "`nodes`" in line for line in told(result))


def test_a_server_without_a_node_key_is_told_how_to_make_one(remote):
    (remote.data / NODE_KEY_NAME).unlink()
    remote.point_at(KeyServiceChild(remote.folder, [remote.node_pk]))

    result = remote.looked_at()

    assert result.exit_code == 0, result.stdout
    assert any("twinlock keyservice node-key" in line for line in told(result))
    assert not (remote.data / NODE_KEY_NAME).exists()
