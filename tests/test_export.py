"""Exports hold every digit, the right orientation and what is missing."""

import base64
import csv
import io
import json
import math
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pytest

import landscape
from landscape import InputError
from landscape.results import hdf5
from landscape.results.export import export, write_tidy
from landscape.results.result import LabelledArrays, Result, array
from landscape.surfaces.result import Surface


@dataclass(frozen=True, kw_only=True)
class Draws(Result):
    rho: Any = array("rho")
    value: Any = array("rho")
    draws: Any = array("rho", "draw")


def surface():
    x, y = np.array([-1.0, 0.0, 2.0]), np.array([0.0, 1 / 3])
    loss = 1 / 3 + x[:, None] * 10 + y[None, :]
    loss[2, 1] = np.nan
    loss[0, 0] = -np.inf
    return Surface(x=x, y=y, loss=loss, accuracy=loss / 100, done=np.isfinite(loss), arguments={"seed": 3})


@pytest.fixture
def single(tmp_path):
    surface().save(tmp_path / "s.h5")
    return tmp_path / "s.h5"


@pytest.fixture
def several(tmp_path):
    curve = Draws(rho=np.array([0.1, 0.2]), value=np.array([1.0, 2.0]), draws=np.arange(6.0).reshape(2, 3))
    hdf5.save(tmp_path / "a.h5", {"a/surface": surface(), "curve": curve})
    return tmp_path / "a.h5"


def test_csv_is_a_long_table_with_every_digit(single, tmp_path):
    (path,) = export(single, "csv")
    rows = list(csv.DictReader(path.open()))
    assert list(rows[0]) == ["x", "y", "loss", "accuracy", "done"]
    expected = surface()
    assert len(rows) == 6
    for row, (i, j) in zip(rows, np.ndindex(3, 2), strict=True):
        assert float(row["x"]) == expected.x[i]
        assert float(row["y"]) == expected.y[j]
        np.testing.assert_array_equal(float(row["loss"]), expected.loss[i, j])
        assert int(row["done"]) == expected.done[i, j]


def test_csv_of_several_results_is_a_file_for_each_set_of_axes(several):
    paths = {p.name: p for p in export(several, "csv")}
    assert set(paths) == {"a-a-surface.csv", "a-curve-rho.csv", "a-curve-rho-draw.csv"}
    rows = list(csv.reader(paths["a-curve-rho-draw.csv"].open()))
    assert rows[0] == ["rho", "draw", "draws"]
    assert rows[-1] == ["0.2", "2", "5.0"]
    assert list(csv.reader(paths["a-curve-rho.csv"].open())) == [["rho", "value"], ["0.1", "1.0"], ["0.2", "2.0"]]


def test_npz_opens_without_pickle(single, several):
    with np.load(export(single, "npz")[0], allow_pickle=False) as content:
        np.testing.assert_array_equal(content["loss"], surface().loss)
        np.testing.assert_array_equal(content["done"], surface().done)
        assert json.loads(str(content["metadata"]))["arguments"] == {"seed": 3}
    with np.load(export(several, "npz")[0], allow_pickle=False) as content:
        np.testing.assert_array_equal(content["a.surface.loss"], surface().loss)
        np.testing.assert_array_equal(content["curve.draws"], np.arange(6.0).reshape(2, 3))


def test_json_has_axes_and_null_for_what_is_not_finite(several):
    content = json.loads(export(several, "json")[0].read_text())
    loss = content["a/surface"]["arrays"]["loss"]
    assert loss["axes"] == ["x", "y"]
    assert loss["values"][2][1] is None
    assert loss["values"][0][0] is None
    assert loss["values"][1][0] == 1 / 3
    assert content["curve"]["type"] == "Draws"


def test_vtk_is_a_structured_grid_with_scaled_height(several):
    (path,) = export(several, "vtk")
    assert path.name == "a-a-surface.vtk"
    lines = path.read_text().splitlines()
    assert lines[2:6] == ["ASCII", "DATASET STRUCTURED_GRID", "DIMENSIONS 3 2 1", "POINTS 6 double"]
    points = np.array([[float(v) for v in line.split()] for line in lines[6:12]])
    expected = surface()
    np.testing.assert_array_equal(points[:, 0].reshape(2, 3).T, np.repeat(expected.x[:, None], 2, 1))
    np.testing.assert_array_equal(points[:, 1].reshape(2, 3).T, np.repeat(expected.y[None], 3, 0))
    z, finite = points[:, 2].reshape(2, 3).T, np.isfinite(expected.loss)
    span = expected.loss[finite].max() - expected.loss[finite].min()
    assert np.ptp(z) == pytest.approx(0.5 * 3.0)
    np.testing.assert_allclose(z[finite], 1.5 * (expected.loss - expected.loss[finite].min())[finite] / span)
    start = lines.index("SCALARS loss double 1") + 2
    values = np.array([float(v) for v in lines[start : start + 6]]).reshape(2, 3).T
    np.testing.assert_array_equal(values, expected.loss)
    assert "SCALARS done int 1" in lines


def edges(faces):
    return sorted((int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True))


def test_stl_is_a_closed_body_of_the_right_volume(tmp_path):
    """Every edge joins two triangles that run along it in opposite senses; the divergence theorem gives the volume."""
    plane = Surface(
        x=np.linspace(-2.0, 2.0, 5),
        y=np.linspace(0.0, 3.0, 4),
        loss=np.random.default_rng(0).uniform(1.0, 3.0, (5, 4)),
        accuracy=np.zeros((5, 4)),
        done=np.ones((5, 4), dtype=bool),
    )
    plane.save(tmp_path / "plane.h5", "plane")
    content = export(tmp_path / "plane.h5", "stl")[0].read_bytes()
    count = int(np.frombuffer(content[80:84], "<u4")[0])
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    body = np.frombuffer(content[84:], kind)
    assert len(body) == count == 2 * 2 * 4 * 3 + 2 * 2 * (4 + 3)
    corners = body["corners"].astype(float)
    points, index = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    assert len(points) == 2 * 5 * 4
    there = edges(index.reshape(-1, 3))
    assert len(set(there)) == len(there)
    assert there == sorted((b, a) for a, b in there)
    volume = np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    low, high = plane.loss.min(), plane.loss.max()
    z = 50 * (plane.loss - low) / (high - low)  # 100 units wide, half as high
    prisms = (z[:-1, :-1] + z[1:, :-1] + z[1:, 1:]) + (z[:-1, :-1] + z[1:, 1:] + z[:-1, 1:])
    assert volume == pytest.approx(25 * 25 / 2 * prisms.sum() / 3 + 5 * 100 * 75, rel=1e-5)
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(body["normal"], outward / np.linalg.norm(outward, axis=1, keepdims=True), atol=1e-4)


def test_gltf_stands_alone(several):
    (path,) = export(several, "gltf")
    content = json.loads(path.read_text())
    head, data = content["buffers"][0]["uri"].split(",")
    data = base64.b64decode(data)
    assert head == "data:application/octet-stream;base64"
    assert len(data) == content["buffers"][0]["byteLength"]

    def array(i, kind, width):
        view = content["bufferViews"][content["accessors"][i]["bufferView"]]
        return np.frombuffer(data[view["byteOffset"] :][: view["byteLength"]], kind).reshape(-1, width)

    expected = surface()
    points, colors, faces = array(0, "<f4", 3), array(1, "<f4", 3), array(2, "<u4", 1).reshape(-1, 3)
    assert content["accessors"][0]["min"] == points.min(0).tolist()
    assert points.shape == colors.shape == (6, 3)
    assert np.ptp(points[:, 0]) == pytest.approx(1.0)
    assert np.ptp(points[:, 1]) == pytest.approx(0.5), "y points up"
    finite = np.isfinite(expected.loss).reshape(-1)
    order = np.argsort(expected.loss.reshape(-1)[finite])
    assert (np.diff(points[finite][order, 1]) >= 0).all()
    assert colors.min() >= 0
    assert colors.max() <= 1
    up = np.cross(points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]])[:, 1]
    assert (up > 0).all()


def test_bad_input(single, tmp_path):
    with pytest.raises(InputError, match="unknown format 'vtp': did you mean 'vtk'"):
        export(single, "vtp")
    with pytest.raises(InputError, match="no such file"):
        export(tmp_path / "missing.h5", "csv")
    broken = tmp_path / "broken.h5"
    broken.write_bytes(single.read_bytes()[:300])
    with pytest.raises(InputError, match="not a readable HDF5 file .*use another file or copy$"):
        export(broken, "csv")
    one = surface()
    line = Surface(x=one.x, loss=one.loss[:, 0], accuracy=one.loss[:, 0], done=one.done[:, 0])
    line.save(tmp_path / "line.h5")
    with pytest.raises(InputError, match="vtk, stl and gltf take two-dimensional surfaces"):
        export(tmp_path / "line.h5", "vtk")
    assert export(tmp_path / "line.h5", "csv")


def test_output_directory(single, tmp_path):
    (path,) = export(single, "json", tmp_path / "elsewhere")
    assert path == tmp_path / "elsewhere" / "s.json"


@pytest.fixture
def labelled(tmp_path):
    values = {"method": np.array(["sgd", "sam"]), "epoch": np.arange(1, 4), "loss": np.arange(6.0).reshape(2, 3) / 3}
    values |= {"best": np.array([0.1, np.nan]), "draw": np.zeros((2, 2))}
    axes = {"method": ("method",), "epoch": ("epoch",), "loss": ("method", "epoch"), "best": ("method",)}
    axes["draw"] = ("method", "repetition")  # an axis without coordinates
    units = {"method": "", "epoch": "epochs", "loss": "nats", "best": "share of examples", "draw": ""}
    found = LabelledArrays(values=values, axes=axes, units=units, arguments={"seeds": 2, "data": "digits"})
    found.save(tmp_path / "f.h5", "numbers")
    return tmp_path / "f.h5"


def test_labelled_arrays_survive_the_file(labelled):
    found = landscape.load(labelled)["numbers"]
    assert found["method"].tolist() == ["sgd", "sam"]
    assert found.axes["loss"] == ("method", "epoch")
    assert found.units["loss"] == "nats"
    assert found.arguments == {"seeds": 2, "data": "digits"}
    np.testing.assert_array_equal(found.at("loss", method="sam"), np.arange(3.0, 6.0) / 3)
    with pytest.raises(KeyError, match="adam"):
        found.at("loss", method="adam")
    with h5py.File(labelled) as file:
        assert file["numbers/loss"].dims[1][0][()].tolist() == [1, 2, 3]


def test_labelled_arrays_need_no_units(tmp_path):
    found = LabelledArrays(
        values={"epoch": np.arange(2), "loss": np.ones(2)}, axes=dict.fromkeys(("epoch", "loss"), ("epoch",))
    )
    assert found.summary()["arrays"]["loss"] == {"axes": ["epoch"], "shape": [2], "unit": ""}
    stream = io.StringIO(newline="")
    write_tidy(stream, found)
    assert list(csv.reader(stream.getvalue().splitlines()))[1:] == [["loss", "0", "1.0", ""], ["loss", "1", "1.0", ""]]


def test_labelled_arrays_export_as_one_tidy_table(labelled):
    (path,) = export(labelled, "csv")
    assert path.name == "f.csv"
    rows = list(csv.reader(path.open()))
    assert rows[0] == ["quantity", "epoch", "method", "value", "unit"]
    assert len(rows) == 1 + 6 + 2 + 4
    table = {tuple(r[:3]): (float(r[3]), r[4]) for r in rows[1:] if r[0] != "draw"}
    assert table["loss", "2", "sam"] == (4 / 3, "nats")
    assert table["best", "", "sgd"] == (0.1, "share of examples")
    assert math.isnan(table["best", "", "sam"][0])


def test_labelled_arrays_export_as_arrays_and_json(labelled):
    (path,) = export(labelled, "npz")
    with np.load(path) as content:
        assert content["method"].tolist() == ["sgd", "sam"]
        np.testing.assert_array_equal(content["loss"], np.arange(6.0).reshape(2, 3) / 3)
        assert json.loads(str(content["metadata"]))["arguments"]["data"] == "digits"
    (path,) = export(labelled, "json")
    content = json.loads(path.read_text())["numbers"]
    assert content["arrays"]["best"] == {"axes": ["method"], "values": [0.1, None]}
    assert content["summary"]["arrays"]["loss"] == {"axes": ["method", "epoch"], "shape": [2, 3], "unit": "nats"}
    with pytest.raises(InputError, match="vtk"):
        export(labelled, "vtk")
