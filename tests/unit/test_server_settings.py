"""Settings: where they come from, what is refused, and that the reference page lists them all."""

from pathlib import Path

import msgspec
import pytest

from twinlock.keyservice import KeyServiceSettings
from twinlock.keyservice.settings import ProcessSettings, load_process_settings
from twinlock.server import Settings, SettingsError, load_settings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_environment_beats_file_and_an_argument_beats_both(tmp_path):
    file = tmp_path / "twinlock.toml"
    file.write_text('port = 1001\ndata = "here"\ngrace_days = 3\n')

    settings = load_settings(file, {"TWINLOCK_PORT": "1002", "TWINLOCK_GRACE_DAYS": "4"}, port=1003)

    assert (settings.port, settings.data, settings.grace_days) == (1003, "here", 4.0)


def test_lists_and_truths_are_read_from_the_environment():
    environment = {"TWINLOCK_ORIGINS": "wss://a.example, wss://b.example/", "TWINLOCK_BEHIND_PROXY": "true"}

    settings = load_settings(None, environment, host="0.0.0.0")

    assert settings.behind_proxy
    assert settings.origins_at(1) == {"wss://a.example", "wss://b.example"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"host": "0.0.0.0", "origins": ["wss://a"]}, "tls_certificate"),
        ({"host": "0.0.0.0", "behind_proxy": True}, "origins"),
        ({"host": "example.org", "origins": ["wss://a"]}, "tls_certificate"),
        ({"tls_certificate": "a.pem"}, "tls_key"),
        ({"engine": "floppy"}, "engine"),
        ({"port": 70_000}, "port"),
        ({"drain_ms": -1}, "drain_ms"),
        ({"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_what_is_unsafe_or_unknown_is_refused_by_name(values, named):
    with pytest.raises(SettingsError, match=named):
        load_settings(None, {}, **values)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_nothing_more(host):
    settings = load_settings(None, {}, host=host)

    assert "ws://localhost:8765" in settings.origins_at(8765)


def test_a_broken_file_is_a_settings_error(tmp_path):
    file = tmp_path / "twinlock.toml"
    file.write_text("port = ")

    with pytest.raises(SettingsError):
        load_settings(file, {})


def rows_of(settings, prefix: str = "") -> list[str]:
    """Return how each setting stands in a table of the page, except those that hold others."""
    values = {name: getattr(settings, name) for name in settings.__struct_fields__}
    shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    return [
        f"| `{prefix}{name}` | `{value}` |" for name, value in shown.items() if not isinstance(value, msgspec.Struct)
    ]


def test_the_reference_page_lists_every_setting_with_its_default():
    page = PAGE.read_text()

    rows = [
        *rows_of(Settings()),
        *rows_of(KeyServiceSettings(), "keyservice_"),
        *rows_of(ProcessSettings()),
        *rows_of(KeyServiceSettings()),
    ]
    assert [row for row in rows if row not in page] == []


def test_settings_of_the_key_service_in_the_process_stand_beside_the_others(tmp_path):
    file = tmp_path / "twinlock.toml"
    file.write_text('keyservice_requests_burst = 7\nkeyservice_root_key_file = "/keys/root.key"\n')

    settings = load_settings(file, {"TWINLOCK_KEYSERVICE_BACKUP_DAYS": "3"})

    assert settings.keyservice == KeyServiceSettings(requests_burst=7, root_key_file="/keys/root.key", backup_days=3.0)


KEY = "ab" * 32


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"keyservice_url": "https://keys.example"}, "keyservice_pk"),
        ({"keyservice_pk": KEY}, "keyservice_url"),
        ({"keyservice_url": "https://keys.example", "keyservice_pk": "abcd"}, "keyservice_pk"),
        ({"keyservice_url": "https://keys.example", "keyservice_pk": "no hex"}, "keyservice_pk"),
        ({"keyservice_url": "http://keys.example", "keyservice_pk": KEY}, "https"),
        ({"keyservice_url": "http://127.0.0.1:1", "keyservice_pk": KEY, "engine": "memory:"}, "engine"),
        ({"keyservice_requests_burst": 0}, "requests_burst"),
        ({"keyservice_wrapper": "paper"}, "wrapper"),
        ({"keyservice_wrapper": "openbao"}, "openbao_url"),
        ({"keyservice_backup_days": -1}, "backup_days"),
        ({"keyservice": {"requests_burst": 7}}, "keyservice"),
        ({"keyservice_requests": 7}, "keyservice_requests"),
    ],
)
def test_what_is_wrong_about_the_key_service_is_refused_by_name(values, named):
    with pytest.raises(SettingsError, match=named):
        load_settings(None, {}, **values)


def test_a_key_service_of_its_own_is_reached_by_https_or_on_this_machine():
    for url in ("https://keys.example", "http://127.0.0.1:8766", "http://localhost:8766", "http://[::1]:8766"):
        assert load_settings(None, {}, keyservice_url=url, keyservice_pk=KEY).keyservice_url == url


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "nodes"),
        ({"nodes": ["abcd"]}, "nodes"),
        ({"nodes": [KEY], "host": "0.0.0.0"}, "tls_certificate"),
        ({"nodes": [KEY], "tls_key": "key.pem"}, "tls_certificate"),
        ({"nodes": [KEY], "requests_per_second": 0}, "requests_per_second"),
        ({"nodes": [KEY], "in_flight_max": 0}, "in_flight_max"),
        ({"nodes": [KEY], "port": -1}, "port"),
        ({"nodes": [KEY], "no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_a_key_service_of_its_own_refuses_what_is_unsafe_by_name(values, named):
    with pytest.raises(SettingsError, match=named):
        load_process_settings(None, {}, **values).check()


def test_a_key_service_of_its_own_reads_its_file_and_its_environment(tmp_path):
    file = tmp_path / "keyservice.toml"
    file.write_text(f'port = 1001\nnodes = ["{KEY}"]\nroot_key_file = "/keys/root.key"\n')

    settings = load_process_settings(file, {"TWINLOCK_KEYSERVICE_PORT": "1002"}).check()

    assert (settings.port, settings.node_keys) == (1002, [bytes.fromhex(KEY)])
    assert settings.custody.root_key_file == "/keys/root.key"
