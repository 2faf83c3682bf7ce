"""The settings: defaults, a TOML file, then `TWINLOCK_*` of the environment. See docs/reference/settings.md."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

ENVIRONMENT_PREFIX = "TWINLOCK_"
MEMORY_ENGINE = "memory:"
SQLITE_ENGINE = "sqlite"


class SettingsError(ValueError):
    """A setting is unknown, of the wrong form, or unsafe together with another."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that an operator can choose. A rate of 0 means no limit."""

    data: str = "twinlock-data"
    engine: str = SQLITE_ENGINE
    host: str = "127.0.0.1"
    port: int = 8765
    origins: list[str] = []
    browser_origins: list[str] = []
    tls_certificate: str = ""
    tls_key: str = ""
    behind_proxy: bool = False

    hellos_per_s: int = 3_000
    hellos_burst: int = 6_000
    catch_ups_per_s: int = 2_000
    catch_ups_burst: int = 20_000
    catch_up_reads_max: int = 16
    connections_max: int = 20_000

    account_changes_per_s: int = 20_000
    account_bytes_per_s: int = 64 << 20
    space_changes_per_s: int = 50_000
    space_bytes_per_s: int = 128 << 20
    space_bytes_max: int = 16 << 30
    signals_per_s: int = 200
    calls_per_s: int = 100
    unlocker_tries_per_min: int = 10
    sign_ups_per_min: int = 30

    grace_days: float = 7.0
    clean_interval_s: float = 60.0
    spaces_cached_max: int = 10_000
    drain_ms: int = 5_000
    log_level: str = "info"

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def uses_tls(self) -> bool:
        """Tell whether the server itself speaks TLS."""
        return bool(self.tls_certificate)

    @property
    def in_memory(self) -> bool:
        """Tell whether everything is forgotten at the end: for tests and trials."""
        return self.engine == MEMORY_ENGINE

    def check(self) -> Settings:
        """Return these settings if they are safe together.

        Raises:
            SettingsError: names the setting and what to do.
        """
        if self.engine not in (SQLITE_ENGINE, MEMORY_ENGINE):
            raise SettingsError(f"engine {self.engine!r} is not known: use {SQLITE_ENGINE!r} or {MEMORY_ENGINE!r}")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise SettingsError("tls_certificate and tls_key belong together: give both or none")
        if not self.is_loopback and not (self.uses_tls or self.behind_proxy):
            raise SettingsError(
                f"host {self.host} can be reached by others: give tls_certificate and tls_key, "
                "or set behind_proxy = true if a proxy in front ends TLS"
            )
        if not self.is_loopback and not self.origins:
            raise SettingsError(
                "origins is missing: list the addresses that clients dial, such as wss://sync.example.org"
            )
        if not 0 <= self.port <= 65_535:
            raise SettingsError(f"port {self.port} does not exist")
        for name, value in msgspec.structs.asdict(self).items():
            if isinstance(value, int | float) and value < 0:
                raise SettingsError(f"{name} = {value} is negative")
        return self

    def origins_at(self, port: int) -> frozenset[str]:
        """Return every origin that a hello may name; on loopback without `origins`, this machine's own names."""
        if self.origins:
            return frozenset(origin.rstrip("/") for origin in self.origins)
        scheme = "wss" if self.uses_tls else "ws"
        return frozenset(f"{scheme}://{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]"))


def load_settings(file: Path | None, environment: Mapping[str, str], **overrides: Any) -> Settings:
    """Read the settings; what comes later wins: defaults, file, environment, overrides.

    Raises:
        SettingsError: something is unknown, malformed or unsafe.
    """
    values: dict[str, Any] = {}
    try:
        if file is not None:
            values.update(tomllib.loads(file.read_text(encoding="utf-8")))
        values.update(_from_environment(environment))
        values.update({name: value for name, value in overrides.items() if value is not None})
        return msgspec.convert(values, Settings, strict=False).check()
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as exc:
        raise SettingsError(str(exc)) from exc


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Pick the settings out of the environment; lists are separated by commas."""
    found: dict[str, Any] = {}
    for name in Settings.__struct_fields__:
        text = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if text is not None:
            is_list = name in ("origins", "browser_origins")
            found[name] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    return found
