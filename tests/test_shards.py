"""Work that several processes share by claims in a directory: each item once, lost ones taken over, equal numbers."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from landscape import InputError, shards
from landscape.shards import Claims, Item, Shard

ROOT = Path(__file__).parent.parent

WORKER = """
import sys, time
from pathlib import Path
from landscape.shards import Claims, Item, Shard

out, shard, pause = Path(sys.argv[1]), Shard.parsed(sys.argv[2]), float(sys.argv[3])

def item(number):
    outcome = out / f"{number}.txt"
    def run():
        with open(out / "log", "a") as log:
            log.write(f"{number} {shard}\\n")
        time.sleep(pause)
        outcome.write_text(str(number))
    return Item(f"item.{number}", run, outcome.exists)

with Claims(out / ".shards", shard) as claims:
    print(len(list(claims.settle([item(n) for n in range(12)]))), flush=True)
"""


def worker(out, shard, pause=0.05):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", WORKER, str(out), shard, str(pause)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)


def log(out):
    return [line.split() for line in (out / "log").read_text().splitlines()] if (out / "log").exists() else []


def until(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "1/0", "1/2000000", "1.5/2", ""])
def test_what_is_no_shard(text):
    with pytest.raises(InputError, match="--shard .*I/N .*is needed, for example 1/8 to 8/8"):
        Shard.parsed(text)


def test_everyone_begins_with_its_own_part_and_ends_with_the_others():
    items = [Item(str(n), int, bool) for n in range(7)]
    orders = ["".join(item.name for item in Shard(i, 3).order(items)) for i in (1, 2, 3)]
    assert orders == ["0365421", "1465320", "2564310"]


def test_two_processes_do_each_item_once_and_both_wait_for_all(tmp_path):
    processes = [worker(tmp_path, f"{i}/2") for i in (1, 2)]
    assert [p.communicate(timeout=60)[0] for p in processes] == ["12\n", "12\n"]
    lines = log(tmp_path)
    assert sorted(int(number) for number, _ in lines) == list(range(12))
    assert {shard for _, shard in lines} == {"1/2", "2/2"}


def test_one_alone_does_the_parts_of_all(tmp_path):
    assert worker(tmp_path, "2/3", 0).communicate(timeout=60)[0] == "12\n"
    assert [int(number) for number, _ in log(tmp_path)][:4] == [1, 4, 7, 10]
    assert list((tmp_path / ".shards").iterdir()) == []


def test_what_a_killed_process_was_at_is_taken_over_at_once(tmp_path):
    killed = worker(tmp_path, "1/2", 60)
    until(lambda: log(tmp_path) == [["0", "1/2"]])
    other = worker(tmp_path, "2/2", 0)
    until(lambda: len(log(tmp_path)) == 12)  # all but the one that is claimed
    time.sleep(0.7)
    assert other.poll() is None
    assert not (tmp_path / "0.txt").exists()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert other.communicate(timeout=60)[0] == "12\n"
    assert log(tmp_path)[-1] == ["0", "2/2"]
    assert list((tmp_path / ".shards").iterdir()) == []


def claimed_elsewhere(directory, name="a"):
    """A claim whose machine is another one: its lock says nothing here."""
    with Claims(directory, Shard(1, 2)) as claims:
        path = claims._acquire(name)
        path.write_text("elsewhere 0000\nprocess 7, now\n")
        os.close(claims._held.pop(path))
    return path


def test_a_claim_of_another_machine_is_lost_once_it_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(shards, "SILENT_SECONDS", 0.6)
    path, outcome = claimed_elsewhere(tmp_path), tmp_path / "outcome"
    item = Item("a", outcome.touch, outcome.exists)
    stop = threading.Event()

    def renew():
        while not stop.wait(0.05):
            os.utime(path)

    beating = threading.Thread(target=renew)
    beating.start()
    with Claims(tmp_path, Shard(2, 2)) as claims:
        assert claims._acquire("a") is None
        time.sleep(0.9)
        assert claims._acquire("a") is None  # it lives, however long that takes
        assert claims._acquire("b") is not None
        stop.set()
        beating.join()
        started = time.monotonic()
        claims.wait_for(item)
        assert 0.4 < time.monotonic() - started < 5
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith("a")] == []


def test_a_claim_is_renewed_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BEAT_SECONDS", 0.02)
    with Claims(tmp_path, Shard(1, 1)) as claims:
        path = claims._acquire("a")
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime > 1)


def test_one_alone_takes_a_lost_claim_over(tmp_path):
    """Two see it lost at the same time: the next number is the one's that makes its file."""
    claimed_elsewhere(tmp_path)
    both = [Claims(tmp_path, Shard(i, 2)) for i in (1, 2)]
    for claims in both:
        claims._is_lost = lambda path: path.name == "a.1"
    assert [c is None for c in (both[0]._acquire("a"), both[1]._acquire("a"))] == [False, True]
    (tmp_path / "a.3").touch()
    (tmp_path / "a.2").unlink()  # as if it were made between the other's two looks
    both[1]._is_lost = lambda path: True
    assert both[1]._acquire("a").name == "a.4"


def test_an_item_that_is_done_between_two_looks_is_not_run(tmp_path):
    looks, done = [], []

    def look():
        looks.append(len(looks))
        done.extend(["other"] if len(looks) == 2 else [])

    def run():
        raise AssertionError("it is done")

    with Claims(tmp_path, Shard(1, 1)) as claims:
        assert len(list(claims.settle([Item("a", run, lambda: bool(done))], look))) == 1


def test_an_item_waits_for_what_it_needs(tmp_path):
    ran = []
    items = [
        Item("second", lambda: ran.append(2), lambda: 2 in ran, lambda: 1 in ran),
        Item("first", lambda: ran.append(1), lambda: 1 in ran),
    ]
    with Claims(tmp_path, Shard(1, 1)) as claims:
        assert [item.name for item in claims.settle(items)] == ["first", "second"]
        claims.once("end", lambda: ran.append(3))
        claims.once("end", lambda: ran.append(4))
    assert ran == [1, 2, 3]


def test_a_failure_lets_go_of_the_item(tmp_path):
    def fail():
        raise InputError("no")

    with Claims(tmp_path, Shard(1, 1)) as claims, pytest.raises(InputError, match="no"):
        claims.wait_for(Item("with a very long name/" * 20, fail, lambda: False))
    assert list(tmp_path.iterdir()) == []


def test_claims_that_lead_elsewhere_are_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / ".shards"
    link.symlink_to(tmp_path / "elsewhere")
    for directory in (link, link / "surface"):
        with pytest.raises(InputError, match="out/.shards is a link"), Claims(directory, Shard(1, 1)):
            pass
    with Claims(tmp_path / "out", Shard(1, 1)) as claims:
        claims._mark("a").symlink_to(tmp_path / "elsewhere" / "made")
        with pytest.raises(OSError, match="symbolic links"):
            claims.once("a", int)
    assert list((tmp_path / "elsewhere").iterdir()) == []
