"""Every limit of the protocol is crossed by a test: within it all is well, beyond it there is an error with a code."""

import re

import pytest

from twinlock.document.values import check_collection
from twinlock.errors import InvalidCallError, InvalidDataError, LimitExceededError, LogInvalidError
from twinlock.protocol import limits
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.signed_log import Body
from twinlock.server.accounts import check_entries, page_of

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
    "TOKEN_BYTES_MAX": "tests/unit/test_server_tokens.py::test_a_token_is_read_up_to_its_limit",
    "DOCUMENT_ID_BYTES_MAX": "tests/unit/test_document_values.py::test_names_are_checked",
    "COLLECTION_NAME_BYTES_MAX": "tests/unit/test_limits.py::test_a_collection_has_a_name_of_256_bytes_and_no_more",
    "DOCUMENT_DEPTH_MAX": "tests/unit/test_document_values.py::test_nesting_ends_at_depth_32_on_both_sides",
    "ACCOUNT_NAME_BYTES_MAX": (
        "tests/unit/test_sealing_proofs.py::test_names_are_lowered_and_nothing_else_becomes_allowed"
    ),
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


def test_a_collection_has_a_name_of_256_bytes_and_no_more():
    assert check_collection("ü" * 128)
    with pytest.raises(InvalidDataError):
        check_collection("ü" * 128 + "x")
