"""Results in HDF5: whole files, named axes, types of ours only."""

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from landscape import InputError
from landscape.results import result as results
from landscape.results.result import Result, array


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
    loaded = results.load(tmp_path / "a.h5")
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
    results.save(path, {"one": curve(), "deep/two": curve()}, {"checkpoints": {"x": "sha"}})
    results.save(path, {"three": curve(), "one": curve()})
    assert sorted(results.load(path)) == ["deep/two", "one", "three"]
    assert results.attributes(path)["checkpoints"] == {"x": "sha"}
    with h5py.File(path) as file:
        np.testing.assert_allclose(file["deep/two/values"].dims[0][0], [0.1, 0.2])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    curve().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(results, "write_group", lambda *_: 1 / 0)
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
        results.load(tmp_path / "junk.h5")
    with pytest.raises(InputError, match="no such file"):
        results.load(tmp_path / "absent.h5")
    with pytest.raises(InputError, match="is a directory"):
        results.load(tmp_path)
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(InputError, match="holds no result"):
        results.load(tmp_path / "empty.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file.create_group("x").attrs["type"] = "os.system"
    with pytest.raises(InputError, match="unknown result type"):
        results.load(tmp_path / "foreign.h5")
