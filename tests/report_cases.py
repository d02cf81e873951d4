"""Small analyses made of real results with known numbers, for the tests of tables, figures and the report."""

import html.parser
import json

import numpy as np

from figures.page.analysis import Analysis
from landscape.measures.hessian_top_eigenvalues import TopEigenvalues
from landscape.sharpness.sharpness import Sharpness
from landscape.surfaces.result import Surface

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


def bowl(scale=1.0, *, n=11, m=13, floor=0.1):
    """floor + scale (x^2 + 3 y^2) on an n by m grid: its two axes cannot be confused."""
    x, y = np.linspace(-1, 1, n), np.linspace(-0.5, 0.5, m)
    loss = floor + scale * (x[:, None] ** 2 + 3 * y[None, :] ** 2)
    return Surface(
        x=x,
        y=y,
        loss=loss,
        accuracy=np.full_like(loss, 0.9),
        done=np.ones(loss.shape, dtype=bool),
        radius=1.0,
        checks=[{"name": "minimum", "ok": True, "text": "the center is the lowest point", "value": None}],
        facts={"cosine": 0.0, "norms": [1.0, 1.0]},
        arguments={"directions": "gaussian", "radius": 1.0, "seed": 4},
        provenance={"examples": 128, "batch_norm": "frozen"},
        cost={"forward": 143.0},
        seconds=1.5,
    )


def sharpness(factor=1.0, interval=True):
    """Two radii with values factor rho^2."""
    rho = np.array([0.1, 0.2])
    value = factor * rho**2
    return Sharpness(
        rho=rho,
        sharpness=value,
        loss=0.1,
        interval=np.stack([value - 0.001, value + 0.001]) if interval else None,
        non_finite=np.zeros(2, dtype=int),
        arguments={"rho": [0.1, 0.2], "p": 2.0},
        cost={"forward": 3.0, "backward": 1.0},
        seconds=0.25,
    )


def eigenvalues(largest=8.0, bound=0.01):
    """largest, largest / 2, largest / 4, all with the same error bound."""
    values = largest / 2.0 ** np.arange(3)
    return TopEigenvalues(
        values=values,
        error_bounds=np.full(3, bound),
        vectors=None,
        hvps=12,
        converged=True,
        arguments={"k": 3, "tol": 1e-3},
        cost={"hvp": 12.0},
        seconds=0.5,
    )


def analysis(label="run", scale=1.0, **changes):
    """An analysis with a surface, two sharpness measures, eigenvalues and a history."""
    given = {
        "label": label,
        "checkpoint": f"runs/{label}/ckpt.pt",
        "sha256": "ab" * 32,
        "loss": 0.1,
        "accuracy": 0.9375,
        "samples": 128,
        "classified": 128,
        "parameters": 1234,
        "measures": {
            "sam_sharpness": sharpness(scale),
            "adaptive_sharpness": sharpness(2 * scale, interval=False),
            "hessian_top_eigenvalues": eigenvalues(8 * scale),
        },
        "surface": bowl(scale),
        "history": [
            {"epoch": e, "train_loss": 1 / e, "test_loss": 1.5 / e, "train_accuracy": 0.9, "test_accuracy": 0.8}
            for e in (1.0, 2.0, 3.0)
        ],
        "metadata": {
            "model": {"name": "mlp", "arguments": {"widths": [10]}},
            "data": {"name": "digits", "arguments": {}},
            "method": {"name": "sam", "arguments": {"rho": 0.05}},
            "epoch": 3,
        },
        "provenance": {"batch_norm": "frozen", "dtype": "float32", "examples": 128, "torch": "2.13.0"},
    }
    return Analysis(**{**given, **changes})


class Page(html.parser.HTMLParser):
    """Texts and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.scripts, self.current = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.current = tag
        if tag == "script":
            self.scripts.append([dict(attributes), ""])

    def handle_endtag(self, tag):
        self.current = None

    def handle_data(self, text):
        if self.current == "script":
            self.scripts[-1][1] += text
        else:
            self.texts.append(text)

    @property
    def data(self):
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))
