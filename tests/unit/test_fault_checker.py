"""The checker of histories: it finds every kind of violation, and nothing in what may happen."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlock.testing.checker import SHOWN_MAX, Breach, check, explain
from twinlock.testing.history import (
    Acked,
    Connected,
    Delivered,
    Disconnected,
    Fault,
    Finished,
    Joined,
    Pushed,
    Recorder,
    Rejected,
    read_history,
)

SPACE, LIFE = "5a", "life"


class Story:
    """Events of two writers and a reader, told one after the other."""

    def __init__(self):
        self.events = []

    def push(self, client, *counters, variant=""):
        envelopes = [(counter, f"{client}{counter}{variant}") for counter in counters]
        self._add(Pushed, client, SPACE, f"dev-{client}", envelopes)

    def ack(self, client, *pairs):
        self._add(Acked, client, SPACE, f"dev-{client}", list(pairs))

    def join(self, client, cursor=0, resume=None, head=100, own_counter=9, life=LIFE):
        resume = cursor if resume is None else resume
        self._add(Joined, client, SPACE, f"dev-{client}", life, cursor, resume, head, own_counter)

    def reject(self, client, counter, own_counter):
        self._add(Rejected, client, SPACE, f"dev-{client}", counter, "store_failed", 1000, own_counter)

    def deliver(self, client, *entries):
        """Each entry is (seq, author, counter)."""
        seen = [(seq, f"dev-{author}", counter, f"{author}{counter}") for seq, author, counter in entries]
        self._add(Delivered, client, SPACE, seen)

    def finish(self, *clients):
        for client in clients:
            self._add(Finished, client, SPACE)

    def fault(self, kind, target):
        self.events.append(Fault(float(len(self.events)), kind, target))

    def breaches(self):
        return {violation.breach for violation in check(self.events)}

    def _add(self, kind, client, *rest):
        self.events.append(kind(float(len(self.events)), client, *rest))


@pytest.fixture
def story():
    """A run in which a and b have written two changes each, and a has read them all."""
    told = Story()
    told.join("a", own_counter=0)
    told.push("a", 1)
    told.push("b", 1)
    told.ack("a", (1, 10))
    told.ack("b", (1, 11))
    told.deliver("a", (10, "a", 1), (11, "b", 1))
    told.push("a", 2)
    told.push("b", 2)
    told.ack("b", (2, 20))
    told.ack("a", (2, 21))
    told.deliver("a", (20, "b", 2), (21, "a", 2))
    return told


ALL = [(10, "a", 1), (11, "b", 1), (20, "b", 2), (21, "a", 2)]


def read_whole(story, *entries):
    """A fresh reader comes at the end."""
    story.join("r")
    story.deliver("r", *entries)
    story.finish("a", "r")


def test_a_run_in_which_all_is_well_breaks_nothing(story):
    read_whole(story, *ALL)

    assert check(story.events) == []


def test_pushing_again_and_reading_on_after_a_reconnect_break_nothing(story):
    story.push("a", 2)
    story.ack("a", (2, 21))
    story.join("a", cursor=11, own_counter=2)
    story.deliver("a", (20, "b", 2), (21, "a", 2))
    story.reject("a", 3, own_counter=2)
    read_whole(story, *ALL)

    assert check(story.events) == []


def test_an_unacknowledged_change_may_be_there_or_not(story):
    story.push("b", 3, 4)
    read_whole(story, *ALL, (30, "b", 3))
    story.deliver("a", (30, "b", 3))

    assert check(story.events) == []


def test_finds_an_acknowledged_change_that_nobody_ever_sees(story):
    story.push("b", 3)
    story.ack("b", (3, 30))
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.LOST}


def test_finds_an_acknowledged_change_that_was_delivered_and_is_gone_at_the_end(story):
    read_whole(story, *ALL[:2], ALL[3])

    assert story.breaches() == {Breach.LOST, Breach.SKIPPED}


def test_finds_a_reader_that_was_given_what_nobody_else_can_read(story):
    story.push("b", 3)
    story.deliver("a", (30, "b", 3))
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.APART}


def test_finds_a_change_that_was_acknowledged_with_another_seq_than_it_has(story):
    story.push("b", 3)
    story.ack("b", (3, 31))
    story.deliver("a", (30, "b", 3))
    read_whole(story, *ALL, (30, "b", 3))

    assert Breach.MOVED in story.breaches()


def test_finds_a_second_ack_that_names_another_seq(story):
    story.push("b", 2)
    story.ack("b", (2, 40))
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.MOVED}


def test_finds_two_changes_at_one_place(story):
    story.push("b", 3)
    story.push("a", 3)
    story.deliver("a", (30, "b", 3))
    read_whole(story, *ALL, (30, "a", 3))

    assert Breach.FORKED in story.breaches()


def test_finds_a_change_at_two_places(story):
    story.deliver("a", (30, "b", 2))
    read_whole(story, *ALL, (30, "b", 2))

    assert Breach.DOUBLED in story.breaches()


def test_finds_an_entry_that_a_reader_was_not_given(story):
    story.join("r")
    story.deliver("r", ALL[0], ALL[2], ALL[3])
    story.join("s")
    story.deliver("s", *ALL)
    story.finish("s")

    assert story.breaches() == {Breach.SKIPPED}


def test_finds_a_gap_at_the_hand_over_after_a_reconnect(story):
    story.join("s")
    story.deliver("s", ALL[0])
    story.join("s", cursor=10)
    story.deliver("s", ALL[2], ALL[3])
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.SKIPPED}


def test_finds_an_entry_that_is_delivered_again_on_one_connection(story):
    story.deliver("a", ALL[3])
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.BACKWARDS}


def test_finds_another_order_for_another_reader(story):
    read_whole(story, ALL[1], ALL[0], *ALL[2:])

    assert Breach.BACKWARDS in story.breaches()


def test_finds_delivery_that_goes_on_from_another_place(story):
    story.join("s", cursor=10, resume=11)
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.JUMPED}


def test_finds_a_client_that_asks_for_more_than_it_was_given(story):
    story.join("s")
    story.deliver("s", ALL[0])
    story.join("s", cursor=20)
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.JUMPED}


def test_finds_a_device_whose_counters_have_a_gap(story):
    story.push("b", 4)
    story.deliver("a", (30, "b", 4))
    read_whole(story, *ALL, (30, "b", 4))

    assert story.breaches() == {Breach.COUNTER}


def test_finds_a_counter_that_two_changes_have(story):
    story.push("b", 2, variant="x")
    story.events.append(Delivered(90.0, "a", SPACE, [(30, "dev-b", 2, "b2x")]))
    story.join("r")
    story.deliver("r", *ALL)
    story.events.append(Delivered(91.0, "r", SPACE, [(30, "dev-b", 2, "b2x")]))
    story.finish("a", "r")

    assert story.breaches() == {Breach.COUNTER}


def test_finds_a_change_that_nobody_pushed(story):
    story.deliver("a", (30, "b", 3))
    read_whole(story, *ALL, (30, "b", 3))

    assert story.breaches() == {Breach.INVENTED}


def test_finds_an_ack_that_nobody_asked_for(story):
    story.ack("b", (3, 30))
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.UNASKED}


def test_finds_a_change_below_one_that_was_acknowledged_before_it_was_pushed(story):
    story.push("b", 3)
    story.join("s")
    story.deliver("s", *ALL[:3], (21, "a", 2))
    story.events = [event for event in story.events if not isinstance(event, Delivered)]
    story.join("a")
    late = [(10, "a", 1), (11, "b", 1), (15, "b", 3), (20, "b", 2), (21, "a", 2)]
    story.deliver("a", *late)
    read_whole(story, *late)

    assert Breach.OVERTAKEN in story.breaches()


def test_finds_a_server_that_forgot_what_it_acknowledged(story):
    story.join("a", cursor=21, own_counter=1)
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.FORGOTTEN}


def test_finds_a_reject_that_names_a_head_below_what_was_acknowledged(story):
    story.reject("b", 3, own_counter=1)
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.FORGOTTEN}


def test_finds_a_space_whose_head_fell_below_a_cursor(story):
    story.join("a", cursor=21, head=20)
    read_whole(story, *ALL)

    assert story.breaches() == {Breach.FORGOTTEN}


def test_finds_a_reader_that_does_not_come_to_the_end(story):
    story.join("s")
    story.deliver("s", *ALL[:3])
    story.finish("s")
    read_whole(story, *ALL)

    assert Breach.APART in story.breaches()


def test_finds_that_nobody_read_it_all(story):
    story.finish()

    assert story.breaches() == {Breach.UNREAD}


def test_finds_another_incarnation(story):
    story.join("a", cursor=21, life="another")
    read_whole(story, *ALL)

    assert Breach.RESTORED in story.breaches()


def test_every_kind_of_violation_has_been_found_above():
    """A breach without a test that provokes it would be one that nobody knows to be found."""
    source = Path(__file__).read_text(encoding="utf-8")

    assert [breach.name for breach in Breach if f"Breach.{breach.name}" not in source] == []


def test_a_violation_says_where_when_and_after_what(story):
    story.fault("kill", "nats-2")
    story.push("b", 3)
    story.ack("b", (3, 30))
    read_whole(story, *ALL)

    text = explain(check(story.events))

    assert "an acknowledged change is lost: change 3 of device dev-b (id b3)" in text
    assert "acknowledged to b as seq 30 at 13.000 s, 2.000 s after kill of nats-2 (space 5a)" in text


def test_many_violations_of_one_kind_are_counted(story):
    many = range(3, 3 + 3 * SHOWN_MAX)
    story.push("b", *many)
    story.ack("b", *((counter, 100 + counter) for counter in many))
    read_whole(story, *ALL)

    violations = check(story.events)

    assert len(violations) == SHOWN_MAX + 1
    assert str(violations[-1]).startswith("an acknowledged change is lost: and 10 more")


def test_a_history_can_be_read_again_from_its_file(story, tmp_path):
    story.events += [Connected(50.0, "a", "node-1"), Disconnected(51.0, "a", "overloaded", 700)]
    story.fault("kill", "nats-1")
    with Recorder(tmp_path / "history.jsonl") as recorder:
        for event in story.events:
            recorder.note(event)
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(b'{"what":"finis')

    assert check(read_history(tmp_path / "history.jsonl")) == check(story.events)
    assert len(read_history(tmp_path / "history.jsonl")) == len(story.events)


class HonestServer:
    """Orders, acknowledges and delivers as it must, with lost acks, reconnects and pushes sent again."""

    def __init__(self, chance):
        self.chance = chance
        self.story = Story()
        self.log = []
        self.sent = {"a": 0, "b": 0}
        self.stored = {"a": 0, "b": 0}
        self.cursors = {}

    def run(self, steps):
        for client in ("a", "b", "r"):
            self.join(client)
        for _ in range(steps):
            self.chance.choice([self.push, self.store, self.store, self.read, self.read, self.reconnect])()
        for client in self.sent:
            while self.stored[client] < self.sent[client]:
                self.store(client, is_acked=True)
        for client in ("a", "b", "r"):
            self.read(client, all_of_it=True)
            self.story.finish(client)
        return self.story.events

    def join(self, client):
        head = self.log[-1][0] if self.log else 0
        self.story.join(client, self.cursors.get(client, 0), head=head, own_counter=self.stored.get(client, 0))
        self.cursors.setdefault(client, 0)

    def push(self):
        client = self.chance.choice("ab")
        self.sent[client] += 1
        self.story.push(client, self.sent[client])

    def store(self, client="", is_acked=False):
        client = client or self.chance.choice("ab")
        if self.stored[client] < self.sent[client]:
            self.stored[client] += 1
            seq = (self.log[-1][0] if self.log else 0) + self.chance.randint(1, 4096)
            self.log.append((seq, client, self.stored[client]))
            if is_acked or self.chance.random() < 0.7:
                self.story.ack(client, (self.stored[client], seq))

    def read(self, client="", all_of_it=False):
        client = client or self.chance.choice("abr")
        new = [entry for entry in self.log if entry[0] > self.cursors[client]]
        some = new if all_of_it else new[: self.chance.randint(0, 3)]
        if some:
            self.story.deliver(client, *some)
            self.cursors[client] = some[-1][0]

    def reconnect(self):
        client = self.chance.choice("abr")
        self.join(client)
        if client in self.sent and self.sent[client] > self.stored[client]:
            self.story.push(client, *range(self.stored[client] + 1, self.sent[client] + 1))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_no_honest_run_is_accused(seed):
    events = HonestServer(random.Random(seed)).run(120)

    assert explain(check(events)) == ""


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), data=st.data())
def test_an_honest_run_with_one_delivery_changed_is_accused(seed, data):
    chance = random.Random(seed)
    events = HonestServer(chance).run(120)
    acked = {(event.device, counter) for event in events if isinstance(event, Acked) for counter, _ in event.acked}
    places = [
        (at, number)
        for at, event in enumerate(events)
        if isinstance(event, Delivered)
        for number, (_, device, counter, _) in enumerate(event.entries)
        if (device, counter) in acked
    ]
    if not places:
        return
    at, number = data.draw(st.sampled_from(places))
    event = events[at]
    seq, device, counter, identifier = event.entries[number]
    damage = data.draw(
        st.sampled_from([[], [(seq, device, counter, "another")], [(seq + 1, device, counter, identifier)]])
    )
    entries = [*event.entries[:number], *damage, *event.entries[number + 1 :]]
    events[at] = Delivered(event.at_s, event.client, event.space, entries)

    assert check(events) != []
