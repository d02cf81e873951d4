# %% [markdown]
# # First steps
#
# Train a small network on scanned digits, measure how flat the loss is around it, and draw it. Everything here takes
# seconds on a CPU and needs no download.

# %%
from matplotlib import pyplot

import landscape
from trainers import train

# %% [markdown]
# ## A network
#
# `train` takes the name of a method (`landscape list methods`), of a data set and of a network, or objects of your
# own. It writes a checkpoint, a history and the configuration; with `resume` a finished run is returned as it is.

# %%
run = train("sgd", data="digits", model="mlp", epochs=4, lr=0.05, out="runs/first", resume=True)
print(f"test accuracy {run.history[-1]['test_accuracy']:.3f} after {run.passes:.0f} passes")

# %% [markdown]
# ## The function L(w)
#
# Every measure takes a `Problem`: the mean loss over a fixed sample, as a function of the weights. This one comes
# from the checkpoint; `landscape.Problem(model, loss, batches)` makes one of any network.

# %%
problem = landscape.problem_from("runs/first/ckpt.pt", samples=256)
print(problem.examples, "examples,", problem.weights.numel(), "weights, L =", float(problem.loss()))

# %% [markdown]
# ## Numbers with their errors
#
# A result shows its value, its error and what it cost. The rise after SAM's step, the curvature in the sharpest
# directions with a bound, and the sum of all curvatures, which is exact for this network:

# %%
print(landscape.sam_sharpness(problem, rho=0.05))
top = landscape.top_eigenvalues(problem, k=3)
print(top.values, "+-", top.error_bounds, "in", top.hvps, "Hessian-vector products")
trace = landscape.trace(problem)
print(trace.value, "exact" if trace.exact else f"+- {trace.stderr}")

# %% [markdown]
# ## A picture
#
# The loss on a plane through the weights. An axis counts in multiples of the weights' norm.

# %%
surface = landscape.surface(problem, grid=11)
surface.plot()
pyplot.savefig("surface.png")
print("center", surface.loss[5, 5], "highest", surface.loss.max())

# %% [markdown]
# ## Files
#
# Results are HDF5 files with named axes, which h5py and xarray open too, with the arguments and the provenance beside
# the arrays.

# %%
surface.save("surface.h5")
again = landscape.load("surface.h5")
assert (again.loss == surface.loss).all()

# %% [markdown]
# The same from the command line, with a report: `landscape analyze runs/first/ckpt.pt`.
