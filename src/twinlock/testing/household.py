"""Simulations of the whole system under a seed: real clients, server and key service, several accounts in one space.

Members come, go, rotate and shred while server, key service, devices and wires fail at any step; in the end everybody
who may read reads everything that was kept, nobody else can, and all logs are one. See spec/sealing.md, 4 and 7.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
from collections.abc import Awaitable
from pathlib import Path

import twinlock
from twinlock.contracts import Asking
from twinlock.errors import LeaseRefusedError, TwinlockError
from twinlock.ids import AccountId, LogId, Seq, SpaceId
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.frames import Lease
from twinlock.protocol.limits import LEASE_EPOCHS_MAX
from twinlock.protocol.proofs import lease_message
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import DeviceKeys
from twinlock.server.keyrings import TAG_BYTES
from twinlock.testing.simulated_node import ORIGIN, Crowd, Node
from twinlock.testing.virtual_time import run_in_virtual_time

START_MS = 1_800_000_000_000
ACTION_S_MAX = 90.0
SETTLE_S_MAX = 1_500.0
"""Longer than the longest wait of a device between two tries to get a lease."""

CHORES_S_MAX = 300.0
"""Longer than it takes until another node does the chores of one that was killed."""

NAMES = ("olga", "adam", "edith", "rick", "erin")
ROLES = {"adam": "admin", "edith": "editor", "rick": "reader", "erin": "editor"}
SPACE_TITLE = "shared"
WAITING_REASONS = frozenset({"key", "epoch", "device", "log_head"})
"""Why an entry may still be waiting for a lease or a log; anything else would be a loss."""

ACTIONS = frozenset({"rotate", "remove", "invite", "set_role", "leave", "shred"})
ADMITTERS_SHARE = 0.85
"""How often those act who may; now and then somebody tries who may not."""

STEPS = (
    ("write", 30),
    ("rotate", 4),
    ("remove", 3),
    ("invite", 4),
    ("set_role", 3),
    ("leave", 1),
    ("kill_node", 3),
    ("start_node", 12),
    ("lose_key_service", 2),
    ("find_key_service", 8),
    ("restart_key_service", 1),
    ("part", 3),
    ("meet", 8),
    ("crash", 2),
    ("wait", 8),
)


NODES_STEPS = (("stall_node", 3), ("cut_broker", 2), ("mend_broker", 6))
"""What happens besides where there are several nodes."""

STALLS_S = (0.5, 4.0, 8.0, 20.0)


class Person:
    """An account with one device. A crash leaves the device what lay on its disk."""

    def __init__(self, name: str, folder: Path, chance: random.Random, crowd: Crowd) -> None:
        self.name = name
        self._folder = folder
        self._lives_count = 0
        self._crowd = crowd
        self._node = node = crowd.nodes[0]
        self._options = twinlock.Options(
            wall_ms=node.now_ms, entropy=chance.randbytes, dial=crowd.dial_for(name), device_name=name
        )
        self.db: twinlock.Client
        self.written: set[str] = set()

    async def sign_up(self) -> None:
        """Make the account and open its device."""
        key_file = self._folder / "account.key"
        self._folder.mkdir(parents=True)
        await twinlock.create_service_account(ORIGIN, self.name, key_file, options=self._options)
        self.db = await self._open()

    async def crash(self) -> None:
        """Lose power: go on with what is on the disk at this moment."""
        before = self._profile
        self._lives_count += 1
        shutil.copytree(before, self._profile)
        # The old life ends behind a wall: what it still does reaches nobody.
        was_cut_off = self.name in self._node.cut_off
        self._crowd.part(self.name)
        await self.db.close()
        if not was_cut_off:
            self._node.cut_off.discard(self.name)
        shutil.rmtree(before)
        self.db = await self._open()

    async def _open(self) -> twinlock.Client:
        key_file = self._folder / "account.key"
        return await twinlock.connect(ORIGIN, self._profile, key_file=key_file, options=self._options)

    @property
    def device_keys(self) -> DeviceKeys:
        """The keys of the device, to play its owner with bad intent."""
        return self.db._context.state.device_keys

    @property
    def account(self) -> AccountId:
        """The account's id."""
        return AccountId(bytes.fromhex(self.db.account))

    @property
    def _profile(self) -> Path:
        return self._folder / f"life-{self._lives_count}"

    @property
    def profile(self) -> Path:
        """The folder of this device's files."""
        return self._profile


class Household:
    """One run: `begin`, `live` for some steps, `settle`, `check`."""

    def __init__(self, seed: int, folder: Path, nodes_count: int = 1) -> None:
        self.seed = seed
        self.chance = self._chance_of("steps")
        self._loop = asyncio.get_running_loop()
        self._folder = folder
        is_shared = nodes_count > 1
        self.node = Node(folder, self._chance_of("node"), self._now_ms, is_shared=is_shared)
        others = [
            Node(folder, self._chance_of(f"node {number}"), self._now_ms, self.node, is_shared=is_shared)
            for number in range(1, nodes_count)
        ]
        self.crowd = Crowd([self.node, *others], self._chance_of("crowd"))
        self.people = {name: Person(name, folder / name, self._chance_of(name), self.crowd) for name in NAMES}
        self.space = SpaceId(b"")
        self.trace: list[str] = []
        self._actions: set[asyncio.Task[None]] = set()
        self._marks_count = 0

    def _chance_of(self, use: str) -> random.Random:
        """Return chance of its own for each part, so that none of them is moved by what another draws."""
        return random.Random(f"{self.seed} {use}")  # noqa: S311  # a simulation must be repeatable

    def _now_ms(self) -> int:
        return START_MS + int(self._loop.time() * 1000)

    # The run

    async def begin(self) -> None:
        """Sign everybody up, make the space and let all but the last join it."""
        for node in self.crowd.nodes:
            await node.start()
        for person in self.people.values():
            await person.sign_up()
        owner = self.people["olga"]
        space = await owner.db.create_space(SPACE_TITLE)
        self.space = SpaceId(bytes.fromhex(space.id))
        for name in NAMES[1:-1]:
            link = await space.invite("editor" if ROLES[name] == "admin" else ROLES[name])
            await self.people[name].db.join(link)
        await space.set_role(self.people["adam"].account.hex(), "admin")

    async def live(self, steps_count: int) -> None:
        """Take steps at random."""
        steps = STEPS if len(self.crowd.nodes) == 1 else STEPS + NODES_STEPS
        names, weights = [name for name, _ in steps], [weight for _, weight in steps]
        shredded_at = self.chance.randrange(4 * steps_count)
        for number in range(steps_count):
            (step,) = self.chance.choices(names, weights) if number != shredded_at else ("shred",)
            person = self.people[self.chance.choice(NAMES)]
            self.trace.append(f"{self._loop.time():.3f} {step} {person.name}")
            await self._take(step, person)
            await asyncio.sleep(self.chance.choice((0.0, 0.001, 0.01, 0.1, 0.5)))

    async def _take(self, step: str, person: Person) -> None:
        match step:
            case "write":
                await self._write(person)
            case "crash":
                await person.crash()
            case "wait":
                await asyncio.sleep(self.chance.choice((1.0, 5.0, 40.0)))
            case _ if step in ACTIONS:
                self._act(step, person)
            case _:
                await self._fail(step, person)

    async def _fail(self, step: str, person: Person) -> None:
        match step:
            case "lose_key_service":
                self.node.keys.is_reachable = False
            case "find_key_service":
                self.node.keys.is_reachable = True
            case "restart_key_service":
                self.node.keys.restart()
            case "part":
                self.crowd.part(person.name)
            case "meet":
                self.node.cut_off.discard(person.name)
            case _:
                nodes = self.crowd.nodes
                await self._fail_node(step, self.chance.choice(nodes) if len(nodes) > 1 else self.node)

    async def _fail_node(self, step: str, node: Node) -> None:
        match step:
            case "kill_node":
                await node.kill()
            case "start_node":
                await node.restart()
            case "stall_node":
                node.delays.stall(self.chance.choice(STALLS_S))
            case "cut_broker" if node.is_serving and node.broker is not None:
                node.broker.cut_off()
            case "mend_broker" if node.is_serving and node.broker is not None:
                node.broker.mend()

    def _act(self, step: str, person: Person) -> None:
        """Begin what changes members or keys; it goes on while everything else happens."""
        if step != "leave" and self.chance.random() < ADMITTERS_SHARE:
            person = self.people[self.chance.choice(NAMES[:2])]
        other = self.people[self.chance.choice([name for name in NAMES if name != "olga"])]
        role = self.chance.choice(("editor", "reader", "admin"))

        async def act() -> None:
            await self._connected(person)
            space = person.db.space(self.space)
            match step:
                case "rotate":
                    await space.rotate()
                case "remove":
                    await space.remove(other.account.hex())
                case "invite":
                    await other.db.join(await space.invite(self.chance.choice(("editor", "reader"))))
                case "set_role":
                    await space.set_role(other.account.hex(), role)
                case "leave" if person.name != "olga":
                    await space.leave()
                case "shred":
                    await space.shred()

        self._begin(step, act())

    def _begin(self, step: str, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                async with asyncio.timeout(ACTION_S_MAX):
                    await work
                self.trace.append(f"{self._loop.time():.3f} {step} done")
            except (TwinlockError, TimeoutError) as exc:
                # Whoever may not, or could not, is told so; what matters is the state in the end.
                self.trace.append(f"{self._loop.time():.3f} {step} failed: {exc!r}")

        task = asyncio.create_task(guarded())
        self._actions.add(task)
        task.add_done_callback(self._actions.discard)

    async def _connected(self, person: Person) -> None:
        while not person.db.is_connected:  # noqa: ASYNC110 - virtual time passes at no cost
            await asyncio.sleep(0.05)

    async def _write(self, person: Person) -> None:
        self._marks_count += 1
        mark = f"m{self._marks_count}"
        try:
            await person.db.space(self.space).collection("marks").doc(mark).set({"by": person.name})
        except TwinlockError as exc:
            self.trace.append(f"{self._loop.time():.3f} write failed: {exc}")
            return
        person.written.add(mark)

    # The end

    async def settle(self) -> None:
        """Mend everything and wait until nothing changes any more."""
        self.node.keys.is_reachable = True
        self.node.cut_off.clear()
        for node in self.crowd.nodes:
            await node.restart()
            if node.broker is not None:
                node.broker.mend()
        if self._actions:
            await asyncio.wait(self._actions)
        end_s = self._loop.time() + SETTLE_S_MAX
        while not self._is_settled():
            if self._loop.time() > end_s:
                raise AssertionError(f"seed {self.seed}: {self._unsettled()}")
            await asyncio.sleep(1.0)
        for person in self.people.values():
            async with asyncio.timeout(SETTLE_S_MAX):
                await person.db.synced()
        async with asyncio.timeout(CHORES_S_MAX):
            # The node that shredded was killed while it deleted: whoever does the chores goes on.
            while await self.node.directory.list("shredding/"):  # noqa: ASYNC110 - virtual time passes at no cost
                await asyncio.sleep(1.0)
        # What one had still to send is on its way to the others.
        await asyncio.sleep(5.0)

    def _is_settled(self) -> bool:
        return not self._unsettled()

    def _unsettled(self) -> list[str]:
        """Say who has not come to rest, and why."""
        log = self.log()
        # Owners are unlocked here, and open the epoch that is wanted by themselves.
        found = ["a rotation is wanted"] if log.wants_rotation and not log.is_shredded else []
        for person in self.people.values():
            info = {each.id: each for each in person.db.spaces()}.get(self.space.hex())
            role = None if log.is_shredded else log.role_of(person.account)
            if (info is None) != (role is None):
                found.append(f"{person.name} is {role} and lists {info}")
            elif info is not None and (info.role != role or info.locked or person.db.pending_count):
                found.append(f"{person.name} is {role}: {info}, {person.db.pending_count} pending")
            elif any(reason in WAITING_REASONS for _, reason in self._quarantined(person)):
                found.append(f"{person.name} waits with {self._quarantined(person)}")
        return found + self._holding()

    def _holding(self) -> list[str]:
        """Say which nodes still hold the space: one in doubt asks the key service again after some seconds."""
        found = []
        for number, node in enumerate(self.crowd.nodes):
            served = node.services.registry.at_hand(self.space)
            if served is not None and (served.sequencer.is_fenced or served.is_looking or served.in_doubt):
                found.append(f"node {number} holds the space")
        return found

    def log(self) -> SpaceLogState:
        """Return what the space's log says, by the key service's word."""
        return replay_space(self.entries())

    def entries(self) -> list[SignedEntry]:
        """Return the space's log as the key service has it."""
        return self.node.keys.now(lambda: self.node.keys.inner.read_log(LogId(self.space), 0))

    async def check(self) -> None:
        """Assert that all agree, that nothing kept is lost, and that no one reads who should not.

        Raises:
            AssertionError: with the seed and what is wrong.
        """
        where = f"seed {self.seed}"
        log = self.log()
        served = [record.value for record in (await self.node.directory.list(f"log/{self.space.hex()}/")).values()]
        assert len(served) == log.seq, f"{where}: the server has {len(served)} of {log.seq} entries"
        report = self.node.keys.now(self.node.keys.inner.verify_ledger)
        assert report.intact, f"{where}: the ledger is broken at {report.broken_at}"
        await self._check_nodes(where, log)
        readers = [person for person in self.people.values() if log.role_of(person.account) is not None]
        if log.is_shredded:
            await self._check_shredded(where)
            return
        seen = [await self._marks_of(person) for person in readers]
        for person, marks in zip(readers, seen, strict=True):
            first = readers[0]
            assert marks == seen[0], (
                f"{where}: only {person.name} has {sorted(marks - seen[0])}, only {first.name} "
                f"{sorted(seen[0] - marks)}; "
                f"quarantined: {self._quarantined(person)}, {self._quarantined(first)}"
            )
        for person in self.people.values():
            await self._check_written(where, person, seen[0], log)
            if log.role_of(person.account) is None:
                await self._check_shut_out(where, person, log)

    async def _check_nodes(self, where: str, log: SpaceLogState) -> None:
        """Assert that every node that serves the space knows all of it, and waits for nobody."""
        left = await self.node.directory.list("changing/")
        assert not left, f"{where}: a change was never ended: {list(left)}"
        head = self.node.log.state_now(self.space).head
        for number, node in enumerate(self.crowd.nodes):
            served = node.services.registry.at_hand(self.space)
            if served is None:
                continue
            assert served.sequencer.rules.seq == log.seq, f"{where}: node {number} has old rules"
            assert served.delivered == head, f"{where}: node {number} delivered up to {served.delivered} of {head}"
        assert not self._holding(), f"{where}: {self._holding()}"

    def _quarantined(self, person: Person) -> list[tuple[int, str]]:
        return [(kept.seq, kept.reason) for kept in person.db.quarantine.get(self.space.hex(), [])]

    async def _check_shredded(self, where: str) -> None:
        for person in self.people.values():
            files = [path for path in person.profile.rglob("*") if self.space.hex() in str(path) and path.is_file()]
            assert not files, f"{where}: {person.name} still has {files}"

        held = self._stored_keys()
        assert not held, f"{where}: the key service still holds the keys of epochs {held}"
        rows = await self.node.directory.list(f"keyring/{self.space.hex()}/")
        assert not rows, f"{where}: the server still has {list(rows)}"
        entries = await self.node.log.read(self.space, Seq(0), 1 << 20)
        assert not entries, f"{where}: the server still has {len(entries)} envelopes"

    def _stored_keys(self) -> list[int]:
        database = f"file:{self._folder / 'keyservice' / 'keyservice.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(database, uri=True)) as connection:
            return [epoch for (epoch,) in connection.execute("SELECT epoch FROM keys WHERE space = ?", (self.space,))]

    async def _check_shut_out(self, where: str, person: Person, log: SpaceLogState) -> None:
        """Ask for every key in the name of somebody who is not a member."""
        keys, account, nonce, now_ms = person.device_keys, person.account, bytes(32), self._now_ms()
        epochs = sorted(log.epochs, reverse=True)[:LEASE_EPOCHS_MAX]
        message = lease_message(self.space, epochs, nonce, now_ms, account, keys.device)
        request = Lease(self.space, epochs, nonce, now_ms, keys.sign.sign(message))
        asking = Asking(account, keys.device, self.node.log.incarnation, now_ms)
        try:
            self.node.keys.now(lambda: self.node.keys.inner.lease(asking, request))
        except LeaseRefusedError:
            tag = log.epochs[log.epoch].dk_commit[:TAG_BYTES].hex()
            row = f"keyring/{self.space.hex()}/{log.epoch:08x}/{account.hex()}"
            for key in (row, f"{row}/{tag}"):
                assert await self.node.directory.get(key) is None, (
                    f"{where}: the newest key is wrapped to {person.name}"
                )
            return
        raise AssertionError(f"{where}: {person.name} is no member and got a lease")

    async def _check_written(self, where: str, person: Person, marks: set[str], log: SpaceLogState) -> None:
        """A writer who was a member all the time loses nothing; of others, what was refused was told."""
        record = log.members.get(person.account)
        if record is None or any(role in (None, Role.READER) for _, role in record.granted):
            return
        assert person.written <= marks, f"{where}: {person.name} lost {sorted(person.written - marks)}"

    async def _marks_of(self, person: Person) -> set[str]:
        found = await person.db.space(self.space).collection("marks").get()
        return {document.id for document in found}

    async def close(self) -> None:
        """End everything."""
        for task in self._actions:
            task.cancel()
        for person in self.people.values():
            await person.db.close()
        for node in self.crowd.nodes:
            await node.kill()
        self.node.keys.end()


def live_a_life(seed: int, folder: Path, steps_count: int = 60, nodes_count: int = 1) -> None:
    """Run one seed from beginning to end, with a server of one node or several."""

    async def run() -> None:
        household = Household(seed, folder, nodes_count)
        try:
            await household.begin()
            await household.live(steps_count)
            await household.settle()
            await household.check()
        except BaseException as exc:
            exc.add_note("\n".join(household.trace[-60:]))
            raise
        finally:
            await household.close()

    run_in_virtual_time(run())
