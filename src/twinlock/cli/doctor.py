"""`twinlock doctor`: check what a device and a server need of this machine, and say what to do about what is wrong."""

from __future__ import annotations

import asyncio
import datetime
import os
import platform
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from twinlock.cli.findings import Finding, Verdict, mode_of
from twinlock.cli.output import SERVER_PACKAGES
from twinlock.errors import TwinlockError

if TYPE_CHECKING:
    from twinlock.server.settings import Settings

PYTHON_MIN = (3, 11)
SQLITE_MIN = (3, 37, 0)
FREE_BYTES_MIN = 1 << 30
FSYNC_MS_MAX = 50.0
FSYNC_TIMES = 20
EARLIEST_CLOCK_S = 1_735_689_600
"""The first of January 2025: a clock before it has never been set."""

DEFAULT_PORT = 8765
CERTIFICATE_DAYS_MIN = 14


_COLORS = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.BAD: "red"}


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Check these settings as well.", dir_okay=False)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The server's data folder.")] = None,
    profile: Annotated[Path | None, typer.Option(help="The profile to look at.")] = None,
    operator: Annotated[
        Path | None,
        typer.Option(help="The folder `operator` of `twinlock cluster keys`: ask NATS servers how they are."),
    ] = None,
    monitor: Annotated[
        list[str] | None, typer.Option(help="In place of it, the monitoring address of each: http://127.0.0.1:8222.")
    ] = None,
    backup: Annotated[str | None, typer.Option(help="Look how old the newest backup in this place is.")] = None,
) -> None:
    """Check Python, SQLite, disk, clock, port, settings, cluster, key service and the permissions of key files.

    The exit status is 1 if anything must be mended.
    """
    from twinlock.client.profile import default_profile

    folder = data or _folder_of(config)
    console = Console(highlight=False, soft_wrap=True)
    failed = 0
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("sqlite", _sqlite),
        ("disk", lambda: _disk(folder or Path.cwd())),
        ("clock", _clock),
        ("settings", lambda: _settings(config, data)),
        ("cluster", lambda: _cluster(config, data, operator, monitor or [])),
        ("backup", lambda: _backup(backup)),
        ("keys", lambda: _key_service(config, data)),
        ("key files", lambda: _key_files(folder, profile or default_profile())),
    ]
    for name, check in checks:
        for finding in check():
            failed += finding.verdict is Verdict.BAD
            color = _COLORS[finding.verdict]
            console.print(f"[{color}]{finding.verdict.value:>4}[/]  [bold]{name:<9}[/]  {escape(finding.what)}")
            if finding.fix:
                console.print(f"                 [dim]→[/] {escape(finding.fix)}")
    console.print("\nEverything is in order." if not failed else f"\n{failed} to mend.")
    raise typer.Exit(1 if failed else 0)


def _python() -> Iterator[Finding]:
    text = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}"
    yield Finding(Verdict.GOOD, text) if _is_supported() else Finding(Verdict.BAD, text, "Use Python 3.11 or newer.")


def _is_supported() -> bool:
    # pip refuses an older Python, but a copied folder does not.
    return tuple(sys.version_info) >= PYTHON_MIN


def _packages() -> Iterator[Finding]:
    missing = [name for name in SERVER_PACKAGES if find_spec(name) is None]
    if missing:
        text = f"no server can run here: {', '.join(missing)} missing"
        yield Finding(Verdict.NOTE, text, "pip install 'twinlock[server]', if it is to.")
    else:
        yield Finding(Verdict.GOOD, "client and server parts are installed")


def _sqlite() -> Iterator[Finding]:
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        least = ".".join(map(str, SQLITE_MIN))
        yield Finding(Verdict.BAD, f"SQLite {sqlite3.sqlite_version}", f"The server needs {least} or newer.")
    else:
        yield Finding(Verdict.GOOD, f"SQLite {sqlite3.sqlite_version} for the server")
    yield _encrypted_sqlite()


def _encrypted_sqlite() -> Finding:
    try:
        import apsw
    except ImportError:
        return Finding(Verdict.BAD, "apsw-sqlite3mc is not installed", "pip install twinlock")
    if not hasattr(apsw, "mc_version"):
        text = "apsw is installed without encryption"
        return Finding(Verdict.BAD, text, "pip uninstall apsw; pip install --force-reinstall apsw-sqlite3mc")
    return Finding(Verdict.GOOD, f"SQLite {apsw.sqlite_lib_version()} with whole-file encryption for replicas")


def _disk(folder: Path) -> Iterator[Finding]:
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{free / (1 << 30):,.1f} GiB free at {place}"
    if free < FREE_BYTES_MIN:
        yield Finding(Verdict.BAD, text, "Make room: a full disk refuses every write.")
    else:
        yield Finding(Verdict.GOOD, text)
    try:
        yield _fsync(place)
    except OSError as exc:
        yield Finding(Verdict.BAD, f"cannot write at {place}: {exc.strerror}", "Choose a folder that can be written.")


def _fsync(folder: Path) -> Finding:
    probe = folder / f".twinlock-doctor-{os.getpid()}"
    taken_ms: list[float] = []
    try:
        with probe.open("xb", buffering=0) as file:
            for _ in range(FSYNC_TIMES):
                started = time.perf_counter()
                file.write(bytes(4096))
                os.fsync(file.fileno())
                taken_ms.append((time.perf_counter() - started) * 1000)
    finally:
        probe.unlink(missing_ok=True)
    median_ms = sorted(taken_ms)[FSYNC_TIMES // 2]
    text = f"a write is on disk after {median_ms:.2f} ms (fsync)"
    if median_ms > FSYNC_MS_MAX:
        return Finding(Verdict.NOTE, text, "Every durable write waits this long: use a local disk.")
    return Finding(Verdict.GOOD, text)


def _clock() -> Iterator[Finding]:
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() < EARLIEST_CLOCK_S:
        yield Finding(Verdict.BAD, text, "Set the clock; leases and edit times depend on it.")
    else:
        yield Finding(Verdict.GOOD, f"{text}; devices correct theirs by the server's when they connect")


def _settings(config: Path | None, data: Path | None) -> Iterator[Finding]:
    settings = _loaded(config, data)
    if isinstance(settings, str):
        yield Finding(Verdict.BAD, settings, "Mend the settings file or the TWINLOCK_* environment.")
    if settings is None or isinstance(settings, str):
        return
    tls = "TLS" if settings.uses_tls else "no TLS, loopback only" if settings.is_loopback else "TLS ends at a proxy"
    yield Finding(Verdict.GOOD, f"engine {settings.engine}, {settings.host}:{settings.port}, {tls}")
    yield _port(settings.host, settings.port)
    if settings.uses_tls:
        yield from mode_of(Path(settings.tls_key))
        yield from _certificate(Path(settings.tls_certificate))


def _certificate(path: Path) -> Iterator[Finding]:
    from twinlock.cli.cluster_authority import expiry_of

    try:
        days = (expiry_of(path) - datetime.datetime.now(datetime.UTC)).days
    except (OSError, ValueError) as exc:
        yield Finding(Verdict.BAD, f"{path} is no certificate: {exc}")
        return
    text = f"the certificate {path} is valid for {days} more days"
    if days > CERTIFICATE_DAYS_MIN:
        yield Finding(Verdict.GOOD, text)
    else:
        yield Finding(Verdict.BAD, text, "Get a new one, and start the server again.")


def _key_service(config: Path | None, data: Path | None) -> Iterator[Finding]:
    settings = _loaded(config, data)
    # What is wrong with the settings was told already.
    if settings is not None and not isinstance(settings, str):
        from twinlock.cli.doctor_keys import key_service

        yield from key_service(settings)


def _cluster(config: Path | None, data: Path | None, operator: Path | None, monitors: list[str]) -> Iterator[Finding]:
    settings = _loaded(config, data)
    if settings is not None and not isinstance(settings, str) and settings.in_cluster:
        from twinlock.cli.doctor_cluster import cluster, options_of, shared

        try:
            options = options_of(settings)
        except TwinlockError as exc:
            yield Finding(Verdict.BAD, f"engine {settings.engine!r}: {exc.detail}", "See docs/reference/settings.md.")
            return
        yield from cluster(options, operator, monitors)
        yield from shared(settings)


def _backup(place: str | None) -> Iterator[Finding]:
    if place:
        from twinlock.cli.doctor_stores import check_backup

        yield asyncio.run(check_backup(place))


def _loaded(config: Path | None, data: Path | None) -> Settings | str | None:
    """Return the settings, what is wrong with them, or None where no server can run."""
    if any(find_spec(name) is None for name in ("twinlock.server", *SERVER_PACKAGES)):
        return None
    from twinlock.process import SettingsError
    from twinlock.server.settings import load_settings

    try:
        return load_settings(config, os.environ, data=str(data) if data else None)
    except SettingsError as exc:
        return str(exc)


def _folder_of(config: Path | None) -> Path | None:
    """Return where a settings file keeps the server's data; None without one, or if it cannot be read."""
    settings = None if config is None else _loaded(config, None)
    return None if settings is None or isinstance(settings, str) else Path(settings.data).absolute()


def _port(host: str, port: int) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            text = f"port {port} on {host} is not free: {exc.strerror}"
            return Finding(Verdict.NOTE, text, "Fine if a Twinlock server is running there; else choose another port.")
    return Finding(Verdict.GOOD, f"port {port} on {host} is free")


def _key_files(data: Path | None, profile: Path) -> Iterator[Finding]:
    found = [path for folder in (data, profile) if folder and folder.exists() for path in _secret_files(folder)]
    findings = [finding for path in found for finding in mode_of(path)]
    bad = [finding for finding in findings if finding.verdict is Verdict.BAD]
    if bad:
        yield from bad
    elif found:
        yield Finding(Verdict.GOOD, f"{len(found)} key files, readable by their owner only")
    else:
        yield Finding(Verdict.NOTE, "no key files here yet")


def _secret_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and ("key" in path.name or path.name == "vault.db")]
