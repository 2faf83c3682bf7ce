"""The settings: defaults, a TOML file, then `TWINLOCK_*` of the environment. See docs/reference/settings.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from twinlock.keyservice.key_files import read_public_key
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.process.settings_file import SettingsError, check_reach, is_loopback_host, is_loopback_url, read_values

ENVIRONMENT_PREFIX = "TWINLOCK_"
MEMORY_ENGINE = "memory:"
SQLITE_ENGINE = "sqlite"
CLUSTER_ENGINES = ("nats://", "tls://")
_LISTS = ("origins", "browser_origins")
_KEY_SERVICE = {f"keyservice_{part}": part for part in KeyServiceSettings.__struct_fields__}


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that an operator can choose. A rate of 0 means no limit.

    `keyservice` is for the one in this process; its parts stand in the file as `keyservice_` and their names.
    """

    data: str = "twinlock-data"
    engine: str = SQLITE_ENGINE
    nats_ca_file: str = ""
    nats_certificate: str = ""
    nats_key: str = ""
    nats_nkey_file: str = ""
    nats_creds_file: str = ""
    blobs: str = ""
    blobs_endpoint: str = ""
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
    leases_per_s: int = 1_000
    leases_burst: int = 10_000
    connections_max: int = 20_000

    account_changes_per_s: int = 20_000
    account_bytes_per_s: int = 64 << 20
    space_changes_per_s: int = 50_000
    space_bytes_per_s: int = 128 << 20
    space_bytes_max: int = 16 << 30
    account_blob_bytes_per_s: int = 64 << 20
    blob_bytes_max: int = 0
    space_blob_bytes_max: int = 64 << 30
    space_blobs_max: int = 100_000
    blob_memory_bytes_max: int = 256 << 20
    blob_begun_hours: float = 24.0
    signals_per_s: int = 200
    calls_per_s: int = 100
    log_entries_per_hour: int = 5_000
    unlocker_tries_per_min: int = 10
    sign_ups_per_min: int = 30

    pairing_tries_per_min: int = 30

    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_jwks_url: str = ""
    oidc_required: bool = False
    oidc_leeway_s: float = 10.0
    oidc_refetch_s: float = 10.0

    keyservice_url: str = ""
    keyservice_pk: str = ""
    keyservice_ca_file: str = ""
    keyservice: KeyServiceSettings = KeyServiceSettings()

    grace_days: float = 7.0
    clean_interval_s: float = 60.0
    spaces_cached_max: int = 10_000
    drain_ms: int = 5_000
    log_level: str = "info"

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach the server."""
        return is_loopback_host(self.host)

    @property
    def uses_tls(self) -> bool:
        """Tell whether the server itself speaks TLS."""
        return bool(self.tls_certificate)

    @property
    def takes_tokens(self) -> bool:
        """Tell whether the tokens of an issuer of the application's own sign in here."""
        return bool(self.oidc_issuer)

    @property
    def in_memory(self) -> bool:
        """Tell whether everything is forgotten at the end: for tests and trials."""
        return self.engine == MEMORY_ENGINE

    @property
    def in_cluster(self) -> bool:
        """Tell whether several nodes serve from one NATS JetStream cluster."""
        return self.engine.startswith(CLUSTER_ENGINES)

    def check(self) -> Settings:
        """Return these settings if they are safe together.

        Raises:
            SettingsError: names the setting and what to do.
        """
        if self.engine not in (SQLITE_ENGINE, MEMORY_ENGINE) and not self.in_cluster:
            raise SettingsError(
                f"engine {self.engine!r} is not known: use {SQLITE_ENGINE!r}, {MEMORY_ENGINE!r} or nats://host:port,…"
            )
        check_reach(self.host, self.tls_certificate, self.tls_key, self.behind_proxy, self.port)
        if not self.is_loopback and not self.origins:
            raise SettingsError(
                "origins is missing: list the addresses that clients dial, such as wss://sync.example.org"
            )
        self._check_tokens()
        self._check_key_service()
        self._check_cluster()
        for name, value in msgspec.structs.asdict(self).items():
            if isinstance(value, int | float) and value < 0:
                raise SettingsError(f"{name} = {value} is negative")
        return self

    def _check_tokens(self) -> None:
        given = (bool(self.oidc_issuer), bool(self.oidc_audience), bool(self.oidc_jwks_url))
        if any(given) and not all(given):
            raise SettingsError("oidc_issuer, oidc_audience and oidc_jwks_url belong together: give all or none")
        if self.oidc_required and not self.oidc_issuer:
            raise SettingsError("oidc_required needs oidc_issuer, oidc_audience and oidc_jwks_url")
        if self.oidc_jwks_url and not self.oidc_jwks_url.startswith("https://"):
            is_here = self.oidc_jwks_url.startswith("http://") and is_loopback_url(self.oidc_jwks_url)
            if not is_here:
                raise SettingsError(f"oidc_jwks_url {self.oidc_jwks_url!r}: whoever fetches keys must use https")

    def _check_key_service(self) -> None:
        self.keyservice.check()
        if bool(self.keyservice_url) != bool(self.keyservice_pk):
            raise SettingsError("keyservice_url and keyservice_pk belong together: give both or none")
        if not self.keyservice_url:
            return
        try:
            read_public_key(self.keyservice_pk)
        except ValueError as exc:
            raise SettingsError(f"keyservice_pk: {exc}") from exc
        if self.in_memory:
            raise SettingsError("keyservice_url needs an engine that keeps what it is given")
        is_here = self.keyservice_url.startswith("http://") and is_loopback_url(self.keyservice_url)
        if not (is_here or self.keyservice_url.startswith("https://")):
            raise SettingsError(f"keyservice_url {self.keyservice_url!r}: another machine is reached by https only")

    def _check_cluster(self) -> None:
        options = (self.nats_ca_file, self.nats_certificate, self.nats_key, self.nats_nkey_file, self.nats_creds_file)
        if not self.in_cluster:
            if any(options):
                raise SettingsError("nats_… settings are for an engine nats://… or tls://…")
            return
        if not self.keyservice_url:
            raise SettingsError("the nodes of a cluster share one key service: set keyservice_url and keyservice_pk")
        if bool(self.nats_certificate) != bool(self.nats_key):
            raise SettingsError("nats_certificate and nats_key belong together: give both or none")

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
    try:
        names = (*Settings.__struct_fields__, *_KEY_SERVICE)
        values = read_values(file, environment, ENVIRONMENT_PREFIX, names, _LISTS)
        values.update({name: value for name, value in overrides.items() if value is not None})
        if "keyservice" in values:
            raise SettingsError("keyservice is no setting by itself: write keyservice_requests_burst = ... and so on")
        custody = {part: values.pop(name) for name, part in _KEY_SERVICE.items() if name in values}
        return msgspec.convert({**values, "keyservice": custody}, Settings, strict=False).check()
    except msgspec.ValidationError as exc:
        raise SettingsError(str(exc)) from exc
