"""The key service within the server's process keeps the contract."""

import pytest

from twinlock.keyservice import LocalKeyService
from twinlock.testing.contracts import KeyServiceContract


class TestLocalKeyService(KeyServiceContract):
    @pytest.fixture
    async def keys(self, tmp_path):
        keys = LocalKeyService.open(tmp_path / "keyservice")
        yield keys
        await keys.close()
