"""The SDK in processes of its own: the example, two devices, and one profile in two processes."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.client_kit import World, make_template, until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture
async def world(tmp_path, tmp_path_factory):
    template = await asyncio.to_thread(make_template, tmp_path_factory.mktemp("template"))
    world = World(tmp_path, template)
    await world.start()
    yield world
    await world.close()


async def run(profile: Path, *arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "TWINLOCK_PROFILE": str(profile), "PYTHONPATH": str(ROOT / "src")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_example_keeps_a_list_offline_and_sends_it_when_the_profile_meets_its_server(world):
    todo = str(ROOT / "examples" / "todo.py")
    assert await run(world.folder / "a", todo, "add", "buy", "milk") == (0, "", "")
    assert await run(world.folder / "a", todo, "add", "call home") == (0, "", "")
    code, out, _ = await run(world.folder / "a", todo, "done", "milk")
    assert (code, out) == (0, "[x] buy milk\n")
    code, out, _ = await run(world.folder / "a", todo)
    assert out == "[ ] call home\n[x] buy milk\n"

    one, two = await world.device("a"), await world.device("b")
    await one.synced()
    todos = two.space("home").collection("todos")
    seen = []
    todos.on_snapshot(seen.append)
    await until(lambda: len(seen[-1]) == 2)

    assert sorted((doc["text"], doc["done"]) for doc in await todos.get()) == [("buy milk", True), ("call home", False)]


async def test_the_first_page_of_the_documentation_runs_as_it_stands(world):
    program = (ROOT / "docs" / "start.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    program = program.replace("twinlock.connect()", f"twinlock.connect({world.url!r})")

    code, out, err = await run(world.folder / "a", "-c", program)

    assert (code, err) == (0, "")
    assert "buy milk" in out


async def test_the_example_stays_under_eighty_lines():
    assert len((ROOT / "examples" / "todo.py").read_text().splitlines()) < 80


async def test_a_second_process_gets_a_clear_error(world):
    await world.device("a")

    code, _, err = await run(world.folder / "a", "-c", "import asyncio, twinlock; asyncio.run(twinlock.connect())")

    assert code == 1
    assert "profile_in_use" in err
    assert "Close it there" in err


async def test_another_process_sees_a_write_live(world):
    program = f"""
import asyncio, twinlock
async def main():
    async with await twinlock.connect({world.url!r}) as db:
        await db.synced()
        async for snap in db.space("home").collection("todos").watch():
            print(len(snap), flush=True)
            if len(snap) == 3:
                return
asyncio.run(main())
"""
    db = await world.device("a")
    watching = asyncio.ensure_future(run(world.folder / "b", "-c", program))
    for number in range(3):
        await db.space("home").collection("todos").add({"n": number})

    code, out, err = await watching

    assert (code, err) == (0, "")
    assert out.split()[-1] == "3"
