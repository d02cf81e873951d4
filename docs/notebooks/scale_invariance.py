# %% [markdown]
# # Scale invariance
#
# Multiply what enters a ReLU unit by τ > 0 and divide what leaves it by τ: the network computes the same. A measure
# that changes is a property of these weights, not of the function.

# %%
import copy

import numpy as np
import torch
from torch import nn

import landscape

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2)).double()
x = torch.randn(60, 2, dtype=torch.float64)
y = (x[:, 0] * x[:, 1] > 0).long()

problem = landscape.Problem(model, nn.CrossEntropyLoss(), [(x, y)])

# %% [markdown]
# ## The symmetries of this network
#
# `find` follows an example through the network and returns every factor that can be moved from one layer to the next:
# one for each hidden unit.

# %%
symmetries = landscape.rescaling.find(model, x)
print(symmetries)
assert symmetries.dimension == 20

# %% [markdown]
# ## Six rescalings
#
# The loss stays to rounding; the weights move far.

# %%
generator = landscape.random.stream(0, "tau")


def rescaled():
    weights = symmetries.apply(problem.weights, symmetries.sample(generator, 0.5, 1.5)).weights
    network = copy.deepcopy(model)
    nn.utils.vector_to_parameters(weights, network.parameters())
    return landscape.Problem(network, nn.CrossEntropyLoss(), [(x, y)])


problems = [rescaled() for _ in range(6)]
for other in problems[:3]:
    distance = (other.weights - problem.weights).norm() / problem.weights.norm()
    print(f"L = {float(other.loss()):.12f} at a distance of {distance:.2f} of the weights' norm")
assert all(abs(other.loss() - problem.loss()) < 1e-12 for other in problems)

# %% [markdown]
# ## Which measure stays?
#
# The relative spread over the six networks, which compute one function:

# %%
measures = {
    "SAM sharpness": lambda p: landscape.sam_sharpness(p, rho=0.05),
    "largest eigenvalue of H": lambda p: landscape.top_eigenvalues(p, k=1),
    "adaptive sharpness, filter-wise": lambda p: landscape.adaptive_sharpness(
        p, rho=0.1, scaling="filterwise", one_step_only=True
    ),
    "adaptive sharpness, element-wise": lambda p: landscape.adaptive_sharpness(p, rho=0.1, one_step_only=True),
    "largest eigenvalue of THT": lambda p: landscape.adaptive_top_eigenvalues(p, k=1),
    "Fisher-Rao norm": lambda p: landscape.fisher_rao_norm(p),
}
spreads = {}
for name, measure in measures.items():
    results = [measure(other) for other in problems]
    values = np.array([r.values[0] if hasattr(r, "values") else r.value for r in results])
    spreads[name] = np.ptp(values) / np.median(values)
    print(f"{name:35} {spreads[name]:.1e}")

# %% [markdown]
# The plain measures and the filter-wise one vary. The last three stay: they can be compared between networks whose
# weights have different scales.

# %%
assert min(list(spreads.values())[:3]) > 0.01
assert max(list(spreads.values())[3:]) < 1e-4

# %% [markdown]
# `landscape invariance ckpt.pt` does this with fifty rescalings and all measures, on your own network.
