"""The SQLite engine keeps the contracts."""

import pytest

from twinlock.engines.sqlite import SqliteEngine
from twinlock.testing.contracts import DirectoryContract, LogContract


@pytest.fixture
async def engine(tmp_path):
    engine = SqliteEngine.open(tmp_path / "data" / "twinlock.db")
    yield engine
    await engine.close()


class TestSqliteLog(LogContract):
    @pytest.fixture
    def log(self, engine):
        return engine.log


class TestSqliteDirectory(DirectoryContract):
    @pytest.fixture
    def directory(self, engine):
        return engine.directory
