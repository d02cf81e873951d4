"""Progress on a terminal and off it, nested bars, and cancellation."""

import io
import re
import sys
import threading
import types

import numpy as np
import pytest
import torch
from cases import case
from torch import nn

import cli
import landscape
from landscape import progress
from landscape.progress import Bar, track
from trainers import train


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self):
        return True


class Clock:
    """A time that stands still between `advance`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def steps(bar, clock, count, seconds):
    for _ in range(count):
        clock.now += seconds
        bar.advance()


def problem(loss=nn.functional.cross_entropy):
    model, batches = case("mlp", examples=24)
    return landscape.Problem(model, loss, batches)


def test_library_is_silent_without_the_context(clock, capsys):
    with Bar("work", 100) as bar:
        steps(bar, clock, 100, 1.0)
    assert capsys.readouterr() == ("", "")


def test_off_a_terminal_a_line_every_30_seconds_says_what_is_left(clock, capsys):
    with progress.shown(), Bar("work", 200, done=100) as bar:
        steps(bar, clock, 29, 1.0)
        assert capsys.readouterr().err == ""
        steps(bar, clock, 1, 1.0)
        assert capsys.readouterr().err == "landscape: work 130/200 (1/s, 0:01:10 left)\n"
        steps(bar, clock, 59, 1.0)
    assert capsys.readouterr().err == "landscape: work 160/200 (1/s, 0:00:40 left)\n"


def test_off_a_terminal_nested_work_shares_the_line(clock, capsys):
    with progress.shown(), Bar("outer", 4) as outer:
        steps(outer, clock, 1, 20.0)
        with Bar("inner") as inner:
            steps(inner, clock, 10, 1.0)
            with Bar("too short to be named", 3) as short:
                short.advance()
        assert capsys.readouterr().err == "landscape: outer 1/4 (0.033/s, 0:01:30 left); inner 10 (1/s)\n"


def test_a_long_pause_before_the_work_is_not_counted(clock, capsys):
    with progress.shown():
        clock.now += 1000
        with Bar("work", 10) as bar:
            steps(bar, clock, 10, 1.0)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_appears_after_a_second(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress.shown(), Bar("work", 8) as bar:
        steps(bar, clock, 3, 0.3)
        assert terminal.getvalue() == ""
        steps(bar, clock, 1, 0.3)
    assert re.search(r"work.*4/8", terminal.getvalue())


def test_on_a_terminal_nested_bars_are_rows_of_one_display(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    made = []
    monkeypatch.setattr(progress, "_rich", lambda make=progress._rich: made.append(make()) or made[-1])
    with progress.shown():
        with Bar("outer", 4) as outer:
            steps(outer, clock, 1, 0.5)
            with Bar("inner", 8) as inner:
                steps(inner, clock, 4, 0.5)
                assert [t.description for t in made[0].tasks] == ["outer", "inner"]
            assert [t.description for t in made[0].tasks] == ["outer"]
        for _ in track(range(3), "later"):
            clock.now += 2.0
    assert len(made) == 2
    assert all(not display.live.is_started for display in made)
    assert "outer" in terminal.getvalue()


def test_inner_contexts_silence_and_share(clock, capsys):
    with progress.shown():
        assert progress.is_shown()
        with progress.shown(False), Bar("silent", 100) as bar:
            assert not progress.is_shown()
            steps(bar, clock, 100, 1.0)
        with progress.shown(), Bar("heard", 40) as bar:
            steps(bar, clock, 40, 1.0)
    assert not progress.is_shown()
    assert capsys.readouterr().err.startswith("landscape: heard 30/40")


def test_an_abandoned_loop_leaves_no_bar_behind(clock, capsys):
    with progress.shown():
        loop = track(range(5), "abandoned")
        next(loop)
        loop.close()
        with Bar("work", 40) as bar:
            steps(bar, clock, 31, 1.0)
    assert capsys.readouterr().err == "landscape: work 30/40 (1/s, 0:00:10 left)\n"


def test_cancelling_ends_a_measure_at_its_next_step():
    calls = -(10**9)

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == 40:
            threading.Thread(target=flag.set).start()
        return nn.functional.cross_entropy(outputs, targets)

    subject = problem(loss)
    before, calls = subject.weights.clone(), 0
    with progress.cancellable() as flag, pytest.raises(progress.Cancelled, match="average sharpness was cancelled"):
        landscape.average_sharpness(subject, draws=100_000)
    assert 40 <= calls < 10_000
    assert torch.equal(subject.weights, before)
    assert landscape.average_sharpness(subject, draws=4).value == landscape.average_sharpness(problem(), draws=4).value


@pytest.mark.parametrize("name", ["hessian_trace", "worst_case_sharpness", "layer_eigenvalues", "pac_bayes_sigma"])
def test_every_long_measure_looks_at_the_flag(name):
    flag = threading.Event()
    flag.set()
    options = {"method": "hutchinson"} if name == "hessian_trace" else {}
    with progress.cancellable(flag), pytest.raises(KeyboardInterrupt):
        landscape.MEASURES[name](problem(), **options)


def test_a_cancelled_surface_goes_on_where_it_was(tmp_path, monkeypatch):
    options = {"grid": 41, "dimensions": 1}
    kept = {"file": tmp_path / "surface.h5", "resume": True}
    flag, advance = threading.Event(), Bar.advance

    def cancelling(bar, steps=1):
        flag.set()
        advance(bar, steps)

    whole = landscape.surface(problem(), **options)
    monkeypatch.setattr(Bar, "advance", cancelling)
    with progress.cancellable(flag), pytest.raises(progress.Cancelled):
        landscape.surface(problem(), **options, **kept)
    monkeypatch.undo()
    unfinished = landscape.load(kept["file"])["surface"]
    resumed = landscape.surface(problem(), **options, **kept)
    # Points a launch are chosen by their time, which changes rounding.
    np.testing.assert_allclose(resumed.loss, whole.loss, rtol=1e-12)
    assert unfinished.complete is False
    assert 0 < unfinished.done.sum() < 41


def test_a_cancelled_training_keeps_its_epochs_and_resumes(tmp_path, monkeypatch):
    settings = {"data": "toy2d", "model": "mlp:hidden=4", "epochs": 3, "batch_size": 50, "seed": 1}
    whole = train("sgd", **settings)
    flag, advance = threading.Event(), Bar.advance

    def cancelling(bar, steps=1):
        if bar.done > 0.5 * bar.total:
            flag.set()
        advance(bar, steps)

    monkeypatch.setattr(Bar, "advance", cancelling)
    with progress.cancellable(flag), pytest.raises(progress.Cancelled):
        train("sgd", out=tmp_path / "run", **settings)
    monkeypatch.undo()
    resumed = train("sgd", out=tmp_path / "run", resume=True, **settings)
    assert 0 < resumed.epochs_trained < 3
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("quiet", "shown"), [([], True), (["--quiet"], False)])
def test_commands_show_progress_unless_they_are_quiet(quiet, shown, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("trainers.data.files.fetch", lambda *_: seen.append(progress.is_shown()) or [])
    assert cli.run(["data", "fetch", "mnist", "--data-dir", str(tmp_path), *quiet]) == 0
    assert seen == [shown]
    assert not progress.is_shown()


class Cell:
    """A stand-in for IPython in a notebook: what was displayed, in its order."""

    def __init__(self, monkeypatch, kernel):
        self.pages, self.shell = [], types.SimpleNamespace(**({"kernel": object()} if kernel else {}))
        package, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
        package.get_ipython = lambda: self.shell
        display.HTML = str
        display.display = self.display
        monkeypatch.setitem(sys.modules, "IPython", package)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, page, display_id):
        assert display_id is True
        self.pages.append(page)
        return types.SimpleNamespace(update=self.pages.append)


def test_in_a_notebook_bars_stand_below_the_cell(clock, monkeypatch, capsys):
    monkeypatch.setattr("landscape.notebook.time", clock)
    cell = Cell(monkeypatch, kernel=True)
    with progress.shown(), Bar("a < b", 8) as outer:
        steps(outer, clock, 3, 0.3)
        assert cell.pages == []
        steps(outer, clock, 1, 0.3)
        row = '<div><progress value="4" max="8"></progress> a &lt; b 4/8 (3.3/s, 0:00:01 left)</div>'
        assert cell.pages == [row]
        with Bar("inner") as inner:
            steps(inner, clock, 4, 0.3)
        assert re.fullmatch(
            r"<div><progress value.*a &lt; b.*</div><div><progress></progress> inner 4 .*", cell.pages[-1]
        )
    assert cell.pages[-1] == ""
    assert capsys.readouterr() == ("", "")


def test_ipython_in_a_terminal_is_no_notebook(clock, monkeypatch, capsys):
    cell = Cell(monkeypatch, kernel=False)
    with progress.shown(), Bar("work", 40) as bar:
        steps(bar, clock, 40, 1.0)
    assert cell.pages == []
    assert capsys.readouterr().err.startswith("landscape: work 30/40")
