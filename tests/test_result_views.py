"""What a result shows of itself: a line, an HTML table, a picture, tables of pandas and xarray."""

import dataclasses
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from cases import case, measured
from report_cases import HOSTILE, bowl, eigenvalues, sharpness
from torch import nn

import landscape
from figures.page.grids import fineness
from landscape import MEASURES, InputError
from landscape.measures.hessian_trace import Trace
from landscape.results.export import write_tidy
from landscape.results.result import LabelledArrays, Result, array


def trace(**changes):
    values = {"value": 6.0, "stderr": 0.5, "exact": False, "matrix": "hessian", "method": "hutchinson", "hvps": 8}
    layers = {"layers": ["a", "b"], "layer_values": np.array([2.0, 4.0]), "layer_stderr": np.array([0.3, 0.4])}
    return Trace(**values, **layers, **{"label": "Hessian trace", **changes})


def problem():
    model, batches = case("mlp", examples=24)
    return landscape.Problem(model, nn.functional.cross_entropy, batches)


# -- a line ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (trace(), "Trace(Hessian trace: 6.00 ± 0.98)"),
        (trace(label=None), "Trace(6.00 ± 0.98)"),
        (bowl(), "Surface(loss (11, 13) over x, y)"),
        (sharpness(), "Sharpness(0.0100 ± 0.0010 (ρ = 0.1))"),
        (eigenvalues(), "TopEigenvalues(8.000 ± 0.010 (then 4, 2))"),
        (trace(label="a\nb"), "Trace(a\\nb: 6.00 ± 0.98)"),
    ],
)
def test_a_result_is_one_line(result, text):
    assert repr(result) == text


def test_a_type_may_speak_for_itself():
    @dataclass(frozen=True, kw_only=True)
    class Spoken(Result):
        value: float

        def __repr__(self):
            return "mine"

    assert repr(Spoken(value=1.0)) == "mine"


# -- HTML --------------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += f"{data}|"


def test_the_table_of_a_notebook_says_number_error_and_cost():
    page = Tags(trace(arguments={"probes": 8}, cost={"hvp": 8.0}, provenance={"examples": 128})._repr_html_())
    assert page.text.startswith("Hessian trace: 6.00 ± 0.98|")
    assert "stderr|0.5|" in page.text
    assert "arguments|probes = 8|" in page.text
    assert "cost|8 hvp, 0 ms|" in page.text
    assert "about|examples 128|" in page.text


def test_every_text_in_the_table_is_escaped():
    surface = bowl()
    hostile = {
        "label": HOSTILE,
        "arguments": {HOSTILE: HOSTILE},
        "cost": {HOSTILE: 1.0},
        "provenance": {"dtype": HOSTILE},
        "checks": [{"name": "x", "ok": False, "text": HOSTILE, "value": None}],
    }
    page = Tags(type(surface)(**{**vars(surface), **hostile})._repr_html_())
    assert page.tags == {"div", "strong", "table", "tr", "th", "td"}
    assert page.text.count("hacked") == 2 * 6
    assert HOSTILE in page.text


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_surface_is_a_row_a_point():
    frame = bowl().to_dataframe()
    assert list(frame.columns) == ["x", "y", "loss", "accuracy", "done"]
    np.testing.assert_allclose(frame.loss, 0.1 + frame.x**2 + 3 * frame.y**2, rtol=1e-12)
    assert len(frame) == 11 * 13
    assert json.loads(frame.attrs["arguments"])["seed"] == 4


def test_sharpness_is_a_row_a_radius_with_its_interval():
    frame = sharpness().to_dataframe()
    np.testing.assert_allclose(frame.rho, [0.1, 0.2])
    np.testing.assert_allclose(frame.low, [0.009, 0.039])
    np.testing.assert_allclose(frame.high, [0.011, 0.041])


def test_a_number_is_one_row_and_its_layers_a_table_by_name():
    frame = trace().to_dataframe()
    assert frame[["value", "stderr", "method"]].to_dict("records") == [
        {"value": 6.0, "stderr": 0.5, "method": "hutchinson"}
    ]
    layers = trace().to_dataframe("layer")
    assert layers.layer.tolist() == ["a", "b"]
    assert layers.layer_values.tolist() == [2.0, 4.0]
    with pytest.raises(InputError, match="Trace has no table over lyer: it has those over 'layer'"):
        trace().to_dataframe("lyer")


def numbers():
    arrays = LabelledArrays()
    arrays.axis("method", ["sgd", "sam"])
    arrays.axis("seed", [0, 1, 2])
    arrays.add("error", ("method", "seed"), np.arange(6.0).reshape(2, 3), "%")
    arrays.add("slope", ("method",), [0.5, 0.25])
    return arrays


def test_numbers_of_a_figure_are_its_tidy_csv():
    text = io.StringIO()
    write_tidy(text, numbers())
    pandas = pytest.importorskip("pandas")
    expected = pandas.read_csv(io.StringIO(text.getvalue()))
    pandas.testing.assert_frame_equal(
        pandas.read_csv(io.StringIO(numbers().to_dataframe().to_csv(index=False))), expected
    )
    assert len(expected) == 8


def history():
    arrays = LabelledArrays(label="Measures over the steps of a training")
    arrays.axis("step", [0, 10, 20])
    for name, values, unit in (
        ("training_seconds", [0.0, 1.0, 2.0], "s"), ("lambda_max", [8.0, 4.0, 2.0], "loss / weight²"),
        ("lambda_max.error_bound", [0.1, 0.1, 0.1], "loss / weight²"), ("sharpness", [0.1, np.nan, 0.05], "loss"),
    ):  # fmt: skip
        arrays.add(name, ("step",), values, unit)
    return arrays


def test_a_history_is_drawn_as_lines_and_is_a_table_over_its_steps():
    axes = history().plot()
    assert [line.get_label() for line in axes.get_lines()] == ["lambda_max", "sharpness"]
    np.testing.assert_array_equal(axes.get_lines()[0].get_xydata(), [[0, 8], [10, 4], [20, 2]])
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("step", "", "log")
    pytest.importorskip("pandas")
    table = history().to_dataframe("step")
    assert table.columns.tolist() == [
        *("step", "training_seconds", "lambda_max", "lambda_max.error_bound", "sharpness"),
    ]
    assert table.lambda_max.tolist() == [8, 4, 2]


def test_what_cannot_be_drawn_leaves_no_empty_figure():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    with pytest.raises(InputError, match="no one number or curve to draw: use to_dataframe"):
        numbers().plot()
    assert plt.get_fignums() == before


def test_xarray_selects_by_coordinate_and_carries_units(tmp_path):
    data = bowl().to_xarray()
    assert data.loss.sel(x=1.0, y=-0.5).item() == pytest.approx(0.1 + 1 + 0.75)
    assert data.radius.item() == 1.0
    layers = trace().to_xarray()
    assert layers.layer_values.sel(layer="b").item() == 4.0
    figure = numbers().to_xarray()
    assert figure.error.sel({"method": "sam", "seed": 1}).item() == 4.0
    assert figure.error.attrs["units"] == "%"
    layers.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")


def test_a_vector_on_a_device_is_an_array():
    @dataclass(frozen=True, kw_only=True)
    class Vector(Result):
        values: Any = array("parameter")

    vector = Vector(values=torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True))
    assert vector.to_dataframe()["values"].tolist() == [1.0, 2.0]
    assert vector.to_xarray()["values"].dims == ("parameter",)


@pytest.mark.parametrize(("library", "method"), [("pandas", "to_dataframe"), ("xarray", "to_xarray")])
def test_what_is_not_installed_is_named(library, method, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError) as error:
        getattr(trace(), method)()
    assert str(error.value) == f"{method}() needs {library}: pip install 'loss-landscape-toolkit[notebook]'"


def test_libraries_and_figures_are_imported_on_use():
    code = """if True:
        import sys, landscape
        from landscape.sharpness.sharpness import Sharpness
        import numpy as np
        result = Sharpness(rho=np.ones(1), sharpness=np.ones(1), loss=1.0, non_finite=np.zeros(1))
        repr(result), result._repr_html_()
        assert not {"pandas", "xarray", "matplotlib", "figures"} & set(sys.modules)
        result.plot()
        assert "figures" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pyplot(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.setattr(matplotlib, "use", lambda *_, **__: pytest.fail("a notebook's backend was changed"))
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_a_picture_shows_the_numbers_in_a_column(pyplot):
    axes = sharpness().plot()
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_xydata(), [[0.1, 0.01], [0.2, 0.04]])
    assert axes.figure.get_figwidth() == pytest.approx(3.3)
    assert axes.get_ylabel() == "rise of the loss"


def test_pictures_go_into_the_axes_of_the_caller(pyplot):
    figure, panels = pyplot.subplots(1, 2)
    assert eigenvalues().plot(ax=panels[1]) is panels[1]
    assert not panels[0].has_data()
    np.testing.assert_allclose(panels[1].containers[0].lines[0].get_ydata(), [8.0, 4.0, 2.0])
    assert pyplot.get_fignums() == [figure.number]


def test_a_surface_is_drawn_as_contours_or_in_three_dimensions(pyplot):
    surface = bowl()
    flat = surface.plot()
    parts = fineness(surface.loss)
    colors = np.asarray(flat.collections[0].get_array())[::parts, ::parts]
    np.testing.assert_allclose(colors, surface.loss.T)
    assert flat.figure.axes[1].get_ylabel() == "loss"
    solid = surface.plot(pyplot.figure().add_subplot(projection="3d"))
    assert solid.get_zlim() == pytest.approx((0.1, 0.1 + 1.75))


def test_bars_of_layers_carry_their_error(pyplot):
    axes = trace().plot()
    assert [b.get_width() for b in axes.patches] == [2.0, 4.0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]
    ends = axes.containers[0].lines[2][0].get_segments()
    assert ends[0][:, 0] == pytest.approx([2 - 1.96 * 0.3, 2 + 1.96 * 0.3], rel=1e-3)
    assert axes.get_xlabel() == "part of the trace, which is 6.00 ± 0.98"


@pytest.mark.parametrize("values", [[8.0], [-8.0], [8.0, 8.0, 8.0], [8.0, -2.0]])
def test_eigenvalues_keep_clear_of_the_edges(values):
    axes = dataclasses.replace(eigenvalues(), values=np.array(values), error_bounds=np.full(len(values), 1e-3)).plot()
    low, high = axes.get_ylim()
    assert low <= 0
    assert min(max(values) - low, high - max(values), min(values) + 1e-9 - low if min(values) < 0 else 1) > 0.3


def test_numbers_of_a_figure_have_no_picture_of_their_own(pyplot):
    with pytest.raises(InputError, match="use to_dataframe"):
        numbers().plot()


@pytest.mark.parametrize("name", list(MEASURES))
def test_every_measure_shows_itself(name, pyplot):
    result = measured(name, problem())
    assert len(repr(result)) < 200
    assert str(result.label) in repr(result)
    assert Tags(result._repr_html_()).tags == {"div", "strong", "table", "tr", "th", "td"}
    assert len(result.to_dataframe())
    assert set(result.named_arrays().values) <= set(result.to_xarray().variables)
    axes = result.plot()
    assert axes.has_data()
    assert axes.get_title("left") == result.label


@pytest.mark.parametrize("make", [landscape.profiles, landscape.rescaling_invariance, landscape.hessian_diagonal])
def test_other_results_show_themselves(make, pyplot):
    result = make(problem())
    assert len(repr(result)) < 100
    assert len(result.to_dataframe())
    assert result.plot().has_data()


def test_a_path_is_drawn_with_its_ends(pyplot):
    result = landscape.path(problem(), problem())
    np.testing.assert_allclose(result.plot().get_lines()[0].get_ydata(), result.loss)
