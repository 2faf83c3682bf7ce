"""The key service in a process of its own keeps the contract, over a real socket and with a clock of the test's."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from twinlock.keyservice.app import KeyServiceProcess
from twinlock.keyservice.node_auth import NodeIdentity
from twinlock.keyservice.remote import RemoteKeyService
from twinlock.keyservice.settings import ProcessSettings
from twinlock.testing.contracts import KeyServiceContract
from twinlock.testing.contracts.members import NOW_MS


class SharedClock:
    """What both ends take for the time: that of the request that was made last."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def __call__(self) -> int:
        return self.ms


class ClockedKeyService(RemoteKeyService):
    """Sets the service's clock to the time of each request, which a real one would not believe."""

    clock: SharedClock

    async def create_pending(self, asking, request):
        self.clock.ms = asking.now_ms
        return await super().create_pending(asking, request)

    async def lease(self, asking, request):
        self.clock.ms = asking.now_ms
        return await super().lease(asking, request)


class TestRemoteKeyService(KeyServiceContract):
    @pytest.fixture
    async def keys(self, tmp_path):
        clock, node_key = SharedClock(), Ed25519PrivateKey.generate()
        node_pk = node_key.public_key().public_bytes_raw()
        service = KeyServiceProcess(ProcessSettings(data=str(tmp_path / "keys"), port=0, nodes=[node_pk.hex()]), clock)
        await service.start()
        node = NodeIdentity(node_key, service.service_pk, os.urandom(16))
        keys = ClockedKeyService.connect(service.url, node, clock)
        keys.clock = clock
        yield keys
        await keys.close()
        await service.stop()
