"""Networks as people bring them: every common layer's derivatives against central differences, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape
from landscape import InputError
from landscape.curvature import operators

FEATURES, IMAGES, SEQUENCES = (14, 6), (5, 2, 8, 8), (5, 12, 2)
norms = nn.utils.parametrizations
ACTIVATIONS = {
    **{a.__name__: a for a in (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU)},
    **{a.__name__: a for a in (nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Sigmoid, nn.LogSigmoid)},
    **{a.__name__: a for a in (nn.Hardtanh, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.ReLU6)},
    "GELU tanh": lambda: nn.GELU("tanh"),
    "Softmax": lambda: nn.Softmax(1),
}
IMAGE_LAYERS = {
    "BatchNorm": lambda: nn.BatchNorm2d(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "InstanceNorm": lambda: nn.InstanceNorm2d(4, affine=True),
    "LayerNorm": lambda: nn.LayerNorm([4, 8, 8]),
    "RMSNorm": lambda: nn.RMSNorm([8]),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(2),
    "MaxPool": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "AvgPool": lambda: nn.AvgPool2d(2),
    "AdaptiveMaxPool": lambda: nn.AdaptiveMaxPool2d(3),
    "Upsample bicubic": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "ConvTranspose": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2),
    "dilated": lambda: nn.Conv2d(4, 4, 3, dilation=2),
    "grouped": lambda: nn.Conv2d(4, 4, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "reflection padding": lambda: nn.ReflectionPad2d(1),
}
PARAMETRIZATIONS = {
    "weight norm": norms.weight_norm,
    "weight norm, last dimension": lambda layer: norms.weight_norm(layer, dim=1),
    "weight norm, whole": lambda layer: norms.weight_norm(layer, dim=None),
    "weight norm by hooks": nn.utils.weight_norm,
    "spectral norm": norms.spectral_norm,
    "orthogonal": lambda layer: norms.orthogonal(layer, orthogonal_map="cayley"),
}
LOSSES = {
    "MSE": (nn.MSELoss(), lambda z: z),
    "Huber": (nn.HuberLoss(), lambda z: z),
    "BCE": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), torch.sigmoid),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), lambda z: z.argmax(1)),
    "soft labels": (nn.CrossEntropyLoss(), lambda z: z.softmax(1)),
    "Poisson": (nn.PoissonNLLLoss(), torch.exp),
    "KL": (lambda o, t: F.kl_div(F.log_softmax(o, 1), t, reduction="batchmean"), lambda z: z.softmax(1)),
}


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.out = kind(2, 3, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.inner(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(2, 12), nn.Linear(4, 3), causal

    def forward(self, x):
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)[:, 0].mean(1))


def flat(*middle):
    return nn.Sequential(nn.Linear(6, 4), *middle, nn.Linear(4, 3))


def convolutional(middle):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), middle, nn.Flatten(), nn.LazyLinear(3)).double()
    model(torch.zeros(IMAGES, dtype=torch.float64))
    return model


CASES = {
    **{name: (FEATURES, lambda a=a: flat(a())) for name, a in ACTIVATIONS.items()},
    **{name: (IMAGES, lambda m=m: convolutional(m())) for name, m in IMAGE_LAYERS.items()},
    **{
        name: (FEATURES, lambda p=p: nn.Sequential(p(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 3)))
        for name, p in PARAMETRIZATIONS.items()
    },
    **{kind.__name__: (SEQUENCES, lambda kind=kind: Recurrent(kind)) for kind in (nn.RNN, nn.GRU, nn.LSTM)},
    "attention": (SEQUENCES, lambda: Attention(False)),
    "causal attention": (SEQUENCES, lambda: Attention(True)),
    "scripted": (FEATURES, lambda: torch.jit.script(flat(nn.Tanh()).double())),
    "compiled": (FEATURES, lambda: torch.compile(flat(nn.Tanh()), backend="eager")),
    "wrapped": (FEATURES, lambda: nn.DataParallel(flat(nn.Tanh()))),
}


def problem_of(model, shape, loss=None, target=None):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    y = torch.randn(shape[0], 3, dtype=torch.float64, generator=generator)
    target = (lambda z: z.argmax(1)) if target is None else target
    return landscape.Problem(model.double(), loss or nn.CrossEntropyLoss(), [(x, target(y))])


def require_derivatives(problem):
    """Gradient against differences of the loss, products (plain and over kept graphs) against those of the gradient."""
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(problem.dimension, dtype=torch.float64, generator=generator)
    v, h, w = v / v.norm(), 1e-5, problem.weights
    # Central differences: h^2 and rounding over h leave about 1e-10 of values near 1.
    slope = (problem.loss(w + h * v) - problem.loss(w - h * v)) / (2 * h)
    torch.testing.assert_close(problem.gradient() @ v, slope, rtol=1e-6, atol=1e-9)
    quotient = (problem.gradient(w + h * v) - problem.gradient(w - h * v)) / (2 * h)
    torch.testing.assert_close(problem.hvp(v), quotient, rtol=1e-5, atol=1e-8)
    operator = operators.hessian(problem)
    for _ in range(2):
        torch.testing.assert_close(operator @ v, quotient, rtol=1e-5, atol=1e-8)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_derivatives(name):
    if name == "wrapped" and torch.cuda.is_available():
        pytest.skip("where there are GPUs DataParallel wants the network on the first of them")
    shape, build = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build()
    require_derivatives(problem_of(model, shape))


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_losses(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = flat(nn.Tanh())
    require_derivatives(problem_of(model, FEATURES, *LOSSES[name]))


@pytest.mark.parametrize(
    ("layer", "loss", "operation"),
    [
        (nn.Hardsigmoid(), nn.CrossEntropyLoss(), "hardsigmoid_backward"),
        (nn.Tanh(), nn.MultiMarginLoss(), "multi_margin_loss_backward"),
    ],
)
def test_an_operation_without_second_derivative_is_named(layer, loss, operation):
    problem = problem_of(flat(layer), FEATURES, loss)
    with pytest.raises(InputError, match=operation):
        problem.hvp(problem.weights)


class Reference(nn.Module):
    """Uses a weight by a reference of its own, past the module that holds it."""

    def __init__(self):
        super().__init__()
        self.net = flat(nn.Tanh())
        self.held = list(self.net[0].parameters())

    def forward(self, x):
        return self.net[2](torch.tanh(F.linear(x, *self.held)))


def test_a_weight_that_is_reached_past_its_module_is_refused():
    """Its slot would be filled with other weights in vain: every number at w != w0 was wrong, without a word."""
    with pytest.raises(InputError, match="'net.0.weight' by a reference of its own"):
        problem_of(Reference(), FEATURES)
    x, y = torch.randn(FEATURES), torch.zeros(14, dtype=torch.long)
    model = flat(nn.Tanh())
    held = list(model.parameters())

    def regularized(outputs, targets):
        return F.cross_entropy(outputs, targets) + sum(p.square().sum() for p in held)

    with pytest.raises(InputError, match=r"the model or the loss uses the parameter '\d.\w+' by a reference"):
        landscape.Problem(model, regularized, [(x, y)])
    # Weights that are not part of w may be reached in any way.
    restricted = landscape.Problem(Reference(), nn.CrossEntropyLoss(), [(x, y)], parameters="net.2")
    assert restricted.dimension == 15


def test_a_forward_pass_that_writes_to_its_weights_is_refused():
    """Once it wrote to the caller's vector: L at the same w was another each time."""
    model = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randint(7, (9, 2), generator=torch.Generator().manual_seed(5))
    before = model[0].weight.clone()
    with pytest.raises(InputError, match=r"writes to the parameter '0.weight'.*max_norm"):
        landscape.Problem(model, nn.CrossEntropyLoss(), [(x, torch.arange(9) % 3)])
    assert torch.equal(model[0].weight, before)


def test_a_network_that_differentiates_in_its_forward():
    class Differentiating(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0][:, :3]

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Differentiating()
    x = torch.randn(FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    # Its values need a graph: inference mode, in which losses are computed, has none.
    problem = landscape.Problem(model.double(), nn.CrossEntropyLoss(), [(x, torch.arange(14) % 3)])
    v, h, w = torch.ones(problem.dimension, dtype=torch.float64), 1e-5, problem.weights
    quotient = (problem.gradient(w + h * v) - problem.gradient(w - h * v)) / (2 * h)
    torch.testing.assert_close(problem.hvp(v), quotient, rtol=1e-6, atol=1e-8)


def test_lazy_parameters_are_named():
    with pytest.raises(InputError, match="run one batch through the model first"):
        problem_of(nn.Sequential(nn.LazyLinear(3)), FEATURES)


def test_differences_step_short_of_the_kinks():
    """Central differences of a ReLU network's gradient crossed kinks; once they were reported as converged."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    problem = problem_of(model, (60, 6))
    exact, found = (landscape.top_eigenvalues(problem, k=2, hvp=hvp) for hvp in ("double-backward", "differences"))
    assert found.converged
    # The bounds are of the processes, which start alike; the step's error is 1e-10.
    torch.testing.assert_close(found.values, exact.values, rtol=1e-6, atol=0)
