"""Limits in which a method is another, norms of perturbations, and what directions, masks and stores must hold."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from method_cases import Run, context, flat
from oracle_network import examples, network
from torch import nn

from landscape.errors import InputError, InputWarning
from trainers import METHODS, Context
from trainers.methods.rst import MEANS, SCHEDULES

RHO = 0.3

LIMITS = {
    "SAM at rho 0 is SGD": (("sam", {"rho": 0.0}), ("sgd", {})),
    "ASAM at rho 0 is SGD": (("asam", {"rho": 0.0}), ("sgd", {})),
    "GNP at alpha 1 is SAM": (("gnp", {"rho": RHO, "alpha": 1.0}), ("sam", {"rho": RHO})),
    "GNP at alpha 1 is SAM, normalized": (
        ("gnp", {"rho": RHO, "alpha": 1.0, "normalized": True}),
        ("sam", {"rho": RHO}),
    ),
    "GNP at alpha 0 is SGD": (("gnp", {"rho": RHO, "alpha": 0.0}), ("sgd", {})),
    "GSAM at alpha 0 and one radius is SAM": (
        ("gsam", {"rho": RHO, "rho_min": RHO, "alpha": 0.0}),
        ("sam", {"rho": RHO}),
    ),
    "ESAM at beta 1, gamma 1 is SAM": (("esam", {"rho": RHO, "beta": 1.0, "gamma": 1.0}), ("sam", {"rho": RHO})),
    "RST at p 0 is SGD": (("rst", {"rho": RHO, "p": 0.0, "p_schedule": "constant"}), ("sgd", {})),
    "RST at p 1 is SAM": (("rst", {"rho": RHO, "p": 1.0, "p_schedule": "constant"}), ("sam", {"rho": RHO})),
    "RST piecewise1 at p 1 is SGD": (("rst", {"rho": RHO, "p": 1.0, "p_schedule": "piecewise1"}), ("sgd", {})),
    "RST piecewise2 at p 1 is SAM": (
        ("rst", {"rho": RHO, "p": 1.0, "p_schedule": "piecewise2"}),
        ("sam", {"rho": RHO}),
    ),
    "G-RST at alpha 1 is RST": (("g-rst", {"rho": RHO, "alpha": 1.0}), ("rst", {"rho": RHO})),
    "G-RST at p 1 is GNP": (
        ("g-rst", {"rho": RHO, "alpha": 0.7, "p": 1.0, "p_schedule": "constant"}),
        ("gnp", {"rho": RHO, "alpha": 0.7}),
    ),
    "LookSAM at k 1 is SAM": (("looksam", {"rho": RHO, "k": 1}), ("sam", {"rho": RHO})),
    "K-SAM of the whole batch is SAM": (("k-sam", {"rho": RHO, "k": 8}), ("sam", {"rho": RHO})),
    "subset SAM of the whole batch is SAM": (("subset-sam", {"rho": RHO, "s": 1.0}), ("sam", {"rho": RHO})),
    "SSAM at sparsity 0 is SAM": (("ssam", {"rho": RHO, "sparsity": 0.0}), ("sam", {"rho": RHO})),
    "dynamic SSAM at sparsity 0 is SAM": (
        ("ssam", {"rho": RHO, "sparsity": 0.0, "mask": "dynamic"}),
        ("sam", {"rho": RHO}),
    ),
    "SAF at strength 0 is SGD": (("saf", {"strength": 0.0, "start": 0.0, "lag": 1}), ("sgd", {})),
    "SAF before its start is SGD": (("saf", {"start": 1.0, "lag": 1}), ("sgd", {})),
    "MESA at strength 0 is SGD": (("mesa", {"strength": 0.0, "start": 0.0}), ("sgd", {})),
    "MESA before its start is SGD": (("mesa", {"start": 1.0}), ("sgd", {})),
    "AMP at radius 0 is SGD": (("amp", {"radius": 0.0}), ("sgd", {})),
    "friendly SAM at sigma 0 is SAM": (("friendly-sam", {"rho": RHO, "sigma": 0.0}), ("sam", {"rho": RHO})),
    "coupled WSAM is GNP with alpha gamma / (1 - gamma)": (
        ("wsam", {"rho": RHO, "gamma": 0.6, "decoupled": False}),
        ("gnp", {"rho": RHO, "alpha": 0.6 / (1 - 0.6)}),
    ),
    "WSAM at gamma 0 is SGD": (("wsam", {"rho": RHO, "gamma": 0.0}), ("sgd", {})),
    "MSAM at rho 0 is SGD": (("msam", {"rho": 0.0}), ("sgd", {})),
    "random perturbation at sigma 0 is SGD": (("random-perturbation", {"sigma": 0.0}), ("sgd", {})),
    "SAM-ON at rho 0 is SGD": (("sam-on", {"rho": 0.0}), ("sgd", {})),
    "VaSSO at theta 1 is SAM": (("vasso", {"rho": RHO, "theta": 1.0}), ("sam", {"rho": RHO})),
    "VaSSO at rho 0 is SGD": (("vasso", {"rho": 0.0}), ("sgd", {})),
    "functional SAM at rho 0 is SGD": (("functional-sam", {"rho": 0.0}), ("sgd", {})),
    "Eigen-SAM at alpha 0 is SAM": (("eigen-sam", {"rho": RHO, "alpha": 0.0}), ("sam", {"rho": RHO})),
    "Eigen-SAM at rho 0 is SGD": (("eigen-sam", {"rho": 0.0}), ("sgd", {})),
    "LE-SAM at sigma 0 is SGD": (("le-sam", {"sigma": 0.0}), ("sgd", {})),
    "LE-SAM of a large budget is SAM": (
        ("le-sam", {"sigma": 1e6, "rho_max": RHO, "rise": 0.0, "fall": 1.0}),
        ("sam", {"rho": RHO}),
    ),
    "XSAM at alpha 1 is SAM": (("xsam", {"rho": RHO, "alpha": 1.0}), ("sam", {"rho": RHO})),
    "XSAM at rho 0 is SGD": (("xsam", {"rho": 0.0}), ("sgd", {})),
    "flat LoRA at rho 0 is SGD": (("flat-lora", {"rho": 0.0}), ("sgd", {})),
}


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("limit", LIMITS)
def test_limit(limit, norm):
    (name, options), (other, other_options) = LIMITS[limit]
    here, there = Run(name, norm=norm, **options), Run(other, norm=norm, **other_options)
    for _ in range(6):
        torch.testing.assert_close(here.step(), there.step(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(flat(here.model), flat(there.model), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(dict(here.model.named_buffers()), dict(there.model.named_buffers()))


def test_wsam_at_gamma_one_half_is_sam_under_plain_sgd():
    here, there = Run("wsam", rho=RHO, gamma=0.5, momentum=0.0), Run("sam", rho=RHO, momentum=0.0)
    for _ in range(4):
        here.step(), there.step()
        torch.testing.assert_close(flat(here.model), flat(there.model), rtol=1e-12, atol=1e-14)


class WrittenNorm(nn.Module):
    """LayerNorm, not torch's class."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias)


def test_sam_on_counts_a_normalization_written_by_hand():
    """The gradient is that of the same network with torch's class, to the last bit."""
    models = [network("layer"), network("layer")]
    written = [n for n, m in models[1].named_modules() if isinstance(m, nn.LayerNorm)]
    assert written
    for name in written:
        parent, _, child = name.rpartition(".")
        layer = WrittenNorm(models[1].get_submodule(name).weight.numel()).double()
        layer.load_state_dict(models[1].get_submodule(name).state_dict())
        setattr(models[1].get_submodule(parent), child, layer)
    gradients = [Run("sam-on", rho=RHO, model=m).step() for m in models]
    assert torch.equal(*gradients)


def test_sam_on_a_network_of_norms_is_sam():
    models = [nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        for p in model[1].parameters():
            p.requires_grad_(False)
    gradients = [Run(n, rho=RHO, model=m, norm="layer") for n, m in zip(("sam-on", "sam"), models, strict=True)]
    for run in gradients:
        x, y = examples()
        run.method.gradient(run.task.step((x, y), context(0)), run.state)
    for a, b in zip(gradients[0].task.parameters, gradients[1].task.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)


# -- norms of perturbations ----------------------------------------------------------------------------------------

NORMS = {
    "sam": ({}, RHO),
    "gnp": ({}, RHO),
    "gsam": ({"rho_min": RHO}, RHO),
    "looksam": ({"k": 1}, RHO),
    "rst": ({"p": 1.0}, RHO),
    "k-sam": ({"k": 2}, RHO),
    "subset-sam": ({"s": 0.3}, RHO),
    "friendly-sam": ({}, RHO),
    "wsam": ({}, RHO),
    "sam-on": ({}, RHO),
    "esam": ({"beta": 0.6, "gamma": 0.5}, RHO / 0.6),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_perturbation_has_norm_rho(name):
    options, expected = NORMS[name]
    run, found = Run(name, rho=RHO, **options), []
    for t in range(6):
        run.step(where=context(t, progress=1.0))
        found += [e.norm().item() for e in run.epsilon if e.norm() > 0]
    assert len(found) >= 6
    assert found == pytest.approx([expected] * len(found), rel=1e-10)


def test_masked_perturbations_are_shorter_than_rho():
    for mask in ("fisher", "dynamic"):
        run = Run("ssam", norm="layer", rho=RHO, sparsity=0.5, mask=mask)
        for _ in range(4):
            run.step()
            epsilon = run.epsilon[-1]
            assert 0 < epsilon.norm() < RHO
            assert (epsilon == 0).sum() == math.ceil(0.5 * epsilon.numel())


def test_esam_perturbs_whole_tensors():
    run = Run("esam", norm="layer", rho=RHO, beta=0.5, gamma=0.5)
    shares = []
    for _ in range(20):
        run.step()
        pieces = run.epsilon[-1].split([p.numel() for p in run.model.parameters()])
        moved = [bool((piece != 0).any()) for piece in pieces]
        assert all(bool((piece != 0).all()) for piece, m in zip(pieces, moved, strict=True) if m)
        shares.append(sum(moved) / len(moved))
    assert 0.3 < sum(shares) / 20 < 0.7
    assert min(shares) > 0


def test_msam_perturbs_against_the_momentum_and_leaves_the_weights():
    run = Run("msam", rho=RHO)
    run.step()
    assert run.epsilon[0].norm() == 0, "no momentum yet"
    for _ in range(3):
        v = torch.cat([run.optimizer.state[p]["momentum_buffer"].reshape(-1) for p in run.model.parameters()])
        run.step()
        torch.testing.assert_close(run.epsilon[0], -RHO * v / v.norm(), rtol=1e-9, atol=1e-12)


def test_amp_keeps_every_tensor_in_its_ball():
    run = Run("amp", radius=0.05, inner_steps=2)
    for _ in range(4):
        run.step()
        norms = [e.norm().item() for e in run.epsilon[-1].split([p.numel() for p in run.model.parameters()])]
        assert max(norms) <= 0.05 * (1 + 1e-12)
    free, plain = Run("amp", radius=1e9, inner_lr=0.1), Run("sgd")
    gradient = plain.step()
    free.step()
    torch.testing.assert_close(free.epsilon[-1], 0.1 * gradient, rtol=1e-9, atol=1e-12)


def test_amp_clips_the_gradient_of_the_ascent_and_of_the_descent():
    limit = 0.05
    run, plain = Run("amp", radius=1e9, inner_clip=limit), Run("sgd")
    assert plain.step().norm() > limit
    assert run.step().norm().item() == pytest.approx(limit)
    assert run.epsilon[-1].norm().item() == pytest.approx(limit)


def test_asam_is_invariant_under_rescaling():
    """Incoming weights and bias of hidden unit j times tau_j, outgoing over tau_j: the same perturbed loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        tau = torch.rand(6, dtype=torch.float64) + 0.5
    values = {}
    for normalize, eta in (("all", 0.0), ("unperturbed-biases", 0.0), ("weights", 0.01)):
        losses = []
        for factor in (torch.ones_like(tau), tau):
            twin = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
            twin.load_state_dict(model.state_dict())
            with torch.no_grad():
                twin[0].weight.mul_(factor[:, None]), twin[0].bias.mul_(factor), twin[2].weight.div_(factor)
            run = Run("asam", model=twin, rho=0.5, eta=eta, normalize=normalize)
            run.step()
            losses.append(run.loss.values)
        torch.testing.assert_close(losses[0][0], losses[1][0], rtol=1e-12, atol=1e-14)
        values[normalize] = (losses[0][1] - losses[1][1]).abs().max().item()
    assert values["all"] < 1e-12
    assert values["unperturbed-biases"] < 1e-12
    assert values["weights"] > 1e-3, "the authors' variant is not invariant"


# -- LookSAM -------------------------------------------------------------------------------------------------------


def test_looksam_stores_a_direction_orthogonal_to_the_gradient():
    run, seen = Run("looksam", rho=RHO, k=3), []
    for t in range(7):
        probe = Run("sgd", model=network("batch"))
        probe.model.load_state_dict(run.model.state_dict())
        probe.t = t
        clean = probe.step()
        run.step()
        direction = torch.cat([d.reshape(-1) for d in run.state["direction"]])
        seen.append(len(run.loss.weights))
        if t % 3 == 0:
            assert direction.norm() > 1e-3
            assert abs(direction @ clean) < 1e-12 * direction.norm() * clean.norm()
    assert seen == [2, 1, 1, 2, 1, 1, 2]


# -- RST -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_a_probability_with_the_stated_mean(name):
    for p in (0.0, 0.2, 0.5, 0.7, 1.0):
        values = [SCHEDULES[name](p, (t + 0.5) / 10000) for t in range(10000)]
        assert -1e-12 <= min(values) <= max(values) <= 1 + 1e-12
        assert sum(values) / len(values) == pytest.approx(MEANS[name](p), abs=1e-3)


def test_schedules_at_chosen_points():
    at = {name: [round(f(0.25, t), 9) for t in (0.0, 0.5, 1.0)] for name, f in SCHEDULES.items()}
    assert at == {
        "constant": [0.25, 0.25, 0.25],
        "piecewise1": [0.0, 1.0, 1.0],
        "piecewise2": [1.0, 0.0, 0.0],
        "piecewise3": [0.25, 0.25, 0.75],
        "linear1": [0.0, 0.25, 0.5],
        "linear2": [0.25, 0.5, 0.75],
        "trigonometric": [0.25, 0.5, 0.75],
    }
    # The official code's piece ends after the step at p T itself.
    boundary = {n: [SCHEDULES[n](0.25, t / 8) for t in (1, 2, 3)] for n in ("piecewise1", "piecewise2")}
    assert boundary == {"piecewise1": [0.0, 0.0, 1.0], "piecewise2": [1.0, 1.0, 0.0]}
    assert SCHEDULES["linear1"](0.75, 0.0) == 0.5
    assert SCHEDULES["linear1"](0.75, 1.0) == 1.0
    assert SCHEDULES["trigonometric"](0.0, 0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


def test_rst_counts_its_sam_steps_and_warms_up_with_sgd():
    run = Run("rst", p=1.0, p_schedule="constant")
    run.step(where=context(0, warming=True))
    assert len(run.loss.weights) == 1
    run.step(where=context(1))
    assert len(run.loss.weights) == 2
    assert run.method.columns(run.state) == {"sam_steps": 1}


def test_rst_draws_by_seed_and_step():
    """The frequency of SAM steps is p within 4 standard errors; another run of the seed draws alike."""
    runs = [Run("rst", p=0.3, p_schedule="constant") for _ in range(2)]
    n = 200
    for run in runs:
        run.passes = []
        for t in range(n):
            run.step(where=context(t))
            run.passes.append(len(run.loss.weights))
    assert runs[0].passes == runs[1].passes
    assert abs(runs[0].state["sam_steps"] / n - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)


def test_g_rst_regularizes_as_sam_by_default():
    assert METHODS["g-rst"](p=0.25, p_schedule="constant").weight == 4.0
    assert METHODS["g-rst"](p=0.25, p_schedule="linear2").weight == 2.0
    assert METHODS["g-rst"](p=0.0, p_schedule="constant").weight == 1.0
    assert METHODS["g-rst"](p=0.25, alpha=1.5).weight == 1.5


# -- GSAM ----------------------------------------------------------------------------------------------------------


def test_gsam_radius_follows_the_learning_rate():
    method = METHODS["gsam"](rho=0.6, rho_min=0.2)
    radii = [method.radius(Context(lr=lr, lr_min=0.1, lr_max=0.5))[0] for lr in (0.5, 0.3, 0.1)]
    assert radii == pytest.approx([0.6, 0.4, 0.2])
    assert method.radius(Context(lr=0.3, lr_min=0.3, lr_max=0.3)) == (0.6, False)
    assert METHODS["gsam"](rho=0.6).radius(Context(lr=0.1, lr_min=0.1, lr_max=0.5))[0] == pytest.approx(0.3)


def test_gsam_clamps_a_negative_radius_and_says_so_once():
    run = Run("gsam", rho=0.4, rho_min=0.0)
    assert run.method.radius(Context(lr=0.01, lr_min=0.1, lr_max=0.5)) == (0.0, True)
    where = Context(lr=0.01, lr_min=0.1, lr_max=0.5, seed=1)
    with pytest.warns(InputWarning, match="clamped to 0"):
        run.step(where=where)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.step(where=where)


def test_gsam_on_the_clean_gradient_at_alpha_0_is_sgd():
    one, other = Run("gsam", rho=RHO, alpha=0.0, descend="clean"), Run("sgd")
    torch.testing.assert_close(one.step(), other.step(), rtol=1e-12, atol=1e-14)


# -- GNP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "during"),
    [
        ("none", ("gnp", {"rho": RHO, "alpha": 0.6})),
        ("lambda", ("gnp", {"rho": RHO, "alpha": 0.6 / 4})),
        ("r", ("gnp", {"rho": RHO / 4, "alpha": 0.6})),
        ("zero", ("sgd", {})),
    ],
)
def test_gnp_warms_its_penalty_up_with_the_learning_rate(mode, during):
    """In the first quarter of the warm-up, and after it."""
    after = ("gnp", {"rho": RHO, "alpha": 0.6})
    for where, (name, options) in ((context(0, warming=True, warmed=0.25), during), (context(0), after)):
        one, other = Run("gnp", rho=RHO, alpha=0.6, penalty_warmup=mode), Run(name, **options)
        torch.testing.assert_close(one.step(where=where), other.step(where=where), rtol=1e-10, atol=1e-13)
        assert one.task.passes == other.task.passes


# -- ESAM, K-SAM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "gamma", "expected"), [(2, 0.4, 1), (3, 0.5, 1), (8, 0.5, 4), (8, 0.3, 2), (1, 0.1, 1)]
)
def test_esam_descends_on_at_least_one_example(size, gamma, expected):
    run = Run("esam", norm="layer", gamma=gamma)
    gradient = run.step(rows=range(size))
    assert run.loss.sizes[-1] == expected
    assert torch.isfinite(gradient).all()


def test_k_sam_takes_the_largest_losses_and_the_mean_over_them():
    run = Run("k-sam", norm="layer", k=3, rho=0.0)
    x, y = examples()
    losses = nn.functional.cross_entropy(run.model(x[:8]), y[:8], reduction="none")
    expected = torch.autograd.grad(losses.topk(3).values.mean(), list(run.model.parameters()))
    torch.testing.assert_close(run.step(), torch.cat([g.reshape(-1) for g in expected]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(run.reported.loss, losses.mean().detach())


def test_k_sam_of_a_smaller_last_batch():
    run = Run("k-sam", k=6)
    run.step(), run.step(rows=range(4))
    assert run.loss.sizes == [4, 4, 4]
    assert Run("k-sam").step().norm() > 0
    with pytest.raises(InputError, match=r"k = 9 for batches of 8 examples: choose k <= 8"):
        Run("k-sam", k=9).step()
    grouped = Run("k-sam", k=3, group_size=3)
    grouped.step()
    assert grouped.loss.sizes == [3, 3, 3, 3, 3, 3, 2, 2, 2]
    with pytest.raises(InputError, match="k = 4 for batches of 3"):
        Run("k-sam", k=4, group_size=3)


def test_k_sam_above_the_batch_is_refused_before_training():
    run = Run("sgd")
    with pytest.raises(InputError, match="k = 64 for batches of 32"):
        METHODS["k-sam"](k=64).init(run.task, Context(batch_size=32))
