"""Every file says whether it is whole: damaged, compressed and forged ones end in one line, never in other numbers."""

import copy
import json
import os
import random
import zipfile

import numpy as np
import pytest
import torch

from landscape import InputError, InputWarning, archive, checkpoint, files
from landscape.results.journal import Journal
from landscape.surfaces.directions.directions import Directions
from landscape.surfaces.grid.journal import PointJournal as SurfaceJournal
from trainers.loop.run_directory import read_config, read_history
from trainers.models import build_model
from trainers.rebuild import subject

STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.ones(3)}
CONTENT = {
    "model": {"name": "mlp", "arguments": {"hidden": 3}, "state": STATE},
    "data": {"name": "digits", "arguments": {}},
    "method": {"name": "sgd", "arguments": {}, "state": {}},
    "epoch": 1,
    "step": 10,
    "provenance": {},
}


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "ckpt.pt"
    checkpoint.write(path, CONTENT)
    return path


def refused(path, read=checkpoint.read):
    """Whether the file is refused in one line; else it holds the very tensors that were written."""
    try:
        state = read(path)
    except InputError as error:
        return str(error).isprintable()
    state = state["model"]["state"] if "model" in state else state
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())
    return False


@pytest.mark.parametrize("damage", ["bit", "zeros", "cut"])
def test_no_damage_to_a_checkpoint_reaches_the_weights(whole, tmp_path, damage):
    raw, draw, path = whole.read_bytes(), random.Random(damage), tmp_path / "damaged.pt"
    outcomes = []
    for _ in range(200):
        changed, at = bytearray(raw), draw.randrange(len(raw))
        if damage == "bit":
            changed[at] ^= 1 << draw.randrange(8)
        elif damage == "zeros":
            changed[at : at + 64] = bytes(min(64, len(raw) - at))
        else:
            del changed[at:]
        path.write_bytes(changed)
        outcomes.append(refused(path))
    assert sum(outcomes) > 20  # the rest hit padding, dates or bytes that were zero


def test_one_flipped_bit_in_a_weight_is_refused(whole):
    with zipfile.ZipFile(whole) as members:
        entry = max((m for m in members.infolist() if "/data/" in m.filename), key=lambda m: m.file_size)
    raw = bytearray(whole.read_bytes())
    at = entry.header_offset + 26
    start = at + 4 + int.from_bytes(raw[at : at + 2], "little") + int.from_bytes(raw[at + 2 : at + 4], "little")
    raw[start + 3] ^= 0x40
    whole.write_bytes(raw)
    for read in (checkpoint.read, checkpoint.contents):
        with pytest.raises(InputError, match=r"damaged \(its member data/\d is not what was written\)"):
            read(whole)


def test_compressed_members_are_refused_by_name(whole, tmp_path):
    path = tmp_path / "deflated.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(InputError, match="is compressed: .*torch.save"):
        checkpoint.read(path)


FIELDS = {
    "model.arguments is missing": lambda c: c["model"].pop("arguments"),
    "data is a int, not a dict": lambda c: c.update(data=3),
    "method is a float, not a dict": lambda c: c.update(method=float("inf")),
    "model.name is a int, not a str": lambda c: c["model"].update(name=7),
    "model.state is a list, not a dict": lambda c: c["model"].update(state=[]),
    r"model.state\['x'\] is a str, not a tensor": lambda c: c["model"]["state"].update(x="y"),
    "epoch is a str, not a int": lambda c: c.update(epoch="one"),
    "step is a bool, not a int": lambda c: c.update(step=True),
    r"version 'a\\x1b\[31m\\nb'": lambda c: c.update(version="a\x1b[31m\nb"),
    "x has 1000000000000 entries but the file holds 1": lambda c: c["model"]["state"].update(
        x=torch.zeros(1).expand(10**12)
    ),
}


@pytest.mark.parametrize("message", FIELDS)
def test_fields_of_another_kind_are_named(tmp_path, message):
    content = {"format": "landscape-checkpoint", "version": 1, **copy.deepcopy(CONTENT)}
    FIELDS[message](content)
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        checkpoint.read(tmp_path / "x.pt")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="not a regular file"):
        checkpoint.read(tmp_path / "ckpt.pt")


def test_members_larger_than_their_file_are_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("a", b"abc")
    raw = path.read_bytes()
    at = raw.index(b"PK\x01\x02") + 24
    path.write_bytes(raw[:at] + (1 << 30).to_bytes(4, "little") + raw[at + 4 :])
    with pytest.raises(InputError, match="larger than the file"):
        archive.verify(path)


# -- records, tables, journals -----------------------------------------------------------------------------------------

RECORD = {"method": {"name": "sgd", "arguments": {"lr": 0.1}}, "settings": {"epochs": 1}}


def flips(path, count=150):
    """The file with one flipped bit, again and again."""
    raw, draw = path.read_bytes(), random.Random(path.name)
    for _ in range(count):
        changed = bytearray(raw)
        changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        yield path
    path.write_bytes(raw)


def test_a_record_comes_back_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.json"
    files.write_json(path, RECORD)
    assert read_config(tmp_path) == RECORD
    refusals = 0
    for damaged in flips(path):
        try:
            # White space may differ, and the name of the checksum: then it is a record of 0.1.0 with one field more.
            content = files.read_json(damaged)
            assert {k: content[k] for k in RECORD} == RECORD
        except InputError as error:
            refusals += str(error).isprintable()
    assert refusals > 75


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2",
        "[1, 2]",
        "3",
        "null",
        "[" * 100_000,
        "{}",
        '{"method": {"name": 3}, "settings": {}}',
        b"\xb8",
        '{"method": 3}',
    ],
)
def test_a_configuration_of_another_form_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_record_of_the_first_release_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RECORD))
    with pytest.warns(InputWarning, match=r"config\.json carries no checksum"):
        assert read_config(tmp_path) == RECORD


@pytest.mark.parametrize("tail", [b"\xb8\n", b"two,1\n", b"\x00,1\n", b"1.5,2\n", b",\n"])
def test_a_damaged_history_is_named(tmp_path, tail):
    path = tmp_path / "history.csv"
    path.write_bytes(b"epoch,step\n1,10\n" + tail)
    with pytest.raises(InputError, match=r"history\.csv"):
        read_history(path)


def test_a_history_that_was_cut_off_loses_its_last_row(tmp_path):
    (tmp_path / "history.csv").write_bytes(b"epoch,step\n1,10\n2,2")
    assert read_history(tmp_path / "history.csv") == [{"epoch": 1, "step": 10}]


def test_a_damaged_journal_is_refused_and_left_as_it_is(tmp_path):
    path, rows = tmp_path / "rows.jsonl", {"a": 0.25, "b": [1.5, float("inf")], "c": {"x": 3}}
    journal = Journal(path)
    journal.open("key")
    for name, row in rows.items():
        journal.row(name, lambda row=row: row)
    refusals = 0
    for damaged in flips(path):
        content, fresh = damaged.read_bytes(), []
        resumed = Journal(damaged, resume=True)
        try:
            resumed.open("key")
        except InputError:
            assert damaged.read_bytes() == content
            refusals += 1
            continue
        for name, row in rows.items():
            assert resumed.row(name, lambda name=name, row=row: fresh.append(name) or row) == row  # noqa: B023
    assert refusals > 100


def test_a_damaged_surface_on_its_way_is_refused_or_computed_again(tmp_path):
    directory, identity = tmp_path / "partial", {"weights_sha256": "a" * 64}
    vectors = (torch.arange(5.0), torch.ones(5))
    journal = SurfaceJournal(directory, identity)
    journal.begin({"axes": [0.1, 0.2]}, Directions("gaussian", vectors, torch.ones(5), "||w||"))
    for i in range(3):
        journal.append(0, i, np.arange(4.0) + i)
    journal.close()
    refusals = 0
    for name in ("header.json", "directions.pt", "points.bin"):
        for _ in flips(directory / name, 60):
            try:
                read = SurfaceJournal(directory, identity)
            except InputError:
                refusals += 1
                continue
            assert read.header["axes"] == [0.1, 0.2]
            assert all(torch.equal(a, b) for a, b in zip(read.directions.vectors, vectors, strict=True))
            assert all((values == np.arange(4.0) + i).all() for (_, i), values in read.records.items())
    assert refusals > 40


# -- what a checkpoint says of its network and its data ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "arguments"),
    [
        *(("model", {"classes": value}) for value in (None, "x", float("inf"), 10**40, [3])),
        *(("model", {"hidden": value}) for value in (float("inf"), 10**12, 10**40, "x", [[1]])),
        *(("model", {"input_shape": value}) for value in (3, None, [[64]], "x", [float("nan")])),
        *(("data", {name: "x"}) for name in ("seed", "label_noise", "name")),
        *(("data", {name: torch.ones(2)}) for name in ("seed", "label_noise", "data_dir")),
    ],
)
def test_arguments_that_nothing_can_be_built_from_are_one_line(tmp_path, part, arguments):
    model = {"classes": 10, "input_shape": [1, 8, 8], "hidden": [4]}
    content = copy.deepcopy(CONTENT)
    content["model"] = {"name": "mlp", "arguments": model, "state": build_model("mlp", **model).state_dict()}
    content[part]["arguments"].update(arguments)
    checkpoint.write(tmp_path / "ckpt.pt", content)
    with pytest.raises(InputError) as raised:
        subject(tmp_path / "ckpt.pt", samples=32)
    assert str(raised.value).isprintable()
