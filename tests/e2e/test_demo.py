"""The demo's story holds, and its tools find what they look for."""

import subprocess
import sys
from pathlib import Path

import pytest

from demo.plaintext import search, words_of
from demo.stage import CATALOGUE

ROOT = Path(__file__).parents[2]


def run_demo(*options: str) -> subprocess.CompletedProcess:
    """Run the demo without a terminal."""
    command = [sys.executable, "-m", "demo", "--once", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.e2e
def test_the_story_holds_with_a_part_of_the_catalogue():
    told = run_demo("--quakes", "100")

    assert told.returncode == 0, told.stdout + told.stderr
    assert "Every check passed" in told.stdout
    assert "✗" not in told.stdout
    assert "7  Lose the phone" in told.stdout
    assert "the device was revoked" in told.stdout


@pytest.mark.slow
@pytest.mark.e2e
def test_the_story_holds_with_the_whole_catalogue():
    told = run_demo()

    assert told.returncode == 0, told.stdout + told.stderr
    assert "1,707 of 1,707 documents arrived on B" in told.stdout


def test_the_search_finds_a_word_of_the_catalogue_among_random_bytes_and_zeros(tmp_path):
    (tmp_path / "clean.db").write_bytes(bytes(1 << 16) + bytes(range(256)) * 64)
    (tmp_path / "leak.db-wal").write_bytes(bytes(1000) + b"\x93\x01Castaic4km W of Castaic, CA" + bytes(1000))

    result = search([tmp_path], words_of(CATALOGUE))

    assert result.files == 2
    assert [(path.name, word) for path, word in result.found] == [("leak.db-wal", "4km W of Castaic, CA")]
