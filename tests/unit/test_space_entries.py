"""The form of a space's entries: one spelling each, nothing left out, nothing more."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.membership_world import (
    BY_ADMITTERS,
    BY_ROLE,
    EDITOR,
    OTHER,
    OWNER,
    READER,
    STRANGER,
    Membership,
    household,
)
from tests.unit.sealing_world import flipped
from twinlock.errors import LogInvalidError, SignatureError, UpdateNeededError
from twinlock.ids import Counter, DeviceId
from twinlock.protocol.signed_log import encode_body
from twinlock.protocol.space_log import NEEDS_KEYSTORE, Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import sign_entry
from twinlock.sealing.invites import join_entry, uninvite_entry
from twinlock.sealing.space_entries import (
    config_offline_entry,
    cutoff_entry,
    leave_entry,
    lower_entry,
    shred_entry,
)

DEVICE = DeviceId(bytes(range(16)))


def example_entries(space: Membership) -> dict[str, object]:
    """Return an entry of every type that the space would take now."""
    invite = space.invite(Role.READER)
    made = {kind: make(space, OWNER) for kind, make in BY_ADMITTERS.items()}
    return made | {
        "lower": lower_entry(OWNER.keys, space.log, EDITOR.keys.account, Role.READER, {DEVICE: Counter(1)}),
        "offline": config_offline_entry(OWNER.keys, space.log, NEEDS_KEYSTORE),
        "uninvite": uninvite_entry(OWNER.keys, space.log, invite.id),
        "join": join_entry(OTHER.keys, space.log, invite),
        "leave": leave_entry(READER.keys, space.log, {DEVICE: Counter(1)}),
        "cutoff": cutoff_entry(EDITOR.keys, space.log, EDITOR.keys.account, {DEVICE: Counter(1)}),
        "rekem": space.raw(READER, "rekem", kem=STRANGER.keys.kem_pk),
        "shred": shred_entry(OWNER.keys, space.log),
    }


AT_HAND = household()
EXAMPLES = example_entries(AT_HAND)
SIGNERS = {person.keys.account: person for person in (*BY_ROLE.values(), OTHER)}


def signed_again(entry, body: bytes):
    """Sign an altered body with its author's true key: what a broken or malicious member can do."""
    text = json.loads(entry.body)["by"]
    author = next(person for account, person in SIGNERS.items() if encoded(account) == text)
    return sign_entry(author.keys, AT_HAND.log.space, AT_HAND.log.position, body)


def encoded(value: bytes) -> str:
    return json.loads(encode_body("x", {"v": value}))["v"]


def test_the_examples_are_taken():
    assert len({json.loads(entry.body)["type"] for entry in EXAMPLES.values()}) == 11
    for entry in EXAMPLES.values():
        assert signed_again(entry, entry.body).sig == entry.sig
        assert replay_space([entry], AT_HAND.log).seq == AT_HAND.log.seq + 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_byte_of_an_entry_can_be_altered(name):
    entry = EXAMPLES[name]
    for position in range(0, len(entry.body), 3):
        altered = type(entry)(flipped(entry.body, position), entry.sig)
        with pytest.raises((SignatureError, LogInvalidError, UpdateNeededError)):
            replay_space([altered], AT_HAND.log)
    with pytest.raises(SignatureError):
        replay_space([type(entry)(entry.body, flipped(entry.sig, 40))], AT_HAND.log)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_field_is_needed_and_no_other_is_taken(name):
    entry = EXAMPLES[name]
    fields = json.loads(entry.body)
    optional = {"config": {"lease_hours", "offline_needs"}}.get(fields["type"], set())
    for left_out in set(fields) - {"type", "by"} - optional:
        body = json.dumps({key: value for key, value in fields.items() if key != left_out}, **CANONICAL).encode()
        with pytest.raises(LogInvalidError):
            replay_space([signed_again(entry, body)], AT_HAND.log)
    body = json.dumps({**fields, "zz": 1}, **CANONICAL).encode()
    with pytest.raises(UpdateNeededError):
        replay_space([signed_again(entry, body)], AT_HAND.log)


CANONICAL = {"sort_keys": True, "separators": (",", ":")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_body_has_one_form_only_down_to_its_parts(name):
    entry = EXAMPLES[name]
    fields = json.loads(entry.body)
    assert json.dumps(fields, **CANONICAL).encode() == entry.body
    text = entry.body.decode()
    others = [json.dumps(fields, sort_keys=True), json.dumps(dict(reversed(fields.items())), separators=(",", ":"))]
    escaped = f"\\u{ord(fields['type'][0]):04x}{fields['type'][1:]}"
    others.append(text.replace(f'"type":"{fields["type"]}"', f'"type":"{escaped}"'))
    others.append(text.replace('"type":', f'"type":"{fields["type"]}","type":', 1))
    for name_of_part, part in fields.items():
        if isinstance(part, dict) and part:
            inner = json.dumps(part, **CANONICAL)
            twice = inner[:-1] + "," + inner[1:]
            spaced = inner.replace(":", ": ", 1)
            reverse = json.dumps(dict(reversed(part.items())), separators=(",", ":"))
            others += [text.replace(inner, form) for form in (twice, spaced, reverse) if form != inner]
            assert name_of_part in ("cutoff", "counters", "epoch")
    for form in set(others) - {text}:
        assert json.loads(form) == fields
        with pytest.raises(LogInvalidError):
            replay_space([signed_again(entry, form.encode())], AT_HAND.log)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=40).map(encoded),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=22), inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_no_values_in_an_entry_do_anything_but_stop_the_replay_or_keep_the_rules(name, data):
    entry = EXAMPLES[name]
    fields = json.loads(entry.body)
    altered = data.draw(st.dictionaries(st.sampled_from(sorted(set(fields) - {"by"})), json_values, min_size=1))
    body = json.dumps({**fields, **altered}, ensure_ascii=False, **CANONICAL)
    try:
        state = replay_space([signed_again(entry, body.encode(errors="replace"))], AT_HAND.log)
    except (LogInvalidError, UpdateNeededError):
        return

    assert state.owners == {OWNER.keys.account}
    assert state.epoch >= AT_HAND.log.epoch
    for account in set(state.members) - set(AT_HAND.log.members):
        assert account == OTHER.keys.account
