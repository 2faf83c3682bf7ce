"""The order of values and the bytes that indexes keep agree."""

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from twinlock.document.ordering import descending, order_key
from twinlock.document.values import INT_MAX, INT_MIN

NUMBERS = st.one_of(
    st.integers(INT_MIN, INT_MAX),
    st.floats(allow_nan=False),
    st.sampled_from([0.0, -0.0, 2**53, 2**53 + 1, float(2**53), 2.0**63, INT_MAX, INT_MIN, float(INT_MIN), 5e-324]),
)
ATOMS = [
    st.none(),
    st.booleans(),
    NUMBERS,
    st.datetimes(timezones=st.just(UTC)),
    st.text(),
    st.binary(),
]
VALUES = st.recursive(
    st.one_of(ATOMS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
)


def sign(left, right):
    return (left > right) - (left < right)


@given(st.data())
@settings(deadline=None)
def test_keys_order_each_type_as_its_values(data):
    kind = data.draw(st.sampled_from(ATOMS[1:]))
    left, right = data.draw(kind), data.draw(kind)

    assert sign(order_key(left), order_key(right)) == sign(left, right)


@given(NUMBERS, NUMBERS)
@settings(deadline=None, max_examples=300)
def test_ints_and_floats_stand_in_one_line(left, right):
    assert sign(order_key(left), order_key(right)) == sign(left, right)


@given(st.lists(VALUES, max_size=3), st.lists(VALUES, max_size=3))
@settings(deadline=None)
def test_lists_order_by_their_elements(left, right):
    elements = sign([order_key(item) for item in left], [order_key(item) for item in right])

    assert sign(order_key(left), order_key(right)) == elements


@given(VALUES, VALUES)
@settings(deadline=None)
def test_no_key_is_the_beginning_of_another_and_descending_turns_them(left, right):
    low, high = sorted([order_key(left), order_key(right)])

    assert low == high or not high.startswith(low)
    assert sign(descending(low), descending(high)) == -sign(low, high)


def test_types_follow_one_another():
    line = [None, False, True, -1.5, 2, datetime(1, 1, 1, tzinfo=UTC), "", "a", b"", b"a", [], [None], {}, {"a": None}]

    assert sorted(reversed(line), key=order_key) == line
