"""The whole server put together: engine, key service, sync socket and HTTP on one port."""

from __future__ import annotations

from twinlock.server.settings import Settings


class Server:
    """A server that can be started and stopped inside a running event loop.

    `port` is the port in use once `start` has returned (useful with `port = 0`).
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.check()
        self.port = settings.port

    @property
    def url(self) -> str:
        """Return the address that clients dial."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{'wss' if self.settings.uses_tls else 'ws'}://{host}:{self.port}"

    async def start(self) -> None:
        """Open the stores and listen; on return the server answers."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Drain: tell every client to come back later, finish commits, close the stores."""


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM."""
    raise NotImplementedError
