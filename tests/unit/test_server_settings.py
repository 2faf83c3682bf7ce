"""Settings: where they come from, what is refused, and that the reference page lists them all."""

from pathlib import Path

import pytest

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


def test_the_reference_page_lists_every_setting_with_its_default():
    page = PAGE.read_text()

    for name in Settings.__struct_fields__:
        default = getattr(Settings(), name)
        shown = {True: "true", False: "false"}.get(default, default) if isinstance(default, bool) else default
        assert f"| `{name}` | `{shown}` |" in page, name
