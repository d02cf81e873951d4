"""The local learning coefficient on losses whose coefficient is known, and the verdicts on chains."""

import math
import sys

import numpy as np
import pytest
import torch
from sharpness_cases import first_output, raw, trained
from torch import nn

import landscape
from landscape.errors import InputError
from landscape.langevin import Langevin
from landscape.measures.local_learning_coefficient import _refused

pytest.importorskip("arviz_stats", reason="R-hat by arviz-stats: pip install 'loss-landscape-toolkit[llc]'")


class Powers(nn.Module):
    """K(w) = sum_i w_i^(p_i) / 2, whatever the input."""

    def __init__(self, powers, scale=1.0):
        super().__init__()
        self.w, self.scale = nn.Parameter(torch.zeros(len(powers), dtype=torch.float64)), scale
        self.powers = torch.tensor(powers, dtype=torch.float64)

    def forward(self, x):
        return (self.scale * (self.w**self.powers).sum() / 2).expand(len(x))


def powers(*exponents, n=1000, scale=1.0):
    return landscape.Problem(Powers(exponents, scale), first_output, [(torch.zeros(n, 1), torch.zeros(n))])


@pytest.mark.parametrize("exponents", [(4, 4, 4), (2, 4, 6)])
def test_sum_of_powers(exponents):
    """lambda = sum 1 / p_i at every temperature; with a pull it is less, and `tethered` bounds what is missing."""
    truth, problem = sum(1 / p for p in exponents), powers(*exponents)
    free = landscape.local_learning_coefficient(problem, localization=0.0, batch_size=None, draws=600)
    assert abs(free.value - truth) < 4 * free.stderr
    assert free.stderr < 0.08 * truth
    assert free.refused is None
    assert free.tethered == 0
    assert free.beta == 1 / math.log(1000)
    # Steps that diverge below p = 4's widths, or crawl, would be refused: the pilot has found the curvature.
    assert 0.2 < free.step * 1000 * free.beta < 5
    tight = landscape.local_learning_coefficient(problem, localization=50.0, batch_size=None, draws=300)
    assert tight.value + 4 * tight.stderr < truth
    assert truth < tight.value + tight.tethered + 4 * tight.stderr


def test_a_tethered_bowl_is_half_a_soft_rank():
    problem = powers(2, 2, scale=1.0)
    damping = 0.5  # of curvatures 1
    heat = 1000 / math.log(1000)
    found = landscape.local_learning_coefficient(problem, localization=damping * heat, batch_size=None, draws=600)
    rank = landscape.soft_rank(problem, damping=damping, takeuchi=False, matrix="hessian").value
    assert abs(found.value - rank / 2) < 4 * found.stderr
    # value + tethered is d / 2 in a bowl.
    assert found.value + found.tethered == pytest.approx(1.0, abs=0.15)


class Factors(nn.Module):
    """y = B A x."""

    def __init__(self, inputs, hidden, outputs, rank):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(hidden, inputs, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(outputs, hidden, dtype=torch.float64))
        with torch.no_grad():
            for i in range(rank):
                self.a[i, i] = self.b[i, i] = 1.0

    def forward(self, x):
        return x @ self.a.mT @ self.b.mT


def aoyagi(m, h, n, r):
    """Aoyagi and Watanabe 2005: reduced-rank regression with M inputs, N outputs, H between them, true rank r."""
    if n + r <= m + h and m + r <= n + h and h + r <= m + n:
        odd = (m + h + n + r) % 2
        return (-((h + r) ** 2) - m**2 - n**2 + 2 * (h + r) * (m + n) + 2 * m * n + odd) / 8
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2
    return m * n / 2


@pytest.mark.parametrize(("shape", "rank"), [((3, 1, 2), 1), ((2, 2, 2), 0)])
def test_reduced_rank_regression(shape, rank):
    m, h, n = shape
    x = math.sqrt(m) * torch.eye(m, dtype=torch.float64).repeat(4000, 1)  # mean x x' = 1
    model = Factors(m, h, n, rank)
    y = model(x).detach()
    problem = landscape.Problem(model, lambda o, t: (o - t).square().sum(1) / 2, [(x, y)])
    found = landscape.local_learning_coefficient(
        problem, localization=3.0, step=5e-4, batch_size=256, burn_in=300, draws=700
    )
    truth = aoyagi(m, h, n, rank)
    assert found.refused is None
    # What the pull takes away is a few hundredths here.
    assert abs(found.value - truth) < 4 * found.stderr + 0.05 * truth
    assert found.value < problem.dimension / 2 - 4 * found.stderr


def test_a_step_has_no_bias_on_a_bowl_and_batches_add_their_noise():
    """Variance of the stationary distribution against 1 / U'', in long steps: step x curvature = 2."""
    problem = powers(2, n=100)
    langevin = Langevin(problem, heat=100.0, tether=0.0, batch_size=None, seed=0)
    squares = [langevin.chain(str(c), 0.02, 1600)[0][1][100:] for c in range(4)]
    # 6,000 squares of a normal variable, nearly independent at this step: 1.8% standard error. SGLD: 1 / (1 - 1/2).
    assert np.mean(squares) == pytest.approx(0.01, rel=0.08)


def test_chains_depend_on_their_names_alone():
    _, problem = trained()
    langevin = Langevin(problem, heat=20.0, tether=1.0, batch_size=16, seed=3)
    long, end = langevin.chain("1", 1e-3, 30)
    torch.rand(5)
    short, _ = Langevin(problem, heat=20.0, tether=1.0, batch_size=16, seed=3).chain("1", 1e-3, 20)
    np.testing.assert_array_equal(long[:, :20], short)
    other, _ = langevin.chain("2", 1e-3, 20)
    assert (other[0, 1:] != short[0, 1:]).all()
    assert short[0, 0] == 0.0  # the loss at w* on the same examples is subtracted
    assert end.shape == problem.weights.shape


def test_a_batch_of_the_examples_is_unbiased():
    """Class weights and uneven batches: the mean over batches of the scaled loss is L."""
    _, plain = trained()
    weights = torch.tensor([0.02, 1.0, 9.0], dtype=torch.float64)
    whole = plain.batches.whole()
    problem = landscape.Problem(plain.model, nn.CrossEntropyLoss(weight=weights), [(whole.args[0], whole.target)])
    langevin = Langevin(problem, heat=1.0, tether=0.0, batch_size=4, seed=0)
    values = []
    for t in range(1600):
        part, share = langevin._examples("0", t)
        values.append(share * float(part.loss()))
    error = np.std(values) / 40
    assert abs(np.mean(values) - float(problem.loss())) < 4 * error
    assert error < 0.04 * float(problem.loss())


def test_verdicts():
    generator = np.random.default_rng(0)
    fine = generator.exponential(size=(4, 300))

    def verdict(energies, dimension=20, r_hat=1.0, effective=1000.0, virial=1.0):
        return _refused(energies, float(np.std(energies) / math.sqrt(effective)), r_hat, effective, virial, dimension)

    assert verdict(fine) is None
    assert "disagree" in verdict(fine, r_hat=1.2)
    assert "disagree" in verdict(fine, r_hat=math.nan)
    assert "worth 40 independent" in verdict(fine, effective=40.0)
    assert "no minimum" in verdict(fine - 2)
    assert "steps are too long" in verdict(fine, virial=1.2)
    assert "not filled" in verdict(fine, virial=0.8)
    assert "left the basin" in verdict(fine, dimension=1)
    assert "not finite" in verdict(np.where(fine > 5, np.nan, fine))


def test_where_the_weights_are_no_minimum_the_verdict_is_refused():
    _, problem = trained(steps=0)
    found = landscape.local_learning_coefficient(problem)
    assert found.value < 0
    assert "no minimum" in found.refused
    assert found.summary()["refused"] == found.refused
    said = landscape.MEASURES["local_learning_coefficient"].says(found.summary(), found.loss)
    assert said.startswith("Not to be trusted: the mean loss lies below")
    assert "no minimum" in repr(found)


def test_chains_that_leave_or_blow_up_are_refused():
    blown = landscape.local_learning_coefficient(powers(4, 4), step=50.0, localization=0.0, batch_size=None)
    assert "not finite" in blown.refused
    assert math.isnan(blown.value)

    class Ledge(nn.Module):
        """A shallow dent in a falling slope: the chains fall out of it."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            return (0.05 * (self.w**2 - torch.relu(self.w.abs() - 1) ** 2 * 2)).expand(len(x))

    problem = landscape.Problem(Ledge(), first_output, [(torch.zeros(100, 1), torch.zeros(100))])
    fallen = landscape.local_learning_coefficient(problem, localization=0.0, batch_size=None)
    assert fallen.refused


def test_the_seed_decides_everything():
    _, problem = trained(steps=200)
    first = landscape.local_learning_coefficient(problem, draws=40, burn_in=20, batch_size=32)
    torch.rand(9)
    again = landscape.local_learning_coefficient(problem, draws=40, burn_in=20, batch_size=32)
    np.testing.assert_array_equal(first.energies, again.energies)
    assert (
        landscape.local_learning_coefficient(problem, draws=40, burn_in=20, batch_size=32, seed=1).value != first.value
    )


def test_ignored_examples_are_none():
    model, problem = trained(examples=44)
    x, y = (t[:40] for t in raw(problem)[0])
    more = torch.cat([x, x[:1].expand(400, -1)]), torch.cat([y, torch.full((400,), -100)])
    few, many = (landscape.Problem(model, nn.functional.cross_entropy, [batch]) for batch in ((x, y), more))
    first, second = (
        landscape.local_learning_coefficient(p, draws=20, burn_in=12, step=1e-3, localization=1.0, batch_size=None)
        for p in (few, many)
    )
    assert first.beta == second.beta == 1 / math.log(40)
    np.testing.assert_allclose(second.energies, first.energies, rtol=1e-6)
    with pytest.raises(InputError, match="a draw of 8 of 440 examples holds no label"):
        landscape.local_learning_coefficient(many, step=1e-3, localization=1.0, batch_size=8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"chains": 1}, "chains=1: at least 2"),
        ({"burn_in": 3}, "burn_in=3"),
        ({"draws": 0}, "draws=0"),
        ({"step": 0.0}, "step=0"),
        ({"beta": math.inf}, "beta=inf"),
        ({"localization": -1.0}, "localization=-1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, says):
    _, problem = trained(steps=0)
    with pytest.raises(InputError, match=says):
        landscape.local_learning_coefficient(problem, **arguments)


def test_one_example_has_no_temperature_and_a_missing_library_is_named(monkeypatch):
    with pytest.raises(InputError, match="give beta"):
        landscape.local_learning_coefficient(powers(2, n=1))
    monkeypatch.setitem(sys.modules, "arviz_stats.base", None)
    with pytest.raises(InputError, match=r"pip install 'loss-landscape-toolkit\[llc\]'"):
        landscape.local_learning_coefficient(powers(2))


def test_the_picture_shows_running_means_of_the_chains():
    import matplotlib.pyplot as plt

    found = landscape.local_learning_coefficient(powers(2), draws=40, burn_in=20, batch_size=None)
    axes = found.plot()
    ends = [line.get_ydata()[-1] for line in axes.lines]
    np.testing.assert_allclose(ends, found.chain_values)
    plt.close("all")


def test_a_refused_number_is_none_in_a_row_over_steps():
    """Where no words can stand beside it."""
    _, untrained = trained(steps=0)
    name = "local_learning_coefficient:draws=20,burn_in=20"
    monitor = landscape.Monitor(untrained, every=1, measures=[name])
    monitor.step(0)
    assert math.isnan(monitor.history[0]["local_learning_coefficient"])
    fine = landscape.Monitor(powers(2, 2), every=1, measures=["local_learning_coefficient"])
    fine.step(0)
    assert 0.5 < fine.history[0]["local_learning_coefficient"] < 1.5
