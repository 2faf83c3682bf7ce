"""A node of a test's own, ways to a key service in a process of its own, and a count of what is sent there."""

import os

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from twinlock.keyservice.calls import Answer
from twinlock.keyservice.key_files import public_key_text
from twinlock.keyservice.node_auth import NO_LIFE, REQUEST_HEADER, NodeIdentity
from twinlock.keyservice.remote import RemoteKeyService
from twinlock.keyservice.service import wall_clock_ms
from twinlock.testing.contracts.key_requests import lease, opened
from twinlock.testing.keyservice_process import KeyServiceChild


class Node:
    """A server's key, and ways to a key service."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.public_key = public_key_text(self.key)

    def identity(self, service_pk: bytes) -> NodeIdentity:
        return NodeIdentity(self.key, service_pk, os.urandom(16))

    def connect(self, service: KeyServiceChild, **options) -> RemoteKeyService:
        identity = self.identity(bytes.fromhex(service.public_key))
        if options:
            client = httpx.AsyncClient(base_url=service.url, trust_env=False, **options)
            return RemoteKeyService(client, identity, wall_clock_ms)
        return RemoteKeyService.connect(service.url, identity, wall_clock_ms)


async def lease_now(keys, person, space, *epochs):
    return await lease(keys, person, space, *epochs, now_ms=wall_clock_ms())


async def opened_now(keys):
    """Open a space by this machine's clock, which is also the service's."""
    return await opened(keys, now_ms=wall_clock_ms())


def counted_posts(monkeypatch) -> list[bytes]:
    """Return a list that every request's body is added to."""
    posts = []
    post = RemoteKeyService._post

    async def counted(self, body):
        posts.append(body)
        return await post(self, body)

    monkeypatch.setattr(RemoteKeyService, "_post", counted)
    return posts


async def life_of(client, identity) -> bytes:
    """Ask the service for its present life, as a node does at its first request."""
    body = b"\x90"
    request = identity.sign(body, NO_LIFE, wall_clock_ms())
    answer = await client.post("/calls", content=body, headers={REQUEST_HEADER: request.header})
    assert answer.status_code == 409
    return msgspec.msgpack.decode(answer.content, type=Answer).life
