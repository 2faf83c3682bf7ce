"""Every limit of the protocol is crossed by a test: within it all is well, beyond it there is an error with a code."""

import re
from itertools import islice

import msgspec
import pytest

from tests.unit.membership_world import OTHER, OWNER, READER, fresh_invite, household
from twinlock.document.values import check_collection
from twinlock.errors import InvalidCallError, InvalidDataError, LimitExceededError, LogInvalidError
from twinlock.protocol import limits
from twinlock.protocol.calls import KeyringRow, SignedEntry
from twinlock.protocol.signed_log import Body
from twinlock.protocol.space_log import Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.invites import InviteTerms, invite_entry
from twinlock.sealing.space_entries import member_entry
from twinlock.server.accounts import check_entries, page_of
from twinlock.server.blob_places import check_sealed_bytes, part_bytes, parts_count
from twinlock.server.keyrings import check_rows

ON_BOTH_SIDES = {
    "ENVELOPE_BYTES_MAX": "tests/unit/test_server_sequencer.py::test_an_envelope_is_taken_up_to_its_limit",
    "PUSH_ENVELOPES_MAX": "tests/unit/test_server_session.py::test_a_frame_is_taken_up_to_its_limit",
    "PUSH_BYTES_MAX": "tests/unit/test_server_session.py::test_a_frame_is_taken_up_to_its_limit",
    "FRAME_BYTES_MAX": "tests/unit/test_codec.py::test_frame_at_the_limit_is_decoded_and_one_byte_more_refused",
    "CONNECTION_SPACES_MAX": "tests/integration/test_server_sync.py::test_spaces_attached_are_bounded",
    "CONNECTION_PUSHES_IN_FLIGHT_MAX": (
        "tests/unit/test_server_session.py::test_pushes_in_flight_are_counted_until_they_are_settled"
    ),
    "CONNECTION_CALLS_IN_FLIGHT_MAX": (
        "tests/unit/test_server_session.py::test_calls_and_leases_in_flight_are_counted_together"
    ),
    "SIGNAL_BYTES_MAX": "tests/unit/test_server_session.py::test_a_frame_is_taken_up_to_its_limit",
    "LEASE_EPOCHS_MAX": "src/twinlock/testing/contracts/keys.py::test_limits_of_epochs_and_nonces",
    "LOG_ENTRY_BYTES_MAX": "tests/unit/test_limits.py::test_a_log_entry_has_64_kib_and_no_more",
    "LOG_PAGE_ENTRIES_MAX": "tests/unit/test_limits.py::test_a_page_of_a_log_has_512_entries_and_no_more",
    "SPACE_MEMBERS_MAX": "tests/unit/test_limits.py::test_a_space_has_10000_members_and_no_more",
    "SPACE_INVITES_MAX": "tests/unit/test_limits.py::test_a_space_has_256_open_invites_and_no_more",
    "INVITE_USES_MAX": "tests/unit/test_limits.py::test_an_invite_has_10000_uses_and_no_more",
    "KEYRING_ROWS_MAX": "tests/unit/test_limits.py::test_a_request_has_a_keyring_row_for_each_holder_and_no_more",
    "ENTRIES_PAGE_BYTES_MAX": "src/twinlock/testing/contracts/log.py::test_pages_hold_about_what_was_asked_for",
    "READER_BUFFER_BYTES_MAX": (
        "tests/integration/test_server_sync.py::test_a_slow_reader_catches_up_and_holds_nobody_back"
    ),
    "HELLO_TIMEOUT_MS": (
        "tests/unit/test_server_heartbeat.py::test_a_late_hello_is_noticed_after_its_time_and_not_before"
    ),
    "PING_INTERVAL_MS": "tests/unit/test_server_heartbeat.py::test_the_timer_keeps_the_times_of_the_spec",
    "CHALLENGE_TTL_MS": "tests/unit/test_server_session.py::test_a_challenge_ends",
    "RECONNECT_DELAY_MS_MAX": (
        "tests/integration/test_client_profile.py::"
        "test_the_delay_doubles_to_its_cap_and_starts_over_after_a_stable_minute"
    ),
    "RECONNECT_STABLE_MS": (
        "tests/integration/test_client_profile.py::"
        "test_the_delay_doubles_to_its_cap_and_starts_over_after_a_stable_minute"
    ),
    "CLOCK_SKEW_MS_MAX": "tests/vectors/test_document_vectors.py::check_clock_skew",
    "LEASE_REQUEST_SKEW_MS_MAX": "src/twinlock/testing/contracts/keys.py::test_limit_of_a_requests_time",
    "DEVICE_KEY_SEALS_MAX": ("tests/unit/test_replica_seal_limits.py::test_the_limits_are_those_of_the_specification"),
    "DEVICE_KEY_BYTES_MAX": ("tests/unit/test_replica_seal_limits.py::test_the_limits_are_those_of_the_specification"),
    "TOKEN_BYTES_MAX": "tests/unit/test_server_tokens.py::test_a_token_is_read_up_to_its_limit",
    "DOCUMENT_ID_BYTES_MAX": "tests/unit/test_document_values.py::test_names_are_checked",
    "COLLECTION_NAME_BYTES_MAX": "tests/unit/test_limits.py::test_a_collection_has_a_name_of_256_bytes_and_no_more",
    "DOCUMENT_DEPTH_MAX": "tests/unit/test_document_values.py::test_nesting_ends_at_depth_32_on_both_sides",
    "ACCOUNT_NAME_BYTES_MAX": (
        "tests/unit/test_sealing_proofs.py::test_names_are_lowered_and_nothing_else_becomes_allowed"
    ),
    "BLOB_CHUNK_BYTES": "tests/unit/test_sealing_blobs.py::test_a_length_at_a_border_comes_back",
    "BLOB_CHUNK_TAG_BYTES": "tests/unit/test_sealing_blobs.py::test_a_length_at_a_border_comes_back",
    "BLOB_PART_CHUNKS": "tests/unit/test_sealing_blobs.py::test_a_length_at_a_border_comes_back",
    "BLOB_PART_BYTES": "tests/unit/test_sealing_blobs.py::test_a_length_at_a_border_comes_back",
    "BLOB_PAGE_COUNT_MAX": "tests/integration/test_server_blobs.py::test_pages_of_blobs_tell_what_they_take",
    "HTTP_TOKEN_TTL_MS": "tests/unit/test_server_bearer.py::test_a_token_holds_for_its_time_and_not_longer",
    "BLOB_BYTES_MAX": "tests/unit/test_sealing_blobs.py::test_a_file_has_at_most_1_tib_sealed",
    "SPACE_TITLE_BYTES_MAX": "tests/unit/test_sealing_keys.py::test_a_title_over_its_limit_is_refused",
}


@pytest.fixture(scope="module")
def root(request):
    """The top of the repository."""
    return request.config.rootpath


def test_every_limit_is_crossed_by_a_test(root):
    assert sorted(ON_BOTH_SIDES) == sorted(name for name in vars(limits) if name.isupper())
    for test in ON_BOTH_SIDES.values():
        file, _, function = test.partition("::")
        assert re.search(rf"def {function}\(", (root / file).read_text(encoding="utf-8")), test


def test_a_log_entry_has_64_kib_and_no_more():
    largest = b'{"type":"x"}'.ljust(limits.LOG_ENTRY_BYTES_MAX)
    signature = bytes(64)

    check_entries([SignedEntry(largest, signature)])
    assert Body(largest).type == "x"
    with pytest.raises(LimitExceededError):
        check_entries([SignedEntry(largest + b" ", signature)])
    with pytest.raises(LogInvalidError, match="65537 bytes"):
        Body(largest + b" ")


def test_a_page_of_a_log_has_512_entries_and_no_more():
    entries = [SignedEntry(b"{}", bytes(64))] * (limits.LOG_PAGE_ENTRIES_MAX + 1)

    check_entries(entries[:-1])
    assert page_of(entries[:-1], 0).entries == entries[:-1]
    assert page_of(entries, 0).entries == entries[:-1]
    with pytest.raises(LimitExceededError):
        check_entries(entries)
    with pytest.raises(InvalidCallError):
        check_entries([])


@pytest.fixture(scope="module")
def space():
    return household()


def with_crowd(space, count, role=Role.READER):
    """Return the state of a space with so many members."""
    log = space.log
    crowd = {number.to_bytes(16, "big"): log.members[READER.keys.account] for number in range(1, count)}
    members = {**log.members, **dict(islice(crowd.items(), count - len(log.members)))}
    assert len(members) == count
    return msgspec.structs.replace(log, members=members)


def test_a_space_has_10000_members_and_no_more(space):
    keys = OTHER.keys

    def admitted(log):
        entry = member_entry(OWNER.keys, log, keys.sign_pk, keys.kem_pk, keys.account, Role.READER)
        return replay_space([entry], log)

    full = admitted(with_crowd(space, limits.SPACE_MEMBERS_MAX - 1))
    assert len(full.members) == limits.SPACE_MEMBERS_MAX
    with pytest.raises(LogInvalidError, match="more than 10000 members"):
        admitted(with_crowd(space, limits.SPACE_MEMBERS_MAX))


def test_a_space_has_256_open_invites_and_no_more(space):
    invites = [fresh_invite() for _ in range(limits.SPACE_INVITES_MAX + 1)]
    log = space.log
    for keys in invites[:-1]:
        log = replay_space([invite_entry(OWNER.keys, log, keys, InviteTerms(Role.READER, 1))], log)

    assert len(log.invites) == limits.SPACE_INVITES_MAX
    with pytest.raises(LogInvalidError, match="more than 256 open invites"):
        replay_space([invite_entry(OWNER.keys, log, invites[-1], InviteTerms(Role.READER, 1))], log)


def test_an_invite_has_10000_uses_and_no_more(space):
    log, keys = space.log, fresh_invite()

    def invited(uses):
        return replay_space([invite_entry(OWNER.keys, log, keys, InviteTerms(Role.READER, 1, uses))], log)

    assert invited(limits.INVITE_USES_MAX).invites[keys.id].uses_left == limits.INVITE_USES_MAX
    with pytest.raises(LogInvalidError):
        invited(limits.INVITE_USES_MAX + 1)


def test_a_request_has_a_keyring_row_for_each_holder_and_no_more(space):
    log = space.log
    row = KeyringRow(OWNER.keys.account, log.epoch, bytes(80))

    check_rows([row] * limits.KEYRING_ROWS_MAX, log)
    with pytest.raises(LimitExceededError):
        check_rows([row] * (limits.KEYRING_ROWS_MAX + 1), log)
    assert limits.KEYRING_ROWS_MAX == limits.SPACE_MEMBERS_MAX + limits.SPACE_INVITES_MAX


def test_a_collection_has_a_name_of_256_bytes_and_no_more():
    assert check_collection("ü" * 128)
    with pytest.raises(InvalidDataError):
        check_collection("ü" * 128 + "x")


def test_a_part_of_a_blob_is_full_chunks_but_for_the_last():
    full = limits.BLOB_PART_BYTES

    assert full == limits.BLOB_PART_CHUNKS * (limits.BLOB_CHUNK_BYTES + limits.BLOB_CHUNK_TAG_BYTES)
    assert [parts_count(sealed_bytes) for sealed_bytes in (17, full, full + 17)] == [1, 1, 2]
    assert [part_bytes(full + 17, part) for part in (0, 1)] == [full, 17]


def test_a_chunk_of_a_blob_holds_more_than_its_tag():
    chunk = limits.BLOB_CHUNK_BYTES + limits.BLOB_CHUNK_TAG_BYTES

    for sealed_bytes in (limits.BLOB_CHUNK_TAG_BYTES + 1, chunk, chunk + limits.BLOB_CHUNK_TAG_BYTES + 1):
        check_sealed_bytes(sealed_bytes)
    for sealed_bytes in (0, limits.BLOB_CHUNK_TAG_BYTES, chunk + 1, chunk + limits.BLOB_CHUNK_TAG_BYTES):
        with pytest.raises(InvalidCallError):
            check_sealed_bytes(sealed_bytes)
