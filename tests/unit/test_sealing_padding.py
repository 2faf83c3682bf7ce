"""Padding hides lengths, costs little, and has exactly one form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.errors import OpenError
from twinlock.protocol.envelope import CIPHERTEXT_BYTES_MAX, TAG_BYTES
from twinlock.sealing.padding import PADDED_BYTES_MIN, PAYLOAD_BYTES_MAX, pad, padded_bytes, unpad


@given(st.binary(max_size=5000))
def test_what_was_padded_comes_back(payload):
    assert unpad(pad(payload)) == payload


@given(st.integers(min_value=0, max_value=PAYLOAD_BYTES_MAX))
def test_padding_is_at_most_12_percent_above_the_floor(size):
    assert size < padded_bytes(size) <= max(PADDED_BYTES_MIN, (size + 1) * 1.12)


@given(st.integers(min_value=0, max_value=PAYLOAD_BYTES_MAX))
def test_a_padded_length_is_its_own_padme(size):
    length = padded_bytes(size)

    assert padded_bytes(length - 1) == length


@given(st.integers(min_value=0, max_value=PAYLOAD_BYTES_MAX - 1))
def test_a_longer_payload_never_has_a_shorter_padding(size):
    assert padded_bytes(size) <= padded_bytes(size + 1)


@given(st.binary(max_size=600))
def test_whatever_is_accepted_is_what_would_be_made(data):
    try:
        payload = unpad(data)
    except OpenError:
        return
    assert pad(payload) == data


@pytest.mark.parametrize(("size", "length"), [(0, 128), (127, 128), (128, 144), (143, 144), (1000, 1024), (9000, 9216)])
def test_lengths_are_those_of_padme(size, length):
    assert padded_bytes(size) == length


def test_the_longest_payload_fits_and_one_more_does_not():
    assert padded_bytes(PAYLOAD_BYTES_MAX) <= CIPHERTEXT_BYTES_MAX - TAG_BYTES < padded_bytes(PAYLOAD_BYTES_MAX + 1)


@pytest.mark.parametrize(
    "data", [b"", bytes(128), b"\x80", b"x\x80" + bytes(125), b"x\x80" + bytes(127), b"x\x81" + bytes(126)]
)
def test_other_padding_is_refused(data):
    with pytest.raises(OpenError):
        unpad(data)
