"""A sender's drops: sealed at once, sent in order, kept to heal, refused only with a word."""

import pytest

from tests.unit.sender_kit import NOW, SenderWorld
from twinlock.document.fields import array_remove, array_union, delete_field, increment
from twinlock.document.operations import Edit, encode_change
from twinlock.errors import DocumentTooLargeError, InvalidDataError, RoleError
from twinlock.ids import NO_ENVELOPE, Counter
from twinlock.protocol.clock import Hlc
from twinlock.protocol.envelope import Kind, parse
from twinlock.protocol.frames import Reject
from twinlock.replica import sender as sender_module
from twinlock.replica.batch import DeleteDocument, EditList, ListAction, SetDocument, UpdateDocument
from twinlock.replica.events import LogsWanted, PushHeld
from twinlock.replica.upkeep import KEEP_MS
from twinlock.sealing.cipher import open_payload


@pytest.fixture
def world(tmp_path):
    world = SenderWorld(tmp_path / "sensor")
    yield world
    world.close()


def test_what_a_sender_writes_is_read_by_members(world):
    world.write("-1", {"celsius": 20})
    world.write_batch([UpdateDocument("readings", world.id + "-1", {"room.name": "attic"})])
    world.write_batch([SetDocument("readings", world.id + "-2", {"tags": array_union("a", "b")}, merge=True)])
    world.write_batch([SetDocument("readings", world.id + "-2", {"tags": array_union("c")}, merge=True)])
    world.attach()
    world.exchange()

    assert world.documents() == {
        "-1": {"celsius": 20, "room": {"name": "attic"}},
        "-2": {"tags": ["a", "b", "c"]},
    }
    assert world.confirmed == [1, 2, 3, 4]
    assert world.sender.pending_count == 0
    assert {parse(entry.envelope).header.kind for entry in world.entries} == {Kind.DROP}


def test_nothing_in_the_file_opens_with_what_the_device_has(world):
    world.write("-1", {"secret": "the garden key lies under the stone"})

    stored = (world.folder / "sender.log").read_bytes()

    assert b"garden" not in stored
    assert world.id.encode() not in stored
    assert (world.folder / "sender.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "batch",
    [
        [UpdateDocument("c", "{}-1", {"n": increment(1)})],
        [SetDocument("c", "{}-1", {"a": {"n": increment(1)}}, merge=True)],
        [UpdateDocument("c", "{}-1", {"s": array_remove("x")})],
        [EditList("c", "{}-1", "l", ListAction.INSERT, "e", 0, 1)],
        [SetDocument("c", "other", {"a": 1})],
        [SetDocument("c", "{}-1", {"a": 1}), DeleteDocument("c", "x{}-1")],
    ],
)
def test_what_takes_reading_and_documents_of_others_are_refused(world, batch):
    named = [type(intent)(**{**fields(intent), "id": intent.id.format(world.id)}) for intent in batch]

    with pytest.raises(RoleError, match="a sender"):
        world.write_batch(named)

    assert world.sender.pending_count == 0


def fields(intent):
    return {name: getattr(intent, name) for name in intent.__struct_fields__}


def test_what_cannot_be_stored_is_refused_and_the_rest_of_the_group_is_written(world):
    def batch(data):
        return [SetDocument("c", world.id, data)]

    results = world.sender.write_all([batch({"a": 1}), batch({"a": object()}), batch({"a": "x" * (1 << 20)})], NOW)

    assert results[0] == 1
    assert isinstance(results[1], InvalidDataError)
    assert isinstance(results[2], DocumentTooLargeError)
    assert world.write("-2", {"a": 2}) == 2


def test_what_needs_no_reading_may_be_deleted(world):
    world.write("-1", {"a": 1, "b": 2})
    world.write_batch([UpdateDocument("readings", world.id + "-1", {"a": delete_field()})])
    world.write("-2", {"a": 1})
    world.write_batch([DeleteDocument("readings", world.id + "-2")])
    world.attach()
    world.exchange()

    assert world.documents() == {"-1": {"b": 2}, "-2": None}


def test_own_later_writes_do_not_show_as_conflicts(world):
    for celsius in range(3):
        world.write("", {"celsius": celsius})
    world.write_batch(
        [
            UpdateDocument("readings", world.id, {"celsius": 9}),
            *[SetDocument("readings", world.id, {"celsius": 10}, merge=True)],
        ]
    )
    world.attach()
    world.exchange()

    document = world.document("")
    assert document.value() == {"celsius": 10}
    assert document.conflicts() == []


def test_drops_survive_a_restart_and_go_out_as_the_same_bytes(world):
    world.write("-1", {"a": 1})
    world.write("-2", {"a": 2})
    before = world.sender.pending_envelopes()

    world.start()

    assert world.sender.pending_envelopes() == before
    assert world.write("-3", {"a": 3}) == 3
    world.attach()
    world.exchange()
    assert list(world.documents()) == ["-1", "-2", "-3"]
    world.start()
    assert world.sender.pending_count == 0


def test_a_torn_tail_is_cut_off_and_written_over(world):
    world.write("-1", {"a": 1})
    whole = (world.folder / "sender.log").read_bytes()
    world.write("-2", {"a": 2})
    torn = (world.folder / "sender.log").read_bytes()[:-7]

    for tail in (torn[len(whole) :], b"\0" * 40, b"\0\0\0"):
        (world.folder / "sender.log").write_bytes(whole + tail)
        world.start()
        assert world.sender.pending_count == 1
    world.write("-3", {"a": 3})
    world.start()
    world.attach()
    world.exchange()

    assert list(world.documents()) == ["-1", "-3"]
    assert not (world.folder / "sender.damaged").exists()


def test_a_file_that_is_broken_before_its_end_is_kept_aside(world):
    world.write("-1", {"a": 1})
    whole = len((world.folder / "sender.log").read_bytes())
    world.write("-2", {"a": 2})
    world.write("-3", {"a": 3})
    data = bytearray((world.folder / "sender.log").read_bytes())
    data[whole + 40] ^= 1
    (world.folder / "sender.log").write_bytes(data)

    world.start()

    assert world.sender.pending_count == 1
    assert (world.folder / "sender.damaged").read_bytes() == data
    assert (world.folder / "sender.damaged").stat().st_mode & 0o777 == 0o600


def test_a_drop_of_an_earlier_epoch_is_taken_and_the_next_goes_to_the_newest(world):
    world.write("-1", {"a": 1})
    world.space.rotate()
    world.sequencer.rules = world.space.log
    world.keyring.install_log(world.space.log)
    world.sender.keys_changed(NOW)
    world.write("-2", {"a": 2})
    world.attach()
    world.exchange()

    assert [parse(entry.envelope).header.epoch for entry in world.entries] == [1, 2]
    assert list(world.documents()) == ["-1", "-2"]


def test_an_acknowledged_drop_is_acknowledged_again_after_the_answer_was_lost(world):
    world.write("-1", {"a": 1})
    world.attach()
    [push] = world.sender.outgoing(NOW)
    world.take(push)

    world.sender.on_disconnected()
    world.attach()
    world.exchange()

    assert world.confirmed == [1]
    assert len(world.entries) == 1


def test_a_refusal_for_now_holds_and_the_same_bytes_go_later(world):
    world.write("-1", {"a": 1})
    world.attach()
    first = world.sender.outgoing(NOW)

    world.reject(1, "quota_exceeded", retry_after_ms=5_000)

    assert world.sender.outgoing(NOW + 4_999) == []
    assert world.sender.wake_ms() == NOW + 5_000
    assert world.sender.outgoing(NOW + 5_000) == first


def test_a_final_refusal_goes_to_the_refused_and_the_rest_takes_its_place(world):
    world.write("-1", {"a": 1})
    world.write("-2", {"a": 2})
    world.attach()
    world.sender.outgoing(NOW)

    world.reject(1, "space_full")
    world.exchange()

    assert [(event.tokens, event.code) for event in world.refused] == [((1,), "space_full")]
    assert world.documents() == {"-2": {"a": 2}}
    assert [write.token for write in world.sender.refused()] == [1]
    world.start()
    [refused] = world.sender.refused()
    assert (refused.token, refused.code, refused.keys) == (1, "space_full", ())
    assert parse(refused.payload).header.counter == 1
    world.sender.forget_refused([1])
    world.start()
    assert world.sender.refused() == []


def test_what_was_sealed_in_an_earlier_run_cannot_take_another_place(world):
    world.write("-1", {"a": 1})
    world.write("-2", {"a": 2})
    world.start()
    world.write("-3", {"a": 3})
    world.attach()
    world.sender.outgoing(NOW)

    world.reject(1, "space_full")
    world.exchange()

    assert [(event.tokens, event.code) for event in world.refused] == [((1,), "space_full"), ((2,), "space_full")]
    assert world.documents() == {"-3": {"a": 3}}


def test_a_role_that_the_server_does_not_see_is_looked_up_before_anything_is_refused(world):
    world.write("-1", {"a": 1})
    world.attach()
    world.sender.outgoing(NOW)

    world.sender.on_reject(reject_of(world, 1, "role_forbids"), NOW)
    events = world.sender.take_events()

    assert [type(event) for event in events] == [LogsWanted, PushHeld]
    assert world.sender.pending_count == 1
    world.sender.keys_changed(NOW)
    assert world.sender.outgoing(NOW)
    world.reject(1, "role_forbids")
    assert [event.code for event in world.refused] == ["role_forbids"]


def test_what_the_role_forbade_is_sealed_again_with_what_the_log_says_now(world):
    world.write("-1", {"a": 1})
    world.start()
    world.write("-2", {"a": 2})
    world.attach()
    world.sender.outgoing(NOW)
    world.reject(1, "role_forbids")
    world.space.rotate()
    world.sequencer.rules = world.space.log
    world.keyring.install_log(world.space.log)
    world.sender.keys_changed(NOW)
    world.sender.outgoing(NOW)

    world.reject(1, "role_forbids")
    world.exchange()

    assert [(event.tokens, event.code) for event in world.refused] == [((1,), "role_forbids")]
    assert world.documents() == {"-2": {"a": 2}}
    assert parse(world.entries[0].envelope).header.epoch == 2


def reject_of(world, counter, code):
    return Reject(world.space.log.space, counter, code, "", 0, 0, bytes(32))


def test_an_epoch_that_the_server_does_not_know_is_supplied_first(world):
    world.write("-1", {"a": 1})
    world.attach()
    sent = world.sender.outgoing(NOW)

    world.sender.on_reject(reject_of(world, 1, "stale_epoch"), NOW)

    assert LogsWanted() in world.sender.take_events()
    assert world.sender.outgoing(NOW) == []
    assert world.sender.outgoing(NOW + 1_000) == sent


def test_drops_are_kept_for_their_time_and_no_longer(world):
    world.write("-1", {"a": 1})
    world.attach()
    world.exchange()

    world.attach(NOW + KEEP_MS - 1)
    assert len(world.stored().kept) == 1
    world.attach(NOW + KEEP_MS)
    assert world.stored().kept == {}


def test_the_file_is_written_anew_when_most_of_it_is_of_no_use(world):
    for number in range(8):
        world.write(f"-{number}", {"x": "y" * 400_000})
    world.attach()
    world.exchange()
    world.write("-8", {"a": 8})
    size = world.file.stored_bytes

    world.attach(NOW + KEEP_MS + 1)

    assert size > 3_000_000 > 10_000 > world.file.stored_bytes
    assert world.sender.pending_count == 1
    world.exchange(NOW + KEEP_MS + 1)
    assert world.write("-9", {"a": 9}) == 10
    world.start()
    world.attach(NOW + KEEP_MS + 1)
    world.exchange(NOW + KEEP_MS + 1)
    assert len(world.documents()) == 10


def test_pushes_are_bounded_and_go_on_with_the_answers(world):
    for number in range(6):
        world.sender.write_all(
            [[SetDocument("c", f"{world.id}-{number}-{place}", {"n": place})] for place in range(100)], NOW
        )
    world.attach()

    pushes = world.sender.outgoing(NOW)

    assert [len(push) for push in pushes] == [64, 64, 64, 64]
    assert world.sender.outgoing(NOW) == []
    for push in pushes:
        world.serve(push)
    world.exchange()
    assert len(world.documents()) == 600


def test_what_no_longer_fits_into_memory_is_sent_all_the_same(world, monkeypatch):
    monkeypatch.setattr(sender_module, "FRESH_BYTES_MAX", 100)
    for number in range(4):
        world.write(f"-{number}", {"x": "y" * 60})
    world.attach()
    world.exchange()

    assert len(world.documents()) == 4


def test_changes_of_an_earlier_role_go_out_as_drops_if_a_sender_may_write_them(world):
    world.write("-1", {"a": 1})
    other = encode_change([Edit("c", "shared", Hlc(1 << 16), [[0, b"", {"a": 1}]])])

    assert world.sender.take_over([payload_of(world), other], (Counter(0), NO_ENVELOPE)) == [2, None]
    world.start()
    world.attach()
    world.exchange()

    assert list(world.documents()) == ["-1"]
    assert len(world.entries) == 2
    [refused] = world.sender.refused()
    assert (refused.token, refused.code) == (3, "role_forbids")
    assert open_payload(parse(refused.payload), world.space.keys) == other


def payload_of(world):
    [data] = world.sender.pending_envelopes().values()
    return open_payload(parse(data), world.space.keys)


def test_what_became_of_each_drop_is_read_back(world):
    for number in range(3):
        world.write(f"-{number}", {"n": number})
    world.attach()
    world.serve(world.sender.outgoing(NOW)[0][:1])

    stored = world.stored()

    assert list(stored.kept) == [1]
    assert list(stored.pending) == [2, 3]
