"""The key service within the server's process keeps the contract."""

import os

import pytest

from twinlock.ids import Incarnation
from twinlock.keyservice import LocalKeyService
from twinlock.testing.contracts import KeyServiceContract


class TestLocalKeyService(KeyServiceContract):
    @pytest.fixture
    def incarnation(self):
        return Incarnation(os.urandom(16))

    @pytest.fixture
    async def keys(self, tmp_path, incarnation):
        keys = LocalKeyService.open(tmp_path / "keyservice", incarnation)
        yield keys
        await keys.close()
