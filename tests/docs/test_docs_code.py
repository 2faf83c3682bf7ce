"""Every Python block of README.md and docs/start.md runs, in order, against a real `twinlock dev`."""

import ast
import asyncio
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import twinlock
from tests.e2e.dev_server import start_dev

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A live query is endless by nature: the block that shows one is given this long.
ENDLESS_SECONDS = 3


def blocks_of(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture
def dev(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start_dev(tmp_path, port)
    yield server
    server.stop()


def run_program(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Run a block that is a whole program."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def run_fragment(code: str, names: dict[str, object]) -> None:
    """Run a block that is a part of an `async` function."""
    compiled = compile(code, "<page>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, names)
    if asyncio.iscoroutine(result):
        try:
            async with asyncio.timeout(ENDLESS_SECONDS if "async for" in code else None):
                await result
        except TimeoutError:
            assert "async for" in code


def test_the_readme_runs_as_it_stands(dev):
    programs = blocks_of("README.md")

    results = [run_program(program, dev.environment) for program in programs]

    assert programs
    assert [result.returncode for result in results] == [0] * len(programs), results
    assert "buy milk" in results[0].stdout


async def test_the_start_page_runs_from_its_first_block_to_its_last(dev, tmp_path, monkeypatch):
    whole, *parts = blocks_of("docs/start.md")
    program = run_program(whole, dev.environment)
    monkeypatch.chdir(tmp_path)
    opened: list[twinlock.Client] = [await twinlock.connect(profile=dev.profile)]
    names: dict[str, object] = {"twinlock": twinlock, "todos": opened[0].space("home").collection("todos")}
    for part in parts:
        code = part.replace("ws://127.0.0.1:8765", dev.url).replace("wss://sync.example.org", dev.url)
        names["db"] = opened[0]
        await run_fragment(re.sub(r"XXXX(-XXXX)+", dev.kit, code), names)
        if names["db"] is not opened[0]:
            opened.append(names["db"])
    for db in opened:
        await db.close()

    assert program.returncode == 0, program.stderr
    assert "buy milk" in program.stdout
    assert [db.name for db in opened] == ["demo", "demo", "ann"]
