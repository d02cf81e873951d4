"""How a run is shown: its figure, and its page."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from report_cases import HOSTILE, Page

from figures.drawing import run as drawing
from figures.page import run as running
from figures.page import run_report
from trainers.run_checkpoints import Stage


@pytest.fixture
def measured():
    """Rows and table of three checkpoints, the trace missing at the second."""
    rows = [
        {
            "sha256": f"ab{s}", "checkpoint": f"step={s}.pt", "step": s, "epoch": None, "samples": 60, "parameters": 32,
            "loss": 1.0 / s, "accuracy": None,
            "measures": {
                "hessian_trace": {"label": "Hessian trace", "value": 2.0 * s, "stderr": 0.5, "cost": {"hvp": 4.0}},
                "hessian_top_eigenvalues": {"values": [3.0, 2.0], "error_bounds": [0.1, 0.2], "hvps": 9},
            },
        }
        for s in (1, 10, 100)
    ]  # fmt: skip
    rows[1]["measures"].pop("hessian_trace")
    stages = [Stage(Path(row["checkpoint"]), row["step"], None) for row in rows]
    return rows, running.as_table(rows, "step", stages, label="r over its steps")


def test_the_figure_has_a_panel_a_measure_with_its_error(measured, styled):
    rows, table = measured
    assert math.isnan(table["hessian_trace"][1])
    loss, trace, top = drawing.draw(table, running.titles(rows), "step").axes
    np.testing.assert_allclose(trace.get_lines()[0].get_xydata(), [[1, 2], [10, math.nan], [100, 200]])
    assert [a.get_title("left") for a in (loss, trace, top)] == ["Loss", "Hessian trace", "Largest Hessian eigenvalues"]
    assert [a.get_yscale() for a in (loss, trace, top)] == ["log", "log", "linear"]
    band = trace.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(2 - 1.96 * 0.5, rel=1e-3)
    assert len(top.get_lines()) == 2
    assert top.get_xlabel() == "step"


def page(measured, **changes):
    rows, table = measured
    facts = {"model": {"name": "mlp"}, "data": {"name": "toy2d"}, "epoch": 3}
    return Page(run_report.render(table, rows, "step", **{"command": "landscape analyze r", "facts": facts, **changes}))


def test_the_report_draws_every_measure_with_its_error(measured):
    shown = page(measured)
    plots = shown.data["plots"]
    assert list(plots) == ["run-loss", "run-hessian-trace", "run-hessian-top-eigenvalues"]
    assert list(plots["run-loss"]["modes"]) == ["log", "linear"], "from 0.01 to 1"
    low, high, line = plots["run-hessian-trace"]["modes"]["linear"]["data"]
    assert (line["x"], line["y"]) == ([1, 10, 100], [2, None, 200])
    np.testing.assert_allclose([low["y"][0], high["y"][0]], [2 - 1.96 * 0.5, 2 + 1.96 * 0.5], rtol=1e-4)
    low, high, line, *second = plots["run-hessian-top-eigenvalues"]["modes"]["linear"]["data"]
    assert (low["y"], high["y"], line["y"]) == ([2.9] * 3, [3.1] * 3, [3.0] * 3)
    assert (line["name"], second[2]["name"]) == ("1", "2")
    texts = " ".join(shown.texts)
    assert "The band is a 95% interval." in texts
    assert "The band is an error bound." in texts


def test_the_report_has_a_row_a_checkpoint(measured):
    shown = page(measured)
    cells = [[a["data-value"] for t, a in shown.tags if t == "td" and a.get("data-name") == name] for name in (
        "Loss", "Accuracy", "Hessian trace", "Largest Hessian eigenvalues, 2",
    )]  # fmt: skip
    assert cells == [["1.0", "0.1", "0.01"], [""] * 3, ["2.0", "", "200.0"], ["2.0"] * 3]
    texts = " ".join(" ".join(shown.texts).split())
    assert "mlp on toy2d" in texts
    assert "epoch 3" not in texts
    assert "landscape analyze r" in texts
    assert "8 hvp" in texts, "of two checkpoints"
    lines = shown.data["table"]
    assert dict(zip(lines[0], lines[3], strict=True))["hessian_trace.stderr"] == 0.5
    assert [row["sha256"] for row in shown.data["summary"]["checkpoints"]] == ["ab1", "ab10", "ab100"]


def test_hostile_names_in_a_run_stay_texts(measured):
    rows, table = measured
    for row in rows:
        row["checkpoint"] = f"{HOSTILE}{row['checkpoint']}"
    table.values["checkpoint"] = np.array([row["checkpoint"] for row in rows])
    shown = page((rows, table), command=HOSTILE, facts={"model": {"name": HOSTILE}})
    assert len(shown.scripts) == 4
    assert not [t for t, _ in shown.tags if t == "img"]
    traces = [t for p in shown.data["plots"].values() for m in p["modes"].values() for t in m["data"]]
    assert "<" not in json.dumps([(t.get("text"), t.get("name")) for t in traces])
