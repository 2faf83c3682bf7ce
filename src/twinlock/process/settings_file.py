"""Where settings come from, defaults, a TOML file, then the environment, and which are never safe."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class SettingsError(ValueError):
    """A setting is unknown, of the wrong form, or unsafe together with another."""


def read_values(
    file: Path | None, environment: Mapping[str, str], prefix: str, names: Collection[str], lists: Collection[str]
) -> dict[str, Any]:
    """Return what a file says, and over it what the environment says; its lists are separated by commas.

    Raises:
        SettingsError: the file cannot be read or is no TOML.
    """
    values: dict[str, Any] = {}
    try:
        if file is not None:
            values.update(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as exc:
        raise SettingsError(str(exc)) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{file} is no TOML: {exc}") from exc
    for name in names:
        text = environment.get(prefix + name.upper())
        if text is not None:
            parts = [part.strip() for part in text.split(",") if part.strip()]
            values[name] = parts if name in lists else text
    return values


def check_reach(host: str, tls_certificate: str, tls_key: str, behind_proxy: bool, port: int) -> None:
    """Refuse to be reached by others without TLS.

    Raises:
        SettingsError: names the setting and what to do.
    """
    if bool(tls_certificate) != bool(tls_key):
        raise SettingsError("tls_certificate and tls_key belong together: give both or none")
    if not is_loopback_host(host) and not (tls_certificate or behind_proxy):
        raise SettingsError(
            f"host {host} can be reached by others: give tls_certificate and tls_key, "
            "or set behind_proxy = true if a proxy in front ends TLS"
        )
    if not 0 <= port <= 65_535:
        raise SettingsError(f"port {port} does not exist")


def is_loopback_host(host: str) -> bool:
    """Tell whether only this machine can be meant."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """Tell whether a URL leads to this machine."""
    try:
        return is_loopback_host(urlsplit(url).hostname or "")
    except ValueError:
        return False
