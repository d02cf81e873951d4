"""Rescaling symmetries: verification, hints and wrong input, the rank of the Jacobian, units."""

import copy

import pytest
import torch
import torch.nn.functional as F
from rescaling_cases import Functional, Gated, check, images, settle
from torch import nn
from torch.testing import assert_close

import landscape
from landscape.errors import InputError
from landscape.invariance.rescaling import find
from landscape.invariance.rescaling.units import ANY, Units
from landscape.random import stream
from trainers.models import build_model

# -- verification, hints, bad input --------------------------------------------------------------------------------


def test_a_wrong_hint_is_caught_and_not_used():
    model = settle(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    symmetries = find(model, images(3), hints={"GELU": "homogeneous"})
    assert symmetries.dimension == 5
    assert [b.name for b in symmetries.rejected] == ["0"]
    assert symmetries.rejected[0].residual > 1e-3
    assert "4 rejected" in str(symmetries)
    assert len({n for b in symmetries.blocks for n in b.units}) == 5
    w = symmetries.parameters.read(model)
    moved = symmetries.apply(w, symmetries.sample(stream(0, "t"), 0.5, 1.5)).weights
    changed = {
        s.name: not torch.equal(a, b)
        for s, a, b in zip(symmetries.parameters, *map(symmetries.parameters.unflatten, (w, moved)), strict=True)
    }
    assert changed == {
        "0.weight": False,
        "0.bias": False,
        "2.weight": True,
        "2.bias": True,
        "4.weight": True,
        "4.bias": False,
    }


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(3, 4), Gate(), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.gate(F.relu(self.a(x))))


class Gate(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 0.5 * x


def test_a_branch_on_values_names_the_module_and_the_hint_works():
    model = settle(Branching())
    with pytest.raises(InputError, match=r"module 'gate' \(Gate\).*hints=\{\"gate\": \"opaque\"\}"):
        find(model, images(3))
    assert find(model, images(3), hints={"gate": "opaque"}).dimension == 0
    assert find(model, images(3), hints={"Gate": "homogeneous"}).dimension == 4
    with pytest.raises(InputError, match="the model itself"):
        find(OnTop(), images(3))


@pytest.mark.parametrize(
    "read",
    [
        lambda h: bool(h.any()),
        lambda h: float(h.sum()),
        lambda h: h.detach().numpy(),
        lambda h: h.tolist(),
        lambda h: torch.equal(h, h + 1),
        lambda h: torch.allclose(torch.ones(1).double(), h),
        lambda h: int(h.argmax()),
    ],
)
def test_every_way_to_read_values_is_seen(read):
    def function(h):
        read(h)
        return F.relu(h)

    with pytest.raises(InputError, match="reads the values"):
        find(settle(Functional(function)), images(3))
    # What a network asks of a tensor besides its values is no branch on them.
    fine = Functional(lambda h: F.relu(h) if h.dim() == 2 and len(h) and h.shape[1] == 4 and h.requires_grad else h)
    check(settle(fine), images(3), 4)


@pytest.mark.parametrize("full", [True, False])
def test_a_branch_on_a_mask_among_the_inputs_keeps_the_symmetries(full):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, mask):
            h = F.relu(self.a(x))
            return self.b(h if (mask == 1).all() else h * mask[:, None])

    mask = torch.ones(5, dtype=torch.long)
    mask[0] = int(full)
    model, x = settle(Masked()), torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    found = find(model, (x, mask))
    assert found.dimension == 4
    assert found.residual < 1e-12


class OnTop(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2).double()

    def forward(self, x):
        return self.a(x) if x.mean().item() > 0 else self.a(-x)


class Scripted(nn.Module):
    """Holds compiled code, whose functions do not pass through Python."""

    def __init__(self):
        super().__init__()
        self.compiled = torch.jit.trace(nn.ReLU(), torch.ones(2, 4, dtype=torch.float64))

    def forward(self, x):
        return self.compiled(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_code_that_cannot_be_seen_ends_the_path_and_is_noted():
    model = settle(nn.Sequential(nn.Linear(3, 4), Scripted(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    symmetries = find(model, images(3))
    assert symmetries.dimension == 5
    assert "'1" in symmetries.notes[0]
    assert "could not be followed" in symmetries.notes[0]
    assert find(model, images(3), hints={"Scripted": "homogeneous"}).dimension == 9


def test_bad_input():
    model = settle(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(InputError, match="hint 'transparent'"):
        find(model, images(3), hints={"1": "transparent"})
    symmetries = find(model, images(3))
    with pytest.raises(InputError, match="low=-1"):
        symmetries.sample(stream(0, "x"), -1, 2)
    with pytest.raises(InputError, match="4 positive factors"):
        symmetries.apply(symmetries.parameters.read(model), torch.ones(3))
    with pytest.raises(InputError, match="4 positive factors"):
        symmetries.apply(symmetries.parameters.read(model), -torch.ones(4))
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="nan"):
        find(model, images(3))


def test_the_model_is_left_bit_identical_also_after_an_error():
    for model in (
        settle(build_model("small-cnn", classes=3, input_shape=(1, 8, 8), channels=(2, 3))),
        settle(Branching()),
    ):
        model.train()
        before = copy.deepcopy(model.state_dict())
        x = images(1, 8, 8) if isinstance(model, nn.Sequential) else images(3)
        try:
            symmetries = find(model, x)
            symmetries.apply(symmetries.parameters.read(model), symmetries.sample(stream(0, "x")))
        except InputError:
            pass
        assert model.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_weights_only_is_no_symmetry_of_a_network_with_biases():
    model = settle(build_model("table2-mlp", classes=2, input_shape=(2,)))
    symmetries, x = find(model, images(2)), images(2)
    w = symmetries.parameters.read(model)
    tau = symmetries.sample(stream(0, "x"))
    broken = symmetries.apply(w, tau, weights_only=True).weights
    biases = symmetries.parameters.mask(lambda s: s.kind == "bias", w).bool()
    assert torch.equal(broken[biases], w[biases])
    assert_close(broken[~biases], symmetries.apply(w, tau).weights[~biases], rtol=0, atol=0)
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), [(x, torch.tensor([0, 1, 0]))])
    assert (problem.outputs(broken) - problem.outputs()).abs().max() > 1e-3


def test_float32_model_and_its_dtype():
    model = build_model("small-cnn", classes=3, input_shape=(1, 8, 8), channels=(2, 3))
    symmetries = find(model, images(1, 8, 8).float())
    moved = symmetries.apply(symmetries.parameters.read(model), symmetries.sample(stream(0, "x")))
    assert moved.weights.dtype == torch.float32
    assert {b.dtype for b in moved.buffers.values()} == {torch.float32}


# -- nothing is missed: the rank of the Jacobian -------------------------------------------------------------------


class Joined(nn.Module):
    """A residual block and a concatenation, in fully connected form.

    The branch and the sum end in activations: in h + B h, or in C [h, h + b], a sum of weights could make up for a
    factor, a symmetry that is no rescaling.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(8, 5)
        self.d = nn.Linear(5, 3)

    def forward(self, x):
        h = F.leaky_relu(self.a(x), 0.3)
        h = torch.cat([h, F.leaky_relu(h + F.leaky_relu(self.b(h), 0.2), 0.5)], 1)
        return self.d(F.leaky_relu(self.c(h), 0.1))


NETWORKS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.LeakyReLU(0.4), nn.Linear(5, 4), nn.LeakyReLU(0.2), nn.Linear(4, 3)),
        (3,),
        9,
    ),
    "no bias": (lambda: nn.Sequential(nn.Linear(3, 5, bias=False), nn.LeakyReLU(), nn.Linear(5, 3)), (3,), 5),
    "tanh": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), (3,), 0),
    "joined": (Joined, (3,), 4 + 5),  # the sum ties the two layers of four
    "gate": (Gated, (3,), 8),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)),
        (2, 5, 5),
        3,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 2, groups=4), nn.LeakyReLU(0.3)),
            *(nn.Conv2d(4, 3, 1), nn.LeakyReLU(0.1), nn.Conv2d(3, 2, 2), nn.Flatten()),
        ),
        (2, 4, 4),
        4 + 4 + 3,
    ),
    "grouped": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 2, groups=2), nn.LeakyReLU(0.3), nn.Flatten()),
            nn.Linear(16, 3),
        ),
        (2, 4, 4),
        8,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_symmetry_is_found(name):
    """The function's derivative vanishes along the group's orbits, and for these networks along nothing else.

    Tangent vectors of the group: d w / d log tau. They lie in the kernel of the Jacobian of the outputs over many
    inputs, and its dimension, from singular values, says whether one was missed.
    """
    build, shape, dimension = NETWORKS[name]
    torch.manual_seed(3)
    model = settle(build(), 3)
    x = 3 * images(*shape, n=200)  # many: a unit that never changes sign on them would be linear
    symmetries = check(model, x, dimension)
    layout, w = symmetries.parameters, symmetries.parameters.read(model)

    def outputs(flat):
        state = dict(zip(layout.names, layout.unflatten(flat), strict=True))
        return torch.func.functional_call(model, state, (x,)).reshape(-1)

    jacobian = torch.func.jacrev(outputs)(w)
    values = torch.linalg.svdvals(jacobian)
    small = values < 1e-9 * values[0]
    assert len(w) - int((~small).sum()) == dimension
    assert values[~small].min() > 1e-6 * values[0], "the gap that tells zero from small is too narrow"
    if dimension:  # the factors act in independent directions
        one = torch.eye(dimension, dtype=torch.float64)
        tangents = torch.stack([symmetries.scales(torch.exp(1e-3 * e)) - 1 for e in one], 1)
        assert torch.linalg.matrix_rank(w[:, None] * tangents) == dimension


# -- units ---------------------------------------------------------------------------------------------------------


def solution(units):
    matrix, free = units.solve()
    return {u: dict(zip(free[r.indices].tolist(), r.data.tolist(), strict=True)) for u, r in enumerate(matrix)}


def test_ties_with_signs():
    units = Units()
    a, b = units.fresh(3), units.fresh(3)  # 1..3 and 4..6
    units.tie(b, -a)
    units.tie(a[0], a[1])
    assert solution(units) == {0: {}, 1: {1: 1}, 2: {1: 1}, 3: {3: 1}, 4: {1: -1}, 5: {1: -1}, 6: {3: -1}}
    units.tie(a[2], b[2])  # tau = 1 / tau
    assert units.fixed(a[2:])
    assert not units.fixed(a)
    assert solution(units)[3] == {}


def test_zeros_fit_every_factor():
    units = Units()
    a = units.fresh(2)
    units.tie(a, torch.tensor([ANY, ANY]))
    assert len(units.solve()[1]) == 2
    kept = units.reduce(torch.stack([a, torch.tensor([ANY, 0])]), [0])
    assert kept[0, 0] == 1
    assert units.fixed(kept[0, 1:])


def test_products_are_solved_exactly():
    units = Units()
    a, b, c = (units.fresh(1) for _ in range(3))
    z = units.product(units.product(a, b), c)
    assert len(units.solve()[1]) == 3
    units.tie(z, torch.zeros(1, dtype=torch.int64))  # a b c = 1: two are free
    matrix, free = units.solve()
    assert len(free) == 2
    logs = matrix @ torch.tensor([0.3, -1.1]).numpy()
    assert_close(float(logs[1] + logs[2] + logs[3]), 0.0, rtol=0, atol=1e-15)


def test_names_are_public():
    assert landscape.invariance.rescaling.find is find


class Masked(nn.Module):
    """Branches on token ids, or on what it computes of them with weights."""

    def __init__(self, on_weights):
        super().__init__()
        self.table, self.a, self.b, self.on_weights = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2), on_weights

    def forward(self, ids):
        h = self.a(self.table(ids)).relu()
        read = h.argmax() if self.on_weights else (ids == 0)
        return self.b(h.mean(1)) if bool(read.any()) else self.b(h.amax(1))


def test_a_branch_on_token_ids_is_noted_and_one_on_what_weights_make_of_them_refused():
    ids = torch.tensor([[1, 2, 3], [4, 0, 1]])
    symmetries = find(settle(Masked(False)), ids)
    assert symmetries.dimension == 8
    (note,) = symmetries.notes
    assert note == "the model itself (Masked) reads token ids or a mask: inputs that take another branch were not seen"
    with pytest.raises(InputError, match="reads the values of a tensor"):
        find(settle(Masked(True)), ids)
