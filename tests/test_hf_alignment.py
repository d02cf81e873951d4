"""Planted symmetries of transformers' own networks: GPT-2, Llama, BERT, ViT."""

import pytest
import torch
from hf_cases import NETWORKS, REASON, batches, network

from landscape import Problem
from landscape.random import stream
from landscape.surfaces.alignment import align, permutable
from landscape.surfaces.matching.features import FeatureGroup
from landscape.surfaces.matching.heads import HeadGroup

pytest.importorskip("transformers", reason=REASON)
pytestmark = pytest.mark.hf
TURNED = {"ViTForImageClassification": 8, "LlamaForCausalLM": 8}
"""Features of the residual stream that orthogonal maps pass through: nothing else reads the norms, no head is tied."""


@pytest.mark.parametrize("architecture", NETWORKS)
def test_a_planted_symmetry_comes_back(architecture):
    model = network(architecture).double()
    rows = [{k: v.double() if v.is_floating_point() else v for k, v in b.items()} for b in batches(architecture)]
    one = Problem(model, None, rows)
    groups, rejected = permutable(one)
    assert rejected == []
    assert sum(isinstance(g, HeadGroup) for g in groups) == 2
    turned = [g.units for g in groups if isinstance(g, FeatureGroup) and g.space.orthogonal]
    assert sum(turned) == TURNED.get(architecture, 0)
    tensors = {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
    for i, group in enumerate(groups):
        tensors = group.random(tensors, stream(1, f"member {i}"))
    two = one.relocated(one.parameters.flatten([tensors[n] for n in one.parameters.names]))
    # Llama's norms compute in float32.
    assert float(two.loss()) == pytest.approx(float(one.loss()), rel=1e-6)
    assert float((two.weights - one.weights).norm() / one.weights.norm()) > 0.5
    found = align(one, two)
    assert float((found.weights - one.weights).norm() / one.weights.norm()) < 1e-9
    assert torch.isfinite(found.weights).all()
