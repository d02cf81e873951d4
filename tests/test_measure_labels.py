"""Labels say what was computed: a Gauss-Newton number is never printed as the Hessian's; options show."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from curvature_cases import dense_ggn, dense_hessian
from report_cases import analysis
from torch import nn

import landscape
from figures.drawing import static
from figures.page import plots, report, rows, table

EXACT, GGN = "hessian_trace:method=exact", "hessian_top_eigenvalues:matrix=ggn"


def problem_of(activation):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 3)).double()
    batches = [(torch.randn(12, 6, dtype=torch.float64), torch.randint(0, 3, (12,)))]
    return landscape.Problem(model, nn.functional.cross_entropy, batches)


def measured(activation, label="run"):
    problem = problem_of(activation)
    results = {
        EXACT: landscape.trace(problem, method="exact"),
        GGN: landscape.top_eigenvalues(problem, k=2, matrix="ggn"),
        "spectral_density:matrix=ggn": landscape.spectral_density(problem, matrix="ggn", probes=4, steps=5),
    }
    return problem, analysis(label, measures=results)


def test_the_trace_of_the_gauss_newton_matrix_is_called_so():
    problem, one = measured(nn.Tanh)
    result = one.measures[EXACT]
    np.testing.assert_allclose(result.value, dense_ggn(problem).trace().item(), rtol=1e-8)
    assert abs(result.value / dense_hessian(problem).trace().item() - 1) > 0.05
    assert (result.label, result.matrix) == ("Gauss-Newton trace", "ggn")
    assert result.summary()["label"] == "Gauss-Newton trace"
    assert landscape.trace(problem_of(nn.ReLU), method="exact").label == "Hessian trace"


def test_no_word_of_the_hessian_stands_beside_a_gauss_newton_number():
    _, one = measured(nn.Tanh)
    for row in rows.rows([one])[2:]:
        assert "Gauss-Newton" in row.label
        assert "not of the Hessian" in row.meaning
        assert row.setting.startswith(("method = exact", "k = 2, matrix = ggn", "probes = 4, steps = 5, matrix = ggn"))
    printed = table.text([one])
    assert re.search(r"Gauss-Newton trace +method = exact", printed)
    drawn, _ = plots.plots([one])
    titles = [p.title for p in drawn if p.section in ("curvature", "layers")]
    held = [static.eigenvalues([one]), static.densities([one])]
    titles += [panel.get_title("left") for figure in held for panel in figure.axes]
    plt.close("all")
    assert len(titles) == 6
    assert [t for t in titles if "Gauss-Newton" not in t or "Hessian" in t] == []
    texts = [
        printed,
        json.dumps(one.summary()["measures"]),
        report.render([one]).split("<tbody>")[1].split("</tbody>")[0],
    ]
    for text in texts:
        assert "Gauss-Newton" in text
        assert "Hessian trace" not in text
        assert "Hessian eigenvalue" not in text


def test_numbers_of_two_matrices_share_neither_a_row_nor_a_plot():
    one, other = measured(nn.ReLU, "relu")[1], measured(nn.Tanh, "tanh")[1]
    traces = [r for r in rows.rows([one, other]) if r.key == EXACT]
    assert [r.label for r in traces] == ["Hessian trace", "Gauss-Newton trace"]
    assert [[c is None for c in r.cells] for r in traces] == [[False, True], [True, False]]
    assert [r.differences for r in traces] == [(None, None), (None, None)]
    layers = [p for p in plots.plots([one, other])[0] if p.section == "layers"]
    assert [p.title.partition(",")[0] for p in layers] == ["Hessian trace", "Gauss-Newton trace"]
    assert len({p.id for p in layers}) == 2


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, "Largest Hessian eigenvalue λ₁"),
        ({"which": "SA"}, "Smallest Hessian eigenvalue"),
        ({"matrix": "empirical-fisher"}, "Largest empirical Fisher eigenvalue λ₁"),
    ],
)
def test_labels_of_eigenvalues(options, label):
    assert landscape.top_eigenvalues(problem_of(nn.Tanh), k=1, **options).label == label


def test_a_sentence_is_said_only_of_what_it_is_true_of():
    problem = problem_of(nn.Tanh)
    shown = {
        "sam_sharpness": (landscape.sam_sharpness(problem), "One step of length 0.05"),
        "sam_sharpness:p=inf": (landscape.sam_sharpness(problem, p=float("inf")), "Rise of the loss after"),
        "worst_case_sharpness": (landscape.worst_case_sharpness(problem, scaling="elementwise"), "Largest rise"),
        "hessian_trace": (landscape.trace(problem, scaling="elementwise"), "Sum of the curvatures"),
        "pac_bayes_sigma": (landscape.pac_bayes_sigma(problem, rise=0.25), "raises the loss by 0.25"),
    }
    one = analysis(measures={key: result for key, (result, _) in shown.items()})
    said = {row.key: row.meaning for row in rows.rows([one])}
    for key, (_, words) in shown.items():
        assert words in said[key], key


def test_files_without_labels_still_load(tmp_path):
    import h5py

    result = landscape.trace(problem_of(nn.Tanh), method="exact")
    result.save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        del file["result"].attrs["label"], file.attrs["checksum"]
    old = landscape.load(tmp_path / "old.h5")
    assert (old.label, old.value) == (None, result.value)
    one = analysis(measures={EXACT: old})
    assert rows.rows([one])[2].label == one.summary()["measures"][EXACT]["label"] == "Gauss-Newton trace"


def test_the_axis_of_a_curve_is_in_the_unit_of_the_measure():
    problem, radii = problem_of(nn.Tanh), (0.001, 0.002)
    results = {n: landscape.MEASURES[n](problem, rho=radii) for n in ("keskar_sharpness", "sam_sharpness")}
    drawn = {p.id: p for p in plots.plots([analysis(measures=results)])[0]}
    axes = [
        drawn[f"sharpness-{n}"].modes["linear"]["layout"]["yaxis"]["title"]["text"]
        for n in ("keskar-sharpness", "sam-sharpness")
    ]
    assert axes == ["percent of 1 + loss", "rise of the loss"]
    figure = static.sharpness([analysis(measures=results)])
    assert [panel.get_ylabel() for panel in figure.axes] == axes
    plt.close("all")
