"""Several accounts in one space under a seed, while everything fails: all agree in the end, and nobody else reads."""

import logging
from pathlib import Path

import pytest
import structlog

from twinlock.engines.memory import MemoryDirectory
from twinlock.server.fences import Fences
from twinlock.server.sequencer import Sequencer
from twinlock.testing.household import live_a_life

REGRESSIONS = Path(__file__).with_name("household_regressions.txt")
SEEDS_PER_BLOCK = 5
SLOW_SEEDS_PER_BLOCK = 100
FIRST_EPOCH = "00000001"

# A seed takes a second on a quiet machine, and several where others work as well.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(autouse=True)
def quiet():
    """Show errors only: everything that goes wrong here is meant to, and is logged."""
    before, given = logging.root.manager.disable, structlog.get_config()
    logging.disable(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**given)
    logging.disable(before)


def found_seeds() -> list[tuple[int, int, int]]:
    """Return the seeds that once found a fault, how many steps it took, and how many nodes."""
    lines = REGRESSIONS.read_text(encoding="utf-8").splitlines()
    words = [line.partition("#")[0].split() for line in lines]
    return [
        (int(seed), int(steps), *(map(int, nodes) if nodes else (1,))) for seed, steps, *nodes in filter(None, words)
    ]


def live_lives(seeds: range, folder: Path, nodes_count: int = 1) -> None:
    """Run seeds one after the other, each in a folder of its own."""
    for seed in seeds:
        live_a_life(seed, folder / str(seed), nodes_count=nodes_count)


@pytest.mark.parametrize("nodes_count", [1, 2])
@pytest.mark.parametrize("block", range(4))
def test_a_household_agrees_in_the_end_and_shuts_out_who_is_out(tmp_path, block, nodes_count):
    first = 1_000 + block * SEEDS_PER_BLOCK
    live_lives(range(first, first + SEEDS_PER_BLOCK), tmp_path, nodes_count)


@pytest.mark.parametrize(("seed", "steps_count", "nodes_count"), found_seeds())
def test_seeds_of_a_household_that_found_a_fault_stay_mended(tmp_path, seed, steps_count, nodes_count):
    live_a_life(seed, tmp_path, steps_count, nodes_count)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("nodes_count", [1, 2, 3])
@pytest.mark.parametrize("block", range(20))
def test_a_household_agrees_over_many_seeds(tmp_path, block, nodes_count):
    first = 10_000 + block * SLOW_SEEDS_PER_BLOCK
    live_lives(range(first, first + SLOW_SEEDS_PER_BLOCK), tmp_path, nodes_count)


# Controls: the simulation notices what it is there to notice.


def test_a_directory_that_loses_rows_is_noticed(tmp_path, monkeypatch):
    put = MemoryDirectory.put

    async def losing(self, key, value, expect_revision=None):
        revision = await put(self, key, value, expect_revision)
        if key.startswith("keyring/") and key.split("/")[2] > FIRST_EPOCH:
            await self.delete(key)
        return revision

    monkeypatch.setattr(MemoryDirectory, "put", losing)

    with pytest.raises((AssertionError, TimeoutError)):
        live_a_life(1_000, tmp_path)


def test_a_server_that_refuses_nothing_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(Sequencer, "_check", lambda self, envelope, author: None)

    with pytest.raises(AssertionError, match="seed"):
        live_lives(range(1_017, 1_047), tmp_path, nodes_count=2)


def test_a_node_that_hears_no_fences_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(Fences, "heard", lambda self, space: None)

    with pytest.raises((AssertionError, TimeoutError)):
        live_lives(range(1_009, 1_039), tmp_path, nodes_count=2)
