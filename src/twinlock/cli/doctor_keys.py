"""What `twinlock doctor` checks of the key service that a server uses: in its folder, or over the network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from twinlock.cli.findings import Finding, Verdict, mode_of
from twinlock.errors import KeyServiceError, LedgerBrokenError, NodeRefusedError, StoreError, TwinlockError

if TYPE_CHECKING:
    from twinlock.keyservice.node_auth import NodeIdentity
    from twinlock.keyservice.settings import KeyServiceSettings
    from twinlock.server.settings import Settings

SKEW_NOTE_MS = 60_000
"""Half of what the key service takes: clocks that are so far apart will soon be too far."""


def key_service(settings: Settings) -> Iterator[Finding]:
    """Check the key service that the server would use; nothing is made or changed."""
    if settings.keyservice_url:
        yield from _remote(settings)
    elif not settings.in_memory:
        from twinlock.server.stores import KEY_SERVICE_FOLDER

        yield from _local(Path(settings.data) / KEY_SERVICE_FOLDER, settings.keyservice)


# In this machine's folder


def _local(folder: Path, custody: KeyServiceSettings) -> Iterator[Finding]:
    from twinlock.keyservice.service import DATABASE_NAME

    if not (folder / DATABASE_NAME).exists():
        yield Finding(Verdict.NOTE, f"no service keys in {folder} yet: the server makes them at its first start")
        return
    yield from _root_key(folder, custody)
    yield _deny_list(folder, custody)
    yield _ledger(folder, custody)


def _root_key(folder: Path, custody: KeyServiceSettings) -> Iterator[Finding]:
    from twinlock.keyservice.settings import FILE_WRAPPER
    from twinlock.keyservice.wrappers import root_key_path

    if custody.wrapper != FILE_WRAPPER:
        return
    path = root_key_path(custody, folder)
    if path.exists():
        yield from mode_of(path)
    else:
        fix = "Put it back from where it is kept apart, or restore it from its sheets: `twinlock keyservice restore`."
        yield Finding(Verdict.BAD, f"the root key {path} is missing: no data can be opened", fix)


def _deny_list(folder: Path, custody: KeyServiceSettings) -> Finding:
    from twinlock.keyservice.deny_list import DenyList
    from twinlock.keyservice.service import DENY_LIST_NAME

    path = Path(custody.deny_list_file or folder / DENY_LIST_NAME)
    try:
        denied = list(DenyList(path, may_make=False))
    except StoreError as exc:
        fix = "Put back the newest copy: without it a restored backup would bring shredded spaces back."
        return Finding(Verdict.BAD, f"{path}: {exc.detail}", fix)
    return Finding(Verdict.GOOD, f"the deny list {path} names {len(denied)} shredded spaces")


def _ledger(folder: Path, custody: KeyServiceSettings) -> Finding:
    from twinlock.keyservice.ledger_file import verify_ledger

    try:
        report = verify_ledger(folder, custody).report
    except LedgerBrokenError as exc:
        fix = "Somebody or something changed what was recorded: keep the folder as it is, and compare with a backup."
        return Finding(Verdict.BAD, f"the ledger is broken: {exc.detail}", fix)
    except TwinlockError as exc:
        return Finding(Verdict.BAD, f"the ledger cannot be checked: {exc.detail}", exc.fix)
    return Finding(Verdict.GOOD, f"the ledger is whole: {report.records_count} records")


# Over the network


def _remote(settings: Settings) -> Iterator[Finding]:
    from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, read_public_key
    from twinlock.keyservice.node_auth import LIFE_BYTES, NodeIdentity

    path = Path(settings.data) / NODE_KEY_NAME
    if not path.exists():
        fix = "Make it with `twinlock keyservice node-key`, and list what that prints in the key service's `nodes`."
        yield Finding(Verdict.NOTE, f"this server has no node key {path} yet: the key service was not asked", fix)
        return
    try:
        key = open_signing_key(path)
    except StoreError as exc:
        yield Finding(Verdict.BAD, exc.detail, f"chmod 600 {path}")
        return
    service_pk = read_public_key(settings.keyservice_pk)
    # Each a run of its own: the requests of one run are numbered.
    nodes = [NodeIdentity(key, service_pk, os.urandom(LIFE_BYTES)) for _ in range(3)]
    yield from asyncio.run(_asked(settings, nodes))


async def _asked(settings: Settings, nodes: list[NodeIdentity]) -> list[Finding]:
    try:
        await _probe(settings, nodes[0], 0)
    except NodeRefusedError as exc:
        return [_refused(settings, nodes[0], exc)]
    except KeyServiceError as exc:
        fix = "See that it runs and can be reached from here, and that keyservice_url and keyservice_pk are its own."
        return [Finding(Verdict.BAD, f"{settings.keyservice_url} does not answer: {exc.detail}", fix)]
    except TwinlockError as exc:
        return [Finding(Verdict.BAD, f"{settings.keyservice_url}: {exc.detail}", exc.fix)]
    found = Finding(Verdict.GOOD, f"{settings.keyservice_url} answers, and takes requests of this server")
    return [found, await _skew(settings, nodes[1:])]


def _refused(settings: Settings, node: NodeIdentity, error: NodeRefusedError) -> Finding:
    what = f"{settings.keyservice_url} refuses this server: {error.detail}"
    if "clock" in error.detail:
        return Finding(Verdict.BAD, what, "Set the clocks of both machines, best by NTP.")
    return Finding(Verdict.BAD, what, f"List this server's key in the key service's `nodes`: {node.node_pk.hex()}")


async def _skew(settings: Settings, nodes: list[NodeIdentity]) -> Finding:
    """Compare the clocks by the service's own signed word: what it takes if this one were a minute off."""
    try:
        for node, shift_ms in zip(nodes, (SKEW_NOTE_MS, -SKEW_NOTE_MS), strict=True):
            await _probe(settings, node, shift_ms)
    except TwinlockError:
        what = f"its clock is more than {SKEW_NOTE_MS // 1000} s away from this one; at 120 s it refuses everything"
        return Finding(Verdict.NOTE, what, "Set the clocks of both machines, best by NTP.")
    return Finding(Verdict.GOOD, f"its clock is within {SKEW_NOTE_MS // 1000} s of this one")


async def _probe(settings: Settings, node: NodeIdentity, shift_ms: int) -> None:
    from twinlock.keyservice.remote import RemoteKeyService
    from twinlock.keyservice.service import wall_clock_ms

    url, ca_file = settings.keyservice_url, settings.keyservice_ca_file
    service = RemoteKeyService.connect(url, node, lambda: wall_clock_ms() + shift_ms, ca_file)
    try:
        await service.probe()
    finally:
        await service.close()
