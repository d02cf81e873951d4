"""Results in HDF5: whole files, named axes, types of ours only."""

import json
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from landscape import InputError
from landscape.results import hdf5
from landscape.results.arrays import NamedArrays
from landscape.results.result import LabelledArrays, Result, array


@dataclass(frozen=True, kw_only=True)
class Curve(Result):
    rho: Any = array("rho")
    values: Any = array("rho")
    spread: Any = array("rho", "draw", default=None)
    converged: bool = True
    note: str = ""


def curve():
    return Curve(
        rho=torch.tensor([0.1, 0.2]),
        values=np.array([1.0, np.nan]),
        note="größer",
        arguments={"rho": [0.1, 0.2], "p": float("inf")},
        cost={"forward": 2.0},
        provenance={"seed": 0, "notes": []},
    )


def test_round_trip(tmp_path):
    curve().save(tmp_path / "a.h5")
    loaded = hdf5.load(tmp_path / "a.h5")
    assert isinstance(loaded, Curve)
    np.testing.assert_array_equal(loaded.values, [1.0, np.nan])
    assert loaded.spread is None
    assert (loaded.note, loaded.converged, loaded.cost) == ("größer", True, {"forward": 2.0})


def test_axes_are_named_in_plain_h5py(tmp_path):
    curve().save(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        values = file["result/values"]
        assert values.dims[0].label == "rho"
        np.testing.assert_allclose(values.dims[0]["rho"], [0.1, 0.2])


def test_opens_in_xarray(tmp_path):
    xarray = pytest.importorskip("xarray")
    curve().save(tmp_path / "a.h5")
    with xarray.open_dataset(tmp_path / "a.h5", group="result", engine="h5netcdf") as data:
        assert data["values"].dims == ("rho",)
        np.testing.assert_allclose(data["rho"], [0.1, 0.2])


def test_saving_completes_a_file_and_keeps_its_axes(tmp_path):
    path = tmp_path / "a.h5"
    hdf5.save(path, {"one": curve(), "deep/two": curve()}, {"checkpoints": {"x": "sha"}})
    hdf5.save(path, {"three": curve(), "one": curve()})
    assert sorted(hdf5.load(path)) == ["deep/two", "one", "three"]
    assert hdf5.attributes(path)["checkpoints"] == {"x": "sha"}
    with h5py.File(path) as file:
        np.testing.assert_allclose(file["deep/two/values"].dims[0][0], [0.1, 0.2])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    curve().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(hdf5, "_write_arrays", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        curve().save(path, "other")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_two_types_of_one_name_are_refused():
    with pytest.raises(TypeError, match="two result types are called Curve: in test_results and elsewhere"):
        type("Curve", (Result,), {"__module__": "elsewhere"})


def test_summary_is_plain_json():
    summary = curve().summary()
    assert summary["values"] == [1.0, None]
    assert summary["p"] is None


def test_bad_files(tmp_path):
    (tmp_path / "junk.h5").write_bytes(b"no hdf5")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        hdf5.load(tmp_path / "junk.h5")
    with pytest.raises(InputError, match="no such file"):
        hdf5.load(tmp_path / "absent.h5")
    with pytest.raises(InputError, match="is a directory"):
        hdf5.load(tmp_path)
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(InputError, match="holds no result"):
        hdf5.load(tmp_path / "empty.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file.create_group("x").attrs["type"] = "os.system"
    with pytest.raises(InputError, match="unknown result type"):
        hdf5.load(tmp_path / "foreign.h5")


def test_files_of_the_first_release_open(tmp_path):
    """The layout of 0.1.0, written by h5py alone: a group a result, scales, JSON in attributes."""
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["settings"] = json.dumps({"seed": 0})
        one = file.create_group("a/curve")
        one.attrs.update(type="Curve", note=json.dumps("größer"), converged=True, seconds=1.5)
        one.attrs.update(arguments=json.dumps({"p": None}), cost=json.dumps({"forward": 2.0}), provenance="{}")
        for name, values in (("rho", [0.1, 0.2]), ("values", [1.0, np.nan])):
            one[name] = values
        one["rho"].make_scale("rho")
        one["rho"].dims[0].label = one["values"].dims[0].label = "rho"
        one["values"].dims[0].attach_scale(one["rho"])
        two = file.create_group("numbers")
        two.attrs.update(type="LabelledArrays", arguments=json.dumps({"seeds": 2}), cost="{}", seconds=0.0)
        two.attrs["provenance"] = "{}"
        two.create_dataset("method", data=np.array(["sgd", "sam"], dtype=object), dtype=h5py.string_dtype())
        two["loss"] = [0.5, 0.25]
        two["method"].make_scale("method")
        two["method"].dims[0].label = two["loss"].dims[0].label = "method"
        two["loss"].attrs["unit"] = "nats"
    loaded = hdf5.load(tmp_path / "old.h5")
    curve, numbers = loaded["a/curve"], loaded["numbers"]
    assert isinstance(curve, Curve)
    np.testing.assert_array_equal(curve.values, [1.0, np.nan])
    assert (curve.spread, curve.note, curve.converged, curve.seconds) == (None, "größer", True, 1.5)
    assert isinstance(numbers, LabelledArrays)
    assert numbers.at("loss", method="sam") == 0.25
    assert (numbers.units["loss"], numbers.axes["loss"], numbers.arguments) == ("nats", ("method",), {"seeds": 2})
    assert hdf5.attributes(tmp_path / "old.h5") == {"settings": {"seed": 0}}
    hdf5.save(tmp_path / "new.h5", loaded)
    with h5py.File(tmp_path / "old.h5") as old, h5py.File(tmp_path / "new.h5") as new:
        for name in ("a/curve", "numbers"):
            assert set(old[name]) == set(new[name])
            assert set(old[name].attrs) == set(new[name].attrs)


def test_arrays_agree_with_their_axes():
    arrays = NamedArrays()
    arrays.axis("method", ["sgd", "sam"])
    arrays.add("loss", ("method", "draw"), np.ones((2, 3)), "nats")
    assert (arrays.coordinates, arrays.unit("loss"), arrays.unit("method")) == (["method"], "nats", "")
    for axes, values in ((("method",), np.ones(3)), (("method",), np.ones((2, 2))), (("a", "b"), np.ones(2))):
        with pytest.raises(ValueError, match="its axes"):
            arrays.add("wrong", axes, values)
    arrays.remove("loss")
    assert list(arrays.values) == list(arrays.axes) == list(arrays.units) == ["method"]
