"""`twinlock cluster keys`: make the certificates, nkeys and configuration that the machines of a cluster need."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from twinlock.cli.cluster_authority import AUTHORITY_NAME, Authority, expiry_of, write_secret
from twinlock.cli.output import errors_shown, fail, people

MEMBERS_NAME = "members.json"
CERTIFICATE_NAME = "tls.pem"
PRIVATE_KEY_NAME = "tls.key"
SEED_NAME = "nats.nk"
LEAF_SEED_NAME = "mirror.nk"
LEAF_CONF_NAME = "mirror.conf"
FIRST_SITE_AUTHORITY_NAME = "first-site-ca.pem"
OPERATOR = "operator"
"""The folder of whoever looks after the cluster."""

MONITOR_SEED_NAME = "monitor.nk"
DOCTOR_SEED_NAME = "doctor.nk"
ADMIN_SEED_NAME = "admin.nk"
NOT_ACROSS = ("tw.>", "live.>", "sig.>", "$KV.>")
"""Subjects that never pass between two sites: a promoted one must not hear what the other still says."""

CLIENTS_PORT = 4222
ROUTES_PORT = 6222
LEAVES_PORT = 7422
MONITORING_PORT = 8222

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_HERE = ("localhost", "127.0.0.1", "::1")
CERTIFICATE_DAYS = 365
_RENEW_DAYS = 30


class Ports(msgspec.Struct, frozen=True):
    """Where a NATS server listens: for nodes, for other servers, for the second site, for monitoring."""

    clients: int = CLIENTS_PORT
    routes: int = ROUTES_PORT
    leaves: int = LEAVES_PORT
    monitoring: int = MONITORING_PORT


class ServerPlace(msgspec.Struct, frozen=True):
    """One NATS server: the address that others dial it by, the host it listens on, its ports, folders and tags."""

    address: str
    listen: str = "0.0.0.0"  # noqa: S104  # Other machines dial it; TLS and keys stand before it.
    ports: Ports = Ports()
    store: str = "/var/lib/nats"
    keys: str = "/etc/nats/keys"
    tags: list[str] = []


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """Who belongs to a cluster: all of it public, kept beside the authority so that members can be added later.

    Args:
        site: the name of this NATS cluster; a second site has another one.
        servers: the NATS servers by name.
        hosts: other machines that only need a certificate, with the address that they are dialled by.
        nodes: the public nkeys of sync nodes by name.
        monitor: the public nkey of who asks servers how they are.
        doctor: the public nkey of who looks at streams and the directory without changing anything.
        admin: the public nkey of who opens partitions, sets up mirrors and promotes them.
        mirror: the public nkey by which a second site reads; empty if there is none.
        mirrored: addresses (`host:port`) of the first site's servers, if this is the second.
    """

    site: str = "main"
    servers: dict[str, ServerPlace] = {}
    hosts: dict[str, str] = {}
    nodes: dict[str, str] = {}
    monitor: str = ""
    doctor: str = ""
    admin: str = ""
    mirror: str = ""
    mirrored: list[str] = []


def keys(
    folder: Annotated[Path, typer.Argument(help="Where the keys go: a disk that no server reads.")],
    server: Annotated[list[str] | None, typer.Option(help="A NATS server: NAME, or NAME=ADDRESS.")] = None,
    node: Annotated[list[str] | None, typer.Option(help="A sync node: NAME, or NAME=ADDRESS.")] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="Another machine that needs a certificate: NAME, or NAME=ADDRESS.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="The name of this cluster; a second site has another.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="SERVER=TAG: partitions can be placed on servers that have a tag.")
    ] = None,
    renew: Annotated[bool, typer.Option(help="Make all certificates anew, with the same authority.")] = False,
) -> None:
    """Make certificates, nkeys and configuration of a cluster, one folder for each machine.

    What exists stays as it is: call it again to add a server or a node. The folder holds the authority's key
    ([bold]ca.key[/]): whoever has it can pose as any machine of the cluster. Copy each machine its own folder only.
    """
    with errors_shown(), _names_shown():
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
        known = read_members(folder)
        members = _tagged(_added(known, _places(server), _places(node), _places(host)), _places(tag))
        members = make_keys(folder, msgspec.structs.replace(members, site=site or members.site), renew=renew)
        people.print(f"{folder}: {len(members.servers)} servers, {len(members.nodes)} nodes, site {members.site}")


def link(
    first: Annotated[Path, typer.Argument(help="The keys of the first site.", exists=True, file_okay=False)],
    second: Annotated[Path, typer.Argument(help="The keys of the second site.", exists=True, file_okay=False)],
) -> None:
    """Let the servers of a second site read the streams of the first one, and nothing else.

    Both folders were made by [bold]twinlock cluster keys[/], with different names of the site. Copy the folders to
    their machines again afterwards, and start the servers anew, one after the other.
    """
    with errors_shown(), _names_shown():
        link_sites(first, second)
        people.print(f"the servers of {second} read from those of {first}")


def link_sites(first: Path, second: Path) -> None:
    """Make the key by which a second site reads, and write both sites' configurations anew.

    Raises:
        ValueError: one of the folders holds no keys of a cluster, or both have the same name of the site.
    """
    here, there = read_members(first), read_members(second)
    if not here.servers or not there.servers or here.site == there.site:
        raise ValueError("both folders need servers, and each site a name of its own (--site)")
    # Where a site goes back to being the first one, it copies nobody any more.
    here = make_keys(first, msgspec.structs.replace(here, mirrored=[]), is_mirrored=True)
    # A remote leaf node takes its seed from the configuration, not from a file of its own.
    seed = _assigned({"MIRROR_SEED": (first / LEAF_SEED_NAME).read_text(encoding="ascii").strip()})
    authority = (first / AUTHORITY_NAME).read_bytes()
    for name in there.servers:
        write_secret(second / name / LEAF_CONF_NAME, seed.encode())
        (second / name / FIRST_SITE_AUTHORITY_NAME).write_bytes(authority)
    addresses = [f"{_url_host(place.address)}:{place.ports.leaves}" for place in here.servers.values()]
    make_keys(second, msgspec.structs.replace(there, mirrored=addresses))


def read_members(folder: Path) -> Members:
    """Return who belongs to the cluster whose keys a folder holds; nobody if it holds none."""
    path = folder / MEMBERS_NAME
    return msgspec.json.decode(path.read_bytes(), type=Members) if path.exists() else Members()


def make_keys(folder: Path, members: Members, *, renew: bool = False, is_mirrored: bool = False) -> Members:
    """Make what is missing of a cluster's keys, write every server's configuration anew, and note the members.

    Raises:
        ValueError: the folder's authority is not one that this command made.
    """
    authority = Authority.open(folder)
    for name, address in _certified(members).items():
        _certify(folder / name, authority, _all_names(name, address), renew)
    nodes = {name: _nkey(folder / name / SEED_NAME) for name in members.nodes}
    operator = folder / OPERATOR
    _prepare(operator, authority)
    mirror = folder / LEAF_SEED_NAME
    members = msgspec.structs.replace(
        members,
        nodes=nodes,
        monitor=_nkey(operator / MONITOR_SEED_NAME),
        doctor=_nkey(operator / DOCTOR_SEED_NAME),
        admin=_nkey(operator / ADMIN_SEED_NAME),
        mirror=_nkey(mirror) if is_mirrored or mirror.exists() else "",
    )
    for name in members.servers:
        (folder / name / "server.conf").write_text(server_conf(name, members), encoding="utf-8")
        (folder / name / "accounts.conf").write_text(accounts_conf(members), encoding="utf-8")
    (folder / MEMBERS_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(members), indent=2) + b"\n")
    return members


def server_conf(name: str, members: Members) -> str:
    """Return what a server's own part of the configuration says; `deploy/nats/server.conf` includes it."""
    place = members.servers[name]
    values: dict[str, object] = {
        "SERVER_NAME": name,
        "SITE": members.site,
        "CLIENTS_AT": f"{place.listen}:{place.ports.clients}",
        "MONITORING_AT": f"127.0.0.1:{place.ports.monitoring}",
        "STORE_FOLDER": place.store,
        "CERTIFICATE": f"{place.keys}/{CERTIFICATE_NAME}",
        "PRIVATE_KEY": f"{place.keys}/{PRIVATE_KEY_NAME}",
    }
    others = [other for key, other in members.servers.items() if key != name]
    tags = f"\nserver_tags: {json.dumps(place.tags)}\n" if place.tags else ""
    return _assigned(values) + tags + _route_block(place, others) + _leaf_block(place, members)


def accounts_conf(members: Members) -> str:
    """Return who may connect, by public keys; what they may do stands in `deploy/nats/permissions.conf`."""
    users = [(name, key, "NODE", "STANDARD") for name, key in members.nodes.items()]
    users += [("doctor", members.doctor, "DOCTOR", "STANDARD"), ("admin", members.admin, "ADMIN", "STANDARD")]
    if members.mirror:
        users.append(("the second site", members.mirror, "MIRROR", "LEAFNODE"))
    lines = [_user(*user) for user in users]
    monitor = _user("monitor", members.monitor, "MONITOR", "STANDARD")
    parts = ["permissions.conf", *(["mirror-permissions.conf"] if members.mirror else [])]
    included = "".join(f'include "../{part}"\n' for part in parts)
    return f"{included}\nMONITORS = [\n{monitor}]\n\nUSERS = [\n{''.join(lines)}]\n"


def _user(name: str, key: str, permissions: str, connection: str) -> str:
    return (
        f'  # {name}\n  {{ nkey: "{key}", permissions: ${permissions}, allowed_connection_types: ["{connection}"] }}\n'
    )


def _assigned(values: Mapping[str, object]) -> str:
    # A value in JSON is also one of NATS's configuration language.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def _route_block(place: ServerPlace, others: list[ServerPlace]) -> str:
    """Return how the servers of a site find one another; whoever has no certificate of ours is none of them."""
    if not others:
        return ""
    routes = _quoted(tuple(f"nats-route://{_url_host(other.address)}:{other.ports.routes}" for other in others))
    return (
        f'\ncluster {{\n  name: $SITE, listen: "{place.listen}:{place.ports.routes}"\n  routes: [{routes}]\n'
        f'  tls {{ cert_file: $CERTIFICATE, key_file: $PRIVATE_KEY, ca_file: "{place.keys}/{AUTHORITY_NAME}"\n'
        '    verify: true, min_version: "1.3", timeout: 5 }\n}\n'
    )


def _leaf_block(place: ServerPlace, members: Members) -> str:
    """Return how the sites are joined: the first listens, the second dials, and carries nothing but the copies."""
    if members.mirrored:
        urls = _quoted(tuple(f"tls://{address}" for address in members.mirrored))
        return (
            f'\ninclude "{LEAF_CONF_NAME}"\nleafnodes {{\n  remotes: [ {{\n'
            f"    urls: [{urls}], account: TWINLOCK, nkey: $MIRROR_SEED\n"
            f'    tls {{ ca_file: "{place.keys}/{FIRST_SITE_AUTHORITY_NAME}", min_version: "1.3" }}\n'
            f"    deny_imports: [{_quoted(NOT_ACROSS)}], deny_exports: [{_quoted(NOT_ACROSS)}]\n"
            "  } ]\n}\n"
        )
    if members.mirror:
        return (
            f'\nleafnodes {{\n  listen: "{place.listen}:{place.ports.leaves}"\n'
            '  tls { cert_file: $CERTIFICATE, key_file: $PRIVATE_KEY, min_version: "1.3" }\n}\n'
        )
    return ""


@contextmanager
def _names_shown() -> Iterator[None]:
    try:
        yield
    except ValueError as exc:
        fail("cluster_keys", str(exc), "Names are small letters, digits and hyphens; see `--help`.", status=2)


def _quoted(subjects: tuple[str, ...]) -> str:
    return ", ".join(f'"{subject}"' for subject in subjects)


def _places(given: list[str] | None) -> Iterator[tuple[str, str]]:
    for text in given or []:
        name, _, address = text.partition("=")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a machine")
        yield name, address or name


def _added(
    members: Members,
    servers: Iterator[tuple[str, str]],
    nodes: Iterator[tuple[str, str]],
    hosts: Iterator[tuple[str, str]],
) -> Members:
    more = list(nodes)
    return msgspec.structs.replace(
        members,
        servers={**members.servers, **{name: _server(members, name, address) for name, address in servers}},
        hosts={**members.hosts, **dict(hosts), **dict(more)},
        nodes={**members.nodes, **{name: members.nodes.get(name, "") for name, _ in more}},
    )


def _server(members: Members, name: str, address: str) -> ServerPlace:
    known = members.servers.get(name)
    return msgspec.structs.replace(known, address=address) if known else ServerPlace(address)


def _tagged(members: Members, tags: Iterator[tuple[str, str]]) -> Members:
    servers = dict(members.servers)
    for name, tag in tags:
        if name not in servers:
            raise ValueError(f"{name!r} is no NATS server of this cluster")
        servers[name] = msgspec.structs.replace(servers[name], tags=sorted({*servers[name].tags, tag}))
    return msgspec.structs.replace(members, servers=servers)


def _certified(members: Members) -> dict[str, str]:
    """Return every machine that gets a certificate, with its address."""
    return members.hosts | {name: place.address for name, place in members.servers.items()}


def _all_names(name: str, address: str) -> list[str]:
    return list(dict.fromkeys((name, address, *_HERE)))


def _prepare(folder: Path, authority: Authority) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / AUTHORITY_NAME).write_bytes(authority.pem)


def _certify(folder: Path, authority: Authority, names: list[str], renew: bool) -> None:
    _prepare(folder, authority)
    certificate = folder / CERTIFICATE_NAME
    if renew or not certificate.exists():
        authority.issue(names, certificate, folder / PRIVATE_KEY_NAME, CERTIFICATE_DAYS)
    elif expiry_of(certificate) - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=_RENEW_DAYS):
        people.print(f"{certificate} ends on {expiry_of(certificate):%Y-%m-%d}: make it anew with --renew")


def _nkey(path: Path) -> str:
    """Return the public half of the nkey in a file, which is made if there is none."""
    import nkeys

    if not path.exists():
        write_secret(path, nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
    public: bytes = nkeys.from_seed(path.read_bytes().strip()).public_key
    return public.decode()


def _url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
