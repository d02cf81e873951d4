"""`landscape table`: analyses read back from disk, as LaTeX, Markdown and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from matplotlib import mathtext
from report_cases import HOSTILE, analysis, eigenvalues, sharpness
from scipy import stats

import cli
from figures.page.analysis import summarize
from figures.page.differences import paired
from figures.page.paper_table import FORMS, paper_table
from figures.page.rows import rows
from figures.page.store import Store
from figures.page.stored import analyses
from landscape.errors import InputError


def kept(folder, *made):
    """A directory as `landscape analyze` leaves it."""
    folder.mkdir(parents=True)
    store = Store(folder / "analysis.h5", {a.label: a.sha256 for a in made})
    for a in made:
        prefix = f"{a.label}/" if len(made) > 1 else ""
        results = a.measures | ({"surface": a.surface} if a.surface is not None else {})
        for key, result in results.items():
            store.put(prefix + key, result, {})
    (folder / "summary.json").write_text(json.dumps(summarize(made)))
    return folder


def trained(label, seed, top, method="sgd", **settings):
    facts = {name: {"name": kind, "arguments": {}} for name, kind in (("method", method), ("model", "mlp"))}
    facts |= {"data": {"name": "digits", "arguments": {"seed": seed}}, "epoch": 3}
    facts |= {"settings": {"seed": seed, "lr": 0.1, **settings}}
    measures = {"hessian_top_eigenvalues": eigenvalues(top)}
    return analysis(label, measures=measures, surface=None, metadata=facts)


def shown(form, *made, **options):
    return FORMS[form](paper_table(made, **options))


# -- read back -------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_back(tmp_path):
    made = [analysis("sgd"), analysis("sam", 0.5)]
    folder = kept(tmp_path / "comparison", *made)
    read = analyses([folder])
    assert [a.label for a in read] == ["sgd", "sam"]
    for a, b in zip(read, made, strict=True):
        plain = b.summary()
        for name in ("loss", "accuracy", "samples", "classified", "parameters", "sha256"):
            assert getattr(a, name) == plain[name]
        assert list(a.measures) == list(b.measures)
        np.testing.assert_array_equal(a.surface.loss, b.surface.loss)
    assert rows(read, paired(read)) == rows(made, paired([dataclasses.replace(a, examples={}) for a in made]))


def test_directories_below_are_found_and_told_apart(tmp_path):
    for seed in (0, 1):
        run = tmp_path / f"seed-{seed}" / "run"
        run.mkdir(parents=True)
        kept(run / "analysis", _at(trained("run", seed, 8.0), run))
    labels = [a.label for a in analyses([tmp_path])]
    assert labels == ["seed-0/run", "seed-1/run"]


def _at(a, folder):
    return dataclasses.replace(a, checkpoint=str(folder / "ckpt.pt"))


def test_the_log_of_a_run_that_was_moved_is_found(tmp_path):
    run = tmp_path / "run"
    kept(run / "analysis", dataclasses.replace(trained("run", 0, 8.0), checkpoint="elsewhere/ckpt.pt"))
    (run / "ckpt.pt").write_bytes(b"")
    (run / "history.csv").write_text("epoch,test_loss,test_accuracy\n3,0.25,0.5\n")
    assert analyses([run])[0].history == [{"epoch": 3.0, "test_loss": 0.25, "test_accuracy": 0.5}]


def test_what_is_not_an_analysis_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="run `landscape analyze CKPT` first"):
        analyses([tmp_path / "empty"])
    with pytest.raises(InputError, match="not a directory"):
        analyses([tmp_path / "missing"])
    folder = kept(tmp_path / "one", analysis("a"))
    (folder / "summary.json").write_text(json.dumps({"checkpoints": [{"label": "a", "sha256": "00"}]}))
    with pytest.raises(InputError, match="of different checkpoints"):
        analyses([folder])
    (folder / "summary.json").write_text(json.dumps({"checkpoints": 3}))
    with pytest.raises(InputError, match="analyze the checkpoint again"):
        analyses([folder])


# -- the forms -------------------------------------------------------------------------------------------------------


def test_csv_holds_the_numbers_in_full():
    made = [analysis("sgd", measures={"sam_sharpness": sharpness(1 / 3)}), analysis("sam")]
    lines = list(csv.DictReader(io.StringIO(shown("csv", *made))))
    assert [line["checkpoint"] for line in lines] == ["sgd", "sam"]
    assert float(lines[0]["sam_sharpness"]) == 0.1**2 / 3
    difference = float(lines[1]["sam_sharpness"]) - float(lines[0]["sam_sharpness"])
    assert float(lines[1]["sam_sharpness difference"]) == difference


def test_every_cell_of_latex_is_well_formed():
    """matplotlib's parser of TeX's math reads every formula: doubled superscripts and stray signs fail there."""
    made = [
        analysis("a_b & 50% #1", measures={"hessian_top_eigenvalues": eigenvalues(8.0, 1e-7)}),
        analysis("c^d~{e}\\", measures={"hessian_top_eigenvalues": eigenvalues(2e-9, 1e-12)}),
        analysis("e", measures={"hessian_top_eigenvalues": eigenvalues(123456.0, 100.0)}),
        analysis("none", measures={}),
    ]
    text = shown("latex", *made)
    parser = mathtext.MathTextParser("path")
    formulas = re.findall(r"(?<!\\)\$[^$]+\$", text)
    assert len(formulas) > 10
    for formula in formulas:
        parser.parse(formula.replace("{,}", ","))
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    columns = text.split("{l")[1].split("}")[0]
    assert len(body) == 4
    assert all(line.endswith(r"\\") and len(re.findall(r"(?<!\\)&", line)) == len(columns) for line in body)
    assert r"a\_b \& 50\% \#1" in text
    assert r"c\textasciicircum{}d\textasciitilde{}\{e\}\textbackslash{}" in text
    assert text.startswith("% ")


def test_markdown_has_a_cell_for_everything():
    lines = shown("markdown", analysis("a|b"), analysis("sam", 0.2)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert r"a\|b" in table[2]
    assert "0.0020 ± 0.0010*" in table[3]
    assert "*: the interval of the difference from the first line leaves out zero." in lines[-1]


@pytest.mark.parametrize("form", FORMS)
def test_hostile_names_stay_text(form):
    text = shown(form, analysis(HOSTILE), analysis("line\nbreak\x1b[31m"))
    assert "\x1b" not in text
    if form == "markdown":
        assert not re.search(r"(?<!\\)<", text)
        assert len([line for line in text.splitlines() if line.startswith("|")]) == 4


def test_the_notes_say_what_was_measured_on():
    made = [analysis(n, provenance={"split": "train"}) for n in "ab"]
    assert paper_table(made).notes[-1] == "Measured on 128 examples of the training set."


def test_columns_are_chosen_in_their_order():
    lines = shown("csv", analysis("a"), wanted=["hessian_top_eigenvalues", "loss"])
    head = lines.splitlines()[0].split(",")
    assert head[1] == "hessian_top_eigenvalues"
    assert head[6] == "loss"
    with pytest.raises(InputError, match="--measure los: there is loss, accuracy"):
        paper_table([analysis("a")], ["los"])


# -- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_share_a_line_with_students_interval():
    sgd, sam = [8.0, 9.0, 10.0], [5.0, 5.5, 7.5]
    made = [trained(f"sgd-{i}", i, v) for i, v in enumerate(sgd)]
    made += [trained(f"sam-{i}", i, v, "sam") for i, v in enumerate(sam)]
    table = paper_table(made, ["hessian_top_eigenvalues"])
    assert table.names == ("sgd", "sam")
    (column,) = table.columns
    t = stats.t.ppf(0.975, 2)
    assert column.cells[1].value == pytest.approx(np.mean(sam))
    assert column.cells[1].error == pytest.approx(t * np.std(sam, ddof=1) / np.sqrt(3))
    pairs = np.subtract(sam, sgd)
    assert column.differences[1].value == pytest.approx(pairs.mean())
    assert column.differences[1].error == pytest.approx(t * pairs.std(ddof=1) / np.sqrt(3))
    assert "Means over 3 seeds." in table.notes


def test_other_seeds_are_not_paired():
    made = [trained(f"sgd-{i}", i, 8.0 + i) for i in (0, 1)] + [trained(f"sam-{i}", i, 5.0, "sam") for i in (2, 3)]
    assert paper_table(made, ["hessian_top_eigenvalues"]).columns[0].differences[1] is None


def test_what_differs_in_more_than_the_seed_has_a_line_of_its_own():
    """A learning rate, an epoch; and one seed twice is one training measured twice."""
    made = [trained("a", 0, 8.0), trained("b", 0, 5.0, lr=0.001), trained("c", 1, 10.0)]
    table = paper_table(made, ["hessian_top_eigenvalues"])
    assert table.names == ("a", "b")
    assert [c.value for c in table.columns[0].cells] == [9.0, 5.0]
    twice = paper_table([trained("a", 0, 8.0), trained("again", 0, 5.0)], ["hessian_top_eigenvalues"])
    assert twice.names == ("a", "again")
    assert [c.value for c in twice.columns[0].cells] == [8.0, 5.0]


def test_one_measure_in_two_ways_has_two_columns_of_two_names():
    ways = [analysis(n, measures={"hessian_top_eigenvalues": eigenvalues(8.0)}) for n in "ab"]
    ways[1].measures["hessian_top_eigenvalues"].arguments["k"] = 7
    names = [column.key for column in paper_table(ways, ["hessian_top_eigenvalues"] * 2).columns]
    assert len(names) == len(set(names)) == 2


# -- the command -----------------------------------------------------------------------------------------------------


def status(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["table", *map(str, arguments)])
    return ended.value.code


def test_the_command_writes_a_file_or_prints(tmp_path, capsys):
    folder = kept(tmp_path / "comparison", analysis("sgd"), analysis("sam", 0.5))
    assert status(folder, "--to", "markdown") == 0
    assert capsys.readouterr().out.startswith("|  | ")
    out = tmp_path / "table.tex"
    assert status(folder, "--to", "latex", "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert r"\toprule" in out.read_text()
    assert status(tmp_path / "nothing", "--to", "csv") == 2
    assert "not a directory" in capsys.readouterr().err
