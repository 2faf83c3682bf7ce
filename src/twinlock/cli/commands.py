"""The list of all commands. What a command needs is imported only when it runs, so that each starts fast."""

from __future__ import annotations

import typer

from twinlock.cli.accounts import recover, sign_up
from twinlock.cli.backup import backup
from twinlock.cli.backup_keys import backup as backup_keys
from twinlock.cli.backup_keys import restore as restore_keys
from twinlock.cli.backup_keys import split
from twinlock.cli.bench import bench
from twinlock.cli.cluster import cluster
from twinlock.cli.dev import dev
from twinlock.cli.devices import device, kit, pair
from twinlock.cli.doctor import doctor
from twinlock.cli.documents import get, put, query, watch
from twinlock.cli.drill import drill
from twinlock.cli.files import file
from twinlock.cli.inspect import inspect
from twinlock.cli.keyservice import keyservice
from twinlock.cli.ledger import ledger
from twinlock.cli.migrate import migrate
from twinlock.cli.restore import restore, restored
from twinlock.cli.serve import serve
from twinlock.cli.services import service
from twinlock.cli.spaces import space

commands = typer.Typer(
    name="twinlock",
    help="End-to-end-encrypted real-time sync that takes two separate keys to open anything.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(panel: str, *functions: object) -> None:
    for function in functions:
        commands.command(rich_help_panel=panel)(function)  # type: ignore[type-var]  # typer wants a callable type


_add("Run a server", dev, serve, doctor)
for command in (split, backup_keys, restore_keys):
    keyservice.command()(command)
commands.add_typer(keyservice, rich_help_panel="Run a server")
commands.add_typer(cluster, rich_help_panel="Run a server")
commands.add_typer(ledger, rich_help_panel="Look inside")
_add("Keep data safe", backup, drill, restore, restored, migrate)
_add("Read and write a profile", put, get, query, watch)
commands.add_typer(file, rich_help_panel="Read and write a profile")
commands.add_typer(space, rich_help_panel="Read and write a profile")
_add("Devices and keys", sign_up, pair, recover)
commands.add_typer(device, rich_help_panel="Devices and keys")
commands.add_typer(kit, rich_help_panel="Devices and keys")
commands.add_typer(service, rich_help_panel="Devices and keys")
_add("Look inside", inspect, bench)
