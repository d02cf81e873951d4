"""Loss, gradient and curvature are of one function, whatever the model does without a graph or to its own weights."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from objective_cases import classifier, examples, require_equal
from torch import nn

import landscape
from landscape import InputError, Problem
from landscape.problem.parameters import Parameters, normalizes

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


def data(n=12, inputs=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, inputs, dtype=dtype, generator=generator), torch.randint(3, (n,), generator=generator)


def mlp(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


class Reader(nn.Module):
    """A padded encoder that also reads the padded positions: torch's fast path returns zeros there."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.out = nn.Linear(8, 3)

    def forward(self, ids):
        return self.out(self.encoder(self.embedding(ids), src_key_padding_mask=ids == 0).mean(1))


def test_the_fast_path_of_transformers_is_off():
    model = Reader().double().eval()
    ids, y = torch.randint(1, 11, (12, 7)), torch.arange(12) % 3
    ids[:, 5:], ids[:4, 3:] = 0, 0
    problem = Problem(model, F.cross_entropy, [(ids, y)])
    loss = F.cross_entropy(model(ids), y)  # weights that ask for a gradient never take the fast path
    with torch.no_grad():
        assert abs(float(F.cross_entropy(model(ids), y) - loss)) > 1e-4
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    assert torch.backends.mha.get_fastpath_enabled()
    close(problem.loss(), loss.detach())
    close(problem.losses().mean(), loss.detach())
    close(problem.gradient(), problem.parameters.flatten(gradient))
    assert float(landscape.surface(problem, radius=0.05, grid=3).loss[1, 1]) == pytest.approx(float(loss), rel=1e-9)


class Physics(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.u = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            u = self.u(x)
            return torch.autograd.grad(u.sum(), x, create_graph=True)[0] + u


def test_a_forward_that_differentiates():
    model, x = Physics().double(), torch.linspace(-1, 1, 9, dtype=torch.float64).view(-1, 1)
    for problem in (
        Problem(model, F.mse_loss, [(x, torch.zeros_like(x))]),
        Problem(model, batches=[x], objective=lambda m, b: m(b).square().mean()),
    ):
        close(problem.loss(), model(x).square().mean().detach())
        h, v = 1e-5, torch.linspace(-1, 1, problem.dimension, dtype=torch.float64)
        quotient = (problem.gradient(problem.weights + h * v) - problem.gradient(problem.weights - h * v)) / (2 * h)
        close(problem.hvp(v), quotient, rtol=1e-6, atol=1e-8)
        assert landscape.top_eigenvalues(problem, k=1).converged


def test_a_module_that_computes_something_else_without_a_graph_is_named():
    class Shortcut(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1.0 if torch.is_grad_enabled() else 1.1)

    model = nn.Sequential(nn.Linear(6, 4), Shortcut(4, 3)).double()
    with pytest.raises(InputError, match="'1' computes something else under torch.no_grad"):
        Problem(model, F.cross_entropy, [data()])


def test_modules_that_keep_what_they_computed():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = mlp(), None

        def forward(self, x):
            if self.scale is None:
                self.scale = torch.ones(3, dtype=x.dtype) * 2  # made without a graph, used with one afterwards
            return self.inner(x) * self.scale

    problem = Problem(Caching(), F.cross_entropy, [data()])
    problem.loss()
    assert landscape.top_eigenvalues(problem, k=1).converged


def test_autocast_is_that_of_the_construction():
    model, (x, y) = mlp(torch.float32), data(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = Problem(model, F.cross_entropy, [(x, y)])
        value = F.cross_entropy(model(x), y).detach().double()
    outside = Problem(model, F.cross_entropy, [(x, y)])
    assert float(inside.loss()) == float(value)
    assert float(inside.loss()) != float(outside.loss())
    with torch.autocast("cpu", torch.bfloat16):
        close(
            outside.loss(), F.cross_entropy(copy.deepcopy(model).double()(x.double()), y).detach(), rtol=1e-6, atol=1e-6
        )
    close(inside.loss_and_gradient()[0], value)


def test_attention_that_its_kernels_compute_differently_runs_through_one():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.qkv, self.out = nn.Linear(2, 12), nn.Linear(4, 3)

        def forward(self, x):
            q, k, v = self.qkv(x.view(len(x), 1, 3, 2)).chunk(3, dim=-1)
            return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0].mean(1))

    model, (x, y) = Attention().double(), data()
    problem = Problem(model, F.cross_entropy, [(x, y)])
    assert not problem.evaluator.math_attention  # the kernels agree to rounding: the fast ones stay
    v = torch.ones_like(problem.weights)
    h = 1e-5
    quotient = (problem.gradient(problem.weights + h * v) - problem.gradient(problem.weights - h * v)) / (2 * h)
    close(problem.hvp(v), quotient, rtol=1e-6, atol=1e-8)


# -- models as people have them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["compiled", "in place", "DataParallel", "inside"])
def test_wrappers_are_looked_through(wrap):
    model, batch = mlp(), data()
    plain = Problem(model, F.cross_entropy, [batch])
    wrapped = copy.deepcopy(model)
    if wrap == "compiled":
        wrapped = torch.compile(wrapped, backend="aot_eager")
    elif wrap == "in place":
        wrapped.compile(backend="aot_eager")
    elif wrap == "inside":
        wrapped[0] = torch.compile(wrapped[0], backend="aot_eager")
    else:
        wrapped = nn.DataParallel(wrapped)
    problem = Problem(wrapped, F.cross_entropy, [batch])
    if wrap != "inside":
        assert problem.parameters.names == plain.parameters.names
    close(problem.loss(), plain.loss())
    v = torch.ones_like(plain.weights)
    close(problem.hvp(v), plain.hvp(v))
    close(
        landscape.top_eigenvalues(problem, k=2, tol=1e-8).values, landscape.top_eigenvalues(plain, k=2, tol=1e-8).values
    )


def test_a_compiled_loss():
    model, batch = mlp(), data()
    compiled = torch.compile(F.cross_entropy, backend="aot_eager")
    v = torch.ones(3 * 5 + 4 * 7, dtype=torch.float64)
    close(Problem(model, compiled, [batch]).hvp(v), Problem(model, F.cross_entropy, [batch]).hvp(v))


def test_sparse_embeddings_have_dense_derivatives():
    class Bag(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.out = nn.Embedding(10, 4, sparse=sparse), nn.Linear(4, 3)

        def forward(self, ids):
            return self.out(torch.tanh(self.embedding(ids).mean(1)))

    ids, y = torch.randint(10, (8, 3)), torch.arange(8) % 3
    sparse, dense = (Problem(Bag(s).double(), F.cross_entropy, [(ids, y)]) for s in (True, False))
    close(sparse.gradient(), dense.gradient())
    close(landscape.top_eigenvalues(sparse, k=1).values, landscape.top_eigenvalues(dense, k=1).values)
    assert sparse.model.embedding.sparse


def test_dtypes_are_kept_layer_by_layer():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.norm, self.out = nn.Linear(6, 8).bfloat16(), nn.LayerNorm(8), nn.Linear(8, 3).bfloat16()

        def forward(self, x):
            return self.out(self.norm(self.inner(x.bfloat16()).float()).bfloat16()).float()

    model, (x, y) = Mixed(), data(dtype=torch.float32)
    problem = Problem(model, F.cross_entropy, [(x, y)])
    loss = F.cross_entropy(model(x), y)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    assert problem.weights.dtype == torch.float32
    assert float(problem.loss()) == float(loss)
    assert torch.equal(problem.gradient(), torch.cat([g.float().reshape(-1) for g in gradient]))
    assert float(landscape.surface(problem, radius=0.05, grid=3).loss[1, 1]) == float(loss)
    assert [p.dtype for p in model.parameters()][:3] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert "bfloat16, float32" in problem.notes[0]
    assert landscape.top_eigenvalues(problem, k=1, tol=0.1).values[0] > 0


def test_complex_and_quantized_weights_are_refused():
    model = mlp()
    model[0].extra = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(InputError, match="view_as_real"):
        Problem(model, F.cross_entropy, [data()])


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_normalizations_by_hooks_leave_the_model_as_it_was(norm):
    model, batch = mlp(), data()
    norm(model[0])
    gradients = _gradients(model.eval(), batch)
    before = model[0].weight
    problem = Problem(model, F.cross_entropy, [batch])
    loss = problem.loss()
    close(problem.gradient(), problem.parameters.flatten(gradients))
    assert landscape.top_eigenvalues(problem, k=1).converged
    after = model[0].weight
    assert torch.equal(before, after)
    moved = problem.relocated(problem.weights * 1.1)
    close(moved.loss(), problem.loss(problem.weights * 1.1))
    close(problem.loss(), loss)


def _gradients(model, batch):
    return torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))


class OwnNorm(nn.Module):
    def __init__(self, dim, name="weight"):
        super().__init__()
        self.name = name
        setattr(self, name, nn.Parameter(torch.ones(dim)))

    def forward(self, x):
        return getattr(self, self.name) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class OwnScale(OwnNorm):
    def forward(self, x):
        return getattr(self, self.name) * x


def test_normalizations_of_ones_own_are_seen_by_what_they_do():
    assert normalizes(OwnNorm(4))
    assert normalizes(OwnNorm(4, "g").bfloat16())
    assert not normalizes(OwnScale(4))
    assert not normalizes(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(6, 4), OwnNorm(4, "gain"), OwnScale(4), nn.Linear(4, 3))
    kinds = {slot.name: slot.kind for slot in Parameters.of(model)}
    assert kinds["1.gain"] == "norm"
    assert kinds["2.weight"] == "other"


class ChannelsFirst(nn.Module):
    """ConvNeXt's LayerNorm over the channels of an image, its scale and shift of one of two shapes."""

    def __init__(self, channels, *places):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.full((channels, *places), x)) for x in (1.0, 0.1))

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        return self.scale.view(-1, 1, 1) * x + self.shift.view(-1, 1, 1)


class Grouped(ChannelsFirst):
    """GroupNorm of two groups."""

    def forward(self, x):
        groups = x.reshape(len(x), 2, -1)
        groups = (groups - groups.mean(-1, keepdim=True)) * torch.rsqrt(groups.var(-1, keepdim=True) + 1e-5)
        return self.scale.view(-1, 1, 1) * groups.view(x.shape) + self.shift.view(-1, 1, 1)


class ChannelScale(ChannelsFirst):
    def forward(self, x):
        return self.scale.view(-1, 1, 1) * x.relu()


@pytest.mark.parametrize("places", [(), (1, 1)])
def test_normalizations_over_channels_are_seen_too(places):
    own = [ChannelsFirst(6, *places), Grouped(6, *places), ChannelScale(6, *places)]
    assert [normalizes(module) for module in own] == [True, True, False]
    model = nn.Sequential(nn.Conv2d(2, 6, 3), *own)
    kinds = {slot.name: slot.kind for slot in Parameters.of(model)}
    assert [kinds[f"{i}.scale"] == "norm" for i in (1, 2, 3)] == [True, True, False]


def test_batch_norm_over_one_example_is_refused_in_one_line():
    x, y = data(17)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    singles = list(zip(x.split(8), y.split(8), strict=True))
    with pytest.raises(InputError, match=r"no variance over one example \(batch 2") as raised:
        Problem(model, F.cross_entropy, singles, batch_norm="batch").loss()
    assert "\n" not in str(raised.value)
    Problem(model, F.cross_entropy, singles, batch_norm="recalibrate").loss()  # leaves the short batch out


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_plan_says_what_is_needed():
    problem = Problem(mlp(), F.cross_entropy, [data(100)])
    plan = problem.plan(vectors=20)
    assert (plan.dimension, plan.vectors, plan.chunk_size, plan.chunks) == (43, 20, 100, 1)
    assert plan.vector_bytes == 20 * 43 * 8
    assert 0 < plan.chunk_bytes <= plan.graphs_bytes < plan.free_bytes
    assert "d = 43: 20 vectors" in str(plan)
    plan.require()


def test_chunks_do_not_depend_on_what_is_free_and_what_does_not_fit_is_refused(monkeypatch):
    from landscape.problem import memory

    torch.manual_seed(0)
    x, y = torch.randn(256, 6, dtype=torch.float64), torch.arange(256) % 3
    problem = Problem(mlp(), F.cross_entropy, [(x, y)])
    sizes = problem.plan().chunk_size
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e8)
    assert problem.plan().chunk_size == sizes
    needed = problem.plan().chunk_bytes
    monkeypatch.setattr(memory, "free_memory", lambda device: 0.9 * needed)
    with pytest.raises(InputError, match=r"KiB are free: give chunk_size=\d+"):
        landscape.top_eigenvalues(problem, k=1)
    assert landscape.top_eigenvalues(problem, k=1, chunk_size=8).converged
    monkeypatch.undo()
    with pytest.raises(InputError, match="that does not fit: hold at most"):
        problem.plan(vectors=10**9).require()


# -- derivatives inside of a forward --


def test_a_forward_that_differentiates_without_asking_for_a_graph():
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.u = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x):
            x = x.clone().requires_grad_()
            return torch.autograd.grad(self.u(x).sum(), x, create_graph=True)[0]

    model, x = Slope().double(), torch.linspace(-1, 1, 7, dtype=torch.float64).view(-1, 1)
    problem = Problem(model, F.mse_loss, [(x, torch.zeros_like(x))])
    close(problem.loss(), model(x).square().mean().detach())
    assert not problem.loss().requires_grad
    surface = landscape.surface(problem, radius=0.05, grid=3)
    assert float(surface.loss[1, 1]) == pytest.approx(float(problem.loss()), rel=1e-9)
    assert landscape.sam_sharpness(problem, rho=0.05).value > 0


def test_an_objective_with_an_inner_step_on_the_weights():
    x, y = examples()
    model = classifier()

    def maml(network, batch):
        named = dict(network.named_parameters())
        inner = F.cross_entropy(network(batch[0]), batch[1])
        gradients = torch.autograd.grad(inner, list(named.values()), create_graph=True)
        moved = {k: p - 0.5 * g for (k, p), g in zip(named.items(), gradients, strict=True)}
        return F.cross_entropy(torch.func.functional_call(network, moved, (batch[0],)), batch[1])

    problem = Problem(model, batches=[(x, y)], objective=maml)
    require_equal(problem, model, maml(model, (x, y)))


def test_functorch_inside_of_a_forward():
    class Jacobian(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.u = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x):
            return torch.func.vmap(torch.func.jacrev(lambda z: self.u(z)[0]))(x)

    model, x = Jacobian().double(), torch.linspace(-1, 1, 7, dtype=torch.float64).view(-1, 1)
    require_equal(Problem(model, F.mse_loss, [(x, torch.zeros_like(x))]), model, model(x).square().mean())
