"""Models that recompute their activations (non-re-entrant checkpointing): exact, and what of the memory that saves."""

import functools

import pytest
import torch
from live_vectors import LiveVectors
from torch import nn
from torch.utils.checkpoint import checkpoint

import landscape
from landscape.curvature import operators
from landscape.curvature.products.kept_graphs import KeptGraphs

EXAMPLES, WIDTH = 256, 16
ACTIVATION = torch.empty(EXAMPLES, WIDTH, dtype=torch.float64)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def network(checkpointed):
    """Eight blocks; checkpointed as docs/performance.md says, in evaluation mode too."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Block() for _ in range(8)], nn.Linear(WIDTH, 5)).double()
    if checkpointed:
        for block in model[:8]:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    x = torch.randn(EXAMPLES, WIDTH, dtype=torch.float64)
    return landscape.Problem(model, nn.CrossEntropyLoss(), [(x, torch.arange(EXAMPLES) % 5)])


@pytest.fixture(scope="module")
def both():
    return network(False), network(True)


@pytest.mark.parametrize("matrix", ["hessian", "ggn", "fisher", "empirical-fisher"])
@pytest.mark.parametrize("memory", [None, 0])
def test_products_are_those_of_the_plain_model(matrix, memory, both):
    v = torch.randn(both[0].dimension, dtype=torch.float64)
    options = {"memory": memory, "chunk_size": 100}
    plain, again = (operators.build(p, matrix, **options) for p in both)
    for _ in range(2):  # kept graphs are run through again
        torch.testing.assert_close(again.matvec(v), plain.matvec(v), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "work",
    [
        lambda p: p.gradient(),
        lambda p: operators.hessian(p, hvp="differences").matvec(torch.ones_like(p.weights)),
        lambda p: torch.from_numpy(landscape.top_eigenvalues(p, k=2).values),
        lambda p: torch.tensor(landscape.trace(p).value),
        lambda p: torch.tensor(landscape.sam_sharpness(p).value),
    ],
    ids=["gradient", "differences", "eigenvalues", "trace", "sharpness"],
)
def test_measures_are_those_of_the_plain_model(work, both):
    plain, again = map(work, both)
    torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-12)


def held(problem, work):
    work(problem)
    with LiveVectors(ACTIVATION) as live:
        work(problem)
    return live.most


def test_gradients_hold_fewer_activations_and_so_do_products_by_differences(both):
    operator = {p: operators.hessian(p, hvp="differences") for p in both}
    for work in (lambda p: p.gradient(), lambda p: operator[p].matvec(p.weights)):
        plain, again = (held(p, work) for p in both)
        assert again < 0.5 * plain


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_footprint_counts_what_is_computed_again(checkpointed, both):
    problem = both[checkpointed]
    graphs = KeptGraphs(problem, None)
    operator = operators.hessian(problem)
    with LiveVectors(ACTIVATION) as live:
        operator.matvec(problem.weights)
        kept = live.now
    counted = graphs.footprint.bytes(EXAMPLES) / ACTIVATION.nbytes
    # The gradient of L is held once more, beside that of the chunk.
    assert kept - problem.weights.nbytes / ACTIVATION.nbytes <= counted <= kept
