"""Blobs: every length round the borders of chunks comes back, and nothing but the true chunks opens."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sealing_world import World, flipped
from twinlock.errors import FileTooLargeError, OpenError
from twinlock.ids import BlobId, Epoch, SpaceId
from twinlock.protocol.limits import BLOB_BYTES_MAX, BLOB_CHUNK_BYTES, BLOB_PART_BYTES, BLOB_PART_CHUNKS
from twinlock.sealing.blobs import SEALED_CHUNK_BYTES, BlobLayout, BlobOpener, BlobReader, BlobSealer, check_blob_size
from twinlock.sealing.space_keys import EpochKeys

MIB = BLOB_CHUNK_BYTES
BLOB, OTHER = BlobId(b"b" * 16), BlobId(b"o" * 16)
BORDERS = sorted(
    {0, 1, 2, 126, 127, 128, 129, 1000}
    | {border + step for border in (MIB, 2 * MIB) for step in (-2, -1, 0, 1, 2)}
    | {8 * MIB - 1, 8 * MIB, 8 * MIB + 1}
    # The last length whose padding ends with a chunk, and the first that needs another.
    | {MIB - (1 << 15) - 1, MIB - (1 << 15)}
)
KEYS = World().keys


def content_of(size: int) -> bytes:
    """Return bytes that tell where they stand."""
    block = b"".join(number.to_bytes(4, "big") for number in range(1 << 14))
    return (block * (size // len(block) + 1))[:size]


def sealed(content: bytes, keys=KEYS, blob=BLOB, piece=MIB) -> tuple[list[bytes], BlobSealer]:
    sealer = BlobSealer(keys, blob)
    chunks = [
        chunk for at in range(0, len(content), piece) for chunk in sealer.seal(memoryview(content)[at : at + piece])
    ]
    return [*chunks, *sealer.finish()], sealer


def read(chunks, size: int, sha256: bytes, keys=KEYS, blob=BLOB) -> bytes:
    reader = BlobReader(BlobOpener(keys, blob, size))
    content = b"".join([reader.open(chunk) for chunk in chunks])
    reader.finish(sha256)
    return content


@pytest.mark.parametrize("size", BORDERS)
def test_a_length_at_a_border_comes_back(size):
    content = content_of(size)

    chunks, sealer = sealed(content)

    layout = BlobLayout(size)
    whole = b"".join(chunks)
    assert [len(chunk) for chunk in chunks] == [layout.sealed_chunk_bytes(index) for index in range(len(chunks))]
    assert (len(whole), len(chunks)) == (layout.sealed_bytes, layout.chunks_count)
    assert sealer.size == size
    assert sealer.sha256() == hashlib.sha256(whole).digest()
    assert layout.parts_count == -(-len(whole) // BLOB_PART_BYTES)
    assert read(chunks, size, sealer.sha256()) == content


@pytest.mark.parametrize("size", [0, 127, MIB, 3 * MIB + 1])
def test_the_length_of_the_pieces_does_not_matter(size):
    content = content_of(size)

    assert {b"".join(sealed(content, piece=piece)[0]) for piece in (65_521, MIB - 1, MIB + 1, 5 * MIB)} == {
        b"".join(sealed(content)[0])
    }


@given(st.integers(min_value=0, max_value=1 << 41))
def test_the_padding_costs_little_and_the_layout_adds_up(size):
    layout = BlobLayout(size)

    assert size < layout.padded_bytes <= max(128, (size + 1) * 1.12)
    assert 0 < layout.sealed_chunk_bytes(layout.chunks_count - 1) <= SEALED_CHUNK_BYTES
    assert (layout.chunks_count - 1) * SEALED_CHUNK_BYTES < layout.sealed_bytes <= layout.parts_count * BLOB_PART_BYTES
    assert layout.parts_count == -(-layout.chunks_count // BLOB_PART_CHUNKS)


LONG = content_of(3 * MIB + 77)
LONG_CHUNKS, LONG_SEALER = sealed(LONG)


@settings(max_examples=50)
@given(st.integers(0, len(LONG) + 10), st.integers(0, 2 * MIB))
def test_any_range_opens_from_its_own_chunks(first, size):
    opener = BlobOpener(KEYS, BLOB, len(LONG))
    chunks = opener.layout.chunks_of(first, size)

    opened = b"".join(opener.open(index, LONG_CHUNKS[index]) for index in chunks)

    start = first - chunks.start * MIB if chunks else 0
    assert opened[start : start + size if chunks else 0] == LONG[first : first + size]
    assert len(chunks) <= size // MIB + 2


def test_another_chunk_does_not_open_in_its_place():
    opener = BlobOpener(KEYS, BLOB, len(LONG))

    for index in range(len(LONG_CHUNKS)):
        for chunk, other in enumerate(LONG_CHUNKS):
            if chunk != index:
                with pytest.raises(OpenError):
                    opener.open(index, other)
    for index in (-1, len(LONG_CHUNKS)):
        with pytest.raises(OpenError):
            opener.open(index, LONG_CHUNKS[0])


@pytest.mark.parametrize("position", [0, 1000, -1])
@pytest.mark.parametrize("index", range(len(LONG_CHUNKS)))
def test_an_altered_or_shortened_chunk_does_not_open(index, position):
    opener, chunk = BlobOpener(KEYS, BLOB, len(LONG)), LONG_CHUNKS[index]

    for altered in (flipped(chunk, position % len(chunk)), chunk[:-1], chunk + b"\0", b""):
        with pytest.raises(OpenError):
            opener.open(index, altered)


def test_a_blob_without_its_end_is_noticed():
    """A server that leaves chunks away cannot make a shorter file: the last chunk says that it is the last."""
    shorter = BlobOpener(KEYS, BLOB, 2 * MIB - 1)
    assert shorter.layout.chunks_count == 2

    shorter.open(0, LONG_CHUNKS[0])
    with pytest.raises(OpenError):
        shorter.open(1, LONG_CHUNKS[1])
    for chunks in (LONG_CHUNKS[:-1], []):
        with pytest.raises(OpenError):
            read(chunks, len(LONG), LONG_SEALER.sha256())


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (0, 0, 1, 2), (0, 1, 1, 3), (0, 2, 3), (0, 1, 2, 3, 3)])
def test_reordered_and_duplicated_chunks_are_refused(order):
    with pytest.raises(OpenError):
        read([LONG_CHUNKS[index] for index in order], len(LONG), LONG_SEALER.sha256())


def test_chunks_of_another_blob_space_or_epoch_are_refused():
    member_key, service_key = KEYS.member_key, KEYS.service_key
    strangers = {
        "blob": sealed(LONG, blob=OTHER),
        "space": sealed(LONG, EpochKeys(SpaceId(b"s" * 16), KEYS.epoch, member_key, service_key)),
        "epoch": sealed(LONG, EpochKeys(KEYS.space, Epoch(KEYS.epoch + 1), member_key, service_key)),
    }
    opener = BlobOpener(KEYS, BLOB, len(LONG))

    for chunks, _ in strangers.values():
        for index, chunk in enumerate(chunks):
            with pytest.raises(OpenError):
                opener.open(index, chunk)


@pytest.mark.parametrize("told", [-1, 1, -30_000])
def test_a_wrong_length_is_noticed_by_the_padding(told):
    content = content_of(MIB + 100_000)
    chunks, sealer = sealed(content)
    told_layout = BlobLayout(len(content) + told)
    if told_layout.sealed_bytes == sealer.sealed_bytes:
        assert BlobOpener(KEYS, BLOB, told_layout.size).open(0, chunks[0]) == content[:MIB]

    with pytest.raises(OpenError):
        read(chunks, told_layout.size, sealer.sha256())


def test_another_digest_is_refused_at_the_end():
    with pytest.raises(OpenError):
        read(LONG_CHUNKS, len(LONG), bytes(32))


def test_reading_goes_on_after_what_was_read_before():
    reader = BlobReader(BlobOpener(KEYS, BLOB, len(LONG)))
    for at in (0, MIB):
        reader.resume(LONG[at : at + MIB])

    rest = [reader.open(chunk) for chunk in LONG_CHUNKS[reader.next_chunk :]]

    assert b"".join(rest) == LONG[2 * MIB :]
    reader.finish(LONG_SEALER.sha256())


@pytest.mark.parametrize("size", [0, 127, 128, MIB - 1, MIB, MIB + 1, 8 * MIB])
def test_a_chunk_is_sealed_again_to_the_same_bytes(size):
    content = content_of(size)
    opener = BlobOpener(KEYS, BLOB, size)

    for index, chunk in enumerate(sealed(content)[0]):
        assert opener.seal_again(index, opener.open(index, chunk)) == chunk


def test_what_was_altered_between_two_readings_is_noticed_at_the_end():
    reader = BlobReader(BlobOpener(KEYS, BLOB, len(LONG)))
    reader.resume(flipped(LONG[:MIB], 5))
    for chunk in LONG_CHUNKS[1:]:
        reader.open(chunk)

    with pytest.raises(OpenError):
        reader.finish(LONG_SEALER.sha256())


def test_every_blob_has_a_key_of_its_own():
    keys = {KEYS.blob_key(BLOB), KEYS.blob_key(OTHER), KEYS.data_key.expose()}

    assert len(keys) == 3
    assert LONG_CHUNKS[0] != sealed(LONG[:MIB], blob=OTHER)[0][0]


def test_a_file_has_at_most_1_tib_sealed():
    largest = next(size for size in range((1 << 40) - (1 << 36), 0, -(1 << 30)) if fits(size))

    check_blob_size(largest)
    assert BlobLayout(largest).sealed_bytes <= BLOB_BYTES_MAX
    with pytest.raises(FileTooLargeError):
        check_blob_size(BLOB_BYTES_MAX)


def fits(size: int) -> bool:
    return BlobLayout(size).sealed_bytes <= BLOB_BYTES_MAX
