"""A key service as a process of its own, pinned to the server's core, and the way of a node to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from sys import executable

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.machine import free_port
from bench.peers.child import PeerMissingError, running, wait_for_port
from bench.raw_client import now_ms
from twinlock.keyservice.key_files import SERVICE_KEY_NAME, open_signing_key, public_key_text
from twinlock.keyservice.node_auth import LIFE_BYTES, NodeIdentity
from twinlock.keyservice.remote import RemoteKeyService


class RunningKeyService(msgspec.Struct, frozen=True):
    """The process, and a node's way to it."""

    child: subprocess.Popen[bytes]
    keys: RemoteKeyService


@asynccontextmanager
async def serving_keys(folder: Path) -> AsyncIterator[RunningKeyService]:
    """Run a key service on an empty folder while the block lasts.

    Raises:
        RuntimeError: it does not start, with the end of its log.
    """
    node_key, port = Ed25519PrivateKey.generate(), free_port()
    data, config, log = folder / "data", folder / "twinlock.toml", folder / "keyservice.log"
    service_pk = open_signing_key(data / SERVICE_KEY_NAME).public_key().public_bytes_raw()
    config.write_text(
        f'data = "{data}"\nport = {port}\nnodes = ["{public_key_text(node_key)}"]\nlog_level = "warning"\n',
        encoding="utf-8",
    )
    with running([executable, "-m", "twinlock", "keyservice", "--config", str(config)], log) as child:
        try:
            await wait_for_port(port, child)
        except PeerMissingError as exc:
            raise RuntimeError(f"the key service did not start: {log.read_text(encoding='utf-8')[-500:]}") from exc
        node = NodeIdentity(node_key, service_pk, os.urandom(LIFE_BYTES))
        keys = RemoteKeyService.connect(f"http://127.0.0.1:{port}", node, now_ms)
        try:
            yield RunningKeyService(child, keys)
        finally:
            await keys.close()
