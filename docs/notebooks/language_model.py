# %% [markdown]
# # A language model
#
# A small causal transformer in plain PyTorch, on text of its own, with padded batches. For models of Hugging Face see
# [A language model](../language-models.md): they are read the same way.

# %%
import torch
from torch import nn

import landscape

torch.manual_seed(0)
TEXT = """the loss of a network is a function of its weights
a minimum is flat where the loss rises slowly
a minimum is sharp where the loss rises fast
noise in the weights raises a flat loss little
the curvature along a direction is the second derivative
the largest eigenvalue is the curvature of the sharpest direction
a surface is a slice through a function of many variables
two slices of one function can look different""".splitlines()
letters = sorted(set("".join(TEXT)))
LENGTH, IGNORED = 32, -100


# %% [markdown]
# ## Batches with padding
#
# As Hugging Face has them: a dict of what `forward` takes, `labels` among them, -100 where nothing is to be
# predicted.


# %%
def batch(lines):
    tokens = torch.zeros(len(lines), LENGTH, dtype=torch.long)
    labels = torch.full((len(lines), LENGTH), IGNORED)
    for i, line in enumerate(lines):
        codes = torch.tensor([letters.index(c) for c in line[: LENGTH + 1]])
        tokens[i, : len(codes) - 1], labels[i, : len(codes) - 1] = codes[:-1], codes[1:]
    return {"tokens": tokens, "labels": labels}


# %% [markdown]
# ## A network that returns its loss


# %%
class Causal(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embedding = nn.Embedding(len(letters), width)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(letters))

    def forward(self, tokens, labels):
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        logits = self.head(self.layers(self.embedding(tokens) + self.position, mask=mask, is_causal=True))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        return {"loss": loss, "logits": logits}


model = Causal()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(60):
    optimizer.zero_grad()
    model(**batch(TEXT))["loss"].backward()
    optimizer.step()

# %% [markdown]
# ## L is the mean over tokens
#
# Without a loss the Problem takes the one that the model returns, and finds out what it divides by. Two batches with
# different numbers of tokens give what one batch of all lines gives.

# %%
whole = landscape.Problem(model, None, [batch(TEXT)])
problem = landscape.Problem(model, None, [batch(TEXT[:3]), batch(TEXT[3:])])
print(problem.loss(), whole.loss())
assert abs(problem.loss() - whole.loss()) < 1e-6

# %% [markdown]
# ## Which layers are sharp?
#
# The largest eigenvalue of each layer's block, and of the blocks of the transformer alone.

# %%
layers = landscape.layer_eigenvalues(problem)
for name, values in zip(layers.layers, layers.values, strict=True):
    print(f"{name:40} {values[0]:8.3f}")
print(landscape.top_eigenvalues(problem, k=2).values)
inner = landscape.Problem(model, None, [batch(TEXT)], parameters="layers.*")
print(inner.weights.numel(), "of", problem.weights.numel(), "weights:", landscape.top_eigenvalues(inner, k=2).values)

# %% [markdown]
# ## Sharpness that attention cannot fool
#
# An invertible matrix between queries and keys changes nothing that the network computes, but it changes plain and
# adaptive sharpness. Geodesic sharpness does not see it.

# %%
print(landscape.adaptive_sharpness(problem, rho=0.1, one_step_only=True))
print(landscape.geodesic_sharpness(problem, rho=0.1))
