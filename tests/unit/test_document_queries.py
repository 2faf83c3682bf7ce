"""Queries: which documents match, in which order, from where on."""

from datetime import UTC, datetime

import pytest

from twinlock.document import Query
from twinlock.document.filters import key_range
from twinlock.document.ordering import order_key
from twinlock.errors import InvalidQueryError

CITIES = {
    "ber": {"name": "Berlin", "people": 3_700_000, "tags": ["capital", "river"], "at": {"lat": 52.5}, "old": True},
    "ham": {"name": "Hamburg", "people": 1_800_000, "tags": ["port", "river"], "at": {"lat": 53.6}, "old": True},
    "muc": {"name": "München", "people": 1_500_000, "tags": [], "at": {"lat": 48.1}, "old": None},
    "ata": {"name": "Atlantis", "people": None, "tags": "none", "since": datetime(1, 1, 1, tzinfo=UTC)},
    "tok": {"name": "Tokyo", "people": 14_000_000.0, "tags": ["capital"], "at": {"lat": 35.7}, "old": False},
}
cities = Query.over("cities")


def ids(query):
    return [document_id for document_id, _ in query.run(CITIES.items())]


@pytest.mark.parametrize(
    ("field", "operator", "value", "expected"),
    [
        ("name", "==", "Berlin", "ber"),
        ("people", "==", 14_000_000, "tok"),
        ("people", "==", None, "ata"),
        ("people", "!=", 1_500_000, "ata ber ham tok"),
        ("people", "<", 1_800_000, "muc"),
        ("people", "<=", 1_800_000, "ham muc"),
        ("people", ">", 1_800_000, "ber tok"),
        ("people", ">=", 1_800_000, "ber ham tok"),
        ("name", ">", "H", "ham muc tok"),
        ("name", "in", ["Tokyo", "Paris"], "tok"),
        ("people", "in", [14_000_000, None], "ata tok"),
        ("old", "not-in", [True, None], "tok"),
        ("old", "==", True, "ber ham"),
        ("old", "==", 1, ""),
        ("old", ">", False, "ber ham"),
        ("tags", "array-contains", "capital", "ber tok"),
        ("tags", "array-contains", "n", ""),
        ("tags", "==", ["capital"], "tok"),
        ("tags", "<", ["port"], "ber muc tok"),
        ("at.lat", ">", 50, "ber ham"),
        ("at.lon", "!=", 0, ""),
        ("at", "==", {"lat": 48.1}, "muc"),
        ("since", "<", datetime(2000, 1, 1, tzinfo=UTC), "ata"),
    ],
)
def test_a_comparison_keeps_what_it_says(field, operator, value, expected):
    assert ids(cities.where(field, operator, value)) == expected.split()


def test_several_comparisons_must_all_hold():
    query = cities.where("people", ">", 1_000_000).where("tags", "array-contains", "river").where("old", "==", True)

    assert ids(query) == ["ber", "ham"]
    assert ids(query.where("name", "!=", "Berlin")) == ["ham"]


def test_order_goes_by_value_then_by_id_in_the_last_direction():
    assert ids(cities.order_by("people")) == ["ata", "muc", "ham", "ber", "tok"]
    assert ids(cities.order_by("people", "desc")) == ["tok", "ber", "ham", "muc", "ata"]
    assert ids(cities.order_by("old").order_by("name", "desc")) == ["muc", "tok", "ham", "ber"]
    assert ids(cities.order_by("old", "desc")) == ["ham", "ber", "tok", "muc"]


def test_a_document_without_the_field_of_the_order_is_left_out():
    assert ids(cities.order_by("since")) == ["ata"]


def test_pages_follow_one_another_without_gap():
    query = cities.order_by("old", "desc").limit(2)
    first = query.run(CITIES.items())
    second = query.start_after_document(*first[-1])

    assert [document_id for document_id, _ in first] + ids(second) == ["ham", "ber", "tok", "muc"]


def test_a_start_by_values_passes_over_all_ties():
    assert ids(cities.order_by("old").start_after(None)) == ["tok", "ber", "ham"]
    assert ids(cities.order_by("old").start_after(True)) == []
    assert ids(cities.order_by("old").start_after(True, "ber")) == ["ham"]
    assert ids(cities.order_by("people", "desc").start_after(1_800_000)) == ["muc", "ata"]
    assert ids(cities.start_after("ham")) == ["muc", "tok"]


def test_a_search_finds_words_by_their_beginnings():
    assert ids(cities.search("munch")) == ["muc"]
    assert ids(cities.search("CAPITAL ber")) == ["ber"]
    assert ids(cities.search("erlin")) == []


def test_count_looks_at_neither_limit_nor_start():
    assert cities.where("old", "==", True).limit(1).count(CITIES.values()) == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: cities.where("a", "~", 1),
        lambda: cities.where("a", "in", "text"),
        lambda: cities.where("a", "in", []),
        lambda: cities.where("", "==", 1),
        lambda: cities.where("a", "==", object()),
        lambda: cities.order_by("a", "up"),
        lambda: cities.order_by("a..b"),
        lambda: cities.limit(0),
        lambda: cities.limit(True),
        lambda: cities.start_after(),
        lambda: cities.start_after(1),
        lambda: cities.order_by("a").start_after(1, 2),
        lambda: cities.order_by("a").start_after(1).order_by("b"),
        lambda: cities.search(" "),
        lambda: cities.order_by("since").start_after_document("ber", CITIES["ber"]),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(build):
    with pytest.raises(InvalidQueryError):
        build()


def test_the_range_of_an_index_holds_exactly_what_matches():
    for operator in ("==", "<", "<=", ">", ">="):
        for value in (1_800_000, None, True, "Hamburg", 2.5):
            for field in ("people", "old", "name"):
                query = cities.where(field, operator, value)
                first, end = key_range(query.filters[0])
                found = [
                    i for i, city in sorted(CITIES.items()) if field in city and first <= order_key(city[field]) < end
                ]
                assert found == ids(query)


def test_queries_are_values():
    assert cities.where("a", "==", 1).limit(3) == cities.where("a", "==", 1).limit(3)
    assert cities.where("a", "==", 1) != cities.where("a", "==", 2)
