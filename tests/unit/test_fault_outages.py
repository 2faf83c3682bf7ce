"""Outages are told by the longest silence that follows a fault."""

from twinlock.testing.history import Acked, Fault
from twinlock.testing.outages import outages, summarize


def ack(at_s, space="s"):
    return Acked(at_s, "w", space, "d", [(1, 1)])


def test_a_silence_counts_from_the_fault_or_from_the_last_ack_after_it():
    events = [ack(0.0), ack(9.0), Fault(10.0, "kill", "n1"), ack(10.1), ack(15.1), ack(15.2)]

    (told,) = outages(events)

    assert (told.kind, told.target, round(told.seconds, 3)) == ("kill", "n1", 5.0)


def test_silence_before_the_fault_is_not_its_fault():
    (told,) = outages([ack(0.0), Fault(10.0, "kill", "n1"), ack(10.5)])

    assert told.seconds == 0.5


def test_the_end_of_a_cause_does_not_begin_a_new_fault():
    events = [ack(0.0), Fault(1.0, "pause", "n1"), Fault(9.0, "pause", "n1", is_over=True), ack(10.0)]

    (told,) = outages(events)

    assert told.seconds == 9.0


def test_each_fault_counts_with_the_space_that_waited_longest():
    events = [ack(0.0, "s"), ack(0.0, "t"), Fault(1.0, "kill", "n1"), ack(2.0, "s"), ack(4.0, "t")]
    events += [Fault(5.0, "kill", "n2"), ack(5.5, "s"), ack(5.6, "t"), Fault(6.0, "cut", "n1"), ack(6.1, "s")]

    summaries = summarize(outages(events))

    assert [(one.kind, one.faults_count, round(one.worst_s, 3)) for one in summaries] == [
        ("cut", 1, 0.1),
        ("kill", 2, 3.0),
    ]
