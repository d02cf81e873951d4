# %% [markdown]
# # My own training loop
#
# A `Monitor` measures curvature and sharpness while your loop runs, and changes nothing of it. A `MethodOptimizer`
# puts a sharpness-aware method into the loop.

# %%
import copy

import torch
from matplotlib import pyplot
from torch import nn

import landscape
from trainers import METHODS, MethodOptimizer

torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, :3] + 0.5 * torch.randn(512, 3)).argmax(dim=1)
start = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))


# %% [markdown]
# ## The loop
#
# A plain one. `watch(step)` is called before every step, and `method` is None for plain SGD.


# %%
def loop(model, watch, method=None, steps=121):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if method is not None:
        optimizer = MethodOptimizer(optimizer, method, model)
    for step in range(steps):
        watch(step)
        batch = torch.randint(len(x), (64,))

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            return loss

        optimizer.step(closure)


# %% [markdown]
# ## Watched and unwatched
#
# The Problem says which loss is measured: these examples, in evaluation mode. The Monitor measures every 40 steps.
# The weights of the watched training are bit for bit those of the other one.


# %%
def watched(method=None):
    model = copy.deepcopy(start)
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), [(x[:256], y[:256])])
    monitor = landscape.Monitor(problem, every=40, measures=["lambda_max", "sharpness:rho=0.1"])
    loop(model, monitor.step, method)
    return model, monitor


alone = copy.deepcopy(start)
loop(alone, lambda step: None)
model, sgd = watched()
assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), model.parameters(), strict=True))
print(sgd)

# %% [markdown]
# ## With SAM
#
# The method is wrapped around the same optimizer; the closure is called once per pass.

# %%
_, sam = watched(METHODS["sam"](rho=0.1))
for row, other in zip(sgd.history, sam.history, strict=True):
    print(f"step {row['step']:4}: lambda_max {row['lambda_max']:6.2f} with SGD, {other['lambda_max']:6.2f} with SAM")

# %%
figure, axes = pyplot.subplots()
for name, monitor in (("SGD", sgd), ("SAM", sam)):
    axes.plot([r["step"] for r in monitor.history], [r["lambda_max"] for r in monitor.history], label=name)
axes.set(xlabel="step", ylabel="largest Hessian eigenvalue")
axes.legend()
figure.savefig("curvature.png")

# %% [markdown]
# One seed shows the mechanics, not a difference between the methods: see [Two optimizers](two_optimizers.py).
