"""A second site: its streams copy those of the first, until they are promoted and it serves by itself.

The second site's servers are leaf nodes of the first one's, each site a JetStream domain of its own. Every stream is
copied under its own name with its own numbers, so that every seq stays what it was. A copy lags behind and several
copies lag differently: what had not arrived when the first site was lost is given again by the devices. See
docs/operate/second-site.md.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from twinlock.engines.jetstream_api import NO_CLUSTER, NO_PEERS, NO_STREAM, Api, ApiError
from twinlock.engines.jetstream_cluster import REPLICAS_IN_CLUSTER
from twinlock.engines.jetstream_format import Names
from twinlock.errors import StoreError

REMOTE_SECONDS = 2.0
_PLACE_SECONDS = 10.0
_PLACE_AGAIN_SECONDS = 0.3
"""A cluster that has just started does not see all of its servers at once."""

_REMOTE_TRIES = 3
_CREATE_SECONDS = 30.0
_CONFIG = "twinlock-first-site"
"""Under which name a copy notes what its stream is like at the first site: the promotion must not ask there."""

_PROMOTED_AT = "twinlock-promoted-ms"
"""Under which name a stream notes when it was promoted, so that an interrupted promotion is ended as one."""

_COPIED = ("max_msgs_per_subject", "allow_msg_ttl", "discard", "compression")
_PROMOTED = ("subjects", "republish", "duplicate_window")


class MirrorStatus(msgspec.Struct, frozen=True):
    """A copy: how many messages it lacks, and whether that is known; how long ago it heard of the first site.

    `behind` is None where neither site can tell; `silent_s` is None where the copy never heard anything.
    """

    stream: str
    behind: int | None
    last_seq: int
    silent_s: float | None


class Promotion(msgspec.Struct, frozen=True):
    """When copies became streams of their own, and where each ended then."""

    at_ms: int
    streams: dict[str, int]


class SecondSite:
    """The copies that a cluster holds of another site's streams.

    Args:
        api: calls at the second site, with the admin's key.
        names: the names of the cluster's streams.
        first: the JetStream domain of the first site; empty to see it from the copies.
    """

    __slots__ = ("_api", "_first", "_names")

    def __init__(self, api: Api, names: Names, first: str = "") -> None:
        self._api = api
        self._names = names
        self._first = first

    async def set_up(self, replicas: int = 0) -> list[str]:
        """Begin to copy every stream that is not copied yet; return their names. May be called again at any time.

        `replicas` 0: each copy is kept 3 times, or once where the second site is a single server.

        Raises:
            StoreError: the first site cannot be seen, or a stream of that name here is no copy.
        """
        told = await self._first_streams()
        if told is None:
            raise StoreError(f"the site {self._first} cannot be seen from here: are its leaf nodes connected?")
        if not told:
            raise StoreError(f"the site {self._first} has no streams yet: start its first server")
        return [one["config"]["name"] for one in told if await self._copy(one["config"], replicas)]

    async def status(self) -> list[MirrorStatus]:
        """Look at every copy.

        Raises:
            StoreError: the second site does not answer.
        """
        told = await self._first_streams(tries=1)
        ends = {one["config"]["name"]: one["state"]["last_seq"] for one in told} if told is not None else {}
        return [_status(info, ends) for info in await self._here() if info["config"].get("mirror")]

    async def first_site(self) -> str:
        """Return the site that the streams here copy, or that was named; empty if they copy none."""
        if self._first:
            return self._first
        sources = [(one["config"].get("mirror") or {}).get("external") or {} for one in await self._here()]
        apis = {source["api"] for source in sources if source}
        self._first = apis.pop().split(".")[1] if apis else ""
        return self._first

    async def is_first_alive(self) -> bool:
        """Tell whether the first site still answers."""
        return await self._first_streams() is not None

    async def promote(self) -> Promotion:
        """Let the copies be written: they copy no more, and take what nodes append from now on.

        May be called again after it was interrupted; what it tells is then the same. The cluster's incarnation must
        be replaced afterwards, before any node serves.

        Raises:
            StoreError: there are no copies and never were, or one cannot be changed.
        """
        streams = await self._here()
        ended = [(one.get("config", {}).get("metadata") or {}).get(_PROMOTED_AT) for one in streams]
        at_ms = min([int(text) for text in ended if text], default=_now_ms())
        copies = [one for one in streams if one["config"].get("mirror")]
        if not copies and not any(ended):
            raise StoreError("nothing here is a copy of another site")
        # The directory first: without it nobody serves, whatever else can be written.
        for info in sorted(copies, key=lambda one: "_DIRECTORY_" not in one["config"]["name"]):
            await self._promote(info["config"], at_ms)
        return Promotion(at_ms, {one["config"]["name"]: one["state"]["last_seq"] for one in streams})

    async def _copy(self, config: dict[str, Any], replicas: int) -> bool:
        """Make a copy of a stream unless there is one; tell whether it was made."""
        name = config["name"]
        source = {"name": name, "external": {"api": f"$JS.{self._first}.API", "deliver": ""}}
        try:
            info = await self._api.call(f"STREAM.INFO.{name}", {})
        except ApiError as error:
            if error.failure.err_code != NO_STREAM:
                raise
        else:
            if (info["config"].get("mirror") or {}).get("external", {}).get("api") != source["external"]["api"]:
                raise StoreError(f"{name} at this site is no copy of that of {self._first}")
            return False
        made = {
            "name": name,
            "storage": "file",
            "num_replicas": replicas or REPLICAS_IN_CLUSTER,
            "allow_direct": True,
            "mirror": source,
            "metadata": {_CONFIG: json.dumps({key: config[key] for key in _PROMOTED if key in config})},
            **{key: config[key] for key in _COPIED if key in config},
        }
        await self._make(made, is_given=replicas > 0)
        return True

    async def _make(self, config: dict[str, Any], *, is_given: bool) -> None:
        """Make a copy; with fewer replicas on a single server, and once all servers of the site are seen."""
        ends = asyncio.get_running_loop().time() + _PLACE_SECONDS
        while True:
            try:
                await self._api.call(f"STREAM.CREATE.{config['name']}", config, _CREATE_SECONDS)
            except ApiError as error:
                if error.failure.err_code == NO_CLUSTER and not is_given and config["num_replicas"] > 1:
                    config = {**config, "num_replicas": 1}
                elif error.failure.err_code != NO_PEERS or asyncio.get_running_loop().time() > ends:
                    raise
                else:
                    await asyncio.sleep(_PLACE_AGAIN_SECONDS)
            else:
                return

    async def _promote(self, config: dict[str, Any], at_ms: int) -> None:
        metadata = dict(config.get("metadata") or {})
        try:
            first = json.loads(metadata.pop(_CONFIG))
        except (KeyError, ValueError) as exc:
            raise StoreError(f"{config['name']} does not say what it is a copy of") from exc
        kept = {key: value for key, value in config.items() if key not in ("mirror", "metadata")}
        own = {key: value for key, value in metadata.items() if not key.startswith("_nats.")}
        own[_PROMOTED_AT] = str(at_ms)
        await self._api.call(
            f"STREAM.UPDATE.{config['name']}",
            {**kept, **first, "metadata": own, "mirror_direct": False},
            _CREATE_SECONDS,
        )

    async def _here(self) -> list[dict[str, Any]]:
        """Return what this site says of each of its streams."""
        found: list[dict[str, Any]] = []
        asked = 0
        while True:
            page = await self._api.call("STREAM.LIST", {"offset": asked})
            streams = page.get("streams") or []
            asked += len(streams)
            found += [one for one in streams if self._is_ours(one)]
            if not streams or asked >= page["total"]:
                return found

    async def _first_streams(self, tries: int = _REMOTE_TRIES) -> Sequence[dict[str, Any]] | None:
        """Ask the first site for its streams; None if it does not answer."""
        found: list[dict[str, Any]] = []
        asked = 0
        while True:
            page = await self._ask_first({"offset": asked}, tries)
            if page is None:
                return None
            streams = page.get("streams") or []
            asked += len(streams)
            found += [one for one in streams if self._is_ours(one)]
            if not streams or asked >= page["total"]:
                return found

    async def _ask_first(self, request: dict[str, Any], tries: int) -> dict[str, Any] | None:
        first = await self.first_site()
        if not first:
            return None
        subject = f"$JS.{first}.API.STREAM.LIST"
        for _ in range(tries):
            answer = await self._api.connection.request(subject, msgspec.json.encode(request), REMOTE_SECONDS)
            if answer is not None and answer.status == 0:
                page: dict[str, Any] = msgspec.json.decode(answer.payload)
                if "error" not in page:
                    return page
            # A link that was just made knows of the other side's calls only a moment later.
            await asyncio.sleep(0.3)
        return None

    def _is_ours(self, stream: dict[str, Any]) -> bool:
        name: str = stream["config"]["name"]
        return name.startswith(f"{self._names.streams}_")


def _status(info: dict[str, Any], ends: dict[str, int]) -> MirrorStatus:
    name, last_seq = info["config"]["name"], info["state"]["last_seq"]
    told = info.get("mirror") or {}
    silent_ns = told.get("active", -1)
    behind = max(0, ends[name] - last_seq) if name in ends else None
    return MirrorStatus(name, behind, last_seq, silent_ns / 1e9 if silent_ns >= 0 else None)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
