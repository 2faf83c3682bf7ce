"""Byte streams to the server for HTTP: with the TLS of its sync socket, and through the same proxies."""

from __future__ import annotations

import asyncio
import base64
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from twinlock.client.http import READ_BYTES_MAX, Streams, read_head
from twinlock.client.transport import Address, tls_context
from twinlock.errors import OfflineError

PROXY_PORT: Final = 80


async def open_streams(address: Address) -> Streams:
    """Open a connection to a server, through the proxy that the environment names for it.

    Raises:
        OfflineError, OSError: there is none to be had.
    """
    proxy = proxy_for(address)
    if proxy is not None:
        return await open_through(proxy, address)
    context = tls_context() if _is_secure(address) else None
    return await asyncio.open_connection(address.host, address.port, ssl=context, limit=READ_BYTES_MAX)


def proxy_for(address: Address) -> SplitResult | None:
    """Return the proxy for a server, None if it is reached without one."""
    if address.is_loopback or proxy_bypass(f"{address.host}:{address.port}"):
        return None
    proxies = getproxies()
    named = proxies.get("https") if _is_secure(address) else proxies.get("https") or proxies.get("http")
    return urlsplit(named if "//" in named else f"http://{named}") if named else None


async def open_through(proxy: SplitResult, address: Address) -> Streams:
    """Have a proxy open a connection to a server, and speak TLS with the server through it.

    Raises:
        OfflineError: it does not.
    """
    if proxy.scheme != "http" or not proxy.hostname:
        raise OfflineError(f"files do not go through a proxy of the kind {proxy.scheme!r}")
    target = address.origin.partition("//")[2]
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(secret.encode()).decode()}")
    reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port or PROXY_PORT, limit=READ_BYTES_MAX)
    try:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        head = await read_head(reader)
        if head.status != 200:
            raise OfflineError(f"the proxy refused with the status {head.status}")
        if _is_secure(address):
            await writer.start_tls(tls_context(), server_hostname=address.host)
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


def _is_secure(address: Address) -> bool:
    return address.origin.startswith("wss:")
