"""`landscape doctor`: the machine, its self-test, and what an analysis would cost."""

import dataclasses
import math
import os
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch

import cli
from figures.page import estimate, measuring
from figures.page.requests import surface_request
from landscape import MEASURES, machine
from landscape.problem import memory
from landscape.problem.problem import Problem
from landscape.results import digest
from landscape.self_test import self_test
from trainers import train
from trainers.rebuild import Sample, Subject, subject
from trainers.requests import requests

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train("sgd", out=folder, data="toy2d:n=300", model="mlp:hidden=8", epochs=1, batch_size=50, device="cpu")
    return folder / "ckpt.pt"


def wrong(checks):
    return [c.name for c in checks if not c.ok]


def test_a_sound_machine_passes_and_keeps_its_random_streams():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    checks = self_test(CPU)
    assert [c.name for c in checks] == ["products", "convolution", "attention", "repeatability"]
    assert wrong(checks) == []
    assert torch.equal(torch.get_rng_state(), before)


def test_products_that_are_off_are_seen(monkeypatch):
    product = Problem.hvp
    monkeypatch.setattr(Problem, "hvp", lambda self, v, w=None: product(self, v, w) * (1 + 1e-5))
    assert wrong(self_test(CPU)) == ["products", "convolution", "attention"]


def test_gradients_that_are_off_are_seen(monkeypatch):
    gradient = Problem.gradient
    monkeypatch.setattr(Problem, "gradient", lambda self, w=None: gradient(self, w) * (1 + 1e-5))
    assert wrong(self_test(CPU)) == ["convolution", "attention"]


@pytest.mark.parametrize(("method", "words"), [("loss", "loss"), ("gradient", "gradient"), ("hvp", "product")])
def test_runs_that_differ_are_seen(method, words, monkeypatch):
    exact, calls = getattr(Problem, method), iter(range(10**6))
    monkeypatch.setattr(Problem, method, lambda self, *a: exact(self, *a) * (1 + 2e-7 * (next(calls) % 2)))
    (check,) = [c for c in self_test(CPU) if c.name == "repeatability"]
    assert not check.ok
    assert f"{words} differ in 3 runs" in check.text


def test_a_missing_second_derivative_is_an_answer(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("derivative for aten::_scaled_dot_product is not implemented\nsecond line")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    (check,) = [c for c in self_test(CPU) if not c.ok]
    assert (check.name, check.text) == ("attention", "derivative for aten::_scaled_dot_product is not implemented")


def test_the_machine_is_described(capsys):
    assert cli.run(["doctor", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert f"torch {torch.__version__}" in text
    assert f"cpu: {os.cpu_count()} cores" in text
    assert text.count("  ok  ") == 4


def test_a_wrong_machine_ends_with_status_1(monkeypatch, capsys):
    monkeypatch.setattr(Problem, "hvp", lambda self, v, w=None: v)
    assert cli.run(["doctor", "--device", "cpu"]) == 1
    assert "  WRONG  products: Hessian-vector products are off by" in capsys.readouterr().out


def test_extras_are_those_of_the_package_for_its_users_and_say_how_to_get_them(monkeypatch):
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {extra: [n.split(">")[0] for n in needed] for extra, needed in stated["optional-dependencies"].items()}
    assert {k: tuple(v) for k, v in names.items() if k not in ("dev", "docs")} == machine.EXTRAS
    assert sorted(machine.NEEDED) == sorted(n.split(">")[0] for n in stated["dependencies"])
    monkeypatch.setattr(machine, "_installed", {"xarray": "1.2"}.get)
    assert list(machine.extras())[-1] == (
        "[notebook] pandas missing, xarray 1.2: pip install 'loss-landscape-toolkit[notebook]'"
    )


# -- a checkpoint ------------------------------------------------------------------------------------------------------


def estimated(made, wanted, plan=None, draw=lambda analyses, folder: None):
    return list(estimate.estimates(made, wanted, plan, draw))


def test_estimated_passes_are_those_that_are_made(checkpoint, monkeypatch):
    made = subject(checkpoint, Sample(batch_size=100))
    problem = made.problem
    wanted = requests(["sam_sharpness", "adaptive_sharpness"], rho=(0.05, 0.1), seed=0, subsets=4)
    wanted.append(surface_request(11, 0.07, 0))
    of_all, of_few = ({"forward": 2.0 * n, "backward": 3.0 * n, "hvp": 5.0 * n} for n in (1.0, 0.25))
    monkeypatch.setattr(estimate, "_Seconds", lambda p, _: of_few if p.examples == estimate.FEW else of_all)
    ticks = iter(range(0, 10**6, 1000))  # every trial takes 1,000 s
    monkeypatch.setattr(estimate, "time", types.SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    loss, *measures, surface, report = estimated(made, wanted)
    assert loss.seconds == 4.0
    for request, one in zip(wanted[:2], measures, strict=True):
        cost = MEASURES[request.measure](problem, **request.arguments).cost
        assert one.passes == {k: n for k, n in cost.items() if n}
        assert one.seconds == 1000 + 0.75 * (2 * cost["forward"] + 3 * cost["backward"])
    assert surface.passes == {"forward": 121.0}
    assert surface.seconds == pytest.approx(1000 * 121 / 81 + 0.75 * 2 * 121)
    assert (report.key, report.passes, report.seconds) == ("report", {}, 1000.0)


def test_the_report_that_is_tried_is_of_what_could_be_measured(checkpoint):
    wanted = requests(["sam_sharpness:rho=(0.1,0.2)", "average_sharpness:rho=-1"], seed=0)
    wanted.append(surface_request(5, 0.07, 0))
    drawn = []
    *_, surface, _ = estimated(subject(checkpoint), wanted, draw=lambda analyses, folder: drawn.extend(analyses))
    assert surface.passes == {"forward": 25.0}
    (analysis,) = drawn
    assert list(analysis.measures) == ["sam_sharpness"]
    assert analysis.surface.loss.shape == (5, 5)
    assert analysis.samples == estimate.FEW


def test_memory_is_the_peak_with_a_graph_and_what_is_held_beside_it(checkpoint):
    plan = subject(checkpoint).problem.plan(vectors=12)
    assert estimate.memory(5e8, None) == 5e8
    assert plan.chunks == 1
    assert estimate.memory(5e8, plan) == 5e8 + plan.vector_bytes
    ten = dataclasses.replace(plan, chunks=10, graphs_bytes=10 * plan.chunk_bytes)
    assert estimate.memory(5e8, ten) == 5e8 + plan.vector_bytes + 9 * plan.chunk_bytes
    scarce = dataclasses.replace(ten, free_bytes=10 * plan.chunk_bytes)  # half of it holds five graphs
    assert estimate.memory(5e8, scarce) == 5e8 + plan.vector_bytes + 4 * plan.chunk_bytes


def test_the_peak_is_that_of_this_process():
    before = memory.peak_memory(CPU)
    held = torch.ones(int(before / 4) + 2**24)  # as much again, in float32, and 64 MiB
    assert memory.peak_memory(CPU) > held.numel() * 4
    del held
    assert memory.peak_memory(CPU) > before + 2**25
    assert memory._peak_by_posix() == pytest.approx(memory.peak_memory(CPU), rel=0.05)


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (lambda state, path: torch.save(state, path), False),
        (lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False), True),
        (lambda state, path: safetensors.torch.save_file(state, path), True),
    ],
    ids=["zip", "no zip", "safetensors"],
)
def test_a_kind_of_file_that_cannot_say_whether_it_is_whole(save, told, checkpoint, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    save(torch.load(checkpoint, weights_only=True)["model"]["state"], path)
    made = ["--model", "mlp:hidden=8", "--data", "toy2d:n=300", "--measure", "sam_sharpness", "--device", "cpu"]
    assert cli.run(["doctor", str(path), *made]) == 0
    out = capsys.readouterr().out
    assert ("this kind of file has no checksum" in out) == told
    assert (digest.of_file(path) in out) == told


def test_seconds_of_a_pass_are_those_of_a_part(checkpoint, monkeypatch):
    problem = subject(checkpoint, Sample(batch_size=40)).problem
    plan = problem.plan(vectors=12)
    per_example = {"loss": 1.0, "gradient": 3.0, "product": 4.0, "hvp": 7.0}
    seen = []

    def second(call):
        call = getattr(call, "func", call)  # of a product
        part = getattr(call.__self__, "graphs", call.__self__)
        examples = getattr(part, "problem", part).examples
        seen.append((call.__name__, examples))
        return per_example[call.__name__] * examples

    monkeypatch.setattr(estimate, "_second", second)
    seconds = estimate._Seconds(problem, plan)
    assert seen == [("loss", 40), ("gradient", 40)]  # where no product is made none is timed
    assert seconds["hvp"] == pytest.approx(4 * problem.examples)
    assert seconds == pytest.approx({"forward": problem.examples, "backward": 2 * problem.examples, "hvp": 4 * 300})
    assert seen[2:] == [("product", problem.examples)]
    assert estimate._Seconds(problem, None)["hvp"] == pytest.approx(7 * problem.examples)
    assert seen[-1] == ("hvp", 40)
    scarce = dataclasses.replace(plan, free_bytes=0.5 * plan.graphs_bytes)  # three quarters are rebuilt
    assert estimate._Seconds(problem, scarce)["hvp"] == pytest.approx((4 + 0.75 * 3) * problem.examples)


def test_the_median_of_a_few_runs_is_taken_and_long_ones_are_not_repeated(monkeypatch):
    for taken, expected, calls in (([9.0, 0.1, 0.3, 0.2, 0.1, 0.4], 0.2, 6), ([3.0, 4.0], 4.0, 2)):
        clock, ran = [0.0], iter(taken)

        def call(clock=clock, ran=ran):
            clock[0] += next(ran)
            return torch.ones(1)

        monkeypatch.setattr(estimate, "time", types.SimpleNamespace(perf_counter=lambda clock=clock: clock[0]))
        assert estimate._second(call) == pytest.approx(expected)
        assert len(taken) - len(list(ran)) == calls


def test_a_checkpoint_is_told_its_cost_and_nothing_is_written(checkpoint, capsys):
    before = sorted(checkpoint.parent.iterdir())
    assert cli.run(["doctor", str(checkpoint), "--device", "cpu", "--grid", "5", "-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("vectors of" in line and "are free" in line for line in lines)
    assert any(line.startswith("  surface: 25 forward passes, about ") for line in lines)
    assert any(line.startswith("  hessian_top_eigenvalues: ") and " hvp passes, about " in line for line in lines)
    assert any(re.fullmatch(r"  report: about [\d.]+ m?s", line) for line in lines)
    assert re.fullmatch(
        r"memory: about [\d.,]+ [MG]iB at the most, [\d.,]+ [MG]iB of it to start and to read", lines[-2]
    )
    times = re.fullmatch(r"time: about ([\d.]+) s in all, ([\d.]+) s of it to start and to read", lines[-1])
    assert float(times[1]) > float(times[2])
    assert sorted(checkpoint.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("samples", "free", "words"),
    [(300, 1e3, "are free: give chunk_size="), (10, 4e3, "that does not fit: find at most")],
)
def test_too_little_memory_ends_with_status_1(samples, checkpoint, free, words, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    options = ["--samples", samples, "--device", "cpu", "--measure", "hessian_top_eigenvalues", "-k", 20]
    assert cli.run(["doctor", str(checkpoint), *map(str, options)]) == 1
    assert re.search(f"  WRONG  .*{words}", capsys.readouterr().out)


def test_products_of_measures_that_plan_none_are_timed(checkpoint):
    wanted = requests(["local_learning_coefficient:draws=20,chains=2"], seed=0)
    assert measuring.eigenpairs_needed(wanted) is None
    _, one, _ = estimated(subject(checkpoint, Sample(samples=40)), wanted)
    assert one.passes["hvp"] > 0
    assert 0 < one.seconds < math.inf


def test_a_measure_that_cannot_be_tried_says_why(checkpoint):
    _, one, _ = estimated(subject(checkpoint), requests(["average_sharpness:rho=-1"]))
    assert one.passes == {}
    assert "rho" in one.obstacle


def test_a_misspelled_measure_is_wrong_input(checkpoint, capsys):
    assert cli.run(["doctor", str(checkpoint), "--device", "cpu", "--measure", "sam_sharpnes"]) == 2
    assert "did you mean 'sam_sharpness'" in capsys.readouterr().err


@pytest.mark.parametrize("ignored", [40, 60, 190])
def test_the_examples_that_are_tried_have_targets_that_count(ignored):
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 2
    y[:ignored] = -100
    for size in (20, 100, 200):
        batches = list(zip(x.split(size), y.split(size), strict=True))
        model = torch.nn.Linear(3, 2)
        problem = Problem(model, torch.nn.functional.cross_entropy, batches)
        wanted = requests(["sam_sharpness", "hessian_top_eigenvalues"], rho=(0.1,), k=1, seed=0, subsets=0)
        made = Subject(Path("ckpt.pt"), "", model, problem, {}, 0)
        assert {one.obstacle for one in estimated(made, wanted, problem.plan(vectors=4))} == {""}
        assert (problem.few_examples(8).target >= 0).any()


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [("landscape doc", "doctor"), ("landscape analyze --objec", "--objective"), ("landscape train gs", "gsam")],
)
def test_the_shell_completes(words, expected):
    count = len(words.split()) - 1
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(count), "_LANDSCAPE_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py"], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert f"plain,{expected}" in done.stdout.splitlines()
