"""The documentation's tables of all methods: ratios paired by seed, what was not reached, what is significant."""

import numpy as np
import pytest

from docs import method_table
from figures.study.figure_data import FigureData


@pytest.fixture
def numbers():
    found = FigureData(facts={"level": 0.2})
    for name, values in (
        ("method", ["sgd", "sam"]),
        ("seed", [0, 1, 2]),
        ("when", ["end", "level"]),
        ("radius", [0.05]),
    ):
        found.axis(name, values)
    axes = ("method", "seed", "when")
    found.add("test_accuracy", axes[:2], [[0.80, 0.82, 0.81], [0.82, 0.84, 0.83]])
    found.add("train_loss", axes, [[[0.1, 0.19]] * 3, [[0.2, 0.18], [0.4, np.nan], [0.3, 0.18]]])
    # Halved in every seed, whatever SGD's value: an unpaired interval would hold 1.
    sharpness = np.array([[1.0, 9.0], [2.0, 9.0], [8.0, 9.0]])
    found.add("sam_sharpness", (*axes, "radius"), np.stack([sharpness, sharpness / 2])[..., None])
    found.add("first_order", (*axes, "radius"), np.stack([sharpness, sharpness / 8])[..., None])
    found.axis("sgd_epochs", [1, 2])
    loss = np.array([[1.0, 0.1], [1.0, 0.1], [1.0, 0.1]])
    found.add("sgd_loss", ("seed", "sgd_epochs"), loss)
    found.add("sgd_sam_sharpness", ("seed", "sgd_epochs", "radius"), 10 * loss[..., None] ** 2)
    there = np.array([[5.0, 4.0], [5.0, np.nan], [5.0, 4.0]])
    found.add("sgd_hessian_top_eigenvalue", ("seed", "sgd_epochs"), there)
    eigenvalue = np.array([[4.0, 4.0], [4.0, 4.0], [4.0, 4.0]])
    there = np.array([[2.0, 4.0], [4.0, np.nan], [8.0, 4.0]])
    found.add("hessian_top_eigenvalue", axes, np.stack([eigenvalue, there]))
    return found


def test_ratios_are_paired_by_seed(numbers):
    header, rule, sgd, sam = method_table.matched_loss(numbers).split("\n")
    cells = [cell.strip() for cell in sam.strip("|").split("|")]
    # 2 points more in every seed; half the sharpness in every seed; an eigenvalue of 1/2, 1 and 2 times SGD's.
    assert cells[:5] == ["SAM", "0.300", "83.0 [80.5, 85.5]", "**2.0 [2.0, 2.0]**", "**0.50 [0.50, 0.50]**"]
    assert cells[5] == "0.25"
    half = np.exp(4.302653 * np.log(2) / np.sqrt(3))  # Student's t for three seeds; ln 2 is the standard deviation
    assert cells[6] == f"1.00 [{1 / half:.2f}, {half:.2f}]"
    # SGD's sharpness is 10 times its loss squared: 0.4, 1.6 and 0.9 at SAM's losses 0.2, 0.4 and 0.3.
    expected = np.array([0.5, 1.0, 4.0]) / [0.4, 1.6, 0.9]
    assert cells[7].startswith(f"{np.exp(np.log(expected).mean()):.2f} [")
    assert cells[8] == "2 of 3 seeds"
    assert sgd.count("|") == rule.count("|") == header.count("|") == sam.count("|")


def test_label_noise_has_a_table_each(capsys, tmp_path):
    found = FigureData()
    for name, values in (("method", ["sgd", "sam"]), ("noise", [0.0, 0.4]), ("seed", [0, 1])):
        found.axis(name, values)
    ones = np.ones((2, 2, 2))
    for name in ("test_accuracy", "train_loss", "sam_sharpness", "hessian_top_eigenvalues"):
        found.add(name, ("method", "noise", "seed"), ones * np.array([1.0, 0.5])[:, None, None])
    found.save(tmp_path / "all-methods.h5")
    method_table.main([str(tmp_path / "all-methods.h5")])
    printed = capsys.readouterr().out
    assert "0% label noise:" in printed
    assert "40% label noise:" in printed
    assert printed.count("**0.50 [0.50, 0.50]**") == 4


def test_variants_are_compared_with_sgd_of_the_same_length(tmp_path, monkeypatch, capsys):
    from docs import variants
    from figures.study.study import Study

    chosen = [variants.Variant("sam", {"rho": 0.5})]
    monkeypatch.setattr(variants, "DIGITS", chosen)
    arguments = ["variants", "--out", str(tmp_path), "--epochs", "1", "2", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    variants.main()
    lines = capsys.readouterr().out.strip().split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:2] for row in cells[2:]] == [["SAM, rho 0.5", "1"], ["SAM, rho 0.5", "2"]]
    assert len({len(row) for row in cells}) == 1
    study, found = Study(tmp_path / "study", "quick"), {}
    for method, own in (("sam", {"rho": 0.5}), ("sgd", {})):
        for seed in (0, 1):
            run = variants.training(study, variants.Variant(method, own, {"epochs": 2}), seed, images=False)
            assert run.settings["epochs"] == 2
            assert study.done(run)
            found[method, seed] = study.result(variants.computation(study, run, images=False))["eigenvalue"][0]
    ratio = np.sqrt(found["sam", 0] * found["sam", 1] / (found["sgd", 0] * found["sgd", 1]))
    assert cells[3][cells[0].index("λmax / SGD's")].strip("*").startswith(f"{ratio:.2f} [")


def test_equal_loss_is_found_between_two_lengths():
    from figures.paper.matched_loss import at_equal_loss

    # The measure is the square of the loss all along; the loss rises once in between.
    loss = np.array([2.0, 0.5, 0.8, 0.2, 0.1])
    for at in (0.7, 0.2, 0.15):
        np.testing.assert_allclose(at_equal_loss(loss, loss**2, at), at**2)
    assert np.isnan([at_equal_loss(loss, loss**2, x) for x in (3.0, 0.05)]).all()


def test_shorter_runs_end_like_the_whole_one():
    from figures.paper.matched_loss import shorter
    from figures.study.tasks import Training

    run = Training("sgd", {}, {"epochs": 15, "lr": 0.1, "keep_every": 3, "seed": 2})
    found = shorter(run)
    assert [t.settings["epochs"] for t in found] == [2, 3, 5, 8, 10, 15]
    assert found[-1] is run
    for t in found[:-1]:
        # No schedule of the whole run is left in it: its own ends with it.
        assert t.settings == {**run.settings, "epochs": t.settings["epochs"], "keep_every": t.settings["epochs"]}


def test_the_picture_shows_both_comparisons():
    """Black: SGD of the same length; orange: SGD runs of the same loss, whose sharpness is known in closed form."""
    import matplotlib.pyplot as plt

    from figures import FIGURES

    found, radii = FigureData(facts={"level": 0.2}), np.array([0.05, 0.1, 0.2])
    axes = {
        "method": ["sgd", "sam"],
        "seed": [0, 1, 2],
        "when": ["end", "level"],
        "radius": radii,
        "sgd_epochs": [1, 2],
    }
    for name, values in axes.items():
        found.axis(name, values)
    loss = np.array([[0.1, 0.1, 0.1], [0.2, 0.4, 0.3]])
    found.add("test_accuracy", ("method", "seed"), [[0.80, 0.82, 0.81], [0.82, 0.84, 0.83]])
    found.add("train_loss", ("method", "seed", "when"), np.stack([loss, loss], axis=-1))
    ends = np.stack([np.ones(3), [0.5, 2.0, 0.25]])[..., None, None] * np.ones((2, 3, 2, 3))
    found.add("sam_sharpness", ("method", "seed", "when", "radius"), ends)
    found.add("hessian_top_eigenvalue", ("method", "seed", "when"), ends[..., 0])
    shorter = np.tile([1.0, 0.1], (3, 1))
    found.add("sgd_loss", ("seed", "sgd_epochs"), shorter)
    found.add("sgd_sam_sharpness", ("seed", "sgd_epochs", "radius"), radii * shorter[..., None] ** 2)
    found.add("sgd_hessian_top_eigenvalue", ("seed", "sgd_epochs"), 7 * shorter)
    entry = FIGURES["matched-loss"]()
    figure = entry.draw(found)

    def mean(ratio):
        return np.exp(np.log(ratio).mean())

    one = np.array([0.5, 2.0, 0.25])
    expected = [one / (r * loss[1] ** 2) for r in (0.05, 0.2)] + [one / (7 * loss[1])]
    for panel, same_loss in zip(figure.axes[2:5], expected, strict=True):
        black, orange = (container[0].get_xdata() for container in panel.containers)
        np.testing.assert_allclose(black, [mean(one)])
        np.testing.assert_allclose(orange, [mean(same_loss)])
    np.testing.assert_allclose(figure.axes[0].containers[0][0].get_xdata(), [2.0])
    np.testing.assert_allclose(figure.axes[1].containers[0][0].get_xdata(), [mean(loss[1])])
    plt.close(figure)
    sharp, curved = entry.judge(found)
    for claim, same_loss in ((sharp, expected[0]), (curved, expected[2])):
        assert claim.ours.value == pytest.approx(np.log(one).mean())
        assert f"beside SGD runs of its loss: {np.log(same_loss).mean():+.2f} [" in claim.note
