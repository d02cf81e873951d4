"""Downloads from a local server that breaks off."""

from __future__ import annotations

import hashlib
import http.server
import threading

import pytest

from landscape.errors import InputError
from trainers.data import DATA, files

CONTENT = bytes(range(256)) * 4000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; breaks off after `cut` bytes where that is set."""

    cut: int | None = None
    ranges: list = []

    def do_GET(self):
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        type(self).ranges.append(start)
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = type("Handler", (Server,), {"ranges": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}/train.gz"
        official = (files.OfficialFile(url, hashlib.md5(CONTENT).hexdigest()),)
        monkeypatch.setattr(files, "OFFICIAL", {"mnist": official})
        yield handler
        running.shutdown()
        thread.join()


def test_fetch_goes_on_where_it_stopped_and_fetches_nothing_twice(server, tmp_path):
    server.cut = 300_000
    with pytest.raises(InputError, match=r"could not fetch .*train.gz.*put it into .*mnist"):
        files.fetch("mnist", tmp_path)
    assert not (tmp_path / "mnist" / "train.gz").exists()
    server.cut = None
    have = (tmp_path / "mnist" / "train.gz.part").stat().st_size
    assert 0 < have <= 300_000
    (path,) = files.fetch("mnist", tmp_path)
    assert path == tmp_path / "mnist" / "train.gz"
    assert path.read_bytes() == CONTENT
    assert server.ranges == [0, have]
    assert files.fetch("mnist", tmp_path) == [path]
    assert len(server.ranges) == 2
    assert [p.name for p in path.parent.iterdir()] == ["train.gz"]


def test_fetch_finishes_a_whole_part_and_replaces_a_corrupt_file(server, tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train.gz").write_bytes(b"corrupt")
    (tmp_path / "mnist" / "train.gz.part").write_bytes(CONTENT)
    (path,) = files.fetch("mnist", tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [len(CONTENT)]


def test_fetch_keeps_no_file_of_another_checksum(server, tmp_path, monkeypatch):
    other = files.OfficialFile(files.OFFICIAL["mnist"][0].url, "0" * 32)
    monkeypatch.setattr(files, "OFFICIAL", {"mnist": (other,)})
    with pytest.raises(InputError, match=f"MD5 is {'0' * 32}"):
        files.fetch("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fetch_takes_a_file_that_lies_beside(server, tmp_path):
    (tmp_path / "train.gz").write_bytes(CONTENT)
    assert files.fetch("mnist", tmp_path) == [tmp_path / "train.gz"]
    assert server.ranges == []


def test_fetch_offline_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(files, "OFFICIAL", {"mnist": (files.OfficialFile("http://127.0.0.1:9/train.gz", "ab" * 16),)})
    with pytest.raises(
        InputError, match=f"127.0.0.1:9/train.gz .no connection.*{'ab' * 16} and put it into .*mnist"
    ) as error:
        files.fetch("mnist", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"), [("digits", "needs no download"), ("fashionmnist", "did you mean 'fashion-mnist'")]
)
def test_fetch_of_something_else(name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        files.fetch(name, tmp_path)


def test_official_files_are_pinned_once_for_every_dataset_that_is_fetched():
    assert {"mnist", "fashion-mnist", "cifar10", "cifar100"} <= set(files.OFFICIAL) <= set(DATA)
    checksums = [file.md5 for listed in files.OFFICIAL.values() for file in listed]
    assert len(set(checksums)) == len(checksums)
    assert all(len(bytes.fromhex(md5)) == 16 for md5 in checksums)
