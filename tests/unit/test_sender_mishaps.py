"""What a sender does when a device, a server or a clock went back, or a device was copied."""

import shutil

import pytest

from tests.unit.sender_kit import NOW, SenderWorld
from twinlock.protocol.limits import CLOCK_SKEW_MS_MAX
from twinlock.replica.upkeep import KEEP_MS

HOUR_MS = 3_600_000


@pytest.fixture
def world(tmp_path):
    world = SenderWorld(tmp_path / "sensor")
    yield world
    world.close()


def test_a_device_restored_from_a_backup_goes_on_from_the_servers_head(world, tmp_path):
    world.write("-1", {"a": 1})
    world.write("-2", {"a": 2})
    shutil.copytree(world.folder, tmp_path / "backup")
    world.write("-3", {"a": 3})
    world.attach()
    world.exchange()

    world.folder = tmp_path / "backup"
    world.start()
    world.attach()
    world.write("-4", {"a": 4})
    world.exchange()
    world.write("-5", {"a": 5})
    world.exchange()

    assert list(world.documents()) == ["-1", "-2", "-3", "-4", "-5"]
    assert world.refused == []
    assert world.sender.pending_count == 0


def test_a_clone_of_a_device_loses_nothing_that_was_written_in_its_run(world, tmp_path):
    world.write("-1", {"a": 1})
    world.attach()
    world.exchange()
    shutil.copytree(world.folder, tmp_path / "clone")
    twins = [(world.folder, world.sender)]
    world.start(tmp_path / "clone")
    twins.append((tmp_path / "clone", world.sender))

    for number in range(6):
        world.folder, world.sender = twins[number % 2]
        world.attach()
        world.write(f"-twin {number}", {"n": number})
        world.exchange()

    assert len(world.documents()) == 7
    assert world.refused == []


def test_a_clones_drops_of_an_earlier_run_are_refused_with_their_code(world, tmp_path):
    world.write("-1", {"a": 1})
    shutil.copytree(world.folder, tmp_path / "clone")
    world.write("-2", {"a": 2})
    world.attach()
    world.exchange()

    world.start(tmp_path / "clone")
    world.write("-other", {"a": 3})
    world.start(tmp_path / "clone")
    world.attach()
    world.exchange()

    assert [(event.tokens, event.code) for event in world.refused] == [((2,), "counter_conflict")]
    world.write("-4", {"a": 4})
    world.exchange()
    assert list(world.documents()) == ["-1", "-2", "-4"]


def test_a_restored_server_gets_back_what_it_has_lost(world):
    for number in range(5):
        world.write(f"-{number}", {"n": number})
    world.attach()
    world.exchange()

    world.restore_server(2)
    world.start()
    world.write("-5", {"n": 5})
    world.attach()
    world.exchange()

    assert list(world.documents()) == [f"-{number}" for number in range(6)]
    assert world.refused == []


def test_a_server_that_lost_more_than_was_kept_is_gone_on_from(world):
    for number in range(5):
        world.write(f"-{number}", {"n": number})
    world.attach()
    world.exchange()

    world.restore_server(2)
    world.attach(NOW + KEEP_MS + 1)
    world.write("-5", {"n": 5})
    world.exchange()

    assert list(world.documents()) == ["-0", "-1", "-5"]
    assert world.sender.pending_count == 0


def test_a_clock_that_was_ahead_is_corrected_before_anything_is_sent(world):
    ahead = NOW + 7 * 24 * HOUR_MS
    world.write("", {"n": 1}, ahead)
    world.write("", {"n": 2}, ahead)
    world.attach()
    world.exchange()
    world.write("", {"n": 3})
    world.exchange()

    assert world.documents() == {"": {"n": 3}}
    assert world.document("").conflicts() == []
    assert world.refused == []


def test_what_a_wrong_clock_stamped_in_an_earlier_run_waits_for_its_time(world):
    world.write("-1", {"n": 1}, NOW + HOUR_MS)
    world.start()
    world.attach()

    assert world.sender.outgoing(NOW) == []
    due = NOW + HOUR_MS - CLOCK_SKEW_MS_MAX // 2
    assert world.sender.wake_ms() == due
    world.exchange(due)
    assert world.documents() == {"-1": {"n": 1}}


def test_what_a_wrong_clock_stamped_years_ahead_is_refused(world):
    world.write("-1", {"n": 1}, NOW + 10_000 * HOUR_MS)
    world.start()
    world.attach()
    world.write("-2", {"n": 2})
    world.exchange()

    assert [(event.tokens, event.code) for event in world.refused] == [((1,), "clock_skew")]
    assert world.documents() == {"-2": {"n": 2}}
