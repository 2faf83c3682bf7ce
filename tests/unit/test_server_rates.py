"""Rates, admission and tickets, with the clock in the test's hand."""

from twinlock.server.admission import TICKET_TTL_MS, Admission, Tickets
from twinlock.server.buckets import Quotas, TokenBucket, TryLimiter
from twinlock.server.settings import Settings


def test_a_bucket_grants_its_burst_and_then_its_rate():
    bucket = TokenBucket(rate_per_s=10, burst=3, now_ms=0)

    assert [bucket.take(1, 0) for _ in range(3)] == [0, 0, 0]
    wait_ms = bucket.take(1, 0)
    assert 0 < wait_ms <= 101
    assert bucket.take(1, wait_ms) == 0


def test_a_piece_larger_than_the_burst_passes_and_is_paid_for_afterwards():
    bucket = TokenBucket(rate_per_s=1000, burst=10, now_ms=0)

    assert bucket.take(1_010, 0) == 0
    assert bucket.take(1, 999) > 0
    assert bucket.take(1, 1_001) == 0


def test_a_rate_of_zero_is_no_limit():
    bucket = TokenBucket(rate_per_s=0, burst=0, now_ms=0)

    assert all(bucket.take(10**9, 0) == 0 for _ in range(100))


def test_a_clock_that_goes_back_grants_nothing():
    bucket = TokenBucket(rate_per_s=1, burst=1, now_ms=10_000)
    bucket.take(1, 10_000)

    assert bucket.take(1, 0) > 0


def test_a_clock_that_was_set_back_a_day_stops_nobody_for_a_day():
    day_ms = 86_400_000
    bucket = TokenBucket(rate_per_s=1, burst=1, now_ms=day_ms)
    bucket.take(1, day_ms)

    assert 0 < bucket.take(1, 0) <= 1_001
    assert bucket.take(1, 1_001) == 0


def test_appointments_follow_a_clock_that_was_set_back():
    day_ms = 86_400_000
    admission = Admission(Settings(hellos_per_s=10, hellos_burst=10), now_ms=day_ms)
    while not admission.hello(day_ms, has_ticket=False):
        pass

    assert 0 < admission.hello(0, has_ticket=False) <= 1_000


def test_a_storm_is_turned_away_with_appointments_one_after_the_other():
    admission = Admission(Settings(hellos_per_s=100, hellos_burst=100), now_ms=0)

    waits = [admission.hello(0, has_ticket=False) for _ in range(300)]

    admitted = waits.count(0)
    later = [wait for wait in waits if wait]
    assert admitted == 75
    assert later == sorted(later)
    assert later[-1] - later[0] >= 2_200


def test_ticket_holders_find_room_that_others_do_not():
    admission = Admission(Settings(hellos_per_s=100, hellos_burst=100), now_ms=0)
    while not admission.hello(0, has_ticket=False):
        pass

    assert admission.hello(0, has_ticket=True) == 0


def test_a_ticket_is_good_for_its_device_and_its_day_only():
    tickets = Tickets(b"k" * 32)
    ticket = tickets.issue(b"d" * 16, 1_000)

    assert tickets.holds(ticket, b"d" * 16, 1_000 + TICKET_TTL_MS)
    assert not tickets.holds(ticket, b"d" * 16, 1_001 + TICKET_TTL_MS)
    assert not tickets.holds(ticket, b"e" * 16, 1_000)
    assert not tickets.holds(ticket[:-1] + bytes([ticket[-1] ^ 1]), b"d" * 16, 1_000)
    assert not tickets.holds(b"", b"d" * 16, 1_000)


def test_tries_are_counted_by_name():
    limiter = TryLimiter(per_min=2)

    assert [limiter.take("ann", 0), limiter.take("ann", 0), limiter.take("bob", 0)] == [0, 0, 0]
    assert limiter.take("ann", 0) > 25_000
    assert limiter.take("ann", 60_000) == 0


def test_an_account_has_one_quota_over_all_its_connections():
    quotas = Quotas(Settings(account_changes_per_s=10))
    quotas.of(b"a" * 16, 0).pace.take(20, 100, 0)

    assert quotas.of(b"a" * 16, 0).pace.take(1, 100, 0) > 0
    assert quotas.of(b"b" * 16, 0).pace.take(1, 100, 0) == 0
