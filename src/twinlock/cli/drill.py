"""`twinlock drill`: prove today that a backup would bring everything back."""

from __future__ import annotations

import asyncio
import datetime
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from twinlock.cli.backup_keys import DenyListFile, RootKeyFile, root_key_of
from twinlock.cli.keyservice import ConfigFile, read_key_settings, settings_shown
from twinlock.cli.output import errors_shown, fail, need_server_parts, people, run
from twinlock.cli.server_data import Endpoint, Generation

if TYPE_CHECKING:
    from twinlock.backup import ServerDrill
    from twinlock.keyservice.drill import DrillReport


def drill(
    source: Annotated[str, typer.Argument(help="A backup of a server, or one of a key service.")] = "",
    given: Annotated[str, typer.Option("--from", help="The same, named as for a restore.")] = "",
    generation: Generation = None,
    endpoint: Endpoint = "",
    root_key: RootKeyFile = None,
    deny_list: DenyListFile = None,
    config: ConfigFile = None,
) -> None:
    """Restore a backup into a scratch place and check all of it; nothing stays behind.

    Of a server: every hash, every chain, every signed log and file; then it is served on a port of this machine. Of a
    key service: the ledger, every signed log, and every key against what its log commits to; the root key comes from
    backup sheets on the standard input, from its file, or from OpenBao. The exit status is 0 if everything would come
    back, else 1.
    """
    need_server_parts()
    if bool(source) == bool(given):
        fail("backup_missing", "Which backup is meant must be said once.", "twinlock drill BACKUP", status=2)
    where = source or given
    if _is_of_key_service(where):
        _drill_keys(Path(where), root_key, deny_list, config)
    else:
        _drill_server(where, endpoint, generation)


def _is_of_key_service(where: str) -> bool:
    from twinlock.keyservice.service import DATABASE_NAME

    return (Path(where) / DATABASE_NAME).exists()


def _drill_server(where: str, endpoint: str, generation: int | None) -> None:
    with _quiet_logs():
        report = run(_server_report(where, endpoint, generation))
    manifest, found = report.manifest, report.restored
    print(f"generation {manifest.generation} of {_moment(manifest.made_ms)}, checked in {report.took_ms / 1000:.1f} s")
    print(f"  logs: {report.account_logs_count} of accounts, {report.space_logs_count} of spaces")
    print(
        f"  spaces: {found.spaces_count} with {found.entries_count} entries, {report.served_spaces_count} were served"
    )
    print(f"  records: {found.records_count}; files: {report.blobs_count}")
    if not report.has_identity:
        people.print("[dim]server.key is not in it: see that you have a copy elsewhere.[/]")
    _end(report.problems)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep what the drill's own server logs from among the results: its errors alone are shown, with the errors."""
    import structlog

    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


async def _server_report(where: str, endpoint: str, generation: int | None) -> ServerDrill:
    from twinlock.backup import drill as drill_server
    from twinlock.backup import open_backup
    from twinlock.server.app import wall_clock_ms

    async with open_backup(where, endpoint) as store:
        return await drill_server(store, wall_clock_ms, generation)


def _drill_keys(source: Path, root_key: Path | None, deny_list: Path | None, config: Path | None) -> None:
    with settings_shown(), errors_shown():
        from twinlock.keyservice.drill import drill as run_drill

        settings = read_key_settings(config).custody
        with root_key_of(source, root_key, settings) as wrapper:
            report = asyncio.run(run_drill(source, wrapper, deny_list, settings))
    if deny_list is None:
        people.print("[dim]No deny list was given: only the spaces that the backup itself knows were denied.[/]")
    _show(report)


def _show(report: DrillReport) -> None:
    made = "unknown time"
    if report.manifest is not None:
        made = _moment(report.manifest.made_ms)
    else:
        people.print("[dim]There is no backup.json: whether the newest entries are missing cannot be told.[/]")
    print(f"backup of {made}, checked in {report.took_ms / 1000:.1f} s")
    print(f"  logs: {report.accounts_count} of accounts, {report.spaces_count} of spaces")
    print(f"  keys that open: {report.keys_count}, and {report.candidates_count} candidates")
    print(
        f"  denied spaces: {report.denied_count}; {report.purged_count} of their keys were in the backup, none is left"
    )
    print(f"  ledger: {report.ledger_records_count} records")
    _end(report.problems)


def _end(problems: list[str]) -> None:
    for problem in problems:
        people.print(f"[bold red]broken[/] {escape(problem)}")
    print("passed" if not problems else f"failed: {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def _moment(made_ms: int) -> str:
    return f"{datetime.datetime.fromtimestamp(made_ms / 1000, datetime.UTC):%Y-%m-%d %H:%M:%S}Z"
