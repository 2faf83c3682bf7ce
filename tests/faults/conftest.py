"""What faults did to acknowledgements, collected over all tests here and told in one table at the end."""

import os
import random

import pytest

from twinlock.testing.history import Recorder
from twinlock.testing.outages import outages, summarize

ROUNDS_VARIABLE = "FAULT_ROUNDS"
SEED_VARIABLE = "FAULT_SEED"
_ROWS = pytest.StashKey[list]()


@pytest.fixture(autouse=True)
def no_keyring(monkeypatch):
    """A test must not put keys into the keyring of whoever runs it."""
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")


@pytest.fixture
def rounds():
    """How often a fault is to happen: what a test wants, or what the environment says."""
    return lambda wanted: int(os.environ.get(ROUNDS_VARIABLE, wanted))


@pytest.fixture
def chance(request):
    """All that a test leaves to chance, from a seed that is shown when it fails."""
    seed = int(os.environ.get(SEED_VARIABLE, 0)) or random.randrange(1 << 32)
    print(f"{SEED_VARIABLE}={seed}")
    return random.Random(seed)


@pytest.fixture
def recorder(request, tmp_path):
    """Takes down the run; in the end its outages go into the table."""
    with Recorder(tmp_path / "history.jsonl") as taking:
        yield taking
    rows = request.config.stash.setdefault(_ROWS, [])
    rows += [(request.node.name, summary) for summary in summarize(outages(taking.events))]


def pytest_terminal_summary(terminalreporter, config):
    """Print how long each fault kept acknowledgements away."""
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    terminalreporter.section("faults: time without an acknowledgement, in the space that waited longest")
    terminalreporter.line(f"{'fault':<44} {'times':>5} {'median':>9} {'worst':>9}   test")
    for name, row in rows:
        told = f"{row.kind:<44} {row.faults_count:>5} {row.median_s:>7.2f} s {row.worst_s:>7.2f} s   {name}"
        terminalreporter.line(told)
