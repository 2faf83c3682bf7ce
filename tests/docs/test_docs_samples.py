"""The Python blocks of pages that are no guides run too, against a database that has what they speak of."""

import asyncio

import msgspec
import pytest

import twinlock
from tests.docs.test_docs_code import blocks_of, run_fragment
from twinlock.server import Server, Settings


@pytest.fixture
async def db(tmp_path):
    server = Server(Settings(data=str(tmp_path / "server"), port=0, log_level="error", drain_ms=100))
    await server.start()
    async with await twinlock.sign_up(server.url, "ann", "a long password", profile=tmp_path / "ann") as opened:
        yield opened
    await server.stop()


async def names_of(db):
    """Return what the pages speak of without making it."""
    space = db.space("home")
    todos = space.collection("todos")
    doc = todos.doc("milk")
    await doc.set({"text": "buy milk", "done": False, "due": 1, "tags": [], "old": True})
    return {
        "asyncio": asyncio,
        "msgspec": msgspec,
        "twinlock": twinlock,
        "Migration": twinlock.Migration,
        "db": db,
        "space": space,
        "doc": doc,
        "items": [{"text": "one"}, {"text": "two"}],
        "split_name": lambda value: value,
        "join_name": lambda value: value,
    }


@pytest.mark.parametrize("page", ["docs/concepts/documents.md", "docs/reference/queries.md", "docs/reference/sdk.md"])
async def test_the_samples_of_a_page_run_from_the_first_to_the_last(page, db):
    names = await names_of(db)
    parts = blocks_of(page)

    for part in parts:
        await run_fragment(part, names)

    assert parts
