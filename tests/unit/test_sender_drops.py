"""What readers and the server make of drops: whose documents they may touch, and until when they count."""

import pytest

from tests.unit.membership_world import OWNER, SENDER, Membership, household
from tests.unit.sealing_world import Person, contents, entries, reasons
from twinlock.contracts import DeviceHead
from twinlock.document.operations import Edit, encode_change
from twinlock.ids import NO_ENVELOPE, Counter
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.clock import pack
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.space_log import Role
from twinlock.replica.contents import decode_content
from twinlock.sealing import Sealer
from twinlock.sealing.identity import revoke_entry
from twinlock.server.sequencer import Author, Sequencer

STAMP = pack(1_700_000_000_000 - 1_000)


@pytest.fixture
def space() -> Membership:
    return household()


class Chain:
    """Drops of a sender's device, one after the other."""

    def __init__(self, space: Membership, person: Person = SENDER) -> None:
        self.space, self.person = space, person
        self.sealer = Sealer(person.device, space.entropy)
        self.sealed: list[Envelope] = []

    def drop(self, id: str | None = None) -> Envelope:
        own = self.person.keys.account.hex()
        payload = encode_change([Edit("readings", own if id is None else id, STAMP, [[0, b"", {"n": 1}]])])
        prev = self.sealed[-1].id if self.sealed else NO_ENVELOPE
        log = self.space.log
        place = (Counter(len(self.sealed) + 1), prev, log.head_prefix)
        envelope = self.sealer.seal_drop(payload, log.space, log.epoch, log.epochs[log.epoch].drop_pk, place)
        self.sealed.append(envelope)
        return envelope

    def read(self):
        return self.space.reader(decode=decode_content).read(entries(self.sealed))

    def push(self) -> str:
        """Return the code by which the server refuses the newest drop, or nothing."""
        device, newest = self.person.device, self.sealed[-1].header
        heads = {device.device: DeviceHead(Counter(newest.counter - 1), newest.prev)}
        sequencer = Sequencer(self.space.log.space, self.space.log, heads)
        author = Author(self.person.keys.account, device.device, device.sign_pk)
        refusal = sequencer.decide([self.sealed[-1].data], author).refusal
        return refusal.error.code if refusal is not None else ""


def test_a_drop_counts_for_documents_that_carry_its_account_and_no_others(space):
    chain = Chain(space)
    own = SENDER.keys.account.hex()
    for id in (own, own + "-1", "", "shared", "x" + own, OWNER.keys.account.hex()):
        if id:
            chain.drop(id)

    page = chain.read()

    assert [content.edits[0].id for content in contents(page)] == [own, own + "-1"]
    assert reasons(page) == ["decoding"] * 3


def test_one_foreign_document_spoils_the_whole_drop(space):
    own = SENDER.keys.account.hex()
    chain = Chain(space)
    edits = [Edit("readings", id, STAMP, [[0, b"", {"n": 1}]]) for id in (own, "shared")]
    log = space.log
    place = (Counter(1), NO_ENVELOPE, log.head_prefix)
    chain.sealed = [
        chain.sealer.seal_drop(encode_change(edits), log.space, log.epoch, log.epochs[log.epoch].drop_pk, place)
    ]

    assert reasons(chain.read()) == ["decoding"]


def test_drops_of_a_removed_sender_count_up_to_its_cutoff(space):
    chain = Chain(space)
    chain.drop()
    chain.drop()
    space.remove(SENDER, {SENDER.device.device: Counter(1)})

    page = chain.read()

    assert len(page.opened) == 1
    assert reasons(page) == ["cutoff"]
    assert chain.push() == "removed"


def test_drops_of_a_revoked_device_count_up_to_its_cutoff_whatever_head_they_name(space):
    sensor = Person("sensor with a stolen device")
    space.admit(sensor, Role.SENDER)
    chain = Chain(space, sensor)
    chain.drop()
    space.cut(sensor, {sensor.device.device: Counter(1)})
    sensor.state = replay_account([revoke_entry(sensor.keys, sensor.state, sensor.device.device)], sensor.state)
    chain.drop()
    space.rotate()
    chain.drop()

    page = chain.read()

    assert len(page.opened) == 1
    assert reasons(page) == ["cutoff"] * 2


@pytest.mark.parametrize("role", [Role.READER, Role.EDITOR, Role.ADMIN])
def test_what_a_sender_had_sealed_counts_when_it_has_another_role(space, role):
    chain = Chain(space)
    chain.drop()
    space.admit(SENDER, role)

    assert chain.push() == ""
    assert len(chain.read().opened) == 1


@pytest.mark.parametrize("role", [Role.READER, Role.EDITOR])
def test_a_drop_that_names_a_head_at_which_its_author_was_no_sender_is_refused(space, role):
    space.admit(SENDER, role)
    chain = Chain(space)
    chain.drop()

    assert chain.push() == "role_forbids"
    assert reasons(chain.read()) == ["role"]


def test_a_reader_that_was_never_a_sender_sends_nothing(space):
    reader = Person("reader from the start")
    space.admit(reader, Role.READER)
    chain = Chain(space, reader)
    chain.drop()

    assert chain.push() == "role_forbids"


def test_an_editor_lowered_to_a_sender_sends_from_then_on(space):
    person = Person("editor before")
    space.admit(person, Role.EDITOR)
    head = space.log.head_prefix
    space.lower(person, Role.SENDER, {})
    chain = Chain(space, person)
    chain.drop()

    assert chain.push() == ""
    assert len(chain.read().opened) == 1
    assert space.log.head_prefixes[head] < space.log.seq
