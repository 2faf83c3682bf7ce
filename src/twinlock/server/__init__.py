"""The sync server: it orders, stores and delivers what it cannot read."""

from twinlock.process import SettingsError
from twinlock.server.app import Server, run
from twinlock.server.settings import Settings, load_settings

__all__ = ["Server", "Settings", "SettingsError", "load_settings", "run"]
