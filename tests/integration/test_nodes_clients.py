"""The SDK with several addresses of one server: it goes to another node when one goes down, and nothing is lost."""

import asyncio

import pytest

import twinlock
from twinlock.client.transport import parse_address


def test_several_addresses_are_one_server_and_are_tried_in_turn():
    address = parse_address("wss://a.example, b.example:81,ws://[::1]")

    assert address.text == "wss://a.example:443,ws://b.example:81,ws://[::1]:80"
    assert [address.turned(count).origin for count in range(4)] == [
        "wss://a.example:443",
        "ws://b.example:81",
        "ws://[::1]:80",
        "wss://a.example:443",
    ]
    assert parse_address(address.turned(1).text) == address.turned(1)


@pytest.mark.timeout(60)
async def test_a_client_goes_on_at_another_node_when_its_own_is_drained(town, tmp_path):
    nodes = [await town.start(), await town.start()]
    url = ",".join(node.url for node in nodes)
    await twinlock.create_service_account(url, "anna", tmp_path / "anna.key")
    async with await twinlock.connect(url, tmp_path / "anna", key_file=tmp_path / "anna.key") as anna:
        space = await anna.create_space("notes")
        notes = space.collection("notes")
        for count in range(5):
            await notes.doc(f"before-{count}").set({"n": count})
        await anna.synced()
        origin = anna._connection.origin
        gone = next(node for node in nodes if node.url == origin)
        await gone.stop()
        for count in range(5):
            await notes.doc(f"after-{count}").set({"n": count})
        async with asyncio.timeout(30):
            await anna.synced()

        assert anna._connection.origin != origin
    async with await twinlock.connect(url, tmp_path / "anna") as again:
        found = await again.space(space.id).collection("notes").get()
        assert len(found) == 10
