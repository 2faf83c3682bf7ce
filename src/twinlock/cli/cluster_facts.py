"""What a NATS cluster tells of itself: its servers over the system account or their monitoring, and its streams."""

from __future__ import annotations

import asyncio
import datetime
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from twinlock.errors import StoreError

if TYPE_CHECKING:
    from twinlock.engines.jetstream_connection import Connection
    from twinlock.engines.jetstream_message import Message

ANSWER_SECONDS = 5.0
SERVERS_SECONDS = 1.0
"""How long servers are waited for: one that is down never answers."""

STREAM_PREFIX = "TW_"


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One NATS server as it tells of itself; None where it did not say.

    Args:
        sync_always: whether what it acknowledges is on its disk.
        clock_offset_s: how far its clock is ahead of this machine's.
        clock_error_s: how far that figure can be wrong: the time its answer took.
        cluster_size: how many servers its JetStream cluster counts; 0 for a server that is alone.
        has_leader: whether the JetStream cluster has a leader, as this server sees it.
        certificate_ends: until when its certificate is valid.
        storage_bytes: what its streams take of its disk.
        storage_max_bytes: what they may take.
    """

    name: str
    version: str
    jetstream: bool
    sync_always: bool | None
    max_payload: int
    clock_offset_s: float
    clock_error_s: float
    cluster_size: int = 0
    has_leader: bool = True
    certificate_ends: datetime.datetime | None = None
    storage_bytes: int = 0
    storage_max_bytes: int = 0
    slow_consumers: int = 0


class ReplicaFacts(msgspec.Struct, frozen=True):
    """One follower of a stream: whether it has all that the leader has, or how many operations it lacks."""

    server: str
    current: bool
    offline: bool
    lag: int


class MirrorFacts(msgspec.Struct, frozen=True):
    """A stream that copies one of another site: how many messages it lacks, how long ago it heard of it.

    `active_s` is None when it never heard of the other site.
    """

    lag: int
    active_s: float | None
    error: str


class StreamFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One stream, its leader and followers."""

    name: str
    messages: int
    bytes: int
    last_seq: int
    subjects_count: int
    replicas: int
    leader: str
    followers: list[ReplicaFacts]
    subjects: list[str]
    mirror: MirrorFacts | None

    @property
    def current_count(self) -> int:
        """How many servers have all of it, the leader among them."""
        return bool(self.leader) + sum(follower.current and not follower.offline for follower in self.followers)


class ClusterFacts(msgspec.Struct, frozen=True):
    """Servers and streams of a cluster; servers are None where nobody could be asked about them."""

    servers: list[ServerFacts] | None
    streams: list[StreamFacts]


async def ask(connection: Connection, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask JetStream something and return its answer.

    Raises:
        StoreError: there was no answer, or it is an error.
    """
    payload = json.dumps(body).encode() if body else b""
    message = await connection.request(subject, payload, ANSWER_SECONDS)
    if message is None or not message.payload:
        raise StoreError(f"JetStream does not answer {subject}")
    answer: dict[str, Any] = json.loads(message.payload)
    if error := answer.get("error"):
        raise StoreError(f"JetStream refuses {subject}: {error.get('description')}")
    return answer


async def read_streams(connection: Connection) -> list[StreamFacts]:
    """Return Twinlock's streams, sorted by name.

    Raises:
        StoreError: JetStream does not answer.
    """
    found: list[StreamFacts] = []
    asked = 0
    while True:
        page = await ask(connection, "$JS.API.STREAM.LIST", {"offset": asked})
        streams = page.get("streams") or []
        asked += len(streams)
        found += [_stream(stream) for stream in streams if stream["config"]["name"].startswith(STREAM_PREFIX)]
        if not streams or asked >= page.get("total", 0):
            return sorted(found, key=lambda stream: stream.name)


async def read_named_streams(connection: Connection, names: list[str]) -> list[StreamFacts]:
    """Return streams that are known by their names: a server's own key may not list what there is.

    Raises:
        StoreError: JetStream does not answer, or has no such stream.
    """
    found = [await ask(connection, f"$JS.API.STREAM.INFO.{name}") for name in names]
    return sorted(map(_stream, found), key=lambda stream: stream.name)


async def read_servers(connection: Connection) -> list[ServerFacts]:
    """Ask every server of the cluster how it is; `connection` is one of the system account.

    Raises:
        StoreError: the key may not ask.
    """
    loop = asyncio.get_running_loop()
    asked_at = datetime.datetime.now(datetime.UTC)
    began = loop.time()
    found: list[ServerFacts] = []
    done = asyncio.Event()

    def answered(message: Message | None) -> bool:
        if message is None:
            done.set()
            return True
        if message.payload:
            page = json.loads(message.payload)
            taken_s = loop.time() - began
            found.append(server_facts(page["data"], page["server"].get("time", ""), asked_at, taken_s))
        is_all = bool(found) and len(found) >= max(1, *(server.cluster_size for server in found))
        if is_all:
            done.set()
        return is_all

    end = connection.ask("$SYS.REQ.SERVER.PING.VARZ", b"", answered, seconds=SERVERS_SECONDS)
    try:
        await done.wait()
    finally:
        end()
    if not found:
        raise StoreError("no server answers over the system account: is this the key of the monitor?")
    return sorted(found, key=lambda server: server.name)


async def fetch_servers(urls: list[str]) -> list[ServerFacts]:
    """Ask servers how they are over their monitoring addresses, such as `http://127.0.0.1:8222`.

    Raises:
        StoreError: an address is none, or does not answer.
    """
    return sorted([await _fetch(url) for url in urls], key=lambda server: server.name)


def server_facts(page: dict[str, Any], time_text: str, asked_at: datetime.datetime, taken_s: float) -> ServerFacts:
    """Read what `varz` says of a server."""
    jetstream = page.get("jetstream") or {}
    config, stats, meta = jetstream.get("config") or {}, jetstream.get("stats") or {}, jetstream.get("meta")
    told = _time(time_text or page.get("now", ""))
    # Half of the way is the best guess at when it looked at its clock.
    middle = asked_at + datetime.timedelta(seconds=taken_s / 2)
    ends = _time(page.get("tls_cert_not_after", ""))
    return ServerFacts(
        name=page.get("server_name", ""),
        version=page.get("version", ""),
        jetstream=bool(config),
        # Absent in servers that cannot tell, and in those that sync every two minutes.
        sync_always=bool(config.get("sync_always")) if config else None,
        max_payload=page.get("max_payload", 0),
        clock_offset_s=(told - middle).total_seconds() if told else 0.0,
        clock_error_s=taken_s / 2,
        cluster_size=(meta or {}).get("cluster_size", 0),
        has_leader=meta is None or bool(meta.get("leader")),
        certificate_ends=ends if ends is not None and ends.year > 1 else None,
        storage_bytes=stats.get("storage", 0),
        storage_max_bytes=config.get("max_storage", 0),
        slow_consumers=page.get("slow_consumers", 0),
    )


async def _fetch(url: str) -> ServerFacts:
    import httpx

    if urlsplit(url).scheme not in ("http", "https"):
        raise StoreError(f"{url!r} is no address of a server's monitoring, such as http://127.0.0.1:8222")
    asked_at = datetime.datetime.now(datetime.UTC)
    try:
        async with httpx.AsyncClient(timeout=SERVERS_SECONDS, trust_env=False) as client:
            response = await client.get(f"{url.rstrip('/')}/varz")
            response.raise_for_status()
            page = response.json()
    except (httpx.HTTPError, ValueError) as exc:
        raise StoreError(f"{url} does not answer: {exc or type(exc).__name__}") from exc
    taken_s = (datetime.datetime.now(datetime.UTC) - asked_at).total_seconds()
    return server_facts(page, "", asked_at, taken_s)


def _stream(answer: dict[str, Any]) -> StreamFacts:
    config, state, cluster = answer["config"], answer["state"], answer.get("cluster")
    followers = [
        ReplicaFacts(one.get("name", ""), one.get("current", False), one.get("offline", False), one.get("lag", 0))
        for one in (cluster or {}).get("replicas") or []
    ]
    return StreamFacts(
        name=config["name"],
        messages=state["messages"],
        bytes=state["bytes"],
        last_seq=state["last_seq"],
        subjects_count=state.get("num_subjects", 0),
        replicas=config["num_replicas"],
        # A server that is alone tells of no cluster: it leads all that it has.
        leader="itself" if cluster is None else cluster.get("leader") or "",
        followers=followers,
        subjects=config.get("subjects") or [],
        mirror=_mirror(answer["mirror"]) if answer.get("mirror") else None,
    )


def _mirror(told: dict[str, Any]) -> MirrorFacts:
    active_ns = told.get("active", -1)
    error = (told.get("error") or {}).get("description", "")
    return MirrorFacts(told.get("lag", 0), active_ns / 1e9 if active_ns >= 0 else None, error)


def _time(text: str) -> datetime.datetime | None:
    """Read a time as NATS writes it, with up to nine digits of a second."""
    if not text:
        return None
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.datetime.fromisoformat(f"{whole}.{fraction[:6].ljust(6, '0')}+00:00")
