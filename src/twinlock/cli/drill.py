"""`twinlock drill`: prove today that a backup of the key service would bring every key back."""

from __future__ import annotations

import asyncio
import datetime
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from twinlock.cli.backup_keys import BackupFolder, DenyListFile, RootKeyFile, root_key_of
from twinlock.cli.keyservice import ConfigFile, read_key_settings, settings_shown
from twinlock.cli.output import errors_shown, need_server_parts, people

if TYPE_CHECKING:
    from twinlock.keyservice.drill import DrillReport


def drill(
    source: BackupFolder, root_key: RootKeyFile = None, deny_list: DenyListFile = None, config: ConfigFile = None
) -> None:
    """Restore a backup of the key service into a scratch folder and check all of it; nothing stays behind.

    The ledger, every signed log, and every key against what its log commits to. The root key comes from backup sheets
    on the standard input, from its file, or from OpenBao. The exit status is 0 if everything would come back, else 1.
    """
    need_server_parts()
    with settings_shown(), errors_shown():
        from twinlock.keyservice.drill import drill as run_drill

        settings = read_key_settings(config).custody
        with root_key_of(source, root_key, settings) as wrapper:
            report = asyncio.run(run_drill(source, wrapper, deny_list, settings))
    _show(report)
    if deny_list is None:
        people.print("[dim]No deny list was given: only the spaces that the backup itself knows were denied.[/]")
    if not report.passed:
        raise typer.Exit(1)


def _show(report: DrillReport) -> None:
    made = "unknown time"
    if report.manifest is not None:
        made = f"{datetime.datetime.fromtimestamp(report.manifest.made_ms / 1000, datetime.UTC):%Y-%m-%d %H:%M:%S}Z"
    else:
        people.print("[dim]There is no backup.json: whether the newest entries are missing cannot be told.[/]")
    print(f"backup of {made}, checked in {report.took_ms / 1000:.1f} s")
    print(f"  logs: {report.accounts_count} of accounts, {report.spaces_count} of spaces")
    print(f"  keys that open: {report.keys_count}, and {report.candidates_count} candidates")
    print(
        f"  denied spaces: {report.denied_count}; {report.purged_count} of their keys were in the backup, none is left"
    )
    print(f"  ledger: {report.ledger_records_count} records")
    for problem in report.problems:
        people.print(f"[bold red]broken[/] {escape(problem)}")
    print("passed" if report.passed else f"failed: {len(report.problems)} problems")
