"""One small network with weights that are not its initial ones, and what reads them from a file."""

import torch
from torch import nn

from landscape import checkpoint
from landscape.checkpoint import Selection


def build():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def trained(make=build, factor=1.5):
    """A network as `make` builds it, with other weights."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = make()
        for i, weight in enumerate(model.parameters()):
            weight.mul_(factor).add_(0.01 * i)
    return model.eval()


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(content, path):
    torch.save(content, path)
    return path


def loaded(make, path, **choice):
    """A new network of `make` with the weights of the file."""
    model = make()
    checkpoint.load_weights(model, checkpoint.contents(path), path, Selection(**choice))
    return model.eval()


def require_equal(model, other):
    """All tensors of one network bitwise as those of the other."""
    state, right = model.state_dict(), other.state_dict()
    assert state.keys() == right.keys()
    for name in right:
        assert torch.equal(state[name], right[name]), name
