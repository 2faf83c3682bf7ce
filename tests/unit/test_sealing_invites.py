"""Invite links, the keys that follow from their secrets, and the digits by which two people know each other."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.membership_world import Membership
from tests.unit.sealing_world import Person, SeededEntropy, flipped
from twinlock.errors import InviteError, KeyMismatchError, OpenError, SignatureError
from twinlock.ids import AccountId, SpaceId
from twinlock.protocol.labels import label
from twinlock.protocol.proofs import invite_open_message, join_message, verify
from twinlock.protocol.space_log import Role, invite_id_of
from twinlock.sealing import MemberKey, open_epoch, unwrap_member_key, wrap_member_key
from twinlock.sealing.derive import kdf
from twinlock.sealing.digits import safety_digits
from twinlock.sealing.invites import InviteKeys, InviteLink, invite_proof, make_invite, parse_link

ENTROPY = SeededEntropy("invite links")
SPACE = SpaceId(bytes(range(16)))
LINK = make_invite(SPACE, ENTROPY)
SERVER = bytes(range(32))
PERSON = Person("guest")


@pytest.mark.parametrize("form", ["{}", "https://app.example/#{}", "  https://app.example/a?b=c#{}\n", "#{}"])
def test_a_link_is_read_with_whatever_stands_before_its_fragment(form):
    assert parse_link(form.format(LINK)) == LINK


def test_a_link_is_space_invite_and_secret_in_its_fragment():
    mark, *parts = str(LINK).split(".")

    assert (mark, [len(part) for part in parts]) == ("tl1", [22, 22, 43])
    assert parts[2] not in repr(LINK)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text.replace("tl1", "tl2"),
        lambda text: text.rpartition(".")[0],
        lambda text: text + ".x",
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text.replace(".", "/"),
        lambda text: "tl1." + "*" * 22 + text[26:],
        lambda text: "https://app.example/?" + text + "#",
    ],
)
def test_what_is_no_link_is_refused(damage):
    with pytest.raises(InviteError):
        parse_link(damage(str(LINK)))


@pytest.mark.parametrize("position", range(64))
def test_no_bit_of_a_link_can_be_altered(position):
    """The invite's id is that of the keys, which follow from the secret and the space."""
    data = flipped(LINK.space + LINK.invite + LINK.secret, position)

    with pytest.raises(InviteError):
        parse_link(str(InviteLink(SpaceId(data[:16]), data[16:32], data[32:])))


@given(st.text(max_size=120))
def test_no_text_does_anything_but_be_refused(text):
    with pytest.raises(InviteError):
        parse_link(text)


def test_an_invite_s_keys_follow_from_its_secret_and_its_space():
    keys = InviteKeys.of(SPACE, LINK.secret)
    sign = Ed25519PrivateKey.from_private_bytes(kdf(LINK.secret, SPACE, "inv-sign"))
    kem = X25519PrivateKey.from_private_bytes(kdf(LINK.secret, SPACE, "inv-kem"))
    both = sign.public_key().public_bytes_raw() + kem.public_key().public_bytes_raw()

    assert keys.sign_pk + keys.kem_pk == both
    assert keys.id == LINK.invite == hashlib.sha256(label("invite") + both).digest()[:16]
    assert InviteKeys.of(SpaceId(bytes(16)), LINK.secret).id != keys.id
    assert invite_id_of(keys.kem_pk, keys.sign_pk) != keys.id


def test_whoever_has_the_secret_opens_the_member_key_and_nobody_else():
    space = Membership(Person("inviting owner"))
    link = make_invite(space.log.space, ENTROPY)
    keys = InviteKeys.of(link.space, link.secret)
    wrapped = wrap_member_key(space.keys, keys.id, keys.kem_pk)
    assert len(wrapped) == 80

    opened = unwrap_member_key(wrapped, keys.kem, space.log.space, space.log.epoch, keys.id)

    assert opened == space.keys.member_key
    others = [
        (InviteKeys(ENTROPY(64)).kem, space.log.epoch, keys.id),
        (keys.kem, space.log.epoch + 1, keys.id),
        (keys.kem, space.log.epoch, PERSON.keys.account),
    ]
    for kem, epoch, name in others:
        with pytest.raises(OpenError):
            unwrap_member_key(wrapped, kem, space.log.space, epoch, name)


def test_a_member_key_that_a_server_made_up_is_noticed():
    """Anybody can wrap to a public key: what comes out is believed only if the signed log commits to it."""
    space, made_up = Membership(Person("inviting owner")), MemberKey(bytes(32))

    with pytest.raises(KeyMismatchError):
        open_epoch(space.log.space, space.log.epoch, made_up, space.keys.service_key, space.log.epochs[space.log.epoch])


def test_a_proof_of_the_secret_is_for_one_account_at_one_server():
    keys = InviteKeys.of(SPACE, LINK.secret)
    account, other = PERSON.keys.account, AccountId(bytes(16))
    proof = invite_proof(keys, SERVER, SPACE, account)

    verify(keys.sign_pk, proof, invite_open_message(SERVER, SPACE, keys.id, account))
    others = [
        invite_open_message(bytes(32), SPACE, keys.id, account),
        invite_open_message(SERVER, SpaceId(bytes(16)), keys.id, account),
        invite_open_message(SERVER, SPACE, bytes(16), account),
        invite_open_message(SERVER, SPACE, keys.id, other),
        join_message(SPACE, keys.id, account, PERSON.keys.sign_pk, PERSON.keys.kem_pk),
    ]
    for message in others:
        with pytest.raises(SignatureError):
            verify(keys.sign_pk, proof, message)


def test_an_invite_that_reads_holds_a_wrapped_key_at_every_epoch_until_it_is_used():
    space = Membership(Person("inviting owner"))
    invite = space.invite(Role.READER, uses=1)
    space.rotate()
    assert set(space.log.key_holders) == {space.owner.keys.account, invite.id}

    space.join(PERSON, invite)

    assert set(space.log.key_holders) == {space.owner.keys.account, PERSON.keys.account}


# Safety codes


def test_both_sides_show_the_same_sixty_digits():
    one, other = Person("one").keys.sign_pk, Person("other").keys.sign_pk
    digits = safety_digits(one, other)

    assert digits == safety_digits(other, one)
    assert [len(group) for group in digits.split(" ")] == [5] * 12
    number = int(hashlib.sha256(label("safety", min(one, other) + max(one, other))).hexdigest(), 16) % 10**60
    assert digits.replace(" ", "") == f"{number:060}"


def test_another_key_on_either_side_shows_other_digits():
    one, other, between = (Person(name).keys.sign_pk for name in ("one", "other", "man in the middle"))

    assert len({safety_digits(*pair) for pair in ((one, other), (one, between), (between, other))}) == 3
