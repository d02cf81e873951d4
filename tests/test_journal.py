"""Rows of an unfinished computation: kept, found again bit for bit, started over where they are another's."""

import json
import math
import warnings

import pytest

from landscape import InputWarning
from landscape.errors import InputError
from landscape.files import AppendedFile
from landscape.results.journal import Journal

ROWS = {"a": [0.1, math.inf, math.nan], "b": {"x": 1 / 3}}


def written(path, key="k", rows=ROWS):
    """The layout of 0.1.0: a line of JSON for the key, one for each row."""
    lines = [{"key": key}, *({"name": n, "row": r} for n, r in rows.items())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def computed(journal, names="abc"):
    fresh = []
    rows = {n: journal.row(n, lambda n=n: fresh.append(n) or f"new {n}") for n in names}
    return fresh, rows


def test_a_journal_of_the_first_release_goes_on(tmp_path):
    journal = Journal(written(tmp_path / "j"), resume=True)
    with pytest.warns(InputWarning, match="j carries no checksum"):
        journal.open("k")
    fresh, rows = computed(journal)
    assert fresh == ["c"]
    assert (rows["a"][:2], rows["b"], rows["c"]) == ([0.1, math.inf], {"x": 1 / 3}, "new c")
    assert math.isnan(rows["a"][2])
    again = Journal(tmp_path / "j", resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.open("k")
    assert computed(again)[0] == []
    again.finish()
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize(("key", "resume"), [("other", True), ("k", False)])
def test_rows_of_something_else_are_dropped(tmp_path, key, resume):
    journal = Journal(written(tmp_path / "j"), resume=resume)
    journal.open(key)
    assert computed(journal)[0] == ["a", "b", "c"]


def test_a_row_without_a_name_is_none(tmp_path):
    path = written(tmp_path / "j")
    with path.open("a") as stream:
        stream.write('{"name": [1], "row": 2}\n{"row": 2}\n')
    journal = Journal(path, resume=True)
    journal.open("k")
    assert computed(journal)[0] == ["c"]


def test_a_line_that_was_cut_off_is_computed_again(tmp_path):
    path = written(tmp_path / "j")
    path.write_bytes(path.read_bytes()[:-4])
    journal = Journal(path, resume=True)
    journal.open("k")
    assert computed(journal)[0] == ["b", "c"]
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()[1:]] == ["a", "b", "c"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_damage_that_no_kill_does_is_told_and_nothing_is_lost(tmp_path, number):
    journal = Journal(tmp_path / "j")
    journal.open("k")
    computed(journal, "ab")
    journal.close()
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1][:8] + bytes([lines[number - 1][8] ^ 1]) + lines[number - 1][9:]
    (tmp_path / "j").write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=rf"j is damaged at line {number}: restore it or remove it"):
        Journal(tmp_path / "j", resume=True).open("k")
    assert (tmp_path / "j").read_bytes() == b"".join(lines)


def test_pieces_are_there_at_once_and_a_file_only_with_the_first(tmp_path):
    file = AppendedFile(tmp_path / "f", sync_seconds=60)
    file.close()
    assert not (tmp_path / "f").exists()
    file.append(b"one")
    assert (tmp_path / "f").read_bytes() == b"one"
    file.close()
    file.append(b"two")
    assert (tmp_path / "f").read_bytes() == b"onetwo"
    file.close()
