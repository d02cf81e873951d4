# %% [markdown]
# # Two optimizers, compared fairly
#
# SGD against ASAM on digits: the same passes for both, three seeds, the same examples, and measures that suit the
# claim.

# %%
import numpy as np

import landscape
from landscape import statistics
from trainers import METHODS, train

SEEDS = range(3)
PASSES = 16
METHODS_COMPARED = {"sgd": METHODS["sgd"](), "asam": METHODS["asam"](rho=0.5)}

# %% [markdown]
# ## Equal cost
#
# `budget_passes` counts forward-plus-backward passes over the training set. ASAM takes two per step, so that it gets
# half of the epochs.

# %%
for name, method in METHODS_COMPARED.items():
    for seed in SEEDS:
        settings = {"data": "digits", "model": "mlp", "lr": 0.05, "budget_passes": PASSES, "seed": seed}
        run = train(method, **settings, out=f"runs/{name}-{seed}", resume=True)
        print(f"{name} {seed}: {run.passes:.1f} passes, test accuracy {run.history[-1]['test_accuracy']:.3f}")

# %% [markdown]
# ## The same function
#
# One sample of 256 training examples for all networks: the default seed draws the same one.

# %%
KEYS = ("loss", "SAM sharpness", "adaptive", "eigenvalue", "slope")


def measured(name, seed):
    problem = landscape.problem_from(f"runs/{name}-{seed}/ckpt.pt", samples=256)
    return (
        float(problem.loss()),
        landscape.sam_sharpness(problem, rho=0.05).value,
        landscape.adaptive_sharpness(problem, rho=0.5, one_step_only=True).value,
        landscape.top_eigenvalues(problem, k=1).values[0],
        0.05 * landscape.gradient_norm(problem).value,
    )


numbers = {name: np.array([measured(name, seed) for seed in SEEDS]) for name in METHODS_COMPARED}

# %% [markdown]
# ## Ratios over seeds, with intervals
#
# Paired by seed, as geometric means with Student's 95% interval. Where the interval contains 1, these three seeds do
# not decide.

# %%
for key, sgd, asam in zip(KEYS, numbers["sgd"].T, numbers["asam"].T, strict=True):
    ratio = statistics.geometric_mean(asam / sgd)
    decided = "decided" if ratio.low > 1 or ratio.high < 1 else "undecided"
    print(f"{key:15} ASAM / SGD {ratio.value:5.2f} [{ratio.low:.2f}, {ratio.high:.2f}] {decided}")

# %% [markdown]
# ## Is it slope?
#
# Before a sharpness is called curvature, look at how much of it is the slope ρ‖g‖ of a loss that is still falling,
# and at the training losses above: ASAM had half of the steps.

# %%
for name, rows in numbers.items():
    share = np.mean(rows[:, KEYS.index("slope")] / rows[:, KEYS.index("SAM sharpness")])
    print(f"{name}: {share:.0%} of the SAM sharpness is slope")
    assert 0 < share < 1

# %% [markdown]
# `landscape figures matched-loss` goes further and compares each method with runs of SGD that end at its training
# loss.
