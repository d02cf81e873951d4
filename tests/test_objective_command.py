"""--loss and --objective: what L is, as the command line says it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent
MINE = """
import torch
from types import SimpleNamespace
from torch import nn
import torch.nn.functional as F


def column():
    return nn.Linear(4, 1)


def inputs():
    return torch.randn(30, 4, generator=torch.Generator().manual_seed(0))


def numbers():
    return [(inputs()[:7], inputs()[:7].sum(1)), (inputs()[7:], inputs()[7:].sum(1))]


def signs():
    return [(inputs()[:7], (inputs()[:7, 0] > 0).long()), (inputs()[7:], (inputs()[7:, 0] > 0).long())]


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, input_ids, labels=None):
        logits = self.out(self.embedding(input_ids))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss, logits=logits)


def tokens():
    ids = torch.randint(9, (8, 5), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[5:, 2:] = -100
    return [{"input_ids": ids[:5], "labels": labels[:5]}, {"input_ids": ids[5:], "labels": labels[5:]}]


def squares(model, batch):
    return model(batch[0]).square().mean(), len(batch[0])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("mine")
    (home / "mine.py").write_text(MINE)
    sys.path.insert(0, str(home))
    import mine

    torch.manual_seed(0)
    for name in ("column", "Language"):
        torch.save(getattr(mine, name)().state_dict(), home / f"{name}.pt")
    yield home
    sys.path.remove(str(home))
    del sys.modules["mine"]


def analyze(home, file, model, data, *options):
    arguments = ["analyze", file, "--model", f"mine:{model}", "--data", f"mine:{data}", "--grid", "0", "--quiet"]
    arguments += [
        "--measure",
        "gradient_norm",
        "--json",
        "--dtype",
        "float64",
        "--out",
        "-".join(["out", data, *options]),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments, *options], cwd=home, env=environment, capture_output=True, text=True
    )


def by_hand(home, data):
    import mine

    batches = getattr(mine, data)()
    model = mine.column() if data != "tokens" else mine.Language()
    model.load_state_dict(torch.load(home / ("column.pt" if data != "tokens" else "Language.pt"), weights_only=True))
    if data == "tokens":
        whole = {k: torch.cat([b[k] for b in batches]) for k in batches[0]}
        return model(**whole).loss
    x, y = (torch.cat(c) for c in zip(*batches, strict=True))
    return model(x)[:, 0], y


@pytest.mark.parametrize("loss", ["mse", "bce", "own", "mine:squares"])
def test_named_losses_and_objectives(home, loss):
    data = {"mse": "numbers", "bce": "signs", "own": "tokens", "mine:squares": "numbers"}[loss]
    file, model = ("Language.pt", "Language") if loss == "own" else ("column.pt", "column")
    option = ["--objective", loss] if ":" in loss else ["--loss", loss]
    ran = analyze(home, file, model, data, *option)
    assert ran.returncode == 0, ran.stderr
    if loss == "own":
        right = by_hand(home, data)
    else:
        outputs, y = by_hand(home, data)
        right = {
            "mse": lambda: F.mse_loss(outputs, y),
            "bce": lambda: F.binary_cross_entropy_with_logits(outputs, y.float()),
            "mine:squares": lambda: outputs.square().mean(),
        }[loss]()
    entry = json.loads(ran.stdout)["checkpoints"][0]
    assert entry["loss"] == pytest.approx(float(right), rel=1e-5)


@pytest.mark.parametrize(
    ("file", "model", "data", "options", "words"),
    [
        ("column.pt", "column", "numbers", (), "--loss"),
        ("column.pt", "column", "signs", (), "--loss"),
        ("Language.pt", "Language", "tokens", (), "--loss"),
        ("column.pt", "column", "numbers", ("--loss", "mes"), "did you mean 'mse'"),
        ("column.pt", "column", "numbers", ("--loss", "mse", "--objective", "mine:squares"), "without --loss"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_option(home, file, model, data, options, words):
    ran = analyze(home, file, model, data, *options)
    assert ran.returncode == 2
    assert len(ran.stderr.strip().splitlines()) == 1
    assert words in ran.stderr
