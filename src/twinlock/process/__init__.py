"""What every process of Twinlock's that serves others needs: settings, a listening socket with TLS, logs."""

from twinlock.process.life import Life, serve_until_signalled
from twinlock.process.listening import listen, tls_context, web_server
from twinlock.process.logs import configure_logs
from twinlock.process.settings_file import SettingsError, check_reach, is_loopback_host, is_loopback_url, read_values

__all__ = [
    "Life",
    "SettingsError",
    "check_reach",
    "configure_logs",
    "is_loopback_host",
    "is_loopback_url",
    "listen",
    "read_values",
    "serve_until_signalled",
    "tls_context",
    "web_server",
]
