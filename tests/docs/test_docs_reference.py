"""The reference pages name what there is: commands and their options, calls, settings, events of the ledger."""

import inspect
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
import typer

import twinlock
from twinlock.cli.commands import commands
from twinlock.keyservice import ledger
from twinlock.keyservice.settings import KeyServiceSettings, ProcessSettings
from twinlock.server.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
COMMAND = re.compile(r"(?:^|\s|`)twinlock ([a-z][^\n`|]*)")
OPTION = re.compile(r"(?<!\S)--[a-z-]+")
SETTING_ROW = re.compile(r"^\| `(\w+)` \| `([^`]*)` \|", re.MULTILINE)


def leaves(command, names=()):
    """Return every command by its words, groups that run by themselves too."""
    found = {} if hasattr(command, "commands") and not command.invoke_without_command else {names: command}
    for name, child in getattr(command, "commands", {}).items():
        found |= leaves(child, (*names, name))
    return found


TREE = leaves(typer.main.get_command(commands))

GROUPS = {names[:1] for names in TREE if len(names) > 1}
NO_COMMANDS = {"import", "sender"}
"""A line of Python, and the first line of a file."""


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


def commands_in(text):
    """Return the calls of the command line that a page shows, as their words."""
    for code in CODE.findall(text):
        for line in code.replace("\\\n", " ").splitlines():
            for call in COMMAND.findall(line.split("#")[0]):
                yield call.split()


def command_of(words):
    """Return the command that some words begin with, the longest."""
    known = [names for names in TREE if names and tuple(words[: len(names)]) == names]
    return max(known, key=len, default=None)


def public(kind):
    """Return the names of a class that an application may use."""
    return {
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }


def test_the_command_line_s_page_has_every_command():
    text = page("reference/cli.md")

    assert [" ".join(names) for names in TREE if names and f"`twinlock {' '.join(names)}" not in text] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_that_a_page_shows_exists_with_its_options(path):
    wrong = []
    for words in commands_in(path.read_text(encoding="utf-8")):
        names = command_of(words)
        if names is None:
            wrong += [] if words[0] in NO_COMMANDS or tuple(words) in GROUPS else [" ".join(words)]
            continue
        known = {option for each in TREE[names].params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
        wrong += [f"{' '.join(names)} {option}" for option in OPTION.findall(" ".join(words)) if option not in known]

    assert wrong == []


def test_the_sdk_s_page_has_every_call():
    text = page("reference/sdk.md")
    kinds = [twinlock.Client, twinlock.Space, twinlock.PairingRequest, twinlock.Collection, twinlock.DocumentHandle]
    inner = {"start", "grant_for_good", "ask", "query", "set_intent", "update_intent", "delete_intent", "space"}
    names = set().union(*map(public, kinds)) - inner
    functions = {name for name in twinlock.__all__ if inspect.isroutine(getattr(twinlock, name))}
    fields = set().union(
        *(
            set(each.__struct_fields__)
            for each in (twinlock.Options, twinlock.DeviceInfo, twinlock.MemberInfo, twinlock.InviteInfo)
        )
    )

    assert sorted(name for name in names | functions | fields if not re.search(rf"\b{name}\b", text)) == []


def shown(value):
    """Return a default as the page shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def test_the_settings_page_has_every_setting_with_its_default():
    server, _, process = page("reference/settings.md").partition("## Settings of `twinlock keyservice`")
    custody = msgspec.structs.asdict(KeyServiceSettings())
    of_server = {
        **msgspec.structs.asdict(Settings()),
        **{f"keyservice_{name}": value for name, value in custody.items()},
    }
    of_process = {**msgspec.structs.asdict(ProcessSettings()), **custody}
    for part, values in ((server, of_server), (process, of_process)):
        expected = {name: shown(value) for name, value in values.items() if name not in ("keyservice", "custody")}
        assert dict(SETTING_ROW.findall(part)) == expected


def test_every_file_of_settings_that_a_page_shows_can_be_read():
    known = {*Settings.__struct_fields__, *ProcessSettings.__struct_fields__, *KeyServiceSettings.__struct_fields__}
    known |= {f"keyservice_{name}" for name in KeyServiceSettings.__struct_fields__}
    shown_files = [
        tomllib.loads(block)
        for path in PAGES
        for block in re.findall(r"^```toml\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
    ]

    assert shown_files
    assert {name for values in shown_files for name in values} <= known


def test_the_key_service_s_page_has_every_event_and_field_of_the_ledger():
    text = page("reference/keyservice.md")
    events = re.findall(r"`(\w+)`", inspect.getdoc(ledger.LedgerRecord).partition("Events:")[2])

    assert len(events) == 7
    assert [name for name in (*events, *ledger.LedgerRecord.__struct_fields__) if f"`{name}`" not in text] == []
