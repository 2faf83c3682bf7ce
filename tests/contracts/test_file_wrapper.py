"""The file wrapper against the contract of every key wrapper."""

import pytest

from twinlock.keyservice import FileKeyWrapper
from twinlock.testing.contracts import KeyWrapperContract


class TestFileWrapper(KeyWrapperContract):
    @pytest.fixture
    def wrapper(self, tmp_path):
        return FileKeyWrapper.create(tmp_path / "root.key")

    @pytest.fixture
    def other(self, tmp_path):
        return FileKeyWrapper.create(tmp_path / "other.key")
