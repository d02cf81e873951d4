"""What holds for every measure: a new file in landscape/measures is tested here the moment it exists."""

import copy
import doctest
import inspect
import math
import re

import numpy as np
import pytest
import torch
from cases import case, measured
from torch import nn

import landscape
from figures.page.meanings import setting
from landscape.results.result import Result

NAMES = list(landscape.MEASURES)


class Interrupted(Exception):
    """What a loss raises in the middle of a measure."""


def example_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def problem_of(name, loss=nn.functional.cross_entropy):
    """A network in training mode with one frozen parameter: what must come back as it was."""
    model, batches = case(name, examples=24)
    model.train()
    next(model.parameters()).requires_grad_(False)
    return model, landscape.Problem(model, loss, batches)


def state(model):
    """Everything of a model that a measure could change, as copies."""
    return {
        "weights": {k: v.detach().clone() for k, v in model.state_dict().items()},
        "identity": [id(t) for t in (*model.parameters(), *model.buffers())],
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad for p in model.parameters()],
        "momentum": [getattr(m, "momentum", None) for m in model.modules()],
        "random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "grad_enabled": torch.is_grad_enabled(),
    }


def assert_same_state(before, after):
    for name in before["weights"]:
        assert torch.equal(before["weights"][name], after["weights"][name]), name
    assert torch.equal(before["random"], after["random"]), "the global random state moved"
    for key in set(before) - {"weights", "random"}:
        assert before[key] == after[key], key


def numbers(result):
    """Every numeric field of a result, by name, without the wall time."""
    found = {k: v for k, v in vars(result).items() if k not in ("seconds", "provenance")}
    return {k: np.asarray(v) for k, v in found.items() if isinstance(v, int | float | list | np.ndarray | torch.Tensor)}


@pytest.mark.parametrize("network", ["cnn", "vit"])
@pytest.mark.parametrize("name", NAMES)
def test_measure_is_finite_repeatable_and_leaves_the_model_alone(name, network, tmp_path):
    model, problem = problem_of(network)
    before = state(model)
    first = measured(name, problem)
    assert_same_state(before, state(model))
    torch.rand(7)
    second = measured(name, problem)
    a, b = numbers(first), numbers(second)
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)

    assert isinstance(first, Result)
    summary = first.summary()
    key = "value" if "value" in summary else "values"
    if key in summary:
        main = np.atleast_1d(np.asarray(summary[key], dtype=float))
        assert np.isfinite(main).all()
    assert first.cost["forward"] > 0
    assert first.seconds > 0
    assert first.provenance["examples"] == 24
    assert first.arguments.keys() == {option.name for option in landscape.MEASURES.entry(name).options}
    assert summary["label"] == first.label

    first.save(tmp_path / "result.h5")
    loaded = landscape.load(tmp_path / "result.h5")
    assert type(loaded) is type(first)
    assert loaded.summary() == summary


@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_model_is_as_it_was_after_an_exception(name, fails_at):
    calls = math.inf

    def fragile(outputs, targets):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Interrupted
        return nn.functional.cross_entropy(outputs, targets)

    model, problem = problem_of("cnn", fragile)
    before = state(model)
    calls = fails_at - 1
    with pytest.raises(Interrupted):
        measured(name, problem)
    assert_same_state(before, state(model))
    calls = math.inf
    np.testing.assert_array_equal(problem.loss(), problem.loss(problem.weights.clone()))


@pytest.mark.parametrize("name", NAMES)
def test_value_does_not_depend_on_how_the_examples_are_batched(name):
    model, batches = case("mlp", examples=24)
    loss = nn.functional.cross_entropy
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    whole = measured(name, landscape.Problem(model, loss, [(x, y)])).summary()
    parts = measured(name, landscape.Problem(model, loss, batches)).summary()
    for key in {"value", "values"} & whole.keys():
        # Rounding in float64 through a few hundred products; Lanczos and ascents carry it on.
        np.testing.assert_allclose(np.float64(parts[key]), np.float64(whole[key]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_measure_runs_in_float32(name):
    model, batches = case("mlp", examples=24)
    values = []
    for dtype in (torch.float64, torch.float32):
        other = copy.deepcopy(model).to(dtype)
        problem = landscape.Problem(other, nn.functional.cross_entropy, batches)
        values.append(measured(name, problem).summary())
    for key in {"value", "values"} & values[0].keys():
        # The rise of a loss near 1 is known to a few 1e-7 in float32; the smallest ones here are about 1e-4.
        np.testing.assert_allclose(np.float64(values[1][key]), np.float64(values[0][key]), rtol=2e-2, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_documentation_states_formula_source_cost_and_every_option(name):
    entry = landscape.MEASURES.entry(name)
    assert re.search(r"^Source: .*(19|20)\d\d", entry.doc, re.MULTILINE), "author and year under 'Source:'"
    assert re.search(r"^Cost: ", entry.doc, re.MULTILINE), "passes under 'Cost:'"
    assert re.search(r"pass|HVP|hvp|Hessian-vector", entry.doc.split("Cost: ")[1])
    assert re.search(r"=|\|\||max |sum", entry.doc.split("Args:")[0]), "a formula"
    keywords = {
        k for k, v in inspect.signature(landscape.MEASURES[name]).parameters.items() if v.kind is v.KEYWORD_ONLY
    }
    assert keywords == {option.name for option in entry.options}
    assert "seed" in keywords
    assert "progress" not in keywords, "progress is a context: landscape.progress"


def test_measures_are_public_under_the_names_of_their_functions():
    for name, entry in landscape.MEASURES.entries.items():
        assert getattr(landscape, entry.symbol) is landscape.MEASURES[name]


@pytest.mark.parametrize("name", NAMES)
def test_example_of_the_documentation_runs(name):
    doc = inspect.getdoc(landscape.MEASURES[name])
    example = doctest.DocTestParser().get_doctest(doc, {}, name, None, None)
    report = []
    outcome = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert outcome.attempted >= 5, "an example of its own"
    assert outcome.failed == 0, "".join(report)


@pytest.mark.parametrize("name", NAMES)
def test_measure_brings_its_words(name):
    facts = landscape.MEASURES.entry(name).facts
    assert facts["label"][:1].isupper() or facts["label"].startswith("{")
    assert facts["meaning"].endswith(".")
    assert facts["unit"]
    result = measured(name, problem_of("mlp")[1])
    assert result.label
    assert "{" not in result.label
    named = {"value", "values", "layers"} & result.summary().keys() or facts["fields"].keys() <= result.summary().keys()
    assert named, "a result has a value, values, values of layers, or fields that the measure names"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_that_differs_from_its_default_shows_in_the_setting(name):
    options = landscape.MEASURES.entry(name).options
    defaults = {o.name: o.default for o in options}
    assert setting(name, {}, defaults) in ("", defaults.get("scaling"))
    for option in options:
        other = {bool: not option.default, str: "filterwise"}.get(type(option.default), 3)
        said = setting(name, {"rho": other} if option.name == "rho" else {}, {**defaults, option.name: other})
        words = "ρ" if option.name == "rho" else option.name.replace("_", " ")
        assert words in said or str(other) in said, option.name


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_that_of_the_function_in_the_file(name):
    measure = landscape.MEASURES[name]
    assert inspect.signature(measure) == inspect.signature(measure.__wrapped__)
    assert next(iter(inspect.signature(measure).parameters)) == "problem"
    with pytest.raises(TypeError, match="unheard_of"):
        measured(name, problem_of("mlp")[1], unheard_of=1)


def test_arguments_hold_what_was_computed():
    problem = problem_of("mlp")[1]
    assert landscape.average_sharpness(problem).arguments["rho"] == 0.01
    assert landscape.average_sharpness(problem, scaling="elementwise", biases="fixed").arguments["rho"] == 0.1
    assert landscape.sam_sharpness(problem=problem, p=math.inf).arguments["p"] == "inf"
    assert landscape.sam_sharpness(problem, logit_normalization=True).provenance["logit_normalization"] is True
    assert landscape.trace(problem, parameters="0.*").cost["forward"] > 0


def test_a_number_of_other_weights_says_so():
    problem = problem_of("mlp")[1]
    at, elsewhere = landscape.trace(problem), landscape.trace(problem, problem.weights + 0.1)
    assert "w" not in at.arguments
    assert re.fullmatch(r"other weights, sha256 [0-9a-f]{16}", elsewhere.arguments["w"])
    assert "at other weights" in setting("hessian_trace", elsewhere.summary(), elsewhere.arguments)
    assert elsewhere.arguments == landscape.trace(problem, w=problem.weights + 0.1).arguments
