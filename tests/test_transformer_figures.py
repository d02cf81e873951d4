"""The figures of transformers: heads that are mapped, and a GPT whose training is followed, beside plain ones."""

import numpy as np
import pytest
import torch

from figures import FIGURES
from figures.paper.attention_symmetries import MEASURES, METRICS, STAYING, VARIES, map_heads
from figures.paper.critical_sharpness import scheduled
from figures.paper.critical_sharpness_gpt import follow_gpt
from figures.study.figure_data import FigureData
from figures.study.rescaled import spread
from figures.study.tasks import Machine
from trainers import train
from trainers.datasets import load_data
from trainers.models import build_model


def test_maps_of_heads_keep_outputs_and_geodesic_sharpness(tmp_path):
    train(
        "adamw", data="digits", model="vit-tiny:depth=1,dim=8,heads=2", epochs=1, lr=0.01, seed=0, out=tmp_path / "run"
    )  # fmt: skip
    wanted = {
        "sam_sharpness": {"rho": 0.05},
        "fisher_rao_norm": {},
        "geodesic_sharpness": {"rho": 0.1, "steps": 2, "restarts": 1},
    }
    found = map_heads(
        tmp_path / "run", wanted=wanted, metrics=list(METRICS), maps=3, samples=32, seed=0, machine=Machine()
    )  # fmt: skip
    assert found["heads"] == 4
    assert found["values"].shape == (4, 3)
    assert found["changes"].max() < 1e-12
    assert np.ptp(found["logits"], axis=0).max() < 1e-11
    sam, *staying = spread(found["values"])
    assert sam > VARIES
    assert max(staying) < 1e-9
    assert len(staying) == len(STAYING)
    assert MEASURES[-3:] == STAYING


def test_a_gpt_is_trained_as_its_notes_say_and_measured_where_it_is():
    sizes = {"length": 8, "dim": 8, "depth": 1}
    found = follow_gpt(**sizes, texts=4, lr=0.01, steps=6, points=3, seed=2, machine=Machine())
    assert found["step"].tolist() == [2, 4, 6]
    data = load_data("docstrings-lm", length=8, train=4, test=2)
    network = build_model("gpt-small", classes=data.classes, input_shape=(8,), seed=2, dim=8, depth=1)
    x, y = data.inputs(slice(0, 4)), data.targets(slice(0, 4))
    weights = list(network.parameters())
    m, v = ([torch.zeros_like(w) for w in weights] for _ in range(2))

    def loss():
        return torch.nn.functional.cross_entropy(network(x), y)

    for step in range(6):
        rate, t = 0.01 * scheduled(step / 6), step + 1
        gradients = torch.autograd.grad(loss(), weights)
        with torch.no_grad():
            for w, g, a, b in zip(weights, gradients, m, v, strict=True):
                a.mul_(0.9).add_(g, alpha=0.1)
                b.mul_(0.95).addcmul_(g, g, value=0.05)
                w.mul_(1 - 0.01 * rate)
                w.sub_(rate * (a / (1 - 0.9**t)) / ((b / (1 - 0.95**t)).sqrt() + 1e-8))
        if step % 2:
            assert found["loss"][step // 2] == pytest.approx(float(loss()), rel=1e-5)
            assert found["rate"][step // 2] == pytest.approx(0.01 * scheduled((step + 1) / 6), rel=1e-12)
    # The last update of the schedule, 1 / 10 of the rate, is far from the first step that raises the loss.
    known = np.isfinite(found["critical"])
    assert known.any()
    assert (found["critical"][known] > 0).all()


def test_verdicts_follow_from_the_numbers():
    steps, rate = np.arange(1, 31) * 10, 0.01 * np.array([scheduled(i / 30) for i in range(1, 31)])
    numbers = FigureData(facts={"lr": 0.01})
    numbers.axis("seed", range(3))
    numbers.axis("step", steps)
    numbers.add("rate", ("step",), rate)
    wave = 1 + 0.01 * np.arange(3)[:, None]
    critical = np.where(np.arange(30) < 6, 20.0, 200.0) * np.where(np.arange(30) > 26, 3, 1) * wave
    numbers.add("critical", ("seed", "step"), critical)
    numbers.add("directional", ("seed", "step"), critical * 1.01)
    numbers.add("forwards", ("seed", "step"), np.full((3, 30), 6.0))
    numbers.add("loss", ("seed", "step"), np.ones((3, 30)))
    figure = FIGURES["critical-sharpness-gpt"]()
    claims = figure.judge(numbers)
    assert [c.verdict for c in claims] == ["supported"] * 5
    assert claims[4].ours.value == pytest.approx(3)
    assert claims[1].ours.value == pytest.approx(1.01)
    numbers["critical"][:, 15:] /= 3
    assert [c.verdict for c in figure.judge(numbers)][1:3] == ["not supported"] * 2
    texts = [t.get_text() for axes in figure.draw(numbers).axes for t in axes.texts]
    assert any("directional" in t for t in texts)
