"""What the methods of 2023 to 2026 promise beyond their steps: directions, radii, searches, adapters."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from method_cases import Run, context, flat
from oracle_network import examples, network
from torch import nn

from landscape.ball.vectors import dot
from landscape.errors import InputError
from landscape.random import stream
from trainers import METHODS, Context, MethodOptimizer, Task
from trainers.methods.xsam import _Arc

RHO = 0.3


def norms(run):
    return [e.norm().item() for e in run.epsilon]


# -- VaSSO, LE-SAM -----------------------------------------------------------------------------------------------------


def test_vasso_perturbs_along_a_direction_that_varies_less():
    """The cosine between the directions of two steps is larger than that between SAM's, whose radius it has."""
    cosines = {}
    for name, options in (("sam", {}), ("vasso", {"theta": 0.2})):
        run, directions = Run(name, rho=RHO, **options), []
        for _ in range(8):
            run.step()
            directions.append(run.epsilon[1] / run.epsilon[1].norm())
            assert norms(run) == pytest.approx([0.0, RHO], rel=1e-10)
        cosines[name] = sum(float(a @ b) for a, b in itertools.pairwise(directions)) / 7
    assert cosines["vasso"] > cosines["sam"] + 0.1


def test_le_sam_raises_the_linearized_loss_by_its_budget():
    run, plain = Run("le-sam", sigma=0.02, rho_max=10.0, rise=0.0, fall=1.0), Run("sgd")
    assert (plain.step() @ (run.step(), run.epsilon[1])[1]).item() == pytest.approx(0.02, rel=1e-10)
    bounded = Run("le-sam", sigma=50.0, rho_max=0.1, rise=0.0, fall=1.0)
    bounded.step()
    assert norms(bounded)[1] == pytest.approx(0.1, rel=1e-10)


def test_le_sam_budget_rises_and_falls():
    method = METHODS["le-sam"](rise=0.1, fall=0.6)
    shares = [method.share(t) for t in (0.0, 0.05, 0.1, 0.6, 0.8, 1.0)]
    assert shares == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0], abs=1e-12)
    assert METHODS["le-sam"](rise=0.0, fall=1.0).share(1.0) == 1.0
    with pytest.raises(InputError, match="0 <= rise <= fall <= 1 is needed"):
        METHODS["le-sam"](rise=0.7, fall=0.5)


# -- functional SAM ----------------------------------------------------------------------------------------------------


def test_functional_sam_of_a_linear_network_is_sgd():
    def model():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return nn.Linear(5, 3).double()

    one, other, sam = (Run(m, model=model()) for m in ("functional-sam", "sgd", "sam"))
    for _ in range(3):
        gradient = one.step()
        torch.testing.assert_close(gradient, other.step(), rtol=1e-12, atol=1e-14)
        assert not torch.allclose(gradient, sam.step(), rtol=1e-4)


def test_functional_sam_takes_a_mean_reduced_loss():
    gradients = []
    for loss in (nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss()):
        model, (x, y) = network("layer"), examples()
        task = Task(model, loss)
        METHODS["functional-sam"](rho=RHO).gradient(task.step((x[:8], y[:8]), Context()), {})
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


def test_functional_sam_takes_one_output_an_example():
    """(n,) instead of (n, 1), as binary losses have it."""
    x, y = torch.randn(8, 3), torch.rand(8)
    gradients = []
    for flattened in (True, False):
        torch.manual_seed(0)
        layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), *([nn.Flatten(0)] if flattened else [])]
        targets = y if flattened else y[:, None]
        task = Task(
            nn.Sequential(*layers), lambda z, t: F.binary_cross_entropy_with_logits(z, t, reduction="none").view(-1)
        )
        METHODS["functional-sam"](rho=RHO).gradient(task.step((x, targets), Context()), {})
        gradients.append(torch.cat([p.grad.flatten() for p in task.parameters]))
    torch.testing.assert_close(*gradients)


def test_functional_sam_needs_a_loss_of_the_outputs():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 3).double()

        def forward(self, x, labels):
            logits = self.inner(x)
            return {"loss": F.cross_entropy(self.inner(x), labels), "logits": logits}

    class Output(dict):
        loss = property(lambda self: self["loss"])
        logits = property(lambda self: self["logits"])

    model = Own()
    model.forward = lambda x, labels, forward=model.forward: Output(forward(x, labels))
    x, y = examples()
    step = Task(model, None).step({"x": x[:8], "labels": y[:8]}, Context())
    with pytest.raises(InputError, match="functional-sam takes the loss's slope at the logits"):
        METHODS["functional-sam"]().gradient(step, {})


# -- Eigen-SAM ---------------------------------------------------------------------------------------------------------


def batch_hessian(model, x, y):
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    sizes = [s.numel() for s in shapes]

    def loss(w):
        named = {n: p.view(s) for n, p, s in zip(names, w.split(sizes), shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (x,)), y)

    return torch.autograd.functional.hessian(loss, flat(model))


def test_eigen_sam_finds_the_top_eigenvector_and_turns_towards_it():
    run = Run("eigen-sam", norm="layer", rho=RHO, alpha=0.5, every=1, power_steps=200)
    x, y = examples()
    values, vectors = torch.linalg.eigh(batch_hessian(run.model, x[:8], y[:8]))
    top = vectors[:, values.abs().argmax()]
    gradient = Run("sgd", norm="layer").step()
    run.step()
    found = torch.cat([v.reshape(-1) for v in run.state["eigenvector"]])
    assert abs(found @ top) > 0.999  # differences of gradients over 0.01
    turned = run.epsilon[-1] / run.epsilon[-1].norm()
    unit = gradient / gradient.norm()
    assert abs(turned @ found) > abs(unit @ found) + 0.05
    across = (1 - (unit @ found) ** 2).sqrt().item()
    assert norms(run)[-1] == pytest.approx(RHO * math.sqrt(1 + 0.25 * across**2), rel=1e-10)


def test_eigen_sam_turns_uphill_whatever_the_sign_of_the_eigenvector():
    runs = [Run("eigen-sam", norm="layer", rho=RHO, alpha=0.5) for _ in range(2)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        vector = [torch.randn_like(p) for p in runs[0].model.parameters()]
    for run, sign in zip(runs, (1, -1), strict=True):
        run.state.update(eigenvector=[sign * v for v in vector], age=1)
    torch.testing.assert_close(runs[0].step(), runs[1].step(), rtol=1e-12, atol=1e-14)
    gradient, flat_vector = Run("sgd", norm="layer").step(), torch.cat([v.reshape(-1) for v in vector])
    turned = runs[0].epsilon[-1] - RHO * gradient / gradient.norm()
    assert (turned @ flat_vector).item() * (gradient @ flat_vector).item() > 0


def test_eigen_sam_goes_on_from_the_eigenvector_before():
    run, passes = Run("eigen-sam", every=3, power_steps=2), []
    for _ in range(7):
        run.step()
        passes.append(len(run.loss.weights))
    assert passes == [4, 2, 2, 4, 2, 2, 4]


# -- XSAM --------------------------------------------------------------------------------------------------------------


def test_xsam_searches_once_an_epoch_for_the_highest_point():
    run = Run("xsam", norm="layer", rho=RHO, rho_max=0.5, alpha_max=1.0, alpha_step=0.25)
    alphas, passes = [], []
    for _ in range(4):  # two steps per epoch
        run.step()
        alphas.append(float(run.state["alpha"][0]))
        passes.append(len(run.loss.weights))
        heights = [v.mean().item() for v in run.loss.values[2:]]
        if len(heights):
            assert alphas[-1] == 0.25 * heights.index(max(heights))
            assert norms(run)[2:] == pytest.approx([0.5] * 5, rel=1e-10)
    assert passes == [7, 2, 7, 2]
    assert alphas[0] == alphas[1]
    assert alphas[2] == alphas[3]


def test_xsam_of_parallel_gradients_is_finite():
    """The cosine of a vector with itself is rounded to above 1 for some, and has no arccos there."""
    generator = torch.Generator().manual_seed(0)
    vectors = (torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(1000))
    units = ([v / v.norm()] for v in vectors)
    unit = next(u for u in units if dot(u, u) > 1)
    torch.testing.assert_close(_Arc(unit, unit).at(0.3, 2.0), [2.0 * unit[0]])
    run = Run("xsam", rho=0.0, alpha=0.3)
    for _ in range(4):
        assert torch.isfinite(run.step()).all()


# -- adapters ----------------------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, under the names of peft's LoRA layers."""

    def __init__(self, inputs, outputs, rank=2, scale=0.5):
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs).double().requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, bias=False).double()})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, bias=False).double()})
        self.active_adapters, self.scale = ["default"], scale

    def get_delta_weight(self, name):
        return self.scale * self.lora_B[name].weight @ self.lora_A[name].weight

    def forward(self, x):
        return self.base_layer(x) + self.scale * self.lora_B["default"](self.lora_A["default"](x))


def adapted():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        return nn.Sequential(Adapted(5, 6), nn.Tanh(), Adapted(6, 3))


def test_flat_lora_perturbs_the_weights_below_the_adapters():
    """The gradient at the noise that the formula gives, of the adapters alone; the base is there again to the bit."""
    model, twin, (x, y) = adapted(), adapted(), examples()
    method, where = METHODS["flat-lora"](rho=RHO), context(3, progress=0.4)
    before = [m.base_layer.weight.clone() for m in (model[0], model[2])]
    step = Task(model, nn.CrossEntropyLoss(reduction="none")).step((x[:8], y[:8]), where)
    method.gradient(step, {})
    generator = stream(where.seed, "flat-lora:3")
    sigma = RHO * (1 - math.cos(0.4 * math.pi)) / 2
    for layer in (twin[0], twin[2]):
        weight = layer.base_layer.weight
        merged = weight + layer.get_delta_weight("default")
        z = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.data += sigma * z * merged.norm(dim=1, keepdim=True) / math.sqrt(weight.shape[1])
    F.cross_entropy(twin(x[:8]), y[:8]).backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (not mine.requires_grad)
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-13)
    assert [torch.equal(a, m.base_layer.weight) for a, m in zip(before, (model[0], model[2]), strict=True)] == [
        True
    ] * 2
    assert not torch.equal(before[0], twin[0].base_layer.weight)


def test_flat_lora_is_refused_on_quantized_weights():
    model = adapted()
    model[0].base_layer.weight = nn.Parameter(torch.zeros(6, 5, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="adds noise to the weights below the adapters, and one is of torch.int8"):
        METHODS["flat-lora"]().init(Task(model, nn.CrossEntropyLoss(reduction="none")), Context())


@pytest.mark.parametrize("name", ["sam", "asam", "vasso", "eigen-sam", "flat-lora"])
def test_methods_in_ones_own_loop_train_adapters_alone(name):
    """SAM's ball is that of the trained parameters: the ascent leaves the frozen network where it is."""
    model, (x, y) = adapted(), examples()
    trained = [p for p in model.parameters() if p.requires_grad]
    start, seen = [p.detach().clone() for p in model.parameters()], []
    optimizer = MethodOptimizer(torch.optim.SGD(trained, lr=0.1), METHODS[name](rho=RHO), model, total_steps=4)

    def closure():
        optimizer.zero_grad()
        seen.append([p.detach().clone() for p in model.parameters()])
        loss = F.cross_entropy(model(x[:8]), y[:8])
        loss.backward()
        return loss

    optimizer.step(closure), optimizer.step(closure)
    frozen = [i for i, p in enumerate(model.parameters()) if not p.requires_grad]
    for i, (before, p) in enumerate(zip(start, model.parameters(), strict=True)):
        assert torch.equal(before, p) == (i in frozen)
    moved = any(not torch.equal(start[i], pass_[i]) for pass_ in seen for i in frozen)
    assert moved == (name == "flat-lora")
