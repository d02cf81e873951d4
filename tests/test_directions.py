"""Directions: normalization by block and by type, orthogonality, symmetries, eigenvectors, checkpoints, moments."""

import numpy as np
import pytest
import torch
from torch import nn

import landscape
from landscape import InputError, Problem
from landscape.ball.vectors import cosine, norm
from landscape.surfaces.directions.directions import KINDS, directions


def filters(tensor, axis):
    return tensor.transpose(0, axis).reshape(tensor.shape[axis], -1)


class Net(nn.Module):
    """Every type of parameter: convolution, transposed convolution, norms of two kinds, linear, a learned token."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5)
        self.up = nn.ConvTranspose2d(5, 4, 2)
        self.ln = nn.LayerNorm(4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.fc = nn.Linear(4, 3)
        self.deaf = nn.Linear(4, 3, bias=False)
        nn.init.zeros_(self.deaf.weight)

    def forward(self, x):
        x = self.up(torch.relu(self.bn(self.conv(x)))).mean((2, 3))
        return self.fc(self.ln(x) + self.token[0]) + self.deaf(x)


def problem_of(model, dtype=torch.float64, policy="frozen"):
    torch.manual_seed(5)
    images, labels = torch.randn(24, 1, 5, 5, dtype=dtype), torch.randint(0, 3, (24,))
    return Problem(model.to(dtype).eval(), nn.CrossEntropyLoss(), [(images, labels)], batch_norm=policy)


def net(dtype=torch.float64):
    torch.manual_seed(2)
    return problem_of(Net(), dtype)


def small_mlp():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(25, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    images, labels = torch.randn(30, 25).double(), torch.randint(0, 3, (30,))
    return Problem(model, nn.CrossEntropyLoss(), [(images, labels)])


# -- normalized directions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_filter_ratios_are_one_and_the_directions_orthogonal(dtype):
    problem = net(dtype)
    found = directions("filter", problem)
    for vector in found.vectors:
        pieces = dict(zip(problem.parameters.names, problem.parameters.unflatten(vector), strict=True))
        weights = dict(zip(problem.parameters.names, problem.parameters.unflatten(problem.weights), strict=True))
        # The output dimension of a transposed convolution is its second one.
        for name, axis in (("conv.weight", 0), ("up.weight", 1), ("fc.weight", 0)):
            ratio = filters(pieces[name], axis).norm(dim=1) / filters(weights[name], axis).norm(dim=1)
            torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-6, atol=0)
        assert float(pieces["token"].norm() / weights["token"].norm()) == pytest.approx(1, rel=1e-6)
        for name in ("conv.bias", "bn.weight", "bn.bias", "up.bias", "ln.weight", "ln.bias", "fc.bias", "deaf.weight"):
            assert not pieces[name].any(), name
    assert abs(float(cosine(*found.vectors))) < (1e-14 if dtype == torch.float64 else 1e-6)
    for ratios in found.facts["filter_ratios"]:
        assert ratios["min"] == pytest.approx(1, rel=1e-6)
        assert ratios["max"] == pytest.approx(1, rel=1e-6)


def test_layer_ratios_are_one_while_filter_ratios_are_not():
    problem = net()
    found = directions("layer", problem)
    for vector in found.vectors:
        for slot, d, w in zip(
            problem.parameters,
            problem.parameters.unflatten(vector),
            problem.parameters.unflatten(problem.weights),
            strict=True,
        ):
            expected = float(w.norm()) if slot.kind in ("weight", "other") else 0.0
            assert float(d.norm()) == pytest.approx(expected, rel=1e-12), slot.name
    assert found.facts["filter_ratios"][0]["max"] > 1.1
    assert abs(found.facts["cosine"]) < 1e-14


def test_biases_and_norm_parameters_move_on_request():
    problem = net()
    found = directions("filter", problem, biases=True)
    pieces = problem.parameters.unflatten(found.vectors[0])
    weights = problem.parameters.unflatten(problem.weights)
    for slot, d, w in zip(problem.parameters, pieces, weights, strict=True):
        if slot.kind in ("bias", "norm"):
            assert float(d.norm()) == pytest.approx(float(w.norm()), rel=1e-12)
            if w.numel() > 2 and w.any():  # drawn, not a copy of the weights
                assert abs(float(torch.dot(d, w) / (d.norm() * w.norm()))) < 0.999


def test_gaussian_is_one_scale_for_the_whole_vector():
    problem = net()
    found = directions("gaussian", problem)
    for i, vector in enumerate(found.vectors):
        draw = landscape.random.normal(problem.weights, landscape.random.stream(0, f"direction {i}"))
        assert float(norm(vector) / norm(problem.weights)) == pytest.approx(1, rel=1e-12)
        assert float(cosine(vector, draw)) > 0.99
    assert abs(found.facts["cosine"]) < 1e-14
    assert found.facts["norms"] == pytest.approx([1, 1], rel=1e-12)


def test_seed_and_index_alone_decide_a_direction():
    problem = net()
    both, first = directions("filter", problem, seed=7), directions("filter", problem, seed=7, count=1)
    torch.testing.assert_close(both.vectors[0], first.vectors[0], rtol=0, atol=0)
    assert both.fingerprint() == directions("filter", problem, seed=7).fingerprint()
    assert both.fingerprint() != directions("filter", problem, seed=8).fingerprint()
    low = directions("gaussian", net(torch.float32))
    torch.testing.assert_close(low.vectors[1].double(), directions("gaussian", net()).vectors[1], rtol=1e-5, atol=1e-6)


# -- symmetries ------------------------------------------------------------------------------------------------------


def relu_mlp():
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(25, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    torch.manual_seed(5)
    inputs, labels = torch.randn(24, 25).double(), torch.randint(0, 3, (24,))
    return Problem(model, nn.CrossEntropyLoss(), [(inputs, labels)])


def layer_rescaled_mlp(c):
    """Layer 1 times c, layer 2 times 1 / c: the same function, and the second bias stays."""
    problem = relu_mlp()
    with torch.no_grad():
        problem.model[0].weight *= c
        problem.model[0].bias *= c
        problem.model[2].weight /= c
    return Problem(problem.model, nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in problem.batches])


def relief(problem, name="filter"):
    return landscape.surface(problem, name, radius=0.5, grid=5).loss


def test_layer_rescaling_gives_the_same_filter_normalized_surface():
    before, after = relief(relu_mlp()), relief(layer_rescaled_mlp(37.0))
    np.testing.assert_allclose(after, before, rtol=1e-10)
    assert np.abs(relief(layer_rescaled_mlp(37.0), "gaussian") / relief(relu_mlp(), "gaussian") - 1).max() > 1e-2


def test_convolution_before_batch_norm_rescaled_gives_the_same_filter_normalized_surface():
    model, c = net().model, torch.tensor([0.1, 3.0, 8.0, 0.7, 20.0], dtype=torch.float64)
    model.train()
    model(torch.randn(24, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    model.eval()
    before = relief(problem_of(model))
    with torch.no_grad():
        model.conv.weight *= c[:, None, None, None]
        model.conv.bias *= c
        model.bn.running_mean *= c
        model.bn.running_var.copy_(c**2 * (model.bn.running_var + model.bn.eps) - model.bn.eps)
    np.testing.assert_allclose(relief(problem_of(model)), before, rtol=1e-10)


def test_per_unit_rescaling_changes_the_filter_normalized_surface():
    problem = relu_mlp()
    tau = torch.linspace(0.2, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        problem.model[0].weight *= tau[:, None]
        problem.model[0].bias *= tau
        problem.model[2].weight /= tau
    moved = Problem(problem.model, nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in problem.batches])
    assert float(moved.loss()) == pytest.approx(float(relu_mlp().loss()), rel=1e-12)
    assert np.abs(relief(moved) / relief(relu_mlp()) - 1).max() > 1e-3


# -- computed directions ---------------------------------------------------------------------------------------------


def dense_hessian(problem):
    identity = torch.eye(problem.dimension, dtype=torch.float64)
    return torch.stack([problem.hvp(v) for v in identity])


@pytest.mark.parametrize(("name", "columns"), [("hessian", [-1, -2]), ("hessian-ends", [-1, 0])])
def test_hessian_directions_are_eigenvectors(name, columns):
    problem = small_mlp()
    found = directions(name, problem)
    values, vectors = torch.linalg.eigh(dense_hessian(problem))
    for vector, eigenvalue, column in zip(found.vectors, found.facts["eigenvalues"], columns, strict=True):
        assert eigenvalue == pytest.approx(float(values[column]), abs=1e-3 * float(values[-1]))
        assert abs(float(cosine(vector, vectors[:, column]))) > 0.99
        assert float(norm(vector) / norm(problem.weights)) == pytest.approx(1, rel=1e-12)
    # The surface's curvature along an axis is the eigenvalue times the squared unit.
    line = landscape.surface(problem, name, ranges=[(-1e-3, 1e-3)] * 2, grid=3)
    second = (line.loss[2, 1] - 2 * line.loss[1, 1] + line.loss[0, 1]) / (1e-3 * found.facts["weight_norm"]) ** 2
    assert second == pytest.approx(found.facts["eigenvalues"][0], rel=1e-3)


def test_gradient_direction_points_uphill():
    problem = small_mlp()
    found = directions("gradient", problem)
    assert float(cosine(found.vectors[0], problem.gradient())) == pytest.approx(1, rel=1e-12)
    assert abs(found.facts["cosine"]) < 1e-14
    assert found.facts["gradient_norm"] == pytest.approx(float(problem.gradient().norm()))


def test_line_and_plane_through_checkpoints_meet_them():
    problem = small_mlp()
    generator = torch.Generator().manual_seed(0)
    others = [problem.weights + 0.3 * torch.randn(problem.dimension, generator=generator).double() for _ in range(2)]
    line = landscape.surface(problem, "checkpoints", ranges=[(0, 1)], grid=3, dimensions=1, checkpoints=others[:1])
    assert line.loss[2] == pytest.approx(float(problem.loss(others[0])), rel=1e-12)
    assert line.loss[1] == pytest.approx(float(problem.loss((others[0] + problem.weights) / 2)), rel=1e-12)
    found = directions("checkpoints", problem, checkpoints=others)
    assert found.unit == "||w1 - w0||"
    for mark, w in zip(found.marks, [*others, problem.weights], strict=True):
        point = problem.weights + mark[0] * found.vectors[0] + mark[1] * found.vectors[1]
        torch.testing.assert_close(point, w, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.marks[0], torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert float(found.residuals.max()) < 1e-14
    (low, high), (bottom, top) = found.ranges
    assert low < found.marks[:, 0].min()
    assert high > found.marks[:, 0].max()
    assert bottom < found.marks[:, 1].min()
    assert top > found.marks[:, 1].max()
    plane = landscape.surface(problem, "checkpoints", grid=(6, 5), checkpoints=others)
    assert 0.0 in plane.x
    assert plane.marks.shape == (3, 2)


def test_further_checkpoints_are_marked_and_merging_coefficients_known():
    problem = small_mlp()
    generator = torch.Generator().manual_seed(0)
    w = problem.weights
    draws = [torch.randn(problem.dimension, generator=generator).double() for _ in range(3)]
    first, second = w + 0.3 * draws[0], w + 0.2 * draws[1]
    off = 0.1 * draws[2]
    basis = torch.linalg.qr(torch.stack([first - w, second - w], 1)).Q
    off = off - basis @ (basis.T @ off)
    merged = w + 0.4 * (first - w) + 0.7 * (second - w) + off
    plane = landscape.surface(problem, "checkpoints", grid=(6, 5), checkpoints=[first, second, merged])
    assert plane.merging_coefficients(*plane.marks[2]) == pytest.approx((0.4, 0.7), abs=1e-10)
    assert plane.merging_coefficients(*plane.marks[0]) == pytest.approx((1, 0), abs=1e-12)
    assert plane.merging_coefficients(*plane.marks[1]) == pytest.approx((0, 1), abs=1e-12)
    assert plane.residuals[2] == pytest.approx(float(off.norm() / w.norm()), rel=1e-10)
    assert landscape.surface(problem, grid=3).merging_coefficients(0.0, 0.0) is None

    from figures.drawing import surface as drawing
    from figures.page.terminal import surface_text

    text = surface_text("s", plane)
    assert "merged as w0 + a (w1 - w0) + b (w2 - w0): the lowest loss" in text
    assert "w3: a = 0.4, b = 0.7" in text
    (_, figure), *_ = drawing._planes({"s": plane})
    assert {"$w_{1}$", "$w_{2}$", "$w_{3}$"} <= {t.get_text() for t in figure.axes[0].texts}
    line = landscape.surface(problem, "checkpoints", ranges=[(0, 1)], grid=3, dimensions=1, checkpoints=[first, second])
    assert line.merging_coefficients(0.5) == pytest.approx((0.5,))
    assert "merged as w0 + a (w1 - w0): the lowest loss" in surface_text("s", line)


def test_trajectory_is_the_singular_value_decomposition():
    problem = small_mlp()
    generator = torch.Generator().manual_seed(1)
    path = [
        problem.weights + s * torch.randn(problem.dimension, generator=generator).double() for s in (1.0, 0.6, 0.4, 0.1)
    ]
    found = directions("trajectory", problem, checkpoints=[*path, problem.weights])
    rows = torch.stack(path) - problem.weights
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    for k in range(2):
        assert abs(float(cosine(found.vectors[k], right[k]))) == pytest.approx(1, rel=1e-10)
        explained = float(singular[k] ** 2 / (singular**2).sum())
        assert found.facts["variance_explained"][k] == pytest.approx(explained, rel=1e-10)
    off = rows - rows @ right[:2].T @ right[:2]
    expected = torch.cat([off.norm(dim=1), torch.zeros(1).double()]) / problem.weights.norm()
    torch.testing.assert_close(found.residuals, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_optimizer_moments(kind):
    problem = small_mlp()
    model = problem.model
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters) if kind == "adam" else torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    batch = problem.batches.kept[0]
    nn.functional.cross_entropy(model(batch.args[0]), batch.target).backward()
    optimizer.step()
    found = directions("optimizer", problem, optimizer=optimizer.state_dict())
    state = [optimizer.state[p] for p in parameters]
    first = torch.cat([s["exp_avg" if kind == "adam" else "momentum_buffer"].reshape(-1) for s in state])
    assert float(cosine(found.vectors[0], first)) == pytest.approx(1, rel=1e-12)
    if kind == "adam":
        root = torch.cat([s["exp_avg_sq"].reshape(-1) for s in state]).sqrt()
        rest = root - first * torch.dot(root, first) / torch.dot(first, first)
        assert float(cosine(found.vectors[1], rest)) == pytest.approx(1, rel=1e-10)
    surface = landscape.surface(problem, "optimizer", grid=3, optimizer=optimizer.state_dict())
    assert surface.complete


# -- wrong input -----------------------------------------------------------------------------------------------------


def test_wrong_input_is_named():
    problem = small_mlp()
    w = problem.weights
    for name, options, message in (
        ("filtre", {}, "did you mean 'filter'"),
        ("gaussian", {"count": 3}, "1 or 2 directions, received 3"),
        ("trajectory", {}, "needs the weights of other checkpoints"),
        ("trajectory", {"checkpoints": [w + 1]}, "needs 2 earlier checkpoints, received 1"),
        ("trajectory", {"checkpoints": [w + 1, w + 2]}, "do not span 2 directions"),
        ("checkpoints", {"checkpoints": [w + 1]}, "received 1 more"),
        ("checkpoints", {"checkpoints": [w + 1, w + 2]}, "parallel"),
        ("checkpoints", {"checkpoints": [w[:-1], w + 2]}, "checkpoints of one architecture"),
        ("optimizer", {}, "state_dict"),
        ("optimizer", {"optimizer": {"state": {}}}, "holds no moments"),
        ("optimizer", {"optimizer": {"state": {i: {"exp_avg": torch.ones(3)} for i in range(4)}}}, "another network"),
    ):
        with pytest.raises(InputError, match=message):
            directions(name, problem, **options)
    with torch.no_grad():
        for p in problem.model.parameters():
            p.zero_()
    flat = Problem(problem.model, nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in problem.batches])
    with pytest.raises(InputError, match="all zero"):
        directions("gaussian", flat)
    assert len(KINDS) == 9


class LlamaRMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class ChannelsLayerNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        centered = x - x.mean(-1, keepdim=True)
        return self.weight * centered * torch.rsqrt(centered.pow(2).mean(-1, keepdim=True) + 1e-6) + self.bias


@pytest.mark.parametrize("norm", [LlamaRMSNorm, nn.RMSNorm, ChannelsLayerNorm, nn.LayerNorm])
def test_normalizations_written_by_hand_stay_where_those_of_torch_do(norm):
    """Filter directions leave scale and shift of a normalization, whoever wrote it, and move them with biases=True."""
    model = nn.Sequential(nn.Linear(4, 6), norm(6), nn.Linear(6, 3)).double()
    problem = Problem(model, nn.CrossEntropyLoss(), [(torch.randn(8, 4).double(), torch.randint(3, (8,)))])
    for biases in (False, True):
        vector = directions("filter", problem, count=1, biases=biases).vectors[0]
        parts = dict(zip(problem.parameters.names, problem.parameters.unflatten(vector), strict=True))
        assert bool(parts["1.weight"].any()) == biases
        assert parts["0.weight"].any()
