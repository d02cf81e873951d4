"""The study runs each thing once and goes on where it was; verdicts follow their rule."""

import importlib
import json
import math

import numpy as np
import pytest
from scipy import stats

from figures.study import tasks as task_module
from figures.study import verdict
from figures.study.figure_data import FigureData
from figures.study.study import Computation, Study, Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.errors import InputError
from landscape.statistics import Estimate
from trainers import METHODS
from trainers.data import DATA

TOY = {"data": "toy2d:n=64,n_test=32", "model": "table2-mlp", "epochs": 2, "batch_size": 32}


def weight_norm(run, *, power, device):
    """A computation: a number of one trained network."""
    from landscape import checkpoint

    state = checkpoint.read(run / "ckpt.pt")["model"]["state"]
    return {"norm": sum(float((w.double() ** power).sum()) for w in state.values()), "device": device == "cpu"}


def refuse(*_):
    raise AssertionError("nothing may be run again")


def norm_of(training, power=2):
    return Computation("test_study:weight_norm", (training,), {"power": power})


@pytest.fixture
def small(tmp_path):
    return Study(tmp_path / "study", "smoke")


# -- tasks ---------------------------------------------------------------------------------------------------------


def test_a_second_call_runs_nothing(small, monkeypatch):
    training = small.training("sgd", 0, **TOY)
    tasks = [norm_of(training), training, norm_of(training)]
    assert small.run(tasks) == 2
    first = small.result(tasks[0])["norm"]
    monkeypatch.setattr(task_module, "run_task", refuse)
    again = Study(small.directory, "smoke")
    assert again.run(tasks) == 0
    assert again.result(tasks[0])["norm"] == first > 0


def test_a_method_that_changed_is_trained_again(monkeypatch):
    before = Training("sgd", {}, {**TOY, "seed": 0}).key
    monkeypatch.setitem(METHODS.entry("sgd").facts, "revision", 7)
    assert Training("sgd", {}, {**TOY, "seed": 0}).key != before


def test_defaults_are_part_of_the_configuration():
    """Of the method, the settings, the base optimizer, the data and the network: written out or not, it is one run."""
    short = Training("sam", {}, {**TOY, "seed": 0})
    data, model = "toy2d:n=64,n_test=32,variance=5.0", "table2-mlp"
    settings = {**TOY, "data": data, "model": model, "seed": 0, "momentum": 0.9, "lr": 0.1, "weight_decay": 5e-4}
    assert Training("sam", {"rho": 0.05}, settings).key == short.key
    for changed in ({"data": f"{data},seed=3"}, {"momentum": 0.8}, {"weight_decay": 0.0}):
        assert Training("sam", {"rho": 0.05}, {**settings, **changed}).key != short.key
    assert Training("sam", {"rho": 0.06}, settings).key != short.key


def test_a_changed_default_is_another_configuration(monkeypatch):
    """Nothing but the default changes: of a field of a method, of an option of the data."""
    import dataclasses

    def keys():
        return Training("sam", {}, {**TOY, "seed": 0}).key, Training("sam", {"rho": 0.05}, {**TOY, "seed": 0}).key

    before = keys()
    real = METHODS["sam"]
    changed = dataclasses.make_dataclass("sam", [("rho", float, 0.07)], bases=(real,), frozen=True)
    monkeypatch.setattr(f"{real.__module__}.{real.__name__}", changed)
    after = keys()
    assert after[0] != before[0]
    assert after[1] == before[1] == before[0]
    entry = DATA.entry("toy2d")
    options = [dataclasses.replace(o, default=3.0) if o.name == "variance" else o for o in entry.options]
    monkeypatch.setitem(DATA.entries, "toy2d", dataclasses.replace(entry, options=tuple(options)))
    assert keys()[1] != after[1]


def test_defaults_of_measures_are_part_of_a_computation(monkeypatch):
    def key(**arguments):
        return Computation("figures.study.computations:measures", (), {"wanted": {"hessian_trace": arguments}}).key

    from landscape import MEASURES

    seed = MEASURES.entry("hessian_trace").option("seed")
    assert key() == key(seed=seed.default) != key(seed=seed.default + 1)


def test_a_time_belongs_to_its_kind_of_device(tmp_path):
    here, there = Study(tmp_path, "smoke"), Study(tmp_path, "smoke", device="cuda:1")
    timed = Computation("test_study:weight_norm", (), {}, timed=True)
    budgeted = here.training("sgd", 0, **TOY, budget_seconds=1.0)
    for task in (timed, budgeted):
        assert here.path(task) != there.path(task) == Study(tmp_path, "smoke", device="cuda:0").path(task)
    plain = here.training("sgd", 0, **TOY)
    assert here.path(plain) == there.path(plain)


def test_what_determines_the_outcome_is_in_the_key():
    base = Training("sgd", {}, {**TOY, "seed": 0})
    other = [
        Training("sam", {}, {**TOY, "seed": 0}),
        Training("sam", {"rho": 0.1}, {**TOY, "seed": 0}),
        Training("sgd", {}, {**TOY, "seed": 1}),
        Training("sgd", {}, {**TOY, "seed": 0, "lr": 0.2}),
        Training("sgd", {}, {**TOY, "seed": 0, "keep_every": 1}),
    ]
    assert len({t.key for t in (base, *other)}) == 6
    assert Training("sgd", {}, {"seed": 0, **TOY, "save_every": 50}).key == base.key
    assert norm_of(base).key != norm_of(base, 1).key
    assert norm_of(base).key != norm_of(other[0]).key


def test_a_changed_function_is_computed_again(monkeypatch):
    before = norm_of(Training("sgd", {}, TOY)).key

    def weight_norm(run):
        return {"norm": 0.0}

    monkeypatch.setattr("test_study.weight_norm", weight_norm)
    assert norm_of(Training("sgd", {}, TOY)).key != before


def test_a_changed_helper_is_a_changed_function(tmp_path, monkeypatch):
    text = "def helper(x):\n    return {}\n\ndef outer(run):\n    return [helper(i) for i in (1, 2)]\n"
    found = []
    for name, value in (("one", "x"), ("two", "x + 1"), ("three", "x")):
        (tmp_path / f"module_{name}.py").write_text(text.format(value) + "\n\ndef other():\n    return 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        found.append(task_module.source(importlib.import_module(f"module_{name}").outer))
    assert found[0] == found[2] != found[1]
    assert "other" not in found[0]


def test_a_file_that_is_edited_meanwhile_changes_no_key(tmp_path, monkeypatch):
    """The process goes on with the code that it has loaded; a second call of it must find what the first one kept."""
    (tmp_path / "edited.py").write_text("def outer():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = Computation("edited:outer").key
    (tmp_path / "edited.py").write_text("# a line more\ndef other():\n    return 2\n\ndef outer():\n    return 3\n")
    assert Computation("edited:outer").key == before


def test_a_computation_brings_its_training(small):
    training = small.training("sgd", 0, **TOY)
    assert [type(t) for t in small.missing([norm_of(training)])] == [Training, Computation]
    small.run([norm_of(training)])
    assert small.missing([norm_of(training), training]) == []


def test_an_interrupted_study_resumes(small, monkeypatch):
    """Killed within the second run: the first is kept, the second goes on from its checkpoint, bitwise."""
    from trainers.loop import loop

    tasks = [small.training("sam", s, **{**TOY, "epochs": 2}) for s in (0, 1)]
    whole = Study(small.directory.parent / "whole", "smoke")
    whole.run([norm_of(t) for t in tasks])
    real, epochs = loop._Trainer._train_epoch, []

    def killed(self, bar):
        epochs.append(self.settings.seed)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        real(self, bar)

    monkeypatch.setattr(loop._Trainer, "_train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        small.run(tasks)
    assert [small.done(t) for t in tasks] == [True, False]
    small.run([norm_of(t) for t in tasks])
    assert epochs == [0, 0, 1, 1, 1], "only the epoch that was lost is trained again"
    for t in tasks:
        assert small.result(norm_of(t))["norm"] == whole.result(norm_of(t))["norm"]


def test_what_a_task_cost_is_kept(small):
    training = small.training("sgd", 0, **TOY)
    timed = Computation("test_study:weight_norm", (training,), {"power": 1}, timed=True)
    small.run([norm_of(training), timed])
    parts = [small.spent([t])["seconds"] for t in (training, norm_of(training), timed)]
    assert min(parts) > 0
    spent = small.spent([norm_of(training), training, timed])
    # The training counts once; times are kept to the millisecond.
    assert spent["seconds"] == pytest.approx(parts[1] + parts[2] - parts[0], abs=0.003)
    assert spent["alone_seconds"] == pytest.approx(parts[2] - parts[0], abs=0.003)
    assert spent["processor_seconds"] > 0


def broken(run):
    raise InputError("a broken computation")


def test_a_failure_stays_with_what_depends_on_it(small, monkeypatch):
    good, bad = (small.training(m, 0, **TOY) for m in ("sgd", "sam"))
    real = task_module.Training.run

    def run(self, path, place):
        if self.method == "sam":
            raise InputError("diverged")
        real(self, path, place)

    monkeypatch.setattr(task_module.Training, "run", run)
    tasks = [norm_of(bad), norm_of(good), Computation("test_study:broken", (good,))]
    ended = {}
    assert small.run(tasks, lambda task, error: ended.__setitem__(task.name, error and str(error))) == 5
    expected = [(bad, "diverged"), (tasks[0], "diverged"), (good, None), (tasks[1], None)]
    assert ended == {t.name: error for t, error in [*expected, (tasks[2], "a broken computation")]}
    assert [small.done(t) for t in tasks] == [False, True, False]
    with pytest.raises(InputError, match="diverged"):
        small.run(tasks)


def test_times_are_measured_behind_everything_else(small):
    training = small.training("sgd", 0, **TOY)
    timed = [Computation("test_study:weight_norm", (training,), {"power": p}, timed=True) for p in (3, 4)]
    budgeted = small.training("sam", 0, **TOY, budget_seconds=0.1)
    order = []
    small.run([timed[0], norm_of(budgeted), norm_of(training), timed[1]], lambda task, error: order.append(task))
    assert order == [training, norm_of(training), timed[0], budgeted, norm_of(budgeted), timed[1]]


@pytest.mark.slow
def test_processes_give_what_one_process_gives(small):
    tasks = [norm_of(small.training("sgd", s, **TOY)) for s in (0, 1)]
    small.run(tasks)
    # A spawned worker cannot import this test file: a figure's own computation is what is compared.
    both = Study(small.directory.parent / "both", "smoke", workers=2)
    trainings = [t.trainings[0] for t in tasks]
    assert both.run(trainings) == 2
    for t in trainings:
        np.testing.assert_array_equal(both.history(t)["train_loss"], small.history(t)["train_loss"])


def test_presets_limit_trainings(tmp_path):
    smoke, quick = Study(tmp_path, "smoke"), Study(tmp_path, "quick", seeds=7)
    assert smoke.training("sgd", 0, epochs=200).settings["epochs"] == 2
    assert quick.training("sgd", 0, epochs=200).settings["epochs"] == 200
    assert smoke.seeds(quick=5) == [0, 1]
    assert quick.seeds(quick=5) == list(range(7))
    assert Study(tmp_path, "quick").seeds(quick=5) == list(range(5))
    assert (smoke.choose(1, 2), Study(tmp_path, "paper").choose(1, 2)) == (1, 2)
    with pytest.raises(InputError, match="quick"):
        Study(tmp_path, "quik")


# -- numbers -------------------------------------------------------------------------------------------------------


def example():
    numbers = FigureData(facts={"samples": 3})
    numbers.axis("method", ["sgd", "sam"])
    numbers.axis("epoch", [1, 2, 3], "epochs")
    numbers.add("loss", ("method", "epoch"), np.arange(6.0).reshape(2, 3), "nats")
    return numbers


def test_numbers_survive_the_file(tmp_path):
    example().save(tmp_path / "n.h5")
    back = FigureData.load(tmp_path / "n.h5")
    assert back["method"].tolist() == ["sgd", "sam"]
    np.testing.assert_array_equal(back.at("loss", method="sam"), [3, 4, 5])
    assert back.at("loss", method="sam", epoch=2) == 4
    assert (back.axes["loss"], back.units["loss"], back.facts) == (("method", "epoch"), "nats", {"samples": 3})


def test_numbers_open_in_xarray(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    example().save(tmp_path / "n.h5")
    with xarray.open_dataset(tmp_path / "n.h5", group="numbers", engine="h5netcdf") as opened:
        assert float(opened.loss.sel({"method": "sam", "epoch": 2})) == 4


def test_the_table_has_a_row_for_every_number(tmp_path):
    example().write_csv(tmp_path / "n.csv")
    rows = [line.split(",") for line in (tmp_path / "n.csv").read_text().split()]
    assert rows[0] == ["quantity", "method", "epoch", "value", "unit"]
    assert ["loss", "sam", "2", "4.0", "nats"] in rows
    assert len(rows) == 7


def test_shapes_must_fit_their_axes():
    with pytest.raises(ValueError, match="shape"):
        example().add("other", ("epoch", "method"), np.zeros((2, 3)))
    with pytest.raises(KeyError, match="adam"):
        example().at("loss", method="adam")


# -- verdicts ------------------------------------------------------------------------------------------------------


def claim(low, high, n=5, kind="t", **region):
    return Claim("c", "q", "-", Estimate((low + high) / 2, low, high, n, kind), **region)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (claim(0.1, 0.4, above=0), "supported"),
        (claim(-0.4, -0.1, above=0), "not supported"),
        (claim(-0.1, 0.4, above=0), "undecided"),
        (claim(-0.1, 0.1, above=-1, below=1), "supported"),
        (claim(1.5, 2.0, above=-1, below=1), "not supported"),
        (claim(0.5, 2.0, above=-1, below=1), "undecided"),
        (claim(0.0, 0.0, above=0), "undecided"),
        (claim(-0.1, 0.0, above=0), "not supported"),
        (claim(0.0, 0.0, n=1, kind="exact", above=0), "not supported"),
        (claim(0.1, 0.4, n=2, above=0), "undecided"),
        (claim(0.2, 0.2, n=1, kind="exact", above=0), "supported"),
        (claim(math.nan, math.nan, above=0), "undecided"),
    ],
)
def test_the_rule(made, expected):
    assert made.verdict == expected


def test_a_claim_without_region_is_a_mistake():
    with pytest.raises(ValueError, match="region"):
        _ = claim(0, 1).verdict


def test_intervals_are_students():
    a, b = np.array([1.0, 2.0, 4.0, 3.5]), np.array([0.5, 1.0, 2.0, 3.0])
    found, oracle = statistics.paired(a, b), stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-12)
    assert found.value == pytest.approx(1.0)
    assert found.kind == "paired t"
    assert math.isnan(statistics.mean([1.0]).low)
    assert statistics.exact(2.0) == Estimate(2.0, 2.0, 2.0, 1, "exact")


def test_spreads_have_positive_intervals():
    x = np.array([0.01, 0.1, 2.0])
    found, oracle = statistics.geometric_mean(x), stats.ttest_1samp(np.log(x), 0).confidence_interval(0.95)
    assert found.value == pytest.approx(0.002 ** (1 / 3), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((math.exp(oracle.low), math.exp(oracle.high)), rel=1e-12)
    assert math.isnan(statistics.geometric_mean([0.0, 1.0, 2.0]).low)


def test_the_bootstrap_covers():
    """The 95% interval of a mean holds the truth in 95 of 100 samples: within 4 standard errors of that."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = statistics.bootstrap(np.mean, generator.normal(size=40), draws=400)
        hits += found.low < 0 < found.high
    assert abs(hits / 200 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 200)


def test_the_bootstrap_has_students_width():
    """For a mean the expanded percentiles give Student's interval, also of few rows."""
    x = np.random.default_rng(1).normal(size=12)
    found = statistics.bootstrap(np.mean, x, draws=20000)
    oracle = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    # The bootstrap distribution of 12 rows is not exactly normal, and its 1.3% quantile is of 20,000 draws.
    assert found.high - found.low == pytest.approx(oracle.high - oracle.low, rel=0.1)


def test_seeds_of_one_method_are_no_independent_rows():
    """Twenty methods, three seeds each that resemble each other: only whole methods give an interval that covers."""
    generator = np.random.default_rng(0)
    method = np.repeat(np.arange(20), 3)
    hits = {"rows": 0, "methods": 0}
    for _ in range(200):
        x = generator.normal(size=20)[method] + 0.2 * generator.normal(size=60)
        for kind, clusters in (("rows", None), ("methods", method)):
            found = statistics.bootstrap(np.mean, x, clusters=clusters, draws=150)
            hits[kind] += found.low < 0 < found.high
    error = math.sqrt(0.95 * 0.05 / 200)
    assert hits["methods"] / 200 > 0.95 - 4 * error
    assert hits["rows"] / 200 < 0.95 - 8 * error, "independent rows would be believed"


def test_clusters_keep_their_rows_together():
    seen = []

    def statistic(values):
        seen.append(sorted(values))
        return float(np.mean(values))

    found = statistics.bootstrap(statistic, np.array([1.0, 2.0, 10.0, 20.0, 30.0]), clusters=["a", "a", "b", "b", "b"])
    assert {tuple(v) for v in seen} == {
        (1, 1, 2, 2), (1, 2, 10, 20, 30), (10, 10, 20, 20, 30, 30),
    }  # fmt: skip
    assert (found.n, found.kind, found.dropped) == (2, "cluster bootstrap", 0)
    assert Claim("c", "q", "-", found, above=0).verdict == "undecided", "two clusters decide nothing"
    with pytest.raises(ValueError, match="2 labels"):
        statistics.bootstrap(np.mean, np.ones(3), clusters=[0, 1])


def test_draws_without_a_number_are_counted():
    """A statistic that fails without the one row of 50 (36% of the draws), and one that fails without two others."""
    x = np.arange(50.0)

    def needs(*rows):
        return lambda v: float(v.mean()) if any(r in v for r in rows) else math.nan

    many = statistics.bootstrap(needs(7), x, draws=1000)
    assert many.value == pytest.approx(24.5)
    assert 300 < many.dropped < 430
    assert math.isnan(many.low)
    assert Claim("c", "q", "-", many, above=0).verdict == "undecided"
    few = statistics.bootstrap(needs(1, 2, 3, 4), x, draws=1000)
    assert 0 < few.dropped <= 50
    assert few.low < 24.5 < few.high
    assert Claim("c", "q", "-", few, above=0).verdict == "supported"


def test_the_table_says_what_was_dropped(tmp_path):
    facts = {"title": "A", "preset": "quick", "source": "paper"}
    lost = Estimate(1.0, math.nan, math.nan, 9, "bootstrap", 1000, 300)
    kept = Estimate(1.0, 0.5, 1.5, 9, "bootstrap", 1000, 30)
    verdict.write(tmp_path / "x", [Claim("c", "q", "-", e, above=0) for e in (lost, kept)], facts)
    text = (tmp_path / "x-verdict.md").read_text()
    assert "300 of 1000 bootstrap draws gave no number: too many for an interval." in text
    assert "30 of 1000 bootstrap draws gave no number: left out." in text
    assert json.loads((tmp_path / "x-verdict.json").read_text())["claims"][1]["ours"]["dropped"] == 30


def test_rounding_is_no_value(tmp_path):
    facts = {"title": "A", "preset": "quick", "source": "-"}
    made = Claim("c", "q", "-", Estimate(2.8e-15, -0.3, 0.3, 5, "t"), above=0)
    verdict.write(tmp_path / "f", [made], facts)
    assert "| 0 [-0.3, 0.3] |" in (tmp_path / "f-verdict.md").read_text()


def test_verdicts_are_written_and_collected(tmp_path):
    facts = {"title": "A | title", "preset": "quick", "source": "paper, Figure 1"}
    verdict.write(tmp_path / "b-fig", [claim(0.1, 0.4, above=0), claim(-0.1, 0.4, above=0)], facts)
    verdict.write(tmp_path / "a-fig", [claim(math.nan, math.nan, above=0)], facts)
    entry = json.loads((tmp_path / "b-fig-verdict.json").read_text())
    assert [c["verdict"] for c in entry["claims"]] == ["supported", "undecided"]
    assert (entry["claims"][0]["ours"]["low"], entry["claims"][0]["above"]) == (0.1, 0)
    text = verdict.collect(tmp_path).read_text()
    assert "3 claims: 1 supported, 0 not supported, 2 undecided" in text
    assert text.index("## a-fig") < text.index("## b-fig")
    assert "0.25 [0.1, 0.4] | 5 | above 0 | **supported** |" in text
    assert "not computed" in text
