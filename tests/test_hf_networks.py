"""Networks of transformers through every command and in Python, beside float64 autograd written out."""

import importlib
import socket

import numpy as np
import pytest
import torch
from hf_cases import (
    CAUSAL,
    CODE,
    NETWORKS,
    REASON,
    TIED,
    Reference,
    batches,
    close,
    failed,
    network,
    rounding,
    run,
    saved,
)

import landscape
from landscape.results import hdf5
from landscape.surfaces.directions.directions import directions

pytest.importorskip("transformers", reason=REASON)
pytestmark = pytest.mark.hf
COMMON = ["--loss", "own", "--dtype", "float64", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Whoever connects fails."""

    def refuse(*_):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(request, tmp_path, monkeypatch):
    """A saved network, and a module whose `batches` are its data."""
    architecture = request.param
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "its_data.py").write_text(
        f"from hf_cases import batches as made\n\ndef batches(padding=0):\n    return made({architecture!r}, padding)\n"
    )
    importlib.invalidate_caches()
    monkeypatch.delitem(importlib.sys.modules, "its_data", raising=False)
    monkeypatch.chdir(tmp_path)
    return architecture, saved(network(architecture), tmp_path / "net")


every = pytest.mark.parametrize("folder", NETWORKS, indirect=True)


@every
def test_analyze(folder, capsys):
    architecture, path = folder
    model = network(architecture)
    right = Reference(model, batches(architecture))
    measures = ["--measure", "sam_sharpness", "--measure", "hessian_top_eigenvalues:tol=1e-8", "--grid", 0, "-k", 2]
    (seen,) = run(capsys, "analyze", path, "--model", f"hf:{path}", "--data", "its_data:batches", *COMMON, *measures)[
        "checkpoints"
    ]
    assert seen["parameters"] == sum(p.numel() for p in model.parameters()) == len(right.weights)
    left = rounding(architecture)
    close(seen["loss"], right.loss(), rtol=left)
    # A difference of two losses.
    close(seen["measures"]["sam_sharpness"]["value"], right.sam_sharpness(), atol=4 * left * seen["loss"])
    eigenvalues = seen["measures"]["hessian_top_eigenvalues"]
    close(eigenvalues["values"], right.largest(2), rtol=max(1e-6, 10 * left))  # what tol=1e-8 leaves


@every
def test_in_python(folder):
    architecture, path = folder
    model, data = network(architecture), batches(architecture)
    right = Reference(model, data)
    v = torch.randn(len(right.weights), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for problem in (
        landscape.Problem(model.double(), None, data),
        landscape.problem_from(path, model=f"hf:{path}", data=lambda: data, loss="own", dtype="float64", device="cpu"),
    ):
        left = rounding(architecture)
        close(problem.loss(), right.loss(), rtol=left)
        for seen, true in ((problem.gradient(), right.gradient()), (problem.hvp(v), right.hvp(v))):
            close(seen, true, rtol=left, atol=left * float(true.abs().max()))


@every
def test_padding_changes_nothing(folder, capsys):
    architecture, path = folder
    if architecture == "ViTForImageClassification":
        pytest.skip("images are not padded")
    command = ["analyze", path, "--model", f"hf:{path}", "--data", "its_data:batches", *COMMON, "--grid", 3]
    plain, padded = (
        run(capsys, *command, "--data-arg", f"padding={padding}", "--out", f"padded-{padding}")["checkpoints"][0]
        for padding in (0, 7)
    )
    left = rounding(architecture)
    close(plain["loss"], padded["loss"], rtol=left)
    assert plain["accuracy"] == padded["accuracy"]
    for name in ("sam_sharpness", "adaptive_sharpness"):  # differences of losses
        one, other = (c["measures"][name]["value"] for c in (plain, padded))
        close(one, other, rtol=1e-7, atol=4 * left * plain["loss"])
    one, other = (c["measures"]["hessian_top_eigenvalues"]["values"] for c in (plain, padded))
    close(one, other, rtol=max(1e-6, 10 * left), atol=max(1e-6, 10 * left) * one[0])
    surfaces = [hdf5.load_group(f"padded-{p}/analysis.h5", "surface").loss for p in (0, 7)]
    np.testing.assert_allclose(*surfaces, rtol=left)


@every
def test_surface(folder, capsys):
    architecture, path = folder
    right = Reference(network(architecture), batches(architecture))
    run(
        capsys, *["surface", path, "--model", f"hf:{path}", "--data", "its_data:batches", *COMMON],
        *["--grid", 3, "--radius", 0.05, "--directions", "filter", "--out", "surface"],
    )  # fmt: skip
    surface = hdf5.load_group("surface/surface.h5", "surface")
    problem = landscape.problem_from(
        path, model=f"hf:{path}", data=lambda: batches(architecture), loss="own", dtype="float64", device="cpu"
    )
    left = rounding(architecture)
    close(float(surface.loss[1, 1]), right.loss(), rtol=left)
    x, y = surface.axes
    first, second = directions("filter", problem).vectors
    for i, j in ((0, 0), (2, 1)):
        close(float(surface.loss[i, j]), right.loss(right.weights + x[i] * first + y[j] * second), rtol=left)


@every
def test_path(folder, capsys, tmp_path):
    architecture, path = folder
    other = saved(network(architecture, seed=1), tmp_path / "other")
    seen = run(
        capsys, *["path", path, other, "--model", f"hf:{path}", "--data", "its_data:batches", *COMMON],
        *["--points", 5, "--out", "path"],
    )  # fmt: skip
    ends = [Reference(network(architecture, seed=s), batches(architecture)) for s in (0, 1)]
    result = hdf5.load_group("path/path.h5", "path")
    right = [ends[0].loss((1 - t) * ends[0].weights + t * ends[1].weights) for t in np.linspace(0, 1, 5)]
    np.testing.assert_allclose(result.loss, right, rtol=rounding(architecture))
    assert set(seen["checkpoints"]) == {str(path), str(other)}


@every
def test_invariance(folder, capsys):
    path = folder[1]
    seen = run(
        capsys, *["invariance", path, "--model", f"hf:{path}", "--data", "its_data:batches", "--loss", "own"],
        *["--device", "cpu", "--transforms", 3, "--steps", 2, "--no-eigenvalues", "--out", "invariance"],
    )  # fmt: skip
    assert seen["outputs"]["max_relative_change"] < 1e-9
    assert seen["groups"]["dimension"] > 0


@pytest.mark.parametrize("folder", CAUSAL, indirect=True)
def test_parameters_by_a_pattern(folder, capsys):
    architecture, path = folder
    pattern = {"GPT2LMHeadModel": "transformer.h.*", "LlamaForCausalLM": "model.layers.*"}[architecture]
    model = network(architecture)
    names = [n for n, _ in model.named_parameters() if n.startswith(pattern[:-1])]
    right = Reference(model, batches(architecture), names)
    (seen,) = run(
        capsys, *["analyze", path, "--model", f"hf:{path}", "--data", "its_data:batches", *COMMON, "--grid", 0],
        *["--parameters", pattern, "--measure", "hessian_top_eigenvalues:tol=1e-8", "-k", 1],
    )["checkpoints"]  # fmt: skip
    assert seen["parameters"] == len(right.weights) < sum(p.numel() for p in model.parameters())
    close(seen["measures"]["hessian_top_eigenvalues"]["values"], right.largest(1), rtol=1e-5)


@pytest.mark.parametrize("folder", TIED, indirect=True)
def test_a_tied_weight_counts_once(folder):
    architecture, path = folder
    model = network(architecture)
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) > len(list(model.named_parameters()))
    problem = landscape.problem_from(path, model=f"hf:{path}", data=lambda: batches(architecture), loss="own")
    assert problem.dimension == sum(p.numel() for p in model.parameters())
    moved = problem.relocated(problem.weights * 1.1)
    again = network(architecture)
    with torch.no_grad():
        for weight in again.parameters():
            weight.mul_(1.1)
    close(float(moved.loss()), Reference(again, batches(architecture)).loss(), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_configuration_in_half_precision_is_analyzed_in_the_dtype_of_the_analysis(dtype, tmp_path):
    """Weights in half precision are exact in float64; what is computed from the configuration is not rounded."""
    model = network("LlamaForCausalLM").to(getattr(torch, dtype))
    path = saved(model, tmp_path)
    problem = landscape.problem_from(
        path, model=f"hf:{path}", data=lambda: batches("LlamaForCausalLM"), loss="own", dtype="float64", device="cpu"
    )
    whole = network("LlamaForCausalLM")
    whole.load_state_dict(model.state_dict())
    close(problem.loss(), Reference(whole, batches("LlamaForCausalLM")).loss(), rtol=1e-6)


def test_conv1d_of_gpt2_has_its_filters_along_its_outputs():
    """transformers' Conv1D holds (inputs, outputs), unlike every Linear."""
    model = network("GPT2LMHeadModel")
    problem = landscape.Problem(model, None, batches("GPT2LMHeadModel"))
    axes = {s.name: s.filter_axis for s in problem.parameters}
    assert axes["transformer.h.0.mlp.c_fc.weight"] == 1
    assert axes["transformer.wte.weight"] == 0
    kinds = {
        s.name: s.kind
        for s in landscape.Problem(network("LlamaForCausalLM"), None, batches("LlamaForCausalLM")).parameters
    }
    assert kinds["model.norm.weight"] == "norm"


def test_code_of_the_folder_is_refused(tmp_path, capsys):
    path = saved(network("GPT2LMHeadModel"), tmp_path)
    text = (path / "config.json").read_text()
    auto = '"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Net"}, "model_type": "mine"'
    (path / "config.json").write_text(text.replace('"model_type": "gpt2"', auto))
    (path / "evil.py").write_text(CODE)
    said = failed(capsys, "analyze", path, "--model", f"hf:{path}", "--data", "hf_cases:batches")
    assert "transformers cannot make the network" in said
    assert not (tmp_path / "pwned").exists()
