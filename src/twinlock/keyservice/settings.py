"""What an operator chooses of a key service, within the server and as a process. See docs/reference/settings.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from twinlock.keyservice.key_files import read_public_key
from twinlock.process.settings_file import SettingsError, check_reach, read_values

ENVIRONMENT_PREFIX = "TWINLOCK_KEYSERVICE_"

DAY_MS = 86_400_000
FILE_WRAPPER = "file"
OPENBAO_WRAPPER = "openbao"


class KeyServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a key service keeps its keys; empty names of files mean those in its own folder.

    Args:
        wrapper: what wraps the service keys: `file` (a root key of this machine) or `openbao` (a Transit key).
        root_key_file: the root key of the `file` wrapper, `root.key` by default.
        deny_list_file: the list of shredded spaces, `denied.txt` by default; it lies apart from every backup.
        requests_burst: requests of one device that may come at once.
        requests_per_second: requests of one device from then on.
        root_rotation_days: how old a version of the root key may become before a new one takes its place; 0 for ever.
        backup_days: how long an old version is kept for the sake of backups, before it is destroyed.
        openbao_url: the address of OpenBao, such as `https://bao.example.org:8200`.
        openbao_mount: where its Transit engine is mounted.
        openbao_key: the name of the Transit key.
        openbao_token_file: a file (0600) that holds the token; `BAO_TOKEN` of the environment if none is named.
        openbao_ca_file: the certificates that OpenBao's own is checked against; the system's by default.
        openbao_timeout_ms: how long an answer of OpenBao may take.
    """

    wrapper: str = FILE_WRAPPER
    root_key_file: str = ""
    deny_list_file: str = ""
    requests_burst: int = 1024
    requests_per_second: float = 4.0
    root_rotation_days: float = 30.0
    backup_days: float = 30.0
    openbao_url: str = ""
    openbao_mount: str = "transit"
    openbao_key: str = "twinlock"
    openbao_token_file: str = ""
    openbao_ca_file: str = ""
    openbao_timeout_ms: int = 5_000

    def check(self) -> KeyServiceSettings:
        """Return these settings if they make sense.

        Raises:
            SettingsError: names the setting.
        """
        if self.wrapper not in (FILE_WRAPPER, OPENBAO_WRAPPER):
            raise SettingsError(f"wrapper {self.wrapper!r} is not known: {FILE_WRAPPER!r} or {OPENBAO_WRAPPER!r}")
        if self.wrapper == OPENBAO_WRAPPER and not self.openbao_url:
            raise SettingsError("wrapper openbao needs openbao_url")
        if self.requests_burst < 1 or self.requests_per_second <= 0:
            raise SettingsError("requests_burst and requests_per_second must be above 0")
        if self.root_rotation_days < 0 or self.backup_days < 0:
            raise SettingsError("root_rotation_days and backup_days cannot be negative")
        return self


class ProcessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that an operator can choose of a key service in a process of its own.

    Args:
        data: the folder of its database, its root key and its own key.
        host: the address to listen on; anything but loopback needs TLS or `behind_proxy`.
        port: the port; 0 takes a free one.
        tls_certificate: file with the certificate chain.
        tls_key: file with its private key.
        behind_proxy: a proxy in front ends TLS.
        nodes: the public keys of the servers that may ask, as `twinlock keyservice node-key` prints them.
        in_flight_max: requests of nodes that are read and worked on at once; more are asked to come back.
        tend_interval_s: how often it looks whether the root key is due.
        log_level: `debug`, `info`, `warning` or `error`.
        custody: the rest, which stands beside these in the file.
    """

    data: str = "twinlock-keyservice"
    host: str = "127.0.0.1"
    port: int = 8766
    tls_certificate: str = ""
    tls_key: str = ""
    behind_proxy: bool = False
    nodes: list[str] = []
    in_flight_max: int = 32
    tend_interval_s: float = 60.0
    log_level: str = "info"
    custody: KeyServiceSettings = KeyServiceSettings()

    @property
    def node_keys(self) -> list[bytes]:
        """The public keys of the nodes.

        Raises:
            SettingsError: one is none.
        """
        try:
            return [read_public_key(text) for text in self.nodes]
        except ValueError as exc:
            raise SettingsError(f"nodes: {exc}") from exc

    def check(self) -> ProcessSettings:
        """Return these settings if they are safe together.

        Raises:
            SettingsError: names the setting and what to do.
        """
        check_reach(self.host, self.tls_certificate, self.tls_key, self.behind_proxy, self.port)
        self.custody.check()
        if not self.node_keys:
            raise SettingsError(
                "nodes is missing: list the public key of each server (`twinlock keyservice node-key` there)"
            )
        if self.in_flight_max < 1 or self.tend_interval_s <= 0:
            raise SettingsError("in_flight_max and tend_interval_s must be above 0")
        return self


def load_process_settings(file: Path | None, environment: Mapping[str, str], **overrides: Any) -> ProcessSettings:
    """Read the settings of a process; what comes later wins: defaults, file, environment, overrides. Not yet checked.

    Raises:
        SettingsError: something is unknown or malformed.
    """
    names = (*ProcessSettings.__struct_fields__, *KeyServiceSettings.__struct_fields__)
    values = read_values(file, environment, ENVIRONMENT_PREFIX, names, ("nodes",))
    values.update({name: value for name, value in overrides.items() if value is not None})
    if "custody" in values:
        raise SettingsError("there is no setting named custody")
    custody = {name: values.pop(name) for name in KeyServiceSettings.__struct_fields__ if name in values}
    try:
        return msgspec.convert({**values, "custody": custody}, ProcessSettings, strict=False)
    except msgspec.ValidationError as exc:
        raise SettingsError(str(exc)) from exc
