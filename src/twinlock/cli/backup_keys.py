"""`twinlock keyservice split`, `backup` and `restore`: the way back when the key service's machine is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinlock.cli.keyservice import ConfigFile, DataFolder, check_key_folder, read_key_settings, settings_shown
from twinlock.cli.output import errors_shown, fail, need_server_parts, people
from twinlock.cli.sheets import ask_for_sheets, print_sheets

if TYPE_CHECKING:
    from twinlock.keyservice.backup import Restored
    from twinlock.keyservice.settings import KeyServiceSettings
    from twinlock.keyservice.wrapper import KeyWrapper

BackupFolder = Annotated[
    Path, typer.Option("--from", help="A backup that `twinlock keyservice backup` made.", exists=True, file_okay=False)
]
RootKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="The root key's own file. [dim]default: backup sheets from the standard input[/]",
        exists=True,
        dir_okay=False,
    ),
]
DenyListFile = Annotated[
    Path | None,
    typer.Option(help="The deny list as it is today, not as it was then.", exists=True, dir_okay=False),
]


def split(
    sheets: Annotated[int, typer.Option(help="How many sheets there will be.")] = 5,
    needed: Annotated[int, typer.Option(help="How many of them bring the root key back.")] = 3,
    again: Annotated[bool, typer.Option("--again", help="Make a new set in place of an earlier one.")] = False,
    config: ConfigFile = None,
    data: DataFolder = None,
) -> None:
    """Split the backup of the root key into sheets of words, any few of which bring it back.

    From then on every version of the root key is sealed into [bold]root-backup.json[/] beside the database, which is
    safe to keep with the backups. The key service may be running.
    """
    need_server_parts()
    with settings_shown(), errors_shown():
        from twinlock.keyservice.database import meta, reading
        from twinlock.keyservice.service import DATABASE_NAME
        from twinlock.keyservice.split import prepare_split
        from twinlock.keyservice.wrapper_file import FileKeyWrapper
        from twinlock.keyservice.wrappers import open_wrapper

        settings = read_key_settings(config, data=data)
        check_key_folder(settings)
        folder = Path(settings.data)
        with reading(folder / DATABASE_NAME) as connection:
            keyservice_id = meta(connection, "keyservice_id")
        wrapper = open_wrapper(settings.custody, folder, is_new=False)
        if not isinstance(wrapper, FileKeyWrapper):
            wrapper.close()
            fail(
                "not_ours_to_split",
                "The root key is in OpenBao, which never gives it out.",
                "Back OpenBao up by its own means: snapshots, and unseal keys of several people.",
            )
        prepared = prepare_split(wrapper, keyservice_id, sheets, needed, again=again)
        print_sheets(prepared.sheets)
        versions = prepared.adopt()
        which = "version" if len(versions) == 1 else "versions"
        people.print(
            f"Sealed to these sheets: {which} {', '.join(map(str, versions))} of the root key, and all to come."
        )
        people.print("Make a backup now, and try the sheets with `twinlock drill`.")


def backup(
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    config: ConfigFile = None,
    data: DataFolder = None,
) -> None:
    """Copy the key service's database into a new folder; the key service may be running.

    Neither the root key nor the deny list is in it: keep each apart from the backups. The sealed root key is, if it was
    split.
    """
    need_server_parts()
    with settings_shown(), errors_shown():
        from twinlock.keyservice.backup import back_up
        from twinlock.keyservice.root_backup import FILE_NAME
        from twinlock.keyservice.service import wall_clock_ms

        settings = read_key_settings(config, data=data)
        check_key_folder(settings)
        made = back_up(Path(settings.data), folder, wall_clock_ms())
        print(f"{made.keys_count} keys, {made.entries_count} log entries, {made.ledger_records_count} ledger records")
        if not (folder / FILE_NAME).exists() and settings.custody.wrapper == "file":
            people.print(
                "[yellow]The root key was never split:[/] without its file this backup opens nothing. "
                "See `twinlock keyservice split`."
            )


def restore(
    source: BackupFolder,
    to: Annotated[Path, typer.Option(help="The new folder; one that holds something is never touched.")],
    deny_list: DenyListFile = None,
    no_deny_list: Annotated[
        bool, typer.Option("--no-deny-list", help="Go without: no space was ever shredded, or the list is lost.")
    ] = False,
    root_key: RootKeyFile = None,
    config: ConfigFile = None,
) -> None:
    """Make a key service's folder of a backup and the root key.

    The keys of every space that the deny list names are deleted before the folder is there. With OpenBao as wrapper
    ([bold]--config[/]) no root key is asked for.
    """
    need_server_parts()
    if (deny_list is None) != no_deny_list:
        fix = "Name the list of today with --deny-list, or say --no-deny-list if none is left; not both."
        fail("deny_list_missing", "Whose spaces were shredded must be known before keys come back.", fix, status=2)
    with settings_shown(), errors_shown():
        settings = read_key_settings(config).custody
        with root_key_of(source, root_key, settings) as wrapper:
            restored = asyncio.run(_restore(source, to, wrapper, deny_list, settings))
    if no_deny_list:
        people.print(
            "[bold yellow]Without its deny list this key service answers for spaces that were shredded since the "
            "backup was made.[/]"
        )
    for missing in restored.missing:
        people.print(f"[yellow]incomplete[/] {missing}")
    if not restored.ledger.intact:
        people.print(
            f"[yellow]ledger_broken[/] The ledger does not check out from record {restored.ledger.broken_at} on."
        )
    print(f"{to} is ready: {restored.denied_count} denied spaces, {restored.purged_count} of their keys deleted")


async def _restore(
    source: Path, to: Path, wrapper: KeyWrapper, deny_list: Path | None, settings: KeyServiceSettings
) -> Restored:
    from twinlock.keyservice.backup import restore as restore_backup

    return await restore_backup(source, to, wrapper, deny_list, settings)


@contextmanager
def root_key_of(source: Path, root_key: Path | None, settings: KeyServiceSettings) -> Iterator[KeyWrapper]:
    """Bring the root key of a backup back: from its file, from sheets, or where OpenBao has it.

    Raises:
        SheetError: the sheets are not those, or too few.
        StoreError, KeyServiceError: the root key cannot be had.
    """
    from twinlock.keyservice.root_backup import FILE_NAME, read_root_backup
    from twinlock.keyservice.settings import OPENBAO_WRAPPER
    from twinlock.keyservice.sheets import join_sheets
    from twinlock.keyservice.wrapper_file import FileKeyWrapper
    from twinlock.keyservice.wrappers import open_wrapper

    wrapper: KeyWrapper
    if settings.wrapper == OPENBAO_WRAPPER:
        wrapper = open_wrapper(settings, source, is_new=False)
    elif root_key is not None:
        wrapper = FileKeyWrapper.load(root_key)
    else:
        # Read first: nobody fetches sheets from five places for a backup that they do not open.
        sealed = read_root_backup(source / FILE_NAME)
        wrapper = FileKeyWrapper.of_backup(sealed, join_sheets(ask_for_sheets()))
    try:
        yield wrapper
    finally:
        wrapper.close()
