"""A key service whose database was restored from a backup learns from the servers what it has forgotten."""

import pytest

from twinlock.engines.memory import MemoryDirectory
from twinlock.errors import KeyServiceError, LeaseRefusedError
from twinlock.ids import LogId
from twinlock.keyservice import LocalKeyService
from twinlock.protocol.space_log import Role
from twinlock.sealing.identity import DeviceKeys
from twinlock.server.signed_logs import SignedLogs
from twinlock.testing.contracts.key_requests import lease, registered
from twinlock.testing.contracts.members import OwnedSpace, Person


class Place:
    """A key service in a folder, and a server's copy of the logs, through which everything is appended."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.directory = MemoryDirectory()
        self.backup = b""
        self.open()

    def open(self) -> None:
        self.keys = LocalKeyService.open(self.folder)
        self.logs = SignedLogs(self.directory, self.keys)

    async def register(self, person: Person) -> None:
        await self.logs.append(LogId(person.keys.account), 0, person.entries)

    async def share(self, space: OwnedSpace) -> None:
        await self.logs.append(space.log, 0, space.entries)

    async def back_up(self) -> None:
        await self.keys.close()
        self.backup = (self.folder / "keyservice.db").read_bytes()
        self.open()

    async def restore(self) -> None:
        await self.keys.close()
        (self.folder / "keyservice.db").write_bytes(self.backup)
        self.open()


@pytest.fixture
async def place(tmp_path):
    place = Place(tmp_path / "keyservice")
    yield place
    await place.keys.close()


async def space_of(place, owner: Person) -> OwnedSpace:
    await place.register(owner)
    space = OwnedSpace(owner)
    await space.open_epoch(place.keys)
    await place.share(space)
    return space


async def test_a_device_that_was_revoked_since_gets_no_lease_again(place, tmp_path):
    owner = Person()
    space = await space_of(place, owner)
    lost, kept = owner.device, DeviceKeys.make(lambda count: bytes(range(count)))
    await place.back_up()
    owner.certify(kept)
    owner.revoke(lost)
    await place.register(owner)
    await place.restore()
    assert len((await lease(place.keys, owner, space.id, 1)).grants) == 1

    entries = await place.logs.read(LogId(owner.keys.account))

    assert entries == owner.entries
    with pytest.raises(LeaseRefusedError):
        await lease(place.keys, owner, space.id, 1)
    owner.device = kept
    assert len((await lease(place.keys, owner, space.id, 1)).grants) == 1


async def test_a_space_that_the_backup_does_not_know_comes_back_except_for_its_keys(place):
    owner = Person()
    await place.register(owner)
    await place.back_up()
    space = await space_of(place, owner)
    await place.restore()

    # Its only epoch's key is lost: members are served from the copy, and the key service says what is wrong.
    assert await place.logs.read(space.log) == space.entries
    with pytest.raises(KeyServiceError, match="set back"):
        await place.logs.read_certain(space.log)


async def test_membership_that_has_changed_since_is_known_again(place):
    owner, leaver = Person(), Person()
    space = await space_of(place, owner)
    await place.register(leaver)
    await space.admit(place.keys, leaver, Role.READER)
    await place.share(space)
    await place.back_up()
    await space.let_go(place.keys, leaver)
    await place.share(space)
    await place.restore()
    assert len((await lease(place.keys, leaver, space.id, 1)).grants) == 1

    await place.logs.read(space.log)

    with pytest.raises(LeaseRefusedError):
        await lease(place.keys, leaver, space.id, 1)
    assert await place.keys.read_log(space.log, 0) == space.entries


async def test_a_copy_that_is_shorter_is_mended_from_the_key_service(place):
    person = await registered(place.keys)

    assert await place.logs.read(LogId(person.keys.account)) == person.entries
    assert len(await place.directory.list(f"log/{person.keys.account.hex()}/")) == len(person.entries)
