"""Somebody on the network whose TLS is broken: records, relays and alters all that passes, and learns no word, no B."""

import json
import os

import msgspec
import pytest

import twinlock
from tests.client_kit import until
from tests.security.attackers import (
    FAMILY,
    SECRET,
    Between,
    Hand,
    delivered,
    put,
    reasons,
    shows,
    signed_log,
    texts,
)
from tests.security.raid import pieces, windows
from twinlock.client import pairing
from twinlock.errors import InviteError, PairingRefusedError, PairingUnknownError, TwinlockError
from twinlock.ids import Epoch
from twinlock.protocol import codec
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.device_calls import AskPairing, FindPairingResult, TakePairingResult
from twinlock.protocol.frames import Entries, Leases
from twinlock.protocol.membership_calls import Join, OpenInvite
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import AccountKeys, DeviceKeys, account_genesis, device_entry, seal_account_keys
from twinlock.sealing.identity import sign_entry
from twinlock.sealing.invites import InviteKeys, join_entry, parse_link

TRUE = {"shed": SECRET, "list": "milk"}


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    """A person does not notice half a second; a test does."""
    monkeypatch.setattr(pairing, "POLL_INTERVAL_S", 0.02)


def everything(between: Between) -> set[bytes]:
    """All that passed: each message, and what is coded in it."""
    found: set[bytes] = set()
    for message in between.passed:
        found.update(pieces(message))
        found.update(pieces(msgspec.msgpack.decode(message)))
    return found


async def test_whoever_records_it_all_gets_envelopes_and_sealed_leases_and_no_data_and_no_b(household):
    """Leases, writes, a pairing, an invite, joining, a removal: everything passes in the recorder's hands."""
    between = Between()
    ann = await household.unlocked("a", dial=between.dial)
    cleo = await household.unlocked("cleo", dial=between.dial)
    request = await twinlock.pair_device(
        household.url, household.folder / "new", options=twinlock.Options(dial=between.dial)
    )
    digits = await ann.pair_device(request.code)
    assert (await request.approved()).digits == digits
    new = await request.confirm()
    garden = await ann.create_space("garden")
    link = await garden.invite("editor")
    await cleo.join(link)
    await (await garden.collection("notes").doc("gate").set({"text": "the gate is open"})).durable()
    await ann.space(FAMILY).remove("ben")
    await put(ann, "shed", "moved")
    await shows(cleo, "shed", "moved")
    hands = [Hand(ann), Hand(cleo), Hand(ann, "garden")]
    secrets = {f"{at} {name}": secret for at, hand in enumerate(hands) for name, secret in hand.secrets().items()}
    own = new._context.state.device_keys.expose()
    secrets |= {"link": parse_link(link).secret, "new sign": own[:32], "new kem": own[32:]}
    secrets |= {"account_sign": (household.folder / "ann.keys").read_bytes()[:32]}
    await new.close()

    # What they get: the envelopes, and leases as they are sealed to devices.
    recorded = everything(between)
    frames = [decoded(message) for message in between.passed]
    assert any(isinstance(frame, Leases) and frame.grants for frame in frames)
    for envelope in delivered(household, hands[0].space)[-1:]:
        assert any(envelope.data in message for message in between.passed)
    assert {"pairing.ask", "pairing.approve", "invite.open", "space.join", "space.append", "space.pending"} <= {
        frame.method for frame in between.sent if hasattr(frame, "method")
    }

    # What they do not get: one key of anybody, or one word.
    there = windows(recorded)
    assert len(there) > 20_000
    assert [name for name, secret in secrets.items() if secret in there] == []
    plain = b"".join(recorded)
    for word in (SECRET, "moved", "the gate is open", FAMILY, "garden"):
        assert word.encode() not in plain
    # The control: a key among all that would be found, and what is no secret is.
    assert secrets["0 B_2"] in windows(recorded | {b"x" + secrets["0 B_2"]})
    assert hands[0].log.members[hands[1].account].kem_pk in there


def decoded(message: bytes):
    """A recorded message as the frame that it is, whichever side sent it."""
    for decode in (codec.decode_server, codec.decode_client):
        try:
            return decode(message)
        except TwinlockError:
            continue
    return None


async def test_altered_envelopes_are_set_apart_and_read_once_they_come_whole(household):
    between = Between()

    def flip(frame):
        if not isinstance(frame, Entries):
            return frame
        altered = [
            msgspec.structs.replace(e, envelope=e.envelope[:130] + b"?" + e.envelope[131:]) for e in frame.entries
        ]
        return msgspec.structs.replace(frame, entries=altered)

    between.frames = flip
    b = await household.device("b", dial=between.dial)
    await until(lambda: any(info.title == FAMILY for info in b.spaces()))
    assert await texts(b) == {}
    assert reasons(b) == ["signature", "signature"]

    await b.close()
    b = await household.device("b")

    await shows(b, "shed", SECRET)
    assert await texts(b) == TRUE
    assert reasons(b) == []


async def test_altered_and_exchanged_leases_do_not_open(household):
    """Prolonged, with another device's grant, and with an answer from earlier: each time reading stays locked."""
    kept: list[Leases] = []
    other = Between()

    def note(frame):
        if isinstance(frame, Leases):
            kept.append(frame)
        return frame

    other.frames = note
    cleo = await household.device("cleo", dial=other.dial)
    cleo._courier.runtimes[Hand(cleo).space].keyring.lock()
    cleo._courier.tend()
    await until(lambda: any(frame.space == Hand(cleo).space and frame.grants for frame in kept))
    space = Hand(cleo).space
    earlier = next(frame for frame in kept if frame.space == space)
    day_ms = 86_400_000

    def prolonged(frame):
        grants = [msgspec.structs.replace(grant, not_after_ms=grant.not_after_ms + day_ms) for grant in frame.grants]
        return msgspec.structs.replace(frame, grants=grants)

    def exchanged(frame):
        return msgspec.structs.replace(frame, grants=earlier.grants)

    def repeated(frame):
        return earlier

    for lie in (prolonged, exchanged, repeated):
        between = Between()
        between.frames = lambda frame, lie=lie: (
            lie(frame) if isinstance(frame, Leases) and frame.space == space and frame.grants else frame
        )
        b = await household.device("b", dial=between.dial)
        await until(lambda b=b: b.last_error is not None)
        runtime = b._courier.runtimes[space]
        assert runtime.keyring.keys(Epoch(1)) is None, lie.__name__
        assert runtime.is_locked
        await b.close()


async def test_keys_of_a_new_device_that_are_exchanged_on_the_way_are_noticed(household):
    """The eavesdropper puts own keys in the place of the new device's, on each leg of the way, and an own account."""
    mole, mallory = DeviceKeys.make(os.urandom), AccountKeys.make(os.urandom)
    ann_between, new_between = Between(), Between()
    ann = await household.unlocked("a", dial=ann_between.dial)
    options = twinlock.Options(dial=new_between.dial)

    # From the new device to the server: what the server then has is not found under the code that the device shows.
    new_between.requests["pairing.ask"] = lambda params: msgspec.msgpack.encode(AskPairing(mole.sign_pk, mole.kem_pk))
    with pytest.raises((PairingRefusedError, PairingUnknownError)):
        await pair(household, ann, options)
    new_between.requests.clear()

    # From the server to the approver: the code is a hash of the true keys.
    found = msgspec.msgpack.encode(FindPairingResult(mole.sign_pk, mole.kem_pk))
    ann_between.replies["pairing.find"] = lambda result: found
    request = await twinlock.pair_device(household.url, household.folder / "two", options=options)
    with pytest.raises(PairingRefusedError):
        await ann.pair_device(request.code)
    ann_between.replies.clear()
    assert len(await ann.devices()) == 2

    # From the server to the new device: it is drawn into an account of the eavesdropper's, and shows other digits.
    device = request._new.device_keys
    entries = [account_genesis(mallory, os.urandom)]
    entries.append(device_entry(mallory, replay_account(entries), device.sign_pk, device.kem_pk))
    sealed = seal_account_keys(mallory, device.device, device.kem_pk)
    answer = msgspec.msgpack.encode(TakePairingResult(mallory.account, "ann", sealed, entries))
    new_between.replies["pairing.take"] = lambda result: answer
    true_digits = await ann.pair_device(request.code)
    assert (await request.approved()).digits != true_digits
    await request.reject()


async def pair(world, ann, options) -> None:
    """Show a code and have it approved."""
    request = await twinlock.pair_device(world.url, world.folder / "one", options=options)
    await ann.pair_device(request.code)


async def test_a_joiner_s_keys_that_are_exchanged_on_the_way_are_refused(household):
    """What passes when a link is used gives neither A nor a place in the space to whoever sees it pass."""
    between = Between()
    ann, cleo = await household.unlocked("a"), await household.unlocked("cleo", dial=between.dial)
    garden = await ann.create_space("garden")
    link = parse_link(await garden.invite("editor"))
    mallory, stranger = AccountKeys.make(os.urandom), InviteKeys.of(link.space, os.urandom(32))
    log = replay_space(signed_log(household, link.space))

    def own_keys(params: bytes) -> bytes:
        # The invite's signature is the true one, that of the joiner; account and keys are the eavesdropper's.
        join = msgspec.msgpack.decode(params, type=Join)
        forged = join_entry(mallory, log, stranger)
        true = json.loads(join.entry.body)
        signed = json.loads(forged.body) | {"invite": true["invite"], "isig": true["isig"]}
        body = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
        forged = sign_entry(mallory, log.space, log.position, body)
        return msgspec.msgpack.encode(msgspec.structs.replace(join, entry=forged, row=None))

    between.requests["space.join"] = own_keys
    with pytest.raises(TwinlockError):
        await cleo.join(str(link))
    assert len(replay_space(signed_log(household, link.space)).members) == 1

    # The proof that passed is the joiner's: in another account's session it opens nothing.
    call = between.calls("invite.open")[0]
    proof = msgspec.msgpack.decode(bytes(call.params), type=OpenInvite)
    ben = await household.unlocked("ben")
    with pytest.raises((InviteError, TwinlockError)):
        await ben._connection.call("invite.open", proof, msgspec.Raw)
    between.requests.clear()
    assert (await cleo.join(str(link))).title == "garden"
