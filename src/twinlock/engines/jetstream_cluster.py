"""What a cluster is made of: its record in the directory, its streams, its partitions, and how all of that is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from twinlock.engines.jetstream_api import NO_CLUSTER, NO_PEERS, NO_STREAM, Api, ApiError
from twinlock.engines.jetstream_directory import JetstreamDirectory
from twinlock.engines.jetstream_format import SETTINGS_KEY, Names
from twinlock.errors import InvalidCallError, RevisionError, StoreError, UpdateNeededError
from twinlock.ids import Incarnation

SETTINGS_FORMAT = 1
SHARDS_DEFAULT = 4
PARTITIONS_DEFAULT = 16
PARTITIONS_MAX = 1 << 16
REPLICAS_IN_CLUSTER = 3
CREATE_SECONDS_MAX = 30.0
PEERS_SECONDS_MAX = 10.0
PEERS_AGAIN_SECONDS = 0.3
"""A cluster that has just started does not see all of its servers at once."""

MAX_PAYLOAD_MIN = 8 << 20
_DUPLICATE_WINDOW_NS = 100_000_000
_STATUS_SECONDS = 2.0


class ClusterSettings(msgspec.Struct, frozen=True):
    """What all nodes of a cluster agree on; stored in the directory when the first of them starts.

    `incarnation` names this life of the store; `shards` is the number of streams of the directory, which never
    changes; `partitions` are those that exist, `open` those of them that take new spaces.
    """

    format: int
    incarnation: bytes
    shards: int
    replicas: int
    partitions: list[int]
    open: list[int]


class FirstSettings(msgspec.Struct, frozen=True):
    """What a new cluster begins with; of no effect on one that exists. `replicas` 0: 3, or 1 on a server alone."""

    partitions: int = PARTITIONS_DEFAULT
    shards: int = SHARDS_DEFAULT
    replicas: int = 0


class ReplicaStatus(msgspec.Struct, frozen=True):
    """A server that holds a copy of a stream: whether it is up to date, and how many messages it lacks."""

    server: str
    is_current: bool
    is_offline: bool
    lag: int


class StreamStatus(msgspec.Struct, frozen=True):
    """One stream: who leads it (empty: nobody now), its copies, and how much it holds."""

    name: str
    leader: str
    replicas: list[ReplicaStatus]
    messages: int
    bytes: int
    subjects: int
    tags: list[str]


class ClusterStatus(msgspec.Struct, frozen=True):
    """A look at the whole cluster. `syncs_always` is None where the servers' settings cannot be seen from here."""

    settings: ClusterSettings
    server: str
    server_version: str
    streams: list[StreamStatus]
    syncs_always: bool | None

    @property
    def is_healthy(self) -> bool:
        """Whether every stream has a leader and enough copies that are up to date to lose another machine."""
        return all((stream.leader or not stream.replicas) and _is_safe(stream) for stream in self.streams)


def _is_safe(stream: StreamStatus) -> bool:
    return all(replica.is_current and not replica.is_offline for replica in stream.replicas)


class Cluster:
    """The streams of one Twinlock cluster on a NATS cluster."""

    __slots__ = ("_api", "_names", "_settings")

    def __init__(self, api: Api, names: Names) -> None:
        self._api = api
        self._names = names
        self._settings: ClusterSettings | None = None

    @property
    def settings(self) -> ClusterSettings:
        """The record as it was read last."""
        assert self._settings is not None, "the cluster is open"
        return self._settings

    async def open(self, first: FirstSettings) -> ClusterSettings:
        """Read the cluster's record, or make it, and see that every stream is there.

        Raises:
            StoreError: the servers do not fit, or a stream cannot be made.
            UpdateNeededError: a newer version of Twinlock made the cluster.
        """
        server = self._api.connection.server
        if server.get("max_payload", 0) < MAX_PAYLOAD_MIN:
            raise StoreError("the NATS servers take too small messages: set max_payload to 8MB")
        if not server.get("jetstream"):
            raise StoreError("the NATS servers have no JetStream: enable it with sync_interval: always")
        replicas = await self._ensure_first(first.replicas)
        settings = self._settings = await self._read_or_make(first, replicas)
        for shard in range(1, settings.shards):
            await self._ensure_directory(shard, settings.replicas)
        for partition in settings.partitions:
            await self._ensure_partition(partition, settings.replicas, ())
        return settings

    async def refresh(self, directory: JetstreamDirectory) -> ClusterSettings:
        """Read the cluster's record again."""
        record = await directory.get(SETTINGS_KEY)
        if record is None:
            raise StoreError("the cluster's record is gone")
        self._settings = _decode(record.value)
        return self._settings

    async def open_partitions(
        self, directory: JetstreamDirectory, first: int, count: int, tags: Sequence[str] = ()
    ) -> ClusterSettings:
        """Make partitions, on servers that have all of some tags, and open them for new spaces.

        Raises:
            InvalidCallError: there are no such partitions.
            StoreError: they cannot be made, such as when no three servers have the tags.
        """
        if first < 0 or count < 1 or first + count > PARTITIONS_MAX:
            raise InvalidCallError(f"partitions are numbered from 0 to {PARTITIONS_MAX - 1}")
        wanted = range(first, first + count)
        replicas = (await self.refresh(directory)).replicas
        for partition in wanted:
            await self._ensure_partition(partition, replicas, tags)
        return await self._change(
            directory,
            lambda held: msgspec.structs.replace(
                held,
                partitions=sorted({*held.partitions, *wanted}),
                open=sorted({*held.open, *wanted}),
            ),
        )

    async def close_partitions(self, directory: JetstreamDirectory, first: int, count: int) -> ClusterSettings:
        """Take partitions off those that get new spaces; what is in them stays and is served on.

        Raises:
            InvalidCallError: none would be left.
        """
        closed = set(range(first, first + count))

        def change(held: ClusterSettings) -> ClusterSettings:
            left = [partition for partition in held.open if partition not in closed]
            if not left:
                raise InvalidCallError("one partition must stay open for new spaces")
            return msgspec.structs.replace(held, open=left)

        return await self._change(directory, change)

    async def replace_incarnation(self, directory: JetstreamDirectory, incarnation: Incarnation) -> ClusterSettings:
        """Begin a new life of the store: after it was promoted from a mirror, or restored."""
        return await self._change(directory, lambda held: msgspec.structs.replace(held, incarnation=incarnation))

    async def spaces_in(self, partitions: Sequence[int]) -> dict[int, int]:
        """Return how many spaces some partitions have.

        Raises:
            StoreError: the cluster does not answer.
        """
        counted: dict[int, int] = {}
        for partition in partitions:
            info = await self._api.call(f"STREAM.INFO.{self._names.log_stream(partition)}", {})
            counted[partition] = int(info["state"].get("num_subjects", 0))
        return counted

    async def status(self, directory: JetstreamDirectory) -> ClusterStatus:
        """Look at every stream.

        Raises:
            StoreError: the cluster does not answer.
        """
        settings = await self.refresh(directory)
        names = [self._names.directory_stream(shard) for shard in range(settings.shards)]
        names += [self._names.log_stream(partition) for partition in settings.partitions]
        streams = [await self._stream_status(name) for name in names]
        server = self._api.connection.server
        return ClusterStatus(
            settings, server.get("server_name", ""), server.get("version", ""), streams, await self._syncs_always()
        )

    async def _read_or_make(self, first: FirstSettings, replicas: int) -> ClusterSettings:
        # The record is in the first part of the directory, whatever the number of parts.
        directory = JetstreamDirectory(self._api, self._names, 1)
        record = await directory.get(SETTINGS_KEY)
        if record is None:
            numbers = list(range(first.partitions))
            made = ClusterSettings(SETTINGS_FORMAT, os.urandom(16), first.shards, replicas, numbers, numbers)
            try:
                await directory.put(SETTINGS_KEY, msgspec.msgpack.encode(made), expect_revision=0)
                return made
            except RevisionError:
                # Another node was faster.
                record = await directory.get(SETTINGS_KEY)
        if record is None:
            raise StoreError("the cluster's record comes and goes")
        return _decode(record.value)

    async def _change(
        self, directory: JetstreamDirectory, change: Callable[[ClusterSettings], ClusterSettings]
    ) -> ClusterSettings:
        while True:
            record = await directory.get(SETTINGS_KEY)
            if record is None:
                raise StoreError("the cluster's record is gone")
            changed = change(_decode(record.value))
            try:
                await directory.put(SETTINGS_KEY, msgspec.msgpack.encode(changed), expect_revision=record.revision)
            except RevisionError:
                continue
            self._settings = changed
            return changed

    async def _ensure_partition(self, partition: int, replicas: int, tags: Sequence[str]) -> None:
        source = self._names.log_subjects(partition)
        republish = {"src": source, "dest": f"{self._names.live}.{partition:04x}.{{{{wildcard(1)}}}}"}
        await self._ensure(self._names.log_stream(partition), source, replicas, tags, {"republish": republish})

    async def _ensure_first(self, wanted: int) -> int:
        """See that the first stream is there, in three copies unless the server is alone; return how many it has.

        The server's own word that it is in no cluster counts, and nothing else: a server that is alone names one too
        if others link to it, and one of a cluster may be down just now.
        """
        try:
            return await self._ensure_directory(0, wanted or REPLICAS_IN_CLUSTER)
        except ApiError as error:
            if wanted or error.failure.err_code != NO_CLUSTER:
                raise
        return await self._ensure_directory(0, 1)

    async def _ensure_directory(self, shard: int, replicas: int) -> int:
        source = self._names.directory_prefix(shard) + ">"
        republish = {"src": source, "dest": self._names.directory_live_prefix(shard) + ">"}
        special = {"republish": republish, "max_msgs_per_subject": 1, "allow_msg_ttl": True}
        return await self._ensure(self._names.directory_stream(shard), source, replicas, (), special)

    async def _ensure(
        self, name: str, subjects: str, replicas: int, tags: Sequence[str], special: dict[str, Any]
    ) -> int:
        """Make a stream if there is none; a node that may not make streams can so use one that others made.

        Returns in how many copies it is.
        """
        try:
            info = await self._api.call(f"STREAM.INFO.{name}", {})
        except ApiError as error:
            if error.failure.err_code != NO_STREAM:
                raise
        else:
            if info["config"].get("mirror"):
                raise StoreError("these streams are copies of another site's: see `twinlock cluster promote`")
            return int(info["config"].get("num_replicas", 1))
        config: dict[str, Any] = {
            "name": name,
            "subjects": [subjects],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "num_replicas": replicas,
            "allow_direct": True,
            "duplicate_window": _DUPLICATE_WINDOW_NS,
            **special,
        }
        if tags:
            config["placement"] = {"tags": list(tags)}
        await self._create(name, config, 0 if tags else PEERS_SECONDS_MAX)
        return replicas

    async def _create(self, name: str, config: dict[str, Any], seconds: float) -> None:
        """Make a stream; servers that are not seen yet are waited for."""
        ends = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                await self._api.call(f"STREAM.CREATE.{name}", config, CREATE_SECONDS_MAX)
                return
            except ApiError as error:
                if error.failure.err_code != NO_PEERS or asyncio.get_running_loop().time() > ends:
                    raise
            await asyncio.sleep(PEERS_AGAIN_SECONDS)

    async def _stream_status(self, name: str) -> StreamStatus:
        info = await self._api.call(f"STREAM.INFO.{name}", {})
        group, state, config = info.get("cluster") or {}, info["state"], info["config"]
        replicas = [
            ReplicaStatus(
                server=replica.get("name", ""),
                is_current=bool(replica.get("current")),
                is_offline=bool(replica.get("offline")),
                lag=int(replica.get("lag", 0)),
            )
            for replica in group.get("replicas") or []
        ]
        return StreamStatus(
            name,
            group.get("leader", ""),
            replicas,
            int(state["messages"]),
            int(state["bytes"]),
            int(state.get("num_subjects", 0)),
            list((config.get("placement") or {}).get("tags") or []),
        )

    async def _syncs_always(self) -> bool | None:
        """Ask the server itself; only a user of the system account is answered."""
        answer = await self._api.connection.request("$SYS.REQ.SERVER.PING.VARZ", b"", _STATUS_SECONDS)
        if answer is None or answer.status:
            return None
        varz = msgspec.json.decode(answer.payload).get("data") or {}
        jetstream = (varz.get("jetstream") or {}).get("config") or {}
        return bool(jetstream.get("sync_always"))


def _decode(value: bytes) -> ClusterSettings:
    try:
        settings = msgspec.msgpack.decode(value, type=ClusterSettings)
    except msgspec.MsgspecError as exc:
        raise StoreError("the cluster's record cannot be read") from exc
    if settings.format > SETTINGS_FORMAT:
        raise UpdateNeededError(f"format {settings.format} of the cluster")
    return settings
