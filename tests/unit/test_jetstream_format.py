"""The bytes that the JetStream engine sends, reads and stores."""

import pytest
from msgspec import msgpack, structs

from twinlock.engines.jetstream_client import read_headers
from twinlock.engines.jetstream_format import (
    FORMAT_TIMES,
    PLACES,
    LogMessage,
    Names,
    decode_message,
    encode_message,
    entries_of,
    head_of,
    key_to_subject,
    partition_of,
    prefix_to_filter,
    shard_of,
    shards_of_prefix,
    subject_to_key,
)
from twinlock.engines.jetstream_message import Message
from twinlock.errors import StoreError, UpdateNeededError
from twinlock.ids import SpaceId


def test_headers_and_statuses_are_read():
    message = Message("s", b"", {"Status": "404", "Nats-Sequence": "12"})
    assert (message.status, message.number("Nats-Sequence"), message.number("Nats-Last-Sequence")) == (404, 12, 0)
    assert Message("s", b"").status == 0


@pytest.mark.parametrize(
    "key", ["a", "a/b", "account/4f00/x", "a//b", "/", "a/", "x.y/z=w", "a b/*/>", "~_%-", "k" * 255, "=", "a=2Eb"]
)
def test_keys_become_subjects_and_keys_again(key):
    subject = key_to_subject(key)
    assert subject_to_key(subject) == key
    assert not set(subject) & set(" *>/")
    assert all(subject.split("."))


def test_no_two_keys_become_one_subject():
    keys = ["a/b", "a.b", "a=2Eb", "a=", "a/=", "a/", "a//", "a", "="]
    assert len({key_to_subject(key) for key in keys}) == len(keys)


def test_keys_of_one_id_are_in_one_shard():
    assert len({shard_of(f"{kind}/4f00{rest}", 4) for kind in ("start", "heads") for rest in ("", "/x", "/x/y")}) == 1
    assert {shard_of(f"account/{number}", 4) for number in range(99)} == {0, 1, 2, 3}
    assert shard_of("cluster/settings", 4) == 0
    for key in ("a", "a/b", "a/b/c", "cluster/x"):
        for end in range(len(key) + 1):
            assert shard_of(key, 4) in shards_of_prefix(key[:end], 4)
    assert len(shards_of_prefix("a/b/", 4)) == 1


def test_a_filter_passes_every_key_of_its_prefix():
    assert [prefix_to_filter(prefix) for prefix in ("", "a", "a/", "a/b", "a/b/")] == [">", ">", "a.>", "a.>", "a.b.>"]


def test_messages_of_a_log_are_read_back():
    message = LogMessage(1, 0, 1_700_000_000_000, 10, [b"abc", b"d"], 2, b"origin")
    assert decode_message(encode_message(message)) == message
    assert message.bytes_after == 14
    assert [entry.seq for entry in entries_of(5, message)] == [5 * PLACES, 5 * PLACES + 1]
    assert head_of(5, message) == 5 * PLACES + 1


def test_a_message_may_have_a_time_for_each_envelope():
    message = LogMessage(FORMAT_TIMES, 0, 1_000, 10, [b"abc", b"d", b"e"], 2, b"origin", (0, 70_000, -5))
    assert decode_message(encode_message(message)) == message
    assert [entry.received_ms for entry in entries_of(5, message)] == [1_000, 71_000, 995]
    with pytest.raises(StoreError):
        decode_message(encode_message(structs.replace(message, later_ms=(0, 1))))


def test_messages_without_such_times_are_read_as_older_nodes_wrote_them():
    older = msgpack.encode([1, 0, 7, 10, [b"abc"], 2, b"origin"])
    assert decode_message(older) == LogMessage(1, 0, 7, 10, [b"abc"], 2, b"origin")


def test_messages_of_a_newer_version_are_refused():
    with pytest.raises(UpdateNeededError):
        decode_message(encode_message(LogMessage(FORMAT_TIMES + 1, 0, 0, 0, [], 0, b"")))
    with pytest.raises(StoreError):
        decode_message(b"\x91\x01")


def test_names_tell_partitions_and_clusters_apart():
    space = SpaceId(b"\x01\x02" + bytes(14))
    names, other = Names(), Names("x1")
    assert partition_of(space) == 0x0102
    assert names.log_stream(0x0102) == "TW_0102"
    assert names.log_subject(space) == f"tw.0102.{space.hex()}"
    assert names.live_subject(space) == f"live.0102.{space.hex()}"
    assert (other.log_stream(1), other.directory_prefix(0)) == ("TW-X1_0001", "tw-x1.directory.0.")


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n", {"Status": "204", "Nats-Num-Pending": "0"}),
        (b"NATS/1.0\r\nA:b:c\r\nB: \r\n\r\n", {"A": "b:c", "B": ""}),
        (b"\xff\r\nno header\r\n\r\n", {}),
    ],
)
def test_the_headers_of_a_message_are_read(block, headers):
    assert read_headers(block) == headers
