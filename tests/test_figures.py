"""Every figure in its smallest form: what is run, what is written; the command."""

import errno
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from figure_cases import drawn
from matplotlib import pyplot as plt

from cli import run
from figures import FIGURES
from figures.drawing import style
from figures.study import figure as entry
from figures.study import study as study_module
from figures.study.figure_data import FigureData
from figures.study.study import Study
from landscape.errors import InputError

SUFFIXES = (".pdf", ".svg", ".png", ".csv", ".h5", "-verdict.md", "-verdict.json")


pytestmark = pytest.mark.usefixtures("styled")


# Those that train a dozen networks or measure time even in their smallest form.
LONG = {"asam-fig5", "asam-fig7", "asam-table1", "asam-time", "saf-table1", "rst-schedules", "ksam-tradeoff"} | {
    "ksam-text",
    "all-methods",
    "matched-loss",
    "correlation",
    "flatness-buys",
}


NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in FIGURES]


@pytest.mark.parametrize("name", NAMES)
class TestEveryFigure:
    def test_writes_its_files(self, made, name):
        root, _ = made(name)
        for suffix in SUFFIXES:
            assert (root / f"{name}{suffix}").stat().st_size > 100, suffix
        assert f"## {name}" in (root / "verdicts.md").read_text()

    def test_embeds_truetype_fonts_and_its_facts(self, made, name):
        root, _ = made(name)
        pdf = (root / f"{name}.pdf").read_bytes()
        assert b"/Type3" not in pdf
        assert b"preset" in pdf
        assert b"smoke" in (root / f"{name}.svg").read_bytes()

    def test_a_second_call_runs_nothing(self, made, name):
        root, study = made(name)
        figure = FIGURES[name]()
        again = Study(study.directory, "smoke")
        assert again.run(figure.plan(again)) == 0
        collected, kept = figure.collect(again), FigureData.load(root / f"{name}.h5")
        assert set(collected.values) == set(kept.values)
        for key, values in collected.values.items():
            np.testing.assert_array_equal(kept[key], values)

    def test_draws_and_judges_from_its_file_alone(self, made, name, monkeypatch):
        root, _ = made(name)
        numbers = FigureData.load(root / f"{name}.h5")
        for attribute in ("run", "result", "history", "training"):
            monkeypatch.setattr(Study, attribute, None)
        monkeypatch.setattr("figures.study.study.load_arrays", None)
        figure = FIGURES[name]().draw(numbers)
        assert figure.axes
        plt.close(figure)
        written = json.loads((root / f"{name}-verdict.json").read_text())["claims"]
        assert [c.entry() for c in FIGURES[name]().judge(numbers)] == written

    def test_fits_a_column_or_a_page(self, made, name):
        _, figure = drawn(made, name)
        assert round(figure.get_figwidth(), 1) in (style.COLUMN, style.PAGE)
        box = figure.get_tightbbox()
        assert box.x0 > -0.05
        assert box.x1 < figure.get_figwidth() + 0.05, "something is cut off on the right"
        plt.close(figure)

    def test_says_below_what_was_computed(self, made, name):
        numbers, figure = drawn(made, name)
        note = next(t for t in figure.texts if t.get_gid() == "footnote")
        text = note.get_text().replace("\n", " ")
        assert text.startswith("preset smoke")
        assert re.search(r"\d (seeds|networks)(, shown: .+)?$", text)
        renderer = figure.canvas.get_renderer()
        box = note.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        for drawn_above in (*figure.axes, *figure.legends):
            assert drawn_above.get_tightbbox(renderer).y0 > box.y1 - 1, "the note lies on a panel or a legend"
        assert numbers.facts["cost"]["processor_seconds"] > 0
        plt.close(figure)

    def test_names_every_axis(self, made, name):
        _, figure = drawn(made, name)
        for axes in figure.axes:
            if axes.axison and not axes.get_label().startswith("<colorbar"):
                shared = [*axes.get_shared_x_axes().get_siblings(axes), *axes.get_shared_y_axes().get_siblings(axes)]
                assert axes.get_xlabel() or any(a.get_xlabel() for a in shared), axes.get_title("left")
                assert axes.get_ylabel() or any(a.get_ylabel() for a in shared), axes.get_title("left")
        plt.close(figure)

    def test_states_claims_that_can_be_judged(self, made, name):
        root, _ = made(name)
        claims = json.loads((root / f"{name}-verdict.json").read_text())["claims"]
        assert claims
        for claim in claims:
            assert claim["verdict"] in ("supported", "not supported", "undecided")
            assert claim["ours"]["value"] is not None, claim["text"]
            # Two seeds decide nothing: only exact quantities and larger bootstraps may.
            if claim["ours"]["n"] < 3 and claim["ours"]["kind"] != "exact":
                assert claim["verdict"] == "undecided"


# -- the order of things -------------------------------------------------------------------------------------------


def test_figures_are_drawn_as_their_own_tasks_end(tmp_path, monkeypatch):
    """The one that needs fewer tasks first, the other after the rest; shared tasks once."""
    from figures.study import tasks

    real, events = tasks.run_task, []

    def run_task(task, *rest):
        events.append("task")
        return real(task, *rest)

    monkeypatch.setattr(tasks, "run_task", run_task)
    names = ["asam-fig6", "asam-fig3", "asam-fig2"]  # 12 tasks, and 2 that both others share
    pictures = entry.make(names, Study(tmp_path / "study", "smoke"), tmp_path, lambda path: events.append(path.stem))
    assert events == ["task"] * 2 + ["asam-fig3", "asam-fig2"] + ["task"] * 12 + ["asam-fig6"]
    assert [p.stem for p in pictures] == ["asam-fig3", "asam-fig2", "asam-fig6"]


def test_a_figure_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    from figures.paper import asam_fig2

    def fail(self, numbers):
        raise ZeroDivisionError("no such panel")

    monkeypatch.setattr(asam_fig2.FlatLogits, "draw", fail)
    monkeypatch.setattr(study_module, "PRESETS", {"quick": study_module.PRESETS["smoke"]})
    out = ["--seeds", "2", "--workers", "1", "--quiet", "--out", str(tmp_path)]
    assert run(["figures", "asam-fig2", "asam-fig6", "asam-fig3", *out]) == 1
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / n) for n in ("asam-fig3.png", "asam-fig6.png", "verdicts.md")]
    assert "asam-fig2 was not made" in printed.err
    assert "no such panel" in printed.err
    assert "asam-fig6 was not made" not in printed.err
    with pytest.raises(ZeroDivisionError, match="no such panel"):
        entry.make(["asam-fig2"], Study(tmp_path / "study"), tmp_path)


def test_figures_that_all_fail_by_wrong_input_exit_as_wrong_input(tmp_path, monkeypatch, capsys):
    from figures.paper import asam_fig2

    def refuse(self, numbers):
        raise InputError("no such data")

    monkeypatch.setattr(study_module, "PRESETS", {"quick": study_module.PRESETS["smoke"]})
    monkeypatch.setattr(asam_fig2.FlatLogits, "draw", refuse)
    command = ["figures", "asam-fig2", "asam-fig3", "--seeds", "2", "--workers", "1", "--quiet", "--out", str(tmp_path)]
    assert run(command) == 1  # the other one is there
    monkeypatch.setattr(FIGURES["asam-fig3"], "draw", refuse)
    assert run(command) == 2
    assert "asam-fig3 was not made: no such data" in capsys.readouterr().err


def test_a_full_disk_ends_the_study_with_one_line(tmp_path, monkeypatch, capsys):
    from figures.study import tasks

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    monkeypatch.setattr(tasks, "run_task", full)
    monkeypatch.setattr(study_module, "PRESETS", {"quick": study_module.PRESETS["smoke"]})
    assert run(["figures", "asam-fig6", "asam-fig3", "--workers", "1", "--quiet", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_lists_without_torch():
    code = (
        "import sys, cli; status = cli.run(['figures', '--list']); "
        "assert status == 0 and 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "asam-fig6 " in done.stdout
    assert "ASAM report, Figure 6" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["asam-fig66"], "asam-fig6"),
        ([], "--all"),
        (["asam-fig6", "--all"], "--all"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, tmp_path, capsys):
    assert run(["figures", *arguments, "--out", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_command_makes_a_figure(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["figures", "asam-fig6", "--seeds", "3", "--workers", "1", "--quiet", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out / "asam-fig6.png"), str(out / "verdicts.md")]
    assert len(FigureData.load(out / "asam-fig6.h5")["seed"]) == 3


@pytest.fixture
def clothes(tmp_path):
    """A folder with files of Fashion-MNIST's names; nothing opens them."""
    from trainers.data.files import OFFICIAL

    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    for file in OFFICIAL["fashion-mnist"]:
        (folder / file.name).touch()
    return folder.parent


def test_photographs_are_taken_where_their_files_are(tmp_path, clothes):
    figure = FIGURES["asam-fig7"]()

    def data(study):
        return {t.settings["data"].partition(":")[0] for t in figure.plan(study)}

    here = Study(tmp_path, "quick", data_dir=str(clothes))
    assert (data(here), figure.note(here)) == ({"fashion-mnist"}, "")
    (clothes / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert data(here) == {"digits"}, "all four files are needed"
    assert "landscape data fetch fashion-mnist" in figure.note(here)
    assert data(Study(tmp_path, "paper", data_dir=str(clothes))) == {"cifar10"}
    assert figure.note(Study(tmp_path, "paper", data_dir=str(clothes))) == ""


def test_digits_in_place_of_photographs_are_said(tmp_path, monkeypatch, capsys):
    from figures.study.recipes import lacking

    monkeypatch.setattr(entry, "make", lambda *_: [])
    command = ["figures", "asam-fig7", "asam-table1", "--data-dir", str(tmp_path), "--out", str(tmp_path)]
    assert run(command) == 0
    said = capsys.readouterr().err
    assert said.count(lacking(Study(tmp_path, "quick", data_dir=str(tmp_path)))) == 1
    assert str(tmp_path) in said
    facts = {"preset": "quick", "data": "digits", "model": "small-cnn", "in place of": "Fashion-MNIST"}
    assert entry.said(facts) == "preset quick, digits in place of Fashion-MNIST, small-cnn"


def test_an_interrupted_command_goes_on(tmp_path, capsys, monkeypatch):
    from figures.study import tasks

    real, started = tasks.run_task, []

    def killed(task, *rest):
        started.append(task.name)
        if len(started) == 5:
            raise KeyboardInterrupt
        return real(task, *rest)

    monkeypatch.setattr(tasks, "run_task", killed)
    command = ["figures", "asam-fig6", "--seeds", "2", "--workers", "1", "--quiet", "--out", str(tmp_path)]
    assert run(command) == 130
    assert "go on with the same command" in capsys.readouterr().err
    assert not (tmp_path / "asam-fig6.png").exists()
    assert run([*command, "--resume"]) == 0
    # 6 variances x 2 seeds, and the one that was lost.
    assert len(started) == 13
    assert len(set(started)) == 12
