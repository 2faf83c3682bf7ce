"""What `twinlock doctor` checks of the NATS cluster that a server uses; nothing there is made or changed."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from twinlock.cli.cluster_authority import AUTHORITY_NAME
from twinlock.cli.cluster_facts import ServerFacts, StreamFacts, fetch_servers, read_named_streams, read_servers
from twinlock.cli.cluster_keys import DOCTOR_SEED_NAME, MONITOR_SEED_NAME
from twinlock.cli.doctor_stores import check_blobs, check_record, read_settings
from twinlock.cli.findings import Finding, Verdict
from twinlock.errors import StoreError, TwinlockError

if TYPE_CHECKING:
    from twinlock.engines.jetstream_cluster import ClusterSettings
    from twinlock.engines.jetstream_connection import Connection
    from twinlock.engines.jetstream_options import NatsOptions
    from twinlock.server.settings import Settings

VERSION_MIN = (2, 11)
PAYLOAD_BYTES_MIN = 8_000_000
REPLICAS = 3
CLOCK_NOTE_S = 1.0
CLOCK_BAD_S = 60.0
"""Half of what the key service and the devices take."""

CERTIFICATE_NOTE_DAYS = 30
CERTIFICATE_BAD_DAYS = 7
STREAMS_SECONDS = 15.0
NAMES_SHOWN = 3
STORAGE_NOTE = 0.8
STORAGE_BAD = 0.9

ALWAYS_FIX = "Set `jetstream { sync_interval: always }` and start it again: see deploy/nats/server.conf."


async def check_reach(options: NatsOptions) -> AsyncIterator[Finding]:
    """Check every address by itself: whether it answers, and what the server there says of itself."""
    if not options.is_tls and any(address.host not in _LOOPBACK for address in options.addresses):
        fix = "Dial tls:// and name the authority; everything that nodes say to the cluster is read on the way else."
        yield Finding(Verdict.BAD, "the cluster is dialled without TLS", fix)
    for address in options.addresses:
        name = f"{address.host}:{address.port}"
        try:
            async with connected(msgspec.structs.replace(options, addresses=(address,))) as connection:
                found = [_said(name, connection.server)]
        except StoreError as exc:
            fix = "See that it runs, that this machine may reach it, and that it knows this key."
            found = [Finding(Verdict.BAD, exc.detail or f"NATS at {name} cannot be used", fix)]
        for finding in found:
            yield finding


_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _said(name: str, info: dict[str, object]) -> Finding:
    """Judge what a server greets with."""
    version = str(info.get("version", ""))
    if _version(version) < VERSION_MIN:
        return Finding(Verdict.BAD, f"NATS at {name} is {version}", "Twinlock needs nats-server 2.11 or newer.")
    if not info.get("jetstream"):
        return Finding(Verdict.BAD, f"NATS at {name} runs without JetStream", "Add a `jetstream { … }` block.")
    payload = info.get("max_payload")
    if not isinstance(payload, int) or payload < PAYLOAD_BYTES_MIN:
        fix = "Set max_payload: 8MB; an append is one message of up to 4 MiB of envelopes."
        return Finding(Verdict.BAD, f"NATS at {name} takes messages of at most {payload} bytes", fix)
    return Finding(Verdict.GOOD, f"NATS {version} at {name} answers, with JetStream")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("-")[0].split(".") if part.isdigit())


@asynccontextmanager
async def connected(options: NatsOptions) -> AsyncIterator[Connection]:
    """Hold a connection to a cluster.

    Raises:
        StoreError: no server can be reached, or they refuse us.
    """
    from twinlock.engines.jetstream_connection import Connection

    connection = Connection(options)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


def operators_options(url: str, operator: Path) -> tuple[NatsOptions, NatsOptions]:
    """Return how to reach a cluster as the doctor, who sees streams, and as the monitor, who sees servers.

    Raises:
        StoreError: `url` is no address of a cluster.
    """
    from twinlock.engines.jetstream_options import NatsOptions

    authority = str(operator / AUTHORITY_NAME) if url.startswith("tls://") else ""
    doctor = NatsOptions.from_url(url, ca_file=authority, nkey_file=str(operator / DOCTOR_SEED_NAME))
    return doctor, msgspec.structs.replace(doctor, nkey_file=str(operator / MONITOR_SEED_NAME))


# The servers


async def servers_of(options: NatsOptions, operator: Path | None, monitors: list[str]) -> list[ServerFacts] | None:
    """Ask the servers how they are, with the monitor's key or over their monitoring addresses; None without either.

    Raises:
        StoreError: they do not answer.
    """
    if operator is not None:
        asking = msgspec.structs.replace(options, nkey_file=str(operator / MONITOR_SEED_NAME), creds_file="")
        async with connected(asking) as connection:
            return await read_servers(connection)
    return await fetch_servers(monitors) if monitors else None


def judge_servers(servers: list[ServerFacts] | None, now: datetime.datetime) -> Iterator[Finding]:
    """Check how the servers are configured, and how they are."""
    if servers is None:
        fix = "Name the operator's folder (--operator) or the servers' monitoring addresses (--monitor)."
        yield Finding(Verdict.NOTE, "whether the servers sync every message cannot be seen from here: unknown", fix)
        return
    size = max(server.cluster_size for server in servers)
    if len(servers) < size:
        names = ", ".join(server.name for server in servers)
        yield Finding(Verdict.BAD, f"{len(servers)} of {size} servers answer: {names}", "Bring the others back.")
    if not all(server.has_leader for server in servers):
        fix = "Bring back servers until more than half of them run; nothing can be stored or changed before."
        yield Finding(Verdict.BAD, "the JetStream cluster has no leader", fix)
    yield from _synced(servers)
    for server in servers:
        yield from _judge_server(server, now)


def _synced(servers: list[ServerFacts]) -> Iterator[Finding]:
    lazy = [server.name for server in servers if server.sync_always is False]
    if lazy:
        what = f"{', '.join(lazy)}: acknowledged messages are on disk only after up to two minutes"
        yield Finding(Verdict.BAD, what, ALWAYS_FIX)
    elif all(server.sync_always for server in servers):
        yield Finding(Verdict.GOOD, f"{len(servers)} servers sync every message before they acknowledge it")


def _judge_server(server: ServerFacts, now: datetime.datetime) -> Iterator[Finding]:
    skew_s = max(0.0, abs(server.clock_offset_s) - server.clock_error_s)
    if skew_s > CLOCK_NOTE_S:
        verdict = Verdict.BAD if skew_s > CLOCK_BAD_S else Verdict.NOTE
        yield Finding(verdict, f"{server.name}: its clock is {skew_s:.1f} s away from this one", "Run NTP on both.")
    if server.certificate_ends is not None:
        days = (server.certificate_ends - now).days
        if days < CERTIFICATE_NOTE_DAYS:
            verdict = Verdict.BAD if days < CERTIFICATE_BAD_DAYS else Verdict.NOTE
            fix = "Make new ones (`twinlock cluster keys FOLDER --renew`), copy them, and reload the server."
            yield Finding(verdict, f"{server.name}: its certificate ends in {days} days", fix)
    if server.storage_max_bytes:
        full = server.storage_bytes / server.storage_max_bytes
        if full > STORAGE_NOTE:
            verdict = Verdict.BAD if full > STORAGE_BAD else Verdict.NOTE
            fix = "Make room, or open partitions on other machines: a full store refuses every write."
            yield Finding(verdict, f"{server.name}: its store is {full:.0%} full", fix)


# The streams


def judge_streams(streams: list[StreamFacts], servers_count: int) -> Iterator[Finding]:
    """Check that every stream has its leader and all its copies; `servers_count` is 0 if it is unknown."""
    if not streams:
        yield Finding(Verdict.NOTE, "no streams yet: the first server makes them at its start")
        return
    troubles: dict[Finding, list[str]] = {}
    for stream in streams:
        for trouble in _judge_stream(stream, servers_count):
            troubles.setdefault(trouble, []).append(stream.name)
    # A server that is gone is missing from hundreds of streams, and is one thing to mend.
    for trouble, names in troubles.items():
        yield trouble._replace(what=f"{_first_of(names)}: {trouble.what}")
    if not troubles:
        copies = min(stream.replicas for stream in streams)
        yield Finding(Verdict.GOOD, f"{len(streams)} streams, each with {copies} copies that are up to date")


def _first_of(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _judge_stream(stream: StreamFacts, servers_count: int) -> Iterator[Finding]:
    """Say what is wrong with a stream, without its name."""
    if stream.mirror is not None:
        what = f"a copy of another site's, {stream.mirror.lag} messages behind"
        yield Finding(Verdict.NOTE, what, "Nothing can be written here before `twinlock cluster promote`.")
    if not stream.leader:
        fix = "Bring back servers until more than half of its copies run: until then its spaces cannot be written."
        yield Finding(Verdict.BAD, "no leader", fix)
    elif stream.current_count < stream.replicas:
        behind = sorted(one.server for one in stream.followers if one.offline or not one.current)
        what = f"{stream.current_count} of {stream.replicas} copies are up to date"
        yield Finding(Verdict.BAD, what, f"Look at {', '.join(behind) or 'the missing servers'}.")
    if stream.replicas < REPLICAS <= max(servers_count, 1 + len(stream.followers)):
        fix = "Their number is fixed: make a cluster of three and move into it: docs/operate/cluster.md#grow."
        yield Finding(Verdict.BAD, f"{stream.replicas} copies, {REPLICAS} are needed", fix)
    elif stream.replicas < REPLICAS:
        fix = "What a machine has acknowledged is lost with its disk: fine for a trial, or with backups."
        yield Finding(Verdict.NOTE, f"{stream.replicas} copy on this cluster", fix)


# The whole


def cluster(options: NatsOptions, operator: Path | None, monitors: list[str]) -> Iterator[Finding]:
    """Check the NATS servers and streams that a server would use."""
    yield from asyncio.run(_cluster(options, operator, monitors))


def shared(settings: Settings) -> Iterator[Finding]:
    """Check what the nodes of a cluster share besides: its record, its identity, the store of files."""
    yield from asyncio.run(_shared(settings))


def options_of(settings: Settings) -> NatsOptions:
    """Return how a server with these settings reaches its cluster.

    Raises:
        StoreError: the engine's address is none.
    """
    from twinlock.engines.jetstream_options import NatsOptions

    return NatsOptions.from_url(
        settings.engine,
        ca_file=settings.nats_ca_file,
        certificate=settings.nats_certificate,
        key=settings.nats_key,
        nkey_file=settings.nats_nkey_file,
        creds_file=settings.nats_creds_file,
    )


async def _cluster(options: NatsOptions, operator: Path | None, monitors: list[str]) -> list[Finding]:
    found = [finding async for finding in check_reach(options)]
    servers: list[ServerFacts] | None = None
    try:
        servers = await servers_of(options, operator, monitors)
        found += judge_servers(servers, datetime.datetime.now(datetime.UTC))
    except TwinlockError as exc:
        found.append(Finding(Verdict.BAD, f"the servers do not say how they are: {exc.detail}", exc.fix))
    if all(finding.verdict is not Verdict.GOOD for finding in found):
        return found
    try:
        async with connected(options) as connection, asyncio.timeout(STREAMS_SECONDS):
            settings = await read_settings(connection)
            streams = await read_named_streams(connection, _names_of(settings)) if settings else []
        found += judge_streams(streams, len(servers or []))
    except TwinlockError as exc:
        found.append(Finding(Verdict.BAD, f"the streams cannot be looked at: {exc.detail}", exc.fix))
    except TimeoutError:
        fix = "Bring back servers until more than half of them run."
        found.append(Finding(Verdict.BAD, f"the streams do not answer within {STREAMS_SECONDS:.0f} s", fix))
    return found


def _names_of(settings: ClusterSettings) -> list[str]:
    from twinlock.engines.jetstream_format import Names

    names = Names()
    directory = [names.directory_stream(shard) for shard in range(settings.shards)]
    return directory + [names.log_stream(partition) for partition in settings.partitions]


async def _shared(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    try:
        async with connected(options_of(settings)) as connection:
            found += [finding async for finding in check_record(connection, Path(settings.data))]
    except TwinlockError as exc:
        found.append(Finding(Verdict.BAD, f"the cluster's record cannot be read: {exc.detail}", exc.fix))
    return found + [finding async for finding in check_blobs(settings)]
