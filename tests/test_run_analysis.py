"""`landscape analyze` of a run: its checkpoints in order, every measure over the steps, one figure and one CSV."""

import csv
import functools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cli
import landscape
from figures.page import run as running
from landscape import InputError
from trainers import train
from trainers.rebuild import subject
from trainers.requests import requests
from trainers.run_checkpoints import Stage, run_of

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
SETTINGS = {"data": "toy2d:n=300", "batch_size": 50, "device": "cpu", "keep_every": 1}
FAST = ["--device", "cpu", "--quiet", "--samples", "60", "--measure", "hessian_top_eigenvalues", "-k", "2"]


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def batches():
    return [(X, Y)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train("sgd", out=folder, model="mlp:hidden=6", epochs=11, **SETTINGS)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def analyze(*arguments):
    return cli.run(["analyze", *map(str, arguments), *FAST])


def table(folder):
    with open(folder / "over-steps" / "run.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# -- which checkpoints, in which order ---------------------------------------------------------------------------------


def made(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir(parents=True)
            (folder / name / "model.safetensors").write_bytes(b"")
        else:
            (folder / name).write_bytes(b"")
    return folder


def order(*paths):
    run = run_of(paths)
    return None if run is None else (run.unit, [(s.path.name, s.at(run.unit)) for s in run.stages])


@pytest.mark.parametrize(
    ("names", "unit", "values"),
    [
        (["epoch=9-step=1000.ckpt", "epoch=10-step=1100.ckpt", "epoch=0-step=100.ckpt"], "step", [100, 1000, 1100]),
        (["checkpoint-1000/", "checkpoint-500/", "checkpoint-20/"], "step", [20, 500, 1000]),
        (["epoch-10.pt", "epoch-9.pt", "config.json", "history.csv"], "epoch", [9, 10]),
        (["model_step_10.pt", "model_step_9.pt"], "step", [9, 10]),
        (["net.0004.pth", "net.0012.pth", "notes.txt"], "number", [4, 12]),
        (["iter_200.pth", "iter_1000.pth", ".iter_5.pth.tmp"], "step", [200, 1000]),
    ],
)
def test_checkpoints_are_ordered_by_their_numbers(names, unit, values, tmp_path):
    found, stages = order(made(tmp_path / "r", *names))
    assert found == unit
    assert [value for _, value in stages] == values


def test_the_folder_of_lightning_is_looked_into(tmp_path):
    made(tmp_path / "version_0" / "checkpoints", "epoch=1-step=20.ckpt", "epoch=0-step=10.ckpt")
    assert order(tmp_path / "version_0")[1] == [("epoch=0-step=10.ckpt", 10), ("epoch=1-step=20.ckpt", 20)]


def test_a_checkpoint_of_hugging_face_is_one_and_its_run_is_a_run(tmp_path):
    folder = made(
        tmp_path / "out" / "checkpoint-500", "model.safetensors", "rng_state_0.pth", "optimizer.pt", "global_step500/"
    )
    assert order(folder) is None
    made(tmp_path / "out", "model.safetensors", "training_args.bin", "checkpoint-20/")
    assert order(tmp_path / "out") == ("step", [("checkpoint-20", 20), ("checkpoint-500", 500)])
    shards = made(tmp_path / "shards", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert order(shards) is None


def test_files_of_one_folder_are_a_run_where_each_states_its_step(tmp_path):
    folder = made(tmp_path / "r", "step=2.ckpt", "step=10.ckpt", "a.pt", "b.pt", "net-1.pt", "net-2.pt")
    assert order(folder / "step=10.ckpt", folder / "step=2.ckpt")[1] == [("step=2.ckpt", 2), ("step=10.ckpt", 10)]
    for names in (("a.pt", "b.pt"), ("net-1.pt", "net-2.pt"), ("a.pt", "step=2.ckpt")):
        assert order(*(folder / n for n in names)) is None
    other = made(tmp_path / "s", "step=3.ckpt")
    assert order(folder / "step=2.ckpt", other / "step=3.ckpt") is None
    assert order(folder / "a.pt") is None


def test_a_checkpoint_that_is_written_over_and_over_says_its_step(tmp_path):
    folder = made(tmp_path / "r", "epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt")
    torch.save({"state_dict": {}, "global_step": 20, "epoch": 1}, folder / "last.ckpt")
    assert [n for n, _ in order(folder)[1]] == ["epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt"]
    torch.save({"state_dict": {}, "global_step": 25, "epoch": 2}, folder / "last.ckpt")
    assert order(folder)[1][-1] == ("last.ckpt", 25)


def test_beside_names_with_an_epoch_a_bare_number_is_no_stage(tmp_path):
    epochs = [f"resnet18_epoch_{i}.pth" for i in (1, 2, 10)]
    folder = made(tmp_path / "r", *epochs, "resnet18_best.pth", "final.pt", "notes.txt", ".resnet18.pth")
    with pytest.warns(landscape.InputWarning) as warned:
        assert order(folder) == ("epoch", [(epochs[0], 1), (epochs[1], 2), (epochs[2], 10)])
    (line,) = [str(w.message) for w in warned]
    assert line == f"{folder}: left out, since no epoch is known of them: final.pt, resnet18_best.pth"


def test_a_last_checkpoint_without_its_step_is_named(tmp_path):
    folder = made(tmp_path / "r", "step=1.ckpt", "step=2.ckpt")
    torch.save({"state_dict": {}}, folder / "last.ckpt")
    with pytest.warns(landscape.InputWarning, match="left out, since no step is known of them: last.ckpt$"):
        assert order(folder) == ("step", [("step=1.ckpt", 1), ("step=2.ckpt", 2)])


def test_one_epoch_beside_a_bare_number_is_no_run(tmp_path):
    folder = made(tmp_path / "r", "resnet18_epoch_1.pth", "resnet18_best.pth")
    with pytest.raises(InputError, match="holds one checkpoint of its run: give .*resnet18_epoch_1.pth"):
        run_of([folder])


@pytest.mark.parametrize(
    "names",
    [("epoch-1.pt", "epoch-2.pt"), ("net.1.pth", "net.2.pth"), ("checkpoint-1/", "checkpoint-2/", "training_args.bin")],
)
def test_a_run_in_order_is_told_nothing_of(names, tmp_path, recwarn):
    assert len(run_of([made(tmp_path / "r", *names)]).stages) == 2
    assert not recwarn.list


def test_two_checkpoints_of_one_step_and_a_single_one_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a-step=2.ckpt and .*b-step=2.ckpt are both of step 2"):
        run_of([made(tmp_path / "r", "a-step=2.ckpt", "b-step=2.ckpt")])
    with pytest.raises(InputError, match="holds one checkpoint of its run: give .*step=2.ckpt"):
        run_of([made(tmp_path / "s", "step=2.ckpt")])


def test_every_so_many_and_the_last(tmp_path):
    run = run_of([made(tmp_path / "r", *(f"step={i}.ckpt" for i in range(1, 9)))])
    assert [s.step for s in run.thinned(3)] == [1, 4, 7, 8]
    assert [s.step for s in run.thinned(7)] == [1, 8]
    assert len(run.thinned(1)) == 8


# -- what is measured --------------------------------------------------------------------------------------------------


def test_numbers_over_the_steps_are_those_of_each_checkpoint(run, capsys):
    assert analyze(run) == 0
    rows = table(run)
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 12)]
    for row in (rows[0], rows[4], rows[-1]):
        problem = subject(run / row["checkpoint"], samples=60).problem
        expected = landscape.top_eigenvalues(problem, k=2, tol=1e-5)
        assert float(row["loss"]) == pytest.approx(float(problem.loss()), rel=1e-6)
        for i in (1, 2):
            bound = float(row[f"hessian_top_eigenvalues.{i}.error_bound"]) + expected.error_bounds[i - 1] + 1e-6
            assert abs(float(row[f"hessian_top_eigenvalues.{i}"]) - expected.values[i - 1]) <= bound
    stored = landscape.load(run / "over-steps" / "run.h5")["run"]
    np.testing.assert_array_equal(stored["loss"], [float(row["loss"]) for row in rows])
    summary = json.loads((run / "over-steps" / "summary.json").read_text())["checkpoints"]
    assert summary[2]["measures"]["hessian_top_eigenvalues"]["values"][0] == stored["hessian_top_eigenvalues.1"][2]
    assert (run / "over-steps" / "figures" / "run.png").stat().st_size > 5000
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "1"
    assert lines[-1] == f"report: {run / 'over-steps' / 'report.html'}"


def test_eigenvectors_start_from_those_of_the_checkpoint_before(run, monkeypatch):
    starts, measure = [], landscape.MEASURES["hessian_top_eigenvalues"]

    def watched(problem, w=None, start=None, **options):
        starts.append(None if start is None else tuple(start.shape))
        return measure(problem, w, start, **options)

    wanted, read = requests(["hessian_top_eigenvalues"], k=2), functools.partial(subject, samples=60)
    stages = run_of([run]).thinned(4)
    monkeypatch.setattr("trainers.monitor.measurements.MEASURES", {"hessian_top_eigenvalues": watched})
    running.measure_run(read(stages[0].path), stages, read, wanted, run / "run.journal")
    assert starts == [None, (2, 32), (2, 32), (2, 32)]


def test_what_the_start_vectors_save_is_measured_in_the_middle(run, capsys):
    """`hvps_from_random` is what the same call without `start` takes, at the one checkpoint that is compared."""
    assert analyze(run, "--every", 2) == 0
    spent = {
        Path(row["checkpoint"]).name: row["measures"]["hessian_top_eigenvalues"]
        for row in json.loads((run / "over-steps" / "summary.json").read_text())["checkpoints"]
    }
    assert [name for name, one in spent.items() if "hvps_from_random" in one] == ["epoch-7.pt"]
    cold = landscape.top_eigenvalues(subject(run / "epoch-7.pt", samples=60).problem, k=2).hvps
    warm = spent["epoch-7.pt"]["hvps"]
    assert spent["epoch-7.pt"]["hvps_from_random"] == cold
    total = sum(one["hvps"] for one in spent.values())
    saved = f"{cold - warm} saved" if cold > warm else "none saved"
    line = (
        f"Largest Hessian eigenvalues: {total} Hessian-vector products at 6 checkpoints; epoch-7.pt took {warm} from "
        f"the vectors of the checkpoint before, {cold} from random ones: {saved}"
    )
    assert line in capsys.readouterr().out.splitlines()
    assert f"{line}." in (run / "over-steps" / "report.html").read_text()


def test_products_saved_are_those_of_the_compared_checkpoint():
    def row(name, hvps, **more):
        return {"checkpoint": f"r/{name}", "measures": {"negative_curvature": {"hvps": hvps, **more}}}

    lines = [running.products([row("a", 20), row("b", 14, hvps_from_random=cold), row("c", 16)]) for cold in (19, 12)]
    assert [line for (line,) in lines] == [
        "Ends of the Hessian's spectrum: 50 Hessian-vector products at 3 checkpoints; b took 14 from the vectors of "
        f"the checkpoint before, {cold} from random ones: {saved} saved"
        for cold, saved in ((19, "5"), (12, "none"))
    ]
    assert running.products([{"checkpoint": "a", "measures": {"sam_sharpness": {"value": 1.0}}}]) == []


def test_what_is_measured_is_not_measured_again(run, monkeypatch):
    read = []
    original = running._row
    monkeypatch.setattr(running, "_row", lambda *a: read.append(a[1].epoch) or original(*a))
    assert analyze(run, "--every", 4) == 0
    assert read == [1, 5, 9, 11]
    assert analyze(run, "--every", 2) == 0
    assert read[4:] == [3, 7]
    assert [row["epoch"] for row in table(run)] == ["1", "3", "5", "7", "9", "11"]
    shutil.copyfile(run / "epoch-4.pt", run / "epoch-3.pt")  # another file under the same name
    assert analyze(run, "--every", 2) == 0
    assert read[6:] == [3]
    assert analyze(run, "--every", 2, "--seed", 5) == 0
    assert read[7:] == [1, 3, 5, 7, 9, 11]


def test_an_interrupted_run_goes_on(run, monkeypatch):
    original, count = running._row, iter(range(100))

    def interrupted(*arguments):
        if next(count) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(running, "_row", interrupted)
    assert analyze(run) == 130
    assert not (run / "over-steps" / "run.csv").exists()
    assert analyze(run) == 0
    assert next(count) == 15  # four calls before the interruption; the three of its chain, and eight more, after it
    assert len(table(run)) == 11


def test_a_run_of_two_networks_is_refused_in_one_line(run, tmp_path, capsys):
    train("sgd", out=tmp_path / "other", model="mlp:hidden=7", epochs=1, **SETTINGS)
    shutil.copyfile(tmp_path / "other" / "epoch-1.pt", run / "epoch-6.pt")
    assert analyze(run) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "another network" in text]
    assert line == (
        f"landscape: {run}/epoch-6.pt holds another network (mlp, 37 weights) than {run}/epoch-1.pt (mlp, 32 weights): "
        "give the checkpoints of one run"
    )


def of_scales(**scales):
    """Checkpoints in the current directory, each network's last weights a constant; how they are analyzed."""
    for step, scale in scales.items():
        model = network()
        nn.init.constant_(model[2].weight, scale)
        torch.save({"state_dict": model.state_dict(), "global_step": int(step[1:])}, f"epoch=0-step={step[1:]}.ckpt")
    code = "import sys; sys.path.insert(0, {!r}); from test_run_analysis import network, batches"
    Path("made_for_run.py").write_text(code.format(str(Path(__file__).parent)))
    options = ["--model", "made_for_run:network", "--data", "made_for_run:batches", "--out", "over-steps"]
    return [*(f"epoch=0-step={step[1:]}.ckpt" for step in scales), *options]


def test_a_checkpoint_that_diverged_leaves_a_gap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = of_scales(_10=1e38, _2=0.1, _30=math.nan, _40=0.2, _50=3e38)
    with pytest.warns(landscape.InputWarning) as warned:
        assert analyze(*arguments) == 0
    rows = table(tmp_path)
    assert [row["step"] for row in rows] == ["2", "10", "30", "40", "50"]
    assert [bool(row["hessian_top_eigenvalues.1"]) for row in rows] == [True, False, False, True, False]
    assert rows[2]["loss"] == ""
    texts = [str(w.message) for w in warned]
    assert any("step=30.ckpt: 2.weight holds NaN or infinite weights" in t for t in texts)
    assert any("step=50.ckpt: the loss over the sample is nan: nothing" in t for t in texts)


def test_a_run_without_a_finite_loss_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = of_scales(_1=3e38, _2=-3e38)
    with pytest.warns(landscape.InputWarning) as warned:
        assert analyze(*arguments) == 2
    assert sum("the loss over the sample is nan: nothing is measured there" in str(w.message) for w in warned) == 2
    assert "the loss over the sample is nan or infinite at all 2 checkpoints" in capsys.readouterr().err
    assert analyze(*arguments) == 2  # also by the rows that the first call has kept
    assert not Path("over-steps/run.csv").exists()


def test_a_measure_that_has_a_number_nowhere_is_a_column_of_nan():
    rows = [{"checkpoint": "x", "loss": 1.0, "accuracy": None, "measures": {}} for _ in range(2)]
    stages = [Stage(Path("x"), step, None) for step in (1, 2)]
    assert np.isnan(running.as_table(rows, "step", stages, ["hessian_trace"])["hessian_trace"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", 5], "a surface of every checkpoint of a run is not drawn"),
        (["--measure", "surface"], "a surface of every checkpoint of a run is not drawn"),
        (["--measure", "hessian_tracee"], "did you mean 'hessian_trace'"),
    ],
)
def test_what_a_run_cannot_have_is_refused_before_any_work(options, message, run, capsys):
    assert analyze(run, *options) == 2
    assert message in capsys.readouterr().err
    assert not (run / "over-steps").exists()


def test_every_is_for_runs(run, capsys):
    (run.parent / "one").mkdir()
    shutil.copy(run / "ckpt.pt", run.parent / "one")
    for path in (run / "ckpt.pt", run.parent / "one"):
        assert analyze(path, "--every", 2) == 2
        assert f"--every thins out the checkpoints of a run, and {path} is none" in capsys.readouterr().err
