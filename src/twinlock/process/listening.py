"""A listening socket, its TLS, and uvicorn on it, turned by the loop of whoever owns it."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import uvicorn

from twinlock.process.settings_file import SettingsError

BACKLOG = 4096


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        SettingsError: it cannot be.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay off only where it is: an answer would wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        fix = "stop what uses it, or choose another port" if exc.errno == errno.EADDRINUSE else "check host and port"
        raise SettingsError(f"cannot listen on {host}, port {port}: {exc.strerror}; {fix}") from exc
    listener.setblocking(False)
    return listener


def tls_context(certificate: str, key: str) -> ssl.SSLContext | None:
    """Read the certificate files, if there are any; TLS 1.3 is the oldest version that is spoken.

    See spec/protocol.md, section 1.

    Raises:
        SettingsError: they are no certificate and its key.
    """
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except OSError as exc:
        files = f"{certificate} and {key}"
        raise SettingsError(f"{files} are no certificate and its key: {exc.strerror or exc}") from exc
    return context


def web_server(http: Any, tls: ssl.SSLContext | None, sync: Any = "none") -> uvicorn.Server:
    """Return a server of an HTTP application, and of sync sockets if their protocol is given; `startup` begins it."""
    config = uvicorn.Config(
        http,
        loop="none",
        http="httptools",
        ws=sync,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        ssl_context_factory=None if tls is None else lambda config, default: tls,
        timeout_graceful_shutdown=1,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    return server
