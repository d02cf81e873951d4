"""`landscape report`: what the joined page holds; tests/test_report_browser.py opens it."""

from __future__ import annotations

import json
import re

import pytest
from report_cases import HOSTILE, analysis, eigenvalues, sharpness
from scipy import stats

import cli
from figures.page import joined_report
from landscape import statistics


def trained(label, factor, *, method="sgd", epoch=4, **changes):
    facts = {"method": {"name": method, "arguments": {}}, "epoch": epoch, "settings": {"seed": 0}}
    measures = {"sam_sharpness": sharpness(factor), "hessian_top_eigenvalues": eigenvalues(8 * factor)}
    return analysis(label, measures=measures, surface=None, metadata=facts, **changes)


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


def several():
    losses = [0.1, 0.3, 0.2, 0.5, 0.4, 0.6]
    return [
        trained(f"run-{i}", 1.0 + i, loss=loss, epoch=1 + i % 2, method=("sgd", "sam")[i // 3])
        for i, loss in enumerate(losses)
    ]


def test_any_two_columns_have_their_rank_correlation():
    scatter = data_of(joined_report.render(several()))["scatter"]
    axes = [c["axis"] for c in scatter["columns"]]
    loss, sam = axes.index("Loss"), next(i for i, axis in enumerate(axes) if axis.startswith("SAM sharpness"))
    x, y = (scatter["columns"][i]["values"] for i in (loss, sam))
    assert x == [0.1, 0.3, 0.2, 0.5, 0.4, 0.6]
    text = scatter["correlations"][f"{loss}-{sam}"]
    assert f"Kendall's τ {stats.kendalltau(x, y).statistic:.2f}"[:16] in text
    assert f"Spearman's ρ {stats.spearmanr(x, y).statistic:.2f}" in text
    assert "over 6 checkpoints" in text
    assert len(scatter["correlations"]) == len(axes) * (len(axes) - 1) / 2


def test_the_groups_are_the_methods_and_the_slider_their_epochs():
    scatter = data_of(joined_report.render(several()))["scatter"]
    assert scatter["groups"] == [[0, 1, 2], [3, 4, 5]]
    assert scatter["at"] == [1, 2, 1, 2, 1, 2]
    assert scatter["steps"] == [1, 2]
    assert 'id="scatter-step"' in joined_report.render(several())
    assert 'id="scatter-step"' not in joined_report.render([trained("a", 1.0), trained("b", 2.0)])


def test_few_checkpoints_have_no_rank_correlation():
    scatter = data_of(joined_report.render([trained("a", 1.0), trained("b", 2.0)]))["scatter"]
    assert set(scatter["correlations"].values()) == {"2 checkpoints have both: too few for a rank correlation."}


def test_ranks_with_ties_are_scipys():
    x, y = [1.0, 2.0, 2.0, 3.0, 5.0, 5.0], [2.0, 1.0, 3.0, 3.0, 4.0, 9.0]
    assert statistics.kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert statistics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_a_line_each_and_the_surfaces_that_there_are():
    page = joined_report.render([analysis("with"), trained("without", 2.0)])
    assert page.count('<th scope="row" data-value="') == 2
    assert page.count('id="surface-contour-') == 1
    assert "surface-3d" not in page.split("<script>")[1]


def test_one_analysis_is_enough():
    assert "1 analyses" not in joined_report.render([analysis("alone")])


def test_names_stay_text():
    page = joined_report.render([trained(HOSTILE, 1.0, method=HOSTILE), trained("b", 2.0)])
    assert HOSTILE not in page


def test_the_command(tmp_path, capsys):
    from test_paper_table import kept

    folder = kept(tmp_path / "comparison", trained("sgd", 1.0), trained("sam", 0.5, method="sam"))
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(folder), "--out", str(out)])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    assert "sam is flatter than sgd" in out.read_text()
