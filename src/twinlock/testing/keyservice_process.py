"""A key service as a process of its own, which can be killed without warning and started again."""

from __future__ import annotations

from pathlib import Path

from twinlock.keyservice.key_files import SERVICE_KEY_NAME, open_signing_key, public_key_text
from twinlock.testing.processes import ListeningProcess
from twinlock.testing.traffic_tap import LOOPBACK, free_port


class KeyServiceChild(ListeningProcess):
    """One key service on one data folder and one port, through all its lives.

    Args:
        folder: where its settings, its log and its `data` folder lie.
        nodes: the public keys that it answers to, in hex.
        settings: its settings, as in its TOML file.
    """

    def __init__(self, folder: Path, nodes: list[str], **settings: object) -> None:
        super().__init__(folder, "keyservice", free_port(), {"nodes": nodes, **settings})

    @property
    def url(self) -> str:
        """The address that servers call."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def public_key(self) -> str:
        """What servers pin; made here if it has not started yet."""
        return public_key_text(open_signing_key(self.data / SERVICE_KEY_NAME))
