"""The memory engine keeps the contracts: it is the reference for the others."""

import pytest

from twinlock.engines.memory import MemoryDirectory, MemoryLog
from twinlock.testing.contracts import DirectoryContract, LogContract


class TestMemoryLog(LogContract):
    @pytest.fixture
    def log(self):
        return MemoryLog()


class TestMemoryDirectory(DirectoryContract):
    @pytest.fixture
    def directory(self):
        return MemoryDirectory()
