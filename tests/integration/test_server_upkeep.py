"""What a server does by itself goes on whatever goes wrong once."""

import asyncio

from tests.nodes_kit import Town


class Faulty:
    """A node's log with an error of our own in it."""

    def __init__(self, inner):
        self.inner = inner
        self.cleans_count = 0
        self.is_cleaned_again = asyncio.Event()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def clean(self, cut_before_ms):
        self.cleans_count += 1
        if self.cleans_count == 1:
            raise ZeroDivisionError
        self.is_cleaned_again.set()
        return 0


async def test_cleaning_goes_on_after_an_error_of_our_own(tmp_path):
    town = Town(tmp_path, clean_interval_s=0.02)
    try:
        log = Faulty(town.store.node().log)
        await town.start(log=log)

        await asyncio.wait_for(log.is_cleaned_again.wait(), 10)
    finally:
        await town.close()
