"""The cluster engine: log, directory and broker on NATS JetStream. See docs/internals/engines.md."""

from __future__ import annotations

from collections.abc import Sequence

from twinlock.engines.jetstream_api import Api
from twinlock.engines.jetstream_broker import JetstreamBroker
from twinlock.engines.jetstream_cluster import Cluster, ClusterSettings, ClusterStatus, FirstSettings
from twinlock.engines.jetstream_connection import Connection
from twinlock.engines.jetstream_directory import JetstreamDirectory
from twinlock.engines.jetstream_format import Names
from twinlock.engines.jetstream_log import JetstreamLog
from twinlock.engines.jetstream_options import NatsOptions
from twinlock.ids import Incarnation


class JetstreamEngine:
    """One node's way into a cluster. Used from one event loop."""

    __slots__ = ("_cluster", "api", "broker", "connection", "directory", "log", "name")

    def __init__(self, connection: Connection, api: Api, cluster: Cluster, names: Names) -> None:
        settings = cluster.settings
        self._cluster = cluster
        self.api = api
        self.name = names.name
        self.connection = connection
        self.directory = JetstreamDirectory(api, names, settings.shards)
        self.log = JetstreamLog(Incarnation(settings.incarnation), api, self.directory, cluster, names)
        self.broker = JetstreamBroker(connection, names)

    @classmethod
    async def connect(
        cls,
        url: str,
        options: NatsOptions | None = None,
        *,
        name: str = "",
        first: FirstSettings | None = None,
    ) -> JetstreamEngine:
        """Open a cluster, or make it on NATS servers that have none yet.

        Args:
            url: `nats://host:port,host:port`, or `tls://…`.
            options: addresses, certificates and credentials, in place of `url`.
            name: tells several Twinlock clusters on one NATS account apart; part of every name there.
            first: what a new cluster begins with.

        Raises:
            StoreError: no server answers, they refuse us, or they are not configured for this.
            UpdateNeededError: a newer version of Twinlock made the cluster.
        """
        connection = Connection(options or NatsOptions.from_url(url))
        await connection.open()
        try:
            api, names = Api(connection), Names(name)
            cluster = Cluster(api, names)
            await cluster.open(first or FirstSettings())
            return cls(connection, api, cluster, names)
        except BaseException:
            await connection.close()
            raise

    @property
    def settings(self) -> ClusterSettings:
        """What the nodes of the cluster agree on, as it was read last."""
        return self._cluster.settings

    async def refresh_settings(self) -> ClusterSettings:
        """Read the cluster's settings again: partitions may have been opened or closed."""
        return await self._cluster.refresh(self.directory)

    async def open_partitions(self, first: int, count: int, tags: tuple[str, ...] = ()) -> ClusterSettings:
        """Make partitions, on servers that have all of some tags, and open them for new spaces."""
        return await self._cluster.open_partitions(self.directory, first, count, tags)

    async def close_partitions(self, first: int, count: int) -> ClusterSettings:
        """Give partitions no new spaces; what is in them stays and is served on."""
        return await self._cluster.close_partitions(self.directory, first, count)

    async def spaces_in(self, partitions: Sequence[int]) -> dict[int, int]:
        """Return how many spaces some partitions have."""
        return await self._cluster.spaces_in(partitions)

    async def replace_incarnation(self, incarnation: Incarnation) -> ClusterSettings:
        """Begin a new life of the store. Every node must be started anew after this."""
        return await self._cluster.replace_incarnation(self.directory, incarnation)

    async def status(self) -> ClusterStatus:
        """Look at the whole cluster: streams, leaders, copies."""
        return await self._cluster.status(self.directory)

    async def close(self) -> None:
        """Finish what was begun, end every watch and the connection."""
        await self.log.close()
        self.directory.close()
        await self.connection.close()
