"""Numbers of a figure: named axes, the file, the table."""

import numpy as np
import pytest

from figures.study.figure_data import FigureData


def example():
    numbers = FigureData(facts={"samples": 3})
    numbers.axis("method", ["sgd", "sam"])
    numbers.axis("epoch", [1, 2, 3], "epochs")
    numbers.add("loss", ("method", "epoch"), np.arange(6.0).reshape(2, 3), "nats")
    return numbers


def test_numbers_survive_the_file(tmp_path):
    example().save(tmp_path / "n.h5")
    back = FigureData.load(tmp_path / "n.h5")
    assert back["method"].tolist() == ["sgd", "sam"]
    np.testing.assert_array_equal(back.at("loss", method="sam"), [3, 4, 5])
    assert back.at("loss", method="sam", epoch=2) == 4
    assert (back.axes["loss"], back.units["loss"], back.facts) == (("method", "epoch"), "nats", {"samples": 3})


def test_numbers_open_in_xarray(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    example().save(tmp_path / "n.h5")
    with xarray.open_dataset(tmp_path / "n.h5", group="numbers", engine="h5netcdf") as opened:
        assert float(opened.loss.sel({"method": "sam", "epoch": 2})) == 4


def test_the_table_has_a_row_for_every_number(tmp_path):
    example().write_csv(tmp_path / "n.csv")
    rows = [line.split(",") for line in (tmp_path / "n.csv").read_text().split()]
    assert rows[0] == ["quantity", "method", "epoch", "value", "unit"]
    assert ["loss", "sam", "2", "4.0", "nats"] in rows
    assert len(rows) == 7


def test_shapes_must_fit_their_axes():
    with pytest.raises(ValueError, match="shape"):
        example().add("other", ("epoch", "method"), np.zeros((2, 3)))
    with pytest.raises(KeyError, match="adam"):
        example().at("loss", method="adam")
