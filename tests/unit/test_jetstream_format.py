"""The bytes that the JetStream engine sends, reads and stores."""

import pytest

from twinlock.engines import jetstream_wire as wire
from twinlock.engines.jetstream_format import (
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
from twinlock.errors import StoreError, UpdateNeededError
from twinlock.ids import SpaceId


class Heard(wire.Listener):
    def __init__(self):
        self.told = []

    def on_message(self, subscription, message):
        self.told.append((subscription, message.subject, message.headers, message.payload))

    def on_control(self, verb, rest):
        self.told.append((verb, rest))


STREAM = (
    b'INFO {"a":1}\r\n+OK\r\n'
    b"MSG a.b 7 5\r\nhello\r\n"
    b"MSG a.b 7 reply.to 0\r\n\r\n"
    b"HMSG x 1 17 19\r\nNATS/1.0\r\nA: \r\n\r\n\r\n\r\n"
    b"PING\r\nping\r\n-ERR 'no'\r\n"
)
TOLD = [
    (b"INFO", b'{"a":1}'),
    (b"+OK", b""),
    (7, b"a.b", b"", b"hello"),
    (7, b"a.b", b"", b""),
    (1, b"x", b"NATS/1.0\r\nA: \r\n\r\n", b"\r\n"),
    (b"PING", b""),
    (b"PING", b""),
    (b"-ERR", b"'no'"),
]


def feed(*pieces):
    heard = Heard()
    parser = wire.Parser(heard)
    for piece in pieces:
        parser.feed(piece)
    return heard.told


def test_a_stream_is_read_the_same_however_it_is_cut():
    assert feed(STREAM) == TOLD
    for at in range(len(STREAM)):
        assert feed(STREAM[:at], STREAM[at:]) == TOLD
    assert feed(*(STREAM[at : at + 1] for at in range(len(STREAM)))) == TOLD


@pytest.mark.parametrize("line", [b"MSG\r\n", b"MSG a b c\r\n", b"HMSG a 1 x 4\r\n"])
def test_what_is_no_message_is_refused(line):
    with pytest.raises(StoreError):
        feed(line)


def test_headers_and_statuses_are_read():
    message = wire.Message(b"s", b"NATS/1.0 404 Message Not Found\r\nNats-Sequence: 12\r\nA: b\r\n\r\n", b"")
    assert (message.status, message.number(b"Nats-Sequence"), message.header(b"A")) == (404, 12, b"b")
    assert (message.number(b"B"), message.header(b"Sequence")) == (0, None)
    assert wire.Message(b"s", wire.header_lines(Nats_Expected=3), b"").number(b"Nats-Expected") == 3
    assert wire.Message(b"s", b"", b"").status == 0


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


def test_messages_of_a_newer_version_are_refused():
    with pytest.raises(UpdateNeededError):
        decode_message(encode_message(LogMessage(2, 0, 0, 0, [], 0, b"")))
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
