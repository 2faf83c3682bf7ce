"""Joining a space fetches it once, and what is read of its members is kept in few steps."""

from tests.client_kit import World
from twinlock.client.connection import Connection
from twinlock.client.vault_file import VaultFile
from twinlock.protocol.calls import ReadLog


def noted_calls(monkeypatch) -> list[tuple[str, object]]:
    """Return a list that every call of a device is added to."""
    calls: list[tuple[str, object]] = []
    call = Connection.call

    async def noted(self, method, params, result):
        calls.append((method, params))
        return await call(self, method, params, result)

    monkeypatch.setattr(Connection, "call", noted)
    return calls


def noted_puts(monkeypatch) -> list[set[str]]:
    """Return a list that the names of all records are added to which a device keeps in one step."""
    puts: list[set[str]] = []
    put = VaultFile.put

    def noted(self, records):
        puts.append(set(records))
        put(self, records)

    monkeypatch.setattr(VaultFile, "put", noted)
    return puts


async def test_who_joins_fetches_the_space_once_although_it_is_also_told_of_it(account_world: World, monkeypatch):
    ann, ben = await account_world.unlocked(), await account_world.unlocked("ben")
    space = ann.space("home")
    link = await space.invite()
    calls = noted_calls(monkeypatch)

    await ben.join(link)
    await ben.synced()

    begun = [
        params for method, params in calls if method == "space.log" and params == ReadLog(bytes.fromhex(space.id), 0)
    ]
    assert len(begun) == 1


async def test_the_logs_of_several_members_are_kept_in_one_step(account_world: World, monkeypatch):
    ann, ben = await account_world.unlocked(), await account_world.unlocked("ben")
    space = ann.space("home")
    await ben.join(await space.invite())
    link = await space.invite()
    cleo = await account_world.unlocked("cleo")
    puts = noted_puts(monkeypatch)

    await cleo.join(link)

    others = {f"account-log/{each.account}" for each in (ann, ben)}
    assert any(others <= names for names in puts)
