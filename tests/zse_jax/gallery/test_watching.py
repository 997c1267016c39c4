"""Folders are watched: changes are reported together, and folders may disappear and come back."""

import itertools
import queue
import shutil
import threading

import pytest

from zse_jax.gallery import watching
from zse_jax.gallery.watching import ChangeTimes

FAST = {"rescan": 1e9, "look": 0.02}


@pytest.fixture
def watched(tmp_path):
    """A folder that is watched, and a queue with an item for each update."""
    (tmp_path / "album/deep").mkdir(parents=True)
    (tmp_path / "album/index").mkdir()
    updates, stop = queue.Queue(), threading.Event()
    numbers = itertools.count()
    thread = threading.Thread(
        target=watching.watch,
        args=([tmp_path / "album"], lambda: updates.put(next(numbers)), stop),
        kwargs={"ignored": [tmp_path / "album/index"], "changes": ChangeTimes(0.1, 5.0), **FAST},
    )
    thread.start()
    yield tmp_path / "album", updates
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_changes_are_reported_together_and_those_of_the_index_are_ignored(watched):
    album, updates = watched
    assert updates.get(timeout=20) == 0  # what changed before it was watched
    for number in range(5):
        (album / "deep" / f"{number}.jpg").write_bytes(b"")
    assert updates.get(timeout=20) == 1
    (album / "index/data.lance").write_bytes(b"")
    (album / "deep/0.jpg").read_bytes()
    with pytest.raises(queue.Empty):
        updates.get(timeout=0.3)
    (album / "deep/0.jpg").unlink()
    assert updates.get(timeout=20) == 2


def test_a_folder_that_disappears_is_watched_again_when_it_is_back(watched, caplog):
    album, updates = watched
    updates.get(timeout=20)
    shutil.move(album, album.with_name("elsewhere"))
    updates.get(timeout=20)
    assert "album cannot be reached" in caplog.text
    album.mkdir()
    updates.get(timeout=20)
    (album / "new.jpg").write_bytes(b"")
    updates.get(timeout=20)


def test_an_update_waits_for_quiet_but_not_for_ever():
    changes = ChangeTimes(2.0, 5.0)
    assert not changes.take(1.0)
    changes.add(1.0)
    assert not changes.take(2.9)
    assert changes.take(3.0)
    assert not changes.take(100.0)
    taken = []
    for now in map(float, range(101, 112)):
        changes.add(now)
        taken.append(changes.take(now))
    assert [now for now, due in enumerate(taken, 101) if due] == [106]


def test_a_folder_whose_changes_are_not_reported_is_scanned_at_intervals(tmp_path, caplog):
    class Observer:
        def schedule(self, *args, **options):
            raise OSError(28, "No space left on device")

    seen: dict = {}
    assert watching._follow(Observer(), None, [], tmp_path, seen)
    assert "are not reported (No space left on device), so they are found only" in caplog.text
    assert not watching._follow(Observer(), None, [], tmp_path, seen)
