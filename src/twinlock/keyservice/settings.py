"""What an operator chooses of a key service's custody, wherever it runs. See docs/reference/settings.md."""

from __future__ import annotations

import msgspec

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
        root_rotation_days: how old a version of the root key may become before a new one takes its place.
        backup_days: how long an old version is kept for the sake of backups, before it is destroyed.
        openbao_url: the address of OpenBao, such as `https://bao.example.org:8200`.
        openbao_mount: where its Transit engine is mounted.
        openbao_key: the name of the Transit key.
        openbao_token_file: a file (0600) that holds the token.
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
