"""The vectors of blobs are made and refused as the spec says."""

import hashlib

import pytest

from tests.vectors.test_sealing_vectors import epoch_of, of, read
from tools.vector_notation import read_bytes
from twinlock.errors import TwinlockError
from twinlock.ids import BlobId
from twinlock.sealing.blobs import BlobLayout, BlobOpener, BlobReader, BlobSealer

VECTOR = read("blob")


def chunks_of(case, content):
    sealer = BlobSealer(epoch_of(case), BlobId(of(case, "blob")))
    return [*sealer.seal(content), *sealer.finish()]


def opened(case, chunks, size, sha256):
    reader = BlobReader(BlobOpener(epoch_of(case), BlobId(of(case, "blob")), size))
    content = b"".join([reader.open(chunk) for chunk in chunks])
    reader.finish(sha256)
    return content


@pytest.mark.parametrize("case", VECTOR["accept"], ids=lambda case: case["name"])
def test_a_blob_is_sealed_and_opened_as_the_spec_says(case):
    content = read_bytes(case["content"])
    layout, chunks = BlobLayout(len(content)), chunks_of(case, content)

    assert epoch_of(case).blob_key(BlobId(of(case, "blob"))) == of(case, "blob_key")
    assert (layout.padded_bytes, layout.sealed_bytes) == (case["padded_bytes"], case["sealed_bytes"])
    assert [hashlib.sha256(chunk).hexdigest() for chunk in chunks] == case["chunk_sha256"]
    assert b"".join(chunks).hex() == case.get("sealed", b"".join(chunks).hex())
    assert opened(case, chunks, len(content), of(case, "sha256")) == content


@pytest.mark.parametrize("case", VECTOR["reject"], ids=lambda case: case["name"])
def test_what_is_no_blob_of_its_name_is_refused(case):
    if "sealed" in case:
        chunks = [of(case, "sealed")]
    else:
        made = chunks_of(case.get("sealed_as", case), read_bytes(case["content"]))
        chunks = [made[index] for index in case["order"]]
    with pytest.raises(TwinlockError) as refused:
        opened(case, chunks, case["size"], hashlib.sha256(b"".join(chunks)).digest())
    assert refused.value.code == case["error"]
