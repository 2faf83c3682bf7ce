"""`twinlock ledger`: who got which key and when, and whether that record is whole."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinlock.cli.keyservice import ConfigFile, DataFolder, check_key_folder, read_key_settings, settings_shown
from twinlock.cli.output import errors_shown, fail, people

if TYPE_CHECKING:
    from twinlock.keyservice.ledger import LedgerRecord

SHORT_HEX = 12
# One line a record, however many there are: nothing is gathered to fit columns.
_FORM = "{:>8}  {:<20}  {:<14}  {:<12}  {:<12}  {:<12}  {:<8}  {}"
_HEADING = _FORM.format("no", "time", "event", "space", "account", "device", "epochs", "outcome")
_AGO = re.compile(r"^(\d+)([mhd])$")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}

ledger = typer.Typer(
    name="ledger", help="Read and check the record of every key that was released.", no_args_is_help=True
)


@ledger.command()
def show(
    config: ConfigFile = None,
    data: DataFolder = None,
    space: Annotated[str, typer.Option(help="Only this space: its id in hex, or the beginning of it.")] = "",
    account: Annotated[str, typer.Option(help="Only this account.")] = "",
    device: Annotated[str, typer.Option(help="Only this device.")] = "",
    since: Annotated[str, typer.Option(help="From then on: 2026-11-23, 2026-11-23T08:00, or 90m, 24h, 7d ago.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with whole ids.")] = False,
) -> None:
    """Show releases, refusals, denials and rotations, the oldest first; the key service may be running."""
    with settings_shown(), errors_shown():
        import msgspec

        from twinlock.keyservice.ledger_file import Wanted, read_records

        settings = read_key_settings(config, data=data)
        check_key_folder(settings)
        folder = Path(settings.data)
        ids = {"space": _hex("space", space), "account": _hex("account", account), "device": _hex("device", device)}
        records = read_records(folder, Wanted(**ids, since_ms=_since_ms(since)))
        if as_json:
            for each in records:
                print(msgspec.json.encode({"number": each.number, **msgspec.to_builtins(each.record)}).decode())
            return
        print(_HEADING)
        for each in records:
            print(_line(each.number, each.record))


@ledger.command()
def verify(
    config: ConfigFile = None,
    data: DataFolder = None,
    expect_head: Annotated[
        str, typer.Option(help="A head that was printed before and noted elsewhere: it must be part of the ledger.")
    ] = "",
) -> None:
    """Check that nothing in the ledger was altered, removed or put back; the key service may be running.

    Note the head that it prints in another place: only so a ledger that was set back as a whole can be noticed.
    """
    with settings_shown(), errors_shown():
        from twinlock.keyservice.ledger_file import verify_ledger

        settings = read_key_settings(config, data=data)
        check_key_folder(settings)
        expected = bytes.fromhex(_hex("expect-head", expect_head))
        checked = verify_ledger(Path(settings.data), settings.custody, expected)
        people.print(f"The ledger is whole: {checked.report.records_count} records.")
        if checked.noted_at:
            people.print(f"The head that was noted is its record {checked.noted_at}.")
        people.print("Its head, to be noted elsewhere:")
        print(checked.report.head.hex())


def _line(number: int, record: LedgerRecord) -> str:
    outcome = ""
    if record.refused:
        outcome = f"refused: {record.refused}"
    elif record.not_after_ms:
        outcome = f"until {_time(record.not_after_ms)}"
    elif record.root_version:
        outcome = f"version {record.root_version} of the root key"
    elif record.event in ("denied", "purged"):
        outcome = f"{record.keys_count} keys deleted"
    ids = (record.space[:SHORT_HEX], record.account[:SHORT_HEX], record.device[:SHORT_HEX])
    epochs = ",".join(map(str, record.epochs))
    return _FORM.format(number, _time(record.time_ms), record.event, *(each or "-" for each in (*ids, epochs)), outcome)


def _time(time_ms: int) -> str:
    return datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _since_ms(text: str) -> int:
    if not text:
        return 0
    ago = _AGO.match(text)
    now = datetime.datetime.now(datetime.UTC)
    try:
        if ago is not None:
            when = now - datetime.timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            when = datetime.datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        fail("bad_time", f"{text!r} is no time.", "Write 2026-11-23, 2026-11-23T08:00, 90m, 24h or 7d.", status=2)
    # A time without a zone is that of the ledger itself.
    return int((when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp() * 1000)


def _hex(name: str, text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]*", text) or (name == "expect-head" and len(text) not in (0, 64)):
        wanted = "64 hex digits" if name == "expect-head" else "hex digits"
        fail("not_hex", f"--{name} {text!r} is not {wanted}.", "Ids and heads are printed in hex.", status=2)
    return text.lower()
