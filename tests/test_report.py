"""The report: what is drawn and written, not how it looks."""

import base64
import gzip
import json
import math

import numpy as np
import pytest
import torch
from report_cases import HOSTILE, Page, analysis, bowl, sharpness

import landscape
from figures.page import frame, grids, plots, report, rows, surface_plots
from figures.page.invariance_table import invariance_tables
from landscape.measures.negative_curvature import Extremes
from landscape.results.result import Result


@pytest.fixture(scope="module")
def one():
    return analysis()


@pytest.fixture(scope="module")
def two():
    return [analysis("a"), analysis("b", 2.0)]


# -- grids and scales ------------------------------------------------------------------------------------------------


def test_scale_is_shared_and_levels_lie_inside(two):
    scale = grids.shared_scale(grids.grids(two))
    assert (scale.low, scale.high) == (pytest.approx(0.1), pytest.approx(0.1 + 2 * 1.75))
    for log in (False, True):
        low, high = scale.limits(log)
        levels = scale.levels(log)
        assert 8 <= len(levels) <= 16
        assert low < levels[0] < levels[-1] < high
        np.testing.assert_allclose(np.diff(levels), levels[1] - levels[0], rtol=1e-9)
        values, words = scale.ticks(log)
        assert len(values) == len(words) >= 3
        assert all(low - 1e-9 <= v <= high + 1e-9 for v in values)


@pytest.mark.parametrize(("low", "high"), [(0.26823, 0.26833), (0.26823, 0.26823 + 1e-9), (9.9, 10.1), (999.9, 1000.2)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_of_a_flat_surface_differ_and_are_where_they_say(low, high, log):
    values, words = grids.Scale(low, high).ticks(log)
    losses = np.power(10.0, values) if log else np.array(values)
    assert len(set(words)) == len(words) >= 3
    assert np.abs(losses - [float(w.replace(",", "")) for w in words]).max() < np.diff(losses).min() / 10


def test_log_ticks_name_the_loss_not_its_logarithm():
    values, words = grids.Scale(1e-3, 10.0).ticks(True)
    assert dict(zip(words, values, strict=True))["0.01"] == pytest.approx(-2)


def test_surface_that_is_constant_or_empty_still_has_a_scale():
    flat = grids.grid(bowl(0.0))
    scale = grids.shared_scale([flat])
    assert scale.low < 0.1 < scale.high
    broken = bowl()
    object.__setattr__(broken, "loss", np.full_like(broken.loss, np.nan))
    assert grids.shared_scale([grids.grid(broken)]).high > 0
    assert any("143 points have a loss of nan" in c.text for c in grids.grid(broken).checks)


def test_checks_say_what_is_wrong_with_the_picture():
    assert [(c.good, c.text) for c in grids.grid(bowl()).checks] == [(True, "the center is the lowest point")]
    off = bowl()
    off.loss[0, 0] = np.inf
    off.loss[1, 1], off.done[1, 1] = np.nan, False
    off.checks.append({"name": "range", "ok": False, "text": "<b>too small</b>", "value": 1.0})
    texts = {c.text: c.good for c in grids.grid(off).checks}
    assert texts == {
        "1 of 143 points are not computed yet: finish with --resume": False,
        "1 points have a loss of nan or infinity and are left blank": False,
        "the center is the lowest point": True,
        "<b>too small</b>": False,
    }
    page = Page(report.render([analysis(surface=off)]))
    assert any("<b>too small</b>" in t for t in page.texts)


def test_trajectory_and_honesty_map_are_drawn():
    own = bowl()
    object.__setattr__(own, "marks", np.array([[0.5, 0.25], [0.1, 0.0], [0.0, 0.0]]))
    object.__setattr__(own, "lambda_min", np.where(own.loss > 1, -2.0, 1.0))
    object.__setattr__(own, "lambda_max", np.full_like(own.loss, 8.0))
    found, arrays = by_id([analysis(surface=own)])
    marks = found["surface-contour-0"].modes["linear"]["data"][1]
    assert (marks["x"], marks["y"]) == ([0.5, 0.1, 0.0], [0.25, 0.0, 0.0])
    drawn = found["map-Negative-against-positive-curvature-0"].modes[""]["data"][0]
    values = np.array(arrays[drawn["z"][1:]])
    np.testing.assert_allclose(values, np.where(own.loss > 1, 0.25, 0.0).T)
    assert (drawn["zmin"], drawn["zmax"]) == (0.0, 0.25)


# -- plots of the page -----------------------------------------------------------------------------------------------


def by_id(analyses):
    drawn, arrays = plots.plots(analyses)
    return {p.id: p for p in drawn}, arrays


def computed(trace, key, arrays):
    """The computed numbers under what the page interpolates for the eye."""
    how, _, name = trace[key][1:].split(":")
    assert trace[key][0] == "@"
    assert how == "fine"
    return np.array(arrays[name], dtype=float)


def test_surface_is_drawn_the_right_way_round(one):
    found, arrays = by_id([one])
    trace = found["surface-contour-0"].modes["linear"]["data"][0]
    x, y, z = (computed(trace, k, arrays) for k in "xyz")
    assert z.shape == (len(y), len(x)) == (13, 11)
    np.testing.assert_allclose(z, 0.1 + x[None, :] ** 2 + 3 * y[:, None] ** 2, rtol=1e-5)
    assert found["surface-3d-0"].modes["linear"]["data"][0]["z"] == trace["z"]


def test_surfaces_share_colors_levels_and_heights(two):
    found, _ = by_id(two)
    for mode in ("linear", "log"):
        first, second = (found[f"surface-contour-{i}"].modes[mode]["data"][0] for i in (0, 1))
        for key in ("zmin", "zmax", "contours"):
            assert first[key] == second[key]
        assert not first["showscale"], "one color bar for all"
        strip = found["surface-scale"].modes[mode]
        assert (strip["data"][0]["x"][0], strip["data"][0]["x"][-1]) == pytest.approx((first["zmin"], first["zmax"]))
        scenes = [found[f"surface-3d-{i}"].modes[mode] for i in (0, 1)]
        assert scenes[0]["layout"]["scene"]["zaxis"] == scenes[1]["layout"]["scene"]["zaxis"]
        assert scenes[0]["data"][0]["cmax"] == scenes[1]["data"][0]["cmax"]


def test_sharpness_curves_hold_the_measured_values(two):
    found, _ = by_id(two)
    traces = found["sharpness-sam-sharpness"].modes["linear"]["data"]
    lines = [t for t in traces if t["mode"] == "lines+markers"]
    assert [t["name"] for t in lines] == ["a", "b"]
    assert lines[1]["x"] == [0.1, 0.2]
    np.testing.assert_allclose(lines[1]["y"], [0.02, 0.08])
    bands = [t for t in traces if t["mode"] == "lines"]
    np.testing.assert_allclose(bands[0]["y"], [0.009, 0.039])
    assert not any(t["mode"] == "lines" for t in found["sharpness-adaptive-sharpness"].modes["linear"]["data"])


def test_eigenvalues_carry_their_bounds(one):
    found, _ = by_id([one])
    (trace,) = found["eigenvalues-hessian-top-eigenvalues"].modes["linear"]["data"]
    assert trace["y"] == [8.0, 4.0, 2.0]
    assert trace["error_y"]["array"] == [0.01, 0.01, 0.01]


def test_sections_are_absent_without_data():
    bare = analysis(surface=None, history=None, measures={"sam_sharpness": sharpness()})
    found, _ = by_id([bare])
    assert list(found) == ["sharpness-sam-sharpness"]
    nothing = analysis(surface=None, history=None, measures={})
    page = Page(report.render([nothing]))
    assert page.data["plots"] == {}
    sections = [a["id"] for t, a in page.tags if t == "section"]
    assert sections == ["summary", "provenance"]


def test_shapes_compare_as_rises_above_the_own_center():
    """Two networks of one shape and different losses: at two heights on the scale of the loss, the same as rises."""
    two = [analysis("low", surface=bowl(2.0)), analysis("high", surface=bowl(2.0, floor=5.0))]
    found, arrays = by_id(two)
    for kind in ("surface-3d", "surface-contour"):
        modes = [found[f"{kind}-{i}"].modes for i in (0, 1)]
        assert list(modes[0]) == ["rise", "linear", "log"], "the page opens with the first"
        linear, rise = ([m[name]["data"][0] for m in modes] for name in ("linear", "rise"))
        corners = [computed(trace, "z", arrays)[0][0] for trace in linear]
        assert corners == pytest.approx([0.1 + 3.5, 5 + 3.5])
        for trace in rise:
            np.testing.assert_allclose(computed(trace, "z", arrays), bowl(2.0, floor=0.0).loss.T, atol=1e-5)
    surfaces = [found[f"surface-3d-{i}"].modes["rise"] for i in (0, 1)]
    for s in surfaces:
        assert (s["data"][0]["cmin"], s["data"][0]["cmax"]) == pytest.approx((0, 3.5), abs=1e-12)
    assert [s["data"][1]["z"] for s in surfaces] == [[0.0], [0.0]], "the trained weights are at no rise"
    words = [found["surface-scale"].modes[m]["layout"]["xaxis"]["title"]["text"] for m in ("linear", "rise")]
    assert words == ["loss", "rise of the loss"]
    assert next(iter(found["surface-cuts"].modes)) == "rise"
    for trace in found["surface-cuts"].modes["rise"]["data"]:
        assert min(trace["y"]) == 0.0
    alone, _ = by_id(two[:1])
    assert set(alone["surface-3d-0"].modes) == {"linear", "log"}
    assert alone["surface-contour-0"].modes["linear"]["data"][0]["colorbar"]["title"]["text"] == "loss"


def test_legends_name_each_checkpoint_once():
    found, _ = by_id([analysis(f"run{i}", 1 + i) for i in range(3)])
    for plot in ("training-loss", "surface-cuts"):
        traces = found[plot].modes["linear"]["data"]
        assert len(traces) == 6
        assert [t["name"] for t in traces if t["showlegend"]] == ["run0", "run1", "run2"]
        assert len({t["legendgroup"] for t in traces}) == 3
        assert len({t["hovertemplate"] for t in traces}) == 6, "pointing at a line still says which it is"
    alone, _ = by_id([analysis()])
    names = [t["name"] for t in alone["training-loss"].modes["linear"]["data"]]
    assert sorted(names) == ["test", "train"]


def test_many_checkpoints_keep_few_webgl_contexts():
    found, _ = by_id([analysis(f"run{i}", 1 + i) for i in range(12)])
    assert sum(p.three_d for p in found.values()) == surface_plots.SCENES
    assert sum(k.startswith("surface-contour") for k in found) == 12
    assert [s.label for s in found["surface-3d-0"].choices] == [f"run{i}" for i in range(12)]
    few, _ = by_id([analysis(f"run{i}") for i in range(surface_plots.SCENES)])
    assert all(not p.choices for p in few.values())


def test_what_the_eye_gets_between_the_points():
    """Parabolas exactly, to the edge; a spike without an invented dip; nothing where a value is missing."""
    x = np.linspace(-1, 1, 7)
    parts = 5
    fine = grids.refined(x, parts)
    np.testing.assert_allclose(fine, np.linspace(-1, 1, 31), atol=1e-15)
    parabola = (x[:, None] - 0.1) ** 2 + 3 * x[None, :] ** 2 - x[:, None] * x[None, :]
    smooth = grids.refined(grids.refined(parabola, parts).T, parts).T
    expected = (fine[:, None] - 0.1) ** 2 + 3 * fine[None, :] ** 2 - fine[:, None] * fine[None, :]
    np.testing.assert_allclose(smooth, expected, atol=1e-14)
    spike = np.zeros(9)
    spike[4] = 1.0
    assert -0.011 < grids.refined(spike, 10).min() < 0
    np.testing.assert_array_equal(grids.refined(spike, 10)[::10], spike)
    assert [grids.fineness(np.ones((n, n))) for n in (3, 11, 21, 101)] == [1, 9, 5, 1]
    assert grids.fineness(np.where(np.eye(21) > 0, np.nan, 1.0)) == 1


# -- the page --------------------------------------------------------------------------------------------------------


def test_page_is_self_contained_and_small(one, tmp_path):
    path = report.write([one], tmp_path / "report.html", command="landscape analyze ckpt.pt")
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 3e6
    page = Page(text)
    loads = [(t, a) for t, a in page.tags if "src" in a or (t == "link" and not a["href"].startswith("data:"))]
    assert loads == []
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline'; img" in policy
    assert "script-src 'sha256-" in policy
    assert "landscape analyze ckpt.pt" in page.texts
    # All that can be read stands before the drawing library, so that it is painted while that is still being unpacked.
    assert text.index("</main>") < text.index('id="plotly"')
    assert text.index("</main>") < 60_000


def test_every_script_is_allowed_by_its_hash(one):
    text = report.render([one])
    page = Page(text)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    packed = [body for attributes, body in page.scripts if attributes.get("type") == "application/gzip"]
    scripts = [body.encode() for attributes, body in page.scripts if "type" not in attributes]
    scripts += [gzip.decompress(base64.b64decode(body)) for body in packed]
    assert len(scripts) == 3
    assert b"plotly.js v" in scripts[-1][:100]
    for body in scripts:
        assert frame.script_hash(body) in policy


def test_hostile_texts_stay_texts():
    hostile = analysis(
        HOSTILE,
        checkpoint=f"runs/{HOSTILE}.pt",
        metadata={"model": {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}}, "note": "\u2028 <!-- <script>"},
        measures={f"sam_sharpness:{HOSTILE}": sharpness()},
    )
    text = report.render([hostile, analysis("b")], command=f"landscape analyze '{HOSTILE}'")
    page = Page(text)
    assert len(page.scripts) == 4
    assert not [t for t, _ in page.tags if t == "img"]
    assert any(HOSTILE in t for t in page.texts)
    data = next(body for attributes, body in page.scripts if attributes.get("id") == "data")
    assert not set(data) & set("<>&\u2028\u2029")
    assert page.data["summary"]["checkpoints"][0]["label"] == HOSTILE
    names = json.dumps(
        [t.get("name") for p in page.data["plots"].values() for m in p["modes"].values() for t in m["data"]]
    )
    assert "<" not in names


def test_page_shows_the_table_without_scripts(two):
    page = Page(report.render(two))
    texts = " ".join(" ".join(page.texts).split())
    assert "SAM sharpness" in texts
    assert "+0.01" in texts
    assert "Rise of the loss after SAM" in texts
    values = [a["data-value"] for t, a in page.tags if t == "td" and "data-value" in a]
    assert "8.0" in values
    assert "16.0" in values


def test_table_for_spreadsheets_has_full_precision(two):
    lines = Page(report.render(two)).data["table"]
    line = dict(zip(lines[0], next(row for row in lines if row[0] == "sam_sharpness"), strict=True))
    assert line["b"] == pytest.approx(0.02, rel=1e-15)
    assert line["b minus a"] == pytest.approx(0.01, rel=1e-12)
    assert line["b difference error"] == pytest.approx(math.hypot(0.001, 0.001), rel=1e-9)


def test_nan_and_infinity_are_null(one):
    broken = bowl()
    broken.loss[0, 0] = np.nan
    broken.loss[0, 1] = np.inf
    page = Page(report.render([analysis(accuracy=math.nan, surface=broken)]))
    assert page.data["summary"]["checkpoints"][0]["accuracy"] is None
    assert page.data["arrays"]["z0"][0][0] is None
    assert page.data["arrays"]["z0"][1][0] is None


# -- spectra, fields, invariance -------------------------------------------------------------------------------------


def test_measures_with_named_fields_get_a_row_each():
    extremes = Extremes(
        lambda_min=-2.0, lambda_max=8.0, ratio=0.25, bound_min=0.1, bound_max=0.2, hvps=30, converged=True
    )
    found = {r.key: r.cells[0] for r in rows.rows([analysis(measures={"negative_curvature": extremes})])}
    assert found["negative_curvature.lambda_min"].value == -2.0
    assert found["negative_curvature.lambda_min"].error == 0.1
    assert found["negative_curvature.lambda_max"].text == "8.00 ± 0.20"
    assert len(found) == 5


def test_spectral_density_is_drawn_with_its_band():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randint(0, 2, (20,))
    problem = landscape.Problem(model, torch.nn.functional.cross_entropy, [(x, y)])
    density = landscape.MEASURES["spectral_density"](problem, probes=4, steps=8, points=256)
    found, arrays = by_id([analysis(measures={"spectral_density": density})])
    low, high, line = found["spectrum-spectral-density"].modes["linear"]["data"]
    np.testing.assert_allclose(arrays[line["x"][1:]], density.axis, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(arrays[line["y"][1:]], density.density, rtol=1e-5)
    np.testing.assert_allclose(arrays[low["y"][1:]], density.low, rtol=1e-5)
    np.testing.assert_allclose(arrays[high["y"][1:]], density.high, rtol=1e-5)
    decades = found["spectrum-decades-spectral-density"].modes["linear"]["data"]
    assert [t["name"] for t in decades] == ["λ &gt; 0", "λ &lt; 0"]
    np.testing.assert_allclose(arrays[decades[0]["x"][1:]], 10**density.log_axis, rtol=1e-5)
    keys = [r.key for r in rows.rows([analysis(measures={"spectral_density": density})])]
    assert "spectral_density.largest" in keys


def test_layers_are_drawn_with_their_errors():
    class Layers(Result):
        def summary(self):
            return {"layers": {"a.weight": {"values": [3.0], "error_bounds": [0.5]}, "b": {"values": [1.0]}, "c": 2.0}}

    found, _ = by_id([analysis(measures={"layer_eigenvalues": Layers()})])
    (trace,) = found["layers-layer-eigenvalues"].modes[""]["data"]
    assert trace["y"] == ["a.weight", "b", "c"]
    assert trace["x"] == [3.0, 1.0, 2.0]
    assert trace["error_x"]["array"] == [0.5, 0.0, 0.0]


def test_invariance_beside_the_checkpoint_is_shown_for_that_checkpoint_only(tmp_path):
    entry = {"values": [1.0, 1.5], "relative_spread": 0.4, "verdict": "varies"}
    fixed = {"values": [2.0, 2.0], "relative_spread": 0.0, "verdict": "invariant"}
    content = {
        "measures": {"sam_sharpness": entry, "adaptive_sharpness": fixed},
        "outputs": {"max_relative_change": 1e-14},
        "sha256": "ab" * 32,
    }
    (tmp_path / "invariance").mkdir()
    (tmp_path / "invariance" / "invariance.json").write_text(json.dumps(content))
    (shown,) = invariance_tables([analysis(checkpoint=str(tmp_path / "ckpt.pt"))])
    assert [(v.verdict, v.good, v.spread) for v in shown.verdicts] == [
        ("varies", False, "0.4"),
        ("invariant", True, "0"),
    ]
    assert "2 rescalings" in shown.lead
    assert "10⁻¹⁴" in shown.lead
    assert "varies" in Page(report.render([analysis(checkpoint=str(tmp_path / "ckpt.pt"))])).texts
    assert invariance_tables([analysis(checkpoint=str(tmp_path / "ckpt.pt"), sha256="cd" * 32)]) == []
