"""Cleaning goes through all spaces that were cut, whatever is wrong with one of them."""

from twinlock.testing.contracts.envelopes import Chain, new_space

NOW_MS = 1_700_000_000_000


async def test_a_space_whose_record_is_broken_keeps_no_other_from_being_cleaned(connect):
    node = await connect()
    chains = [Chain(new_space()) for _ in range(3)]
    for chain in chains:
        seqs = await node.log.append(chain.space, chain.take(4), NOW_MS)
        await node.log.cut(chain.space, seqs[1], NOW_MS)
    first = min(chain.space for chain in chains)
    await node.directory.put(f"start/{first.hex()}", b"broken")

    assert await node.log.clean(NOW_MS + 1) == 4
    assert len(await node.directory.list("cuts/")) == 1
