"""Parts of blobs at one node after the members have changed at another."""

import os

from tests.blob_kit import blob_device, told
from tests.membership_kit import House, make_person
from tests.server_kit import make_world
from twinlock.protocol.space_log import Role


class Deaf:
    """A node's log that is not told of what other nodes do, as when that is still on its way."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def follow(self, space, after, follower):
        return lambda: None


async def test_who_is_removed_gets_no_part_of_a_node_that_was_not_told_yet(town):
    here, late = await town.start(), await town.start(log=Deaf(town.store.node().log))
    owner = await make_world(here)
    house = House(owner, await town.open(here, owner))
    person = await make_person(here)
    await house.join(person, await town.open(here, person), await house.invite(Role.EDITOR))
    owners = await blob_device(owner, house.space, house.wire)
    reader = await blob_device(person, house.space, await town.open(late, person))
    try:
        blob = await owners.store(os.urandom(100))
        assert (await reader.get(blob)).status_code == 200

        await house.remove(person.account.account)

        assert told(await reader.get(blob)) == (403, "removed")
    finally:
        await owners.close()
        await reader.close()
