"""HDF5 results: sealed by a SHA-256, read by a child process, never pointing elsewhere, never without end."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import landscape
from landscape import InputError, InputWarning, Problem
from landscape.results import hdf5, hdf5_contents, hdf5_process
from landscape.results.arrays import NamedArrays
from landscape.results.result import LabelledArrays

NUMBERS = np.arange(9.0).reshape(3, 3)


def labelled(note="a note"):
    arrays = NamedArrays()
    arrays.axis("a", [0.0, 1.0, 2.0])
    arrays.axis("method", ["sgd", "sam", "größer"])
    arrays.add("loss", ("a", "method"), NUMBERS, "nats")
    arrays.add("ok", ("a",), np.array([True, False, True]))
    return LabelledArrays(
        arguments={"note": note}, values=arrays.values, axes=arrays.axes, units=arrays.units, seconds=1.5
    )


@pytest.fixture
def path(tmp_path):
    labelled().save(tmp_path / "whole.h5")
    return tmp_path / "whole.h5"


@pytest.fixture
def unsealed(tmp_path):
    """As the first release wrote it; returns a function that changes it by h5py and gives its path."""

    def make(change=lambda file: None):
        file = tmp_path / "unsealed.h5"
        labelled().save(file)
        with h5py.File(file, "r+") as opened:
            del opened.attrs["checksum"]
            change(opened)
        return file

    return make


def as_a_stranger(path, monkeypatch):
    """Load as a process does that did not write the file."""
    monkeypatch.setattr(hdf5, "_written", set())
    return hdf5.load(path)


def same(loaded):
    assert loaded.axes == labelled().axes
    assert loaded.units == labelled().units
    assert (loaded.arguments, loaded.seconds) == ({"note": "a note"}, 1.5)
    for name, values in labelled().values.items():
        np.testing.assert_array_equal(loaded.values[name], values)
        assert loaded.values[name].dtype == values.dtype
    return True


def test_both_ways_of_reading_agree(path, monkeypatch):
    assert same(hdf5.load(path))
    assert same(as_a_stranger(path, monkeypatch))


def test_a_file_opens_for_everybody(path):
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["result/loss"], NUMBERS)


@pytest.mark.parametrize("damage", ["bit", "zeros", "cut"])
def test_every_damaged_byte_is_noticed(path, tmp_path, monkeypatch, damage):
    raw, draw = path.read_bytes(), random.Random(damage)
    for _ in range(150):
        changed, at = bytearray(raw), draw.randrange(len(raw) - 1)
        if damage == "bit":
            changed[at] ^= 1 << draw.randrange(8)
        elif damage == "zeros":
            changed[at : at + 1024] = bytes(len(changed[at : at + 1024]))
        else:
            del changed[at:]
        if changed == raw:
            continue
        (tmp_path / "damaged.h5").write_bytes(changed)
        # The seal itself may be hit: then nothing else is, and the file says that it had one.
        with pytest.raises(InputError) as raised:
            as_a_stranger(tmp_path / "damaged.h5", monkeypatch)
        assert str(raised.value).isprintable()


def test_files_without_a_seal_open_with_a_note(unsealed, monkeypatch):
    with pytest.warns(InputWarning, match="carries no checksum"):
        assert same(as_a_stranger(unsealed(), monkeypatch))


def test_a_note_on_the_command_line_is_one_line(unsealed):
    command = [sys.executable, "cli.py", "export", unsealed(), "--to", "json"]
    ended = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("landscape: ")
    assert "unsealed.h5 carries no checksum" in line


def test_a_file_changed_by_another_program_is_refused(path):
    with h5py.File(path, "r+") as file:
        file["result/loss"][0, 0] = 7
    with pytest.raises(InputError, match="changed by another program"):
        hdf5.load(path)


def _external(file):
    del file["result/loss"]
    file["result"].create_dataset("loss", (3, 3), "f8", external=[(f"{file.filename}.secret", 0, 72)])


def _virtual(file):
    layout = h5py.VirtualLayout((3, 3), "f8")
    layout[:] = h5py.VirtualSource(f"{file.filename}.secret", "loss", (3, 3))
    del file["result/loss"]
    file["result"].create_virtual_dataset("loss", layout)


def _link(target):
    def change(file):
        del file["result/loss"]
        file["result/loss"] = target

    return change


def _dataset(**options):
    def change(file):
        del file["result/loss"]
        file["result"].create_dataset("loss", **options)

    return change


def _loop(file):
    file["result/again"] = file["result"]


FORGED = {
    "external storage": _external,
    "virtual": _virtual,
    "external link": _link(h5py.ExternalLink("other.h5", "/loss")),
    "soft link": _link(h5py.SoftLink("/result/ok")),
    "compressed": _dataset(data=np.zeros((512, 512)), compression="gzip"),
    "numbers that are not there": _dataset(shape=(10**6, 10**6), dtype="f8"),
    "records": _dataset(data=np.zeros(3, "f8,i4")),
    "a group within itself": _loop,
    "references": lambda file: file["result"].attrs.update(note=file["result"].ref),
}


@pytest.mark.parametrize("kind", FORGED)
@pytest.mark.filterwarnings("ignore:.*carries no checksum")
def test_what_no_result_holds_is_refused(unsealed, monkeypatch, kind):
    file = unsealed(FORGED[kind])
    (file.parent / f"{file.name}.secret").write_bytes((NUMBERS + 1e6).tobytes())
    with pytest.raises(InputError, match="is not a result of this toolkit"):
        as_a_stranger(file, monkeypatch)


@pytest.mark.filterwarnings("ignore:.*carries no checksum")
@pytest.mark.parametrize(
    ("field", "value"),
    [("arguments", "{"), ("arguments", "3"), ("arguments", "[" * 100_000), ("type", "os.system")],
)
def test_wrong_attributes_are_one_line(unsealed, field, value):
    file = unsealed(lambda file: file["result"].attrs.update({field: value}))
    with pytest.raises(InputError) as raised:
        hdf5.load(file)
    assert str(raised.value).isprintable()


def test_text_of_a_file_comes_escaped(tmp_path):
    labelled("x\x1b]0;title\x07\n").save(tmp_path / "a.h5")
    assert hdf5.load(tmp_path / "a.h5").arguments["note"] == r"x\x1b]0;title\x07\n"


def test_reading_without_end_is_ended(monkeypatch, tmp_path):
    """A library that never returns: the child ends by its alarm, and the next file gets a new one."""
    program = tmp_path / "hdf5_contents.py"
    source = Path(hdf5_contents.__file__).read_text(encoding="utf-8")
    program.write_text(
        source.replace("SECONDS, BYTES_A_SECOND = 5", "SECONDS, BYTES_A_SECOND = 1").replace(
            "with h5py.File(h5py.h5f.open_file_image(image)) as file:", "while True:\n        pass\n    with file:"
        )
    )
    hdf5_process._stop()
    monkeypatch.setattr(hdf5_contents, "__file__", str(program))
    start = time.monotonic()
    with pytest.raises(hdf5_contents.ForeignContent):
        hdf5_process.contents(b"anything")
    assert 0.9 < time.monotonic() - start < 20
    assert hdf5_process._child is None


def test_text_that_expands_beyond_reason_is_refused():
    """A hundred thousand references to one megabyte of text."""
    image = _bomb()
    with pytest.raises(hdf5_contents.ForeignContent):
        hdf5_process.contents(image)


def _bomb():
    with h5py.File("bomb.h5", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("a", (100_000,), h5py.string_dtype())
        dataset[0] = "x" * (1 << 20)
        file.flush()
        at = dataset.id.get_offset()
        image = bytearray(file.id.get_file_image())
    image[at : at + 16 * 100_000] = bytes(image[at : at + 16]) * 100_000
    return bytes(image)


def test_files_do_not_grow_when_groups_are_replaced(path):
    size = path.stat().st_size
    for _ in range(20):
        labelled().save(path)
    assert path.stat().st_size == size


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(InputError, match="not a regular file"):
        hdf5.load(tmp_path / "a.h5")


# -- what a file says of a result's fields -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups():
    """A surface, a line and the norms of gradients as they are stored."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    problem = Problem(model, nn.CrossEntropyLoss(), [(torch.randn(9, 2), torch.arange(9) % 2)])
    results = {
        "surface": landscape.surface(problem, grid=3, others={"more": problem}),
        "line": landscape.surface(problem, grid=3, dimensions=1),
        "norms": landscape.gradient_norm(problem),
    }
    return {name: hdf5.group_of(result) for name, result in results.items()}


def changed(group, field, value):
    """The group with another array or attribute of that name, or without it."""
    values, stored = dict(group.arrays.values), dict(group.attributes)
    values.pop(field, None)
    stored.pop(field, None)
    if isinstance(value, np.ndarray):
        values[field] = value
    elif value != "removed":
        stored[field] = value if isinstance(value, float) else json.dumps(value)
    return hdf5.Group(stored, NamedArrays(values=values, axes={n: ("",) * v.ndim for n, v in values.items()}))


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("surface", "loss", np.zeros(3), r"loss has the shape \(3,\) along x, y"),
        ("surface", "loss", np.zeros((3, 4)), r"loss has the shape \(3, 4\)"),
        ("surface", "other_loss", np.zeros((2, 3, 3)), "other_accuracy has the shape"),
        ("surface", "accuracy", np.full((3, 3), "a"), "accuracy holds <U1"),
        ("surface", "accuracy", np.zeros((3, 3), complex), "accuracy holds complex128"),
        ("surface", "x", "removed", "x is missing"),
        ("surface", "x", np.zeros(0), r"x has the shape \(0,\)"),
        ("surface", "y", "removed", r"loss has the shape \(3, 3\) along x"),
        ("surface", "checks", None, "checks is a NoneType"),
        ("surface", "checks", [3], "checks is a list"),
        ("surface", "choice", 3.0, "choice is a float"),
        ("surface", "unit", ["x"], "unit is a list"),
        ("surface", "radius", "x", "radius is a str"),
        ("surface", "cost", {"forward": "x"}, "cost is a dict"),
        ("line", "loss", np.zeros((3, 3)), r"loss has the shape \(3, 3\) along x"),
        ("norms", "layers", "removed", "layers is missing"),
        ("norms", "layers", ["a"], "layers are 1, the axis layer has 4"),
    ],
)
def test_fields_that_no_result_has_are_named(groups, tmp_path, name, field, value, message):
    file = tmp_path / "forged.h5"
    hdf5.write(file, {"": hdf5.Group(), "result": changed(groups[name], field, value)})
    with pytest.raises(InputError, match=f"fields do not fit .*({message})"):
        hdf5.load(file)
    hdf5.write(file, {"": hdf5.Group(), "result": groups[name]})
    assert hdf5.load(file).summary()


def test_labelled_arrays_fit_their_axes(tmp_path):
    arrays = NamedArrays(values={"a": np.zeros(2), "loss": np.zeros(3)}, axes={"a": ("a",), "loss": ("",)})
    group = hdf5.Group({"type": "LabelledArrays"}, arrays)
    hdf5.write(tmp_path / "a.h5", {"": hdf5.Group(), "result": group})
    assert hdf5.load(tmp_path / "a.h5").values["loss"].shape == (3,)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["result/loss"], file["result/a"] = np.zeros(3), np.zeros(2)
        file["result"].attrs["type"] = "LabelledArrays"
        file["result/a"].make_scale("a")
        file["result/a"].dims[0].label = file["result/loss"].dims[0].label = "a"
    with (
        pytest.warns(InputWarning, match="no checksum"),
        pytest.raises(InputError, match=r"loss has shape \(3,\), its"),
    ):
        hdf5.load(tmp_path / "b.h5")


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_child_that_cannot_start_is_one_line(monkeypatch, tmp_path, size):
    """Its pipe is closed before everything is written to it."""
    (tmp_path / "program.py").write_text("raise SystemExit(1)")
    hdf5_process._stop()
    monkeypatch.setattr(hdf5_contents, "__file__", str(tmp_path / "program.py"))
    send = hdf5_contents.send
    monkeypatch.setattr(hdf5_contents, "send", lambda *a: hdf5_process._child.wait() is None or send(*a))
    with pytest.raises(hdf5_contents.ForeignContent):
        hdf5_process.contents(bytes(size))
    assert hdf5_process._child is None
