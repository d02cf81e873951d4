"""Every subject of the audit: a thin part in the suite, a nightly one beside it, and each notices what is wrong."""

import dataclasses
import importlib
import json
import sys

import pytest

import landscape
from audit.__main__ import SUBJECTS, main
from audit.draws import audited
from audit.handwritten import methods
from audit.shrink import shrunk
from audit.subjects import bowl, step
from landscape.invariance.rescaling import rules, search, symmetries
from trainers import METHODS

NEW = {"bowl": 25, "rescaling": 12, "step": 60}
"""How many draws are part of the suite."""


def wrong(subject, seeds):
    return [v for v in audited(subject, list(seeds), shrink=False) if v["outcome"] == "wrong"]


@pytest.mark.parametrize(("subject", "draws"), NEW.items())
def test_draws(subject, draws):
    found = wrong(subject, range(draws))
    assert not found, json.dumps(found, indent=1)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_night_of_draws(subject):
    found = wrong(subject, range(1000, 1500))
    assert not found, json.dumps(found, indent=1)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_seed_draws_the_same_again(subject):
    module = importlib.import_module(f"audit.subjects.{subject}")
    one = module.audit(5).plain()
    kept = json.loads(json.dumps(one["choice"]))
    assert module.again(kept).plain()["outcome"] == one["outcome"]
    assert module.choice(5) == one["choice"]


def test_a_wrong_measure_is_noticed_and_made_small(monkeypatch):
    honest = landscape.measures.sam_sharpness.ball_sharpness
    monkeypatch.setattr(
        landscape.measures.sam_sharpness, "ball_sharpness", lambda p, s, **k: honest(p, _larger(s), **k)
    )
    found = next(v for v in map(bowl.audit, range(100)) if v.outcome == "wrong")
    small = shrunk(bowl, found)
    assert small.choice["operations"] == ["one_step"]
    assert small.choice["batches"] == 1
    assert "sam_sharpness" in small.texts[0]


def _larger(setting):
    return type(setting)(**{**vars(setting), "rho": tuple(1.001 * r for r in setting.rho)})


def test_a_missed_symmetry_is_noticed(monkeypatch):
    monkeypatch.setitem(rules.RULES, "relu", rules.opaque)
    found = wrong("rescaling", range(8))
    assert found
    assert "symmetries of" in found[0]["texts"][0]


def test_a_rescaling_that_changes_the_outputs_is_noticed(monkeypatch):
    honest = symmetries.Symmetries.scales
    monkeypatch.setattr(symmetries.Symmetries, "scales", lambda self, tau, **k: honest(self, tau, **k) * 1.0001)
    monkeypatch.setattr(search, "_verified", lambda found, *rest: dataclasses.replace(found, residual=0.0))
    found = wrong("rescaling", range(8))
    assert found
    assert any("changes the outputs" in t or "at rescaled weights" in t for t in found[0]["texts"])


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_a_wrong_step_is_noticed(method, monkeypatch):
    """The project's method with a gradient off by one part in ten thousand, and by as much: Lion sees no lengths."""
    honest = METHODS[method].compute

    def compute(self, step_, state):
        result = honest(self, step_, state)
        step_.leave([1.0001 * g + 1e-4 for g in step_.gradients()])
        return result

    monkeypatch.setattr(METHODS[method], "compute", compute)
    seeds = (s for s in range(1000) if step.choice(s)["method"] == method)
    assert "after step" in next(v for v in map(step.audit, seeds) if v.outcome == "wrong").texts[0]


def test_the_minutes_are_shared_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["audit", "--draws", "2", "--workers", "1", "--out", str(tmp_path)])
    monkeypatch.setattr("audit.__main__.SUBJECTS", ("bowl", "spectrum"))
    assert main() == 0
    printed = capsys.readouterr().out
    for subject in ("bowl", "spectrum"):
        assert len((tmp_path / f"{subject}.jsonl").read_text().splitlines()) == 2
        assert f"{subject}: seeds from 0" in printed
    assert main() == 0
    assert "2 draws known" in capsys.readouterr().out


def test_no_subject_goes_without_draws(monkeypatch, tmp_path):
    argv = ["audit", "--minutes", "0", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr("audit.__main__.SUBJECTS", ("step", "spectrum"))
    monkeypatch.setattr("audit.__main__._BLOCK", 3)
    assert main() == 0
    assert [len((tmp_path / f"{s}.jsonl").read_text().splitlines()) for s in ("step", "spectrum")] == [3, 3]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_kept_case_runs_again(subject, monkeypatch, tmp_path, capsys):
    verdict = importlib.import_module(f"audit.subjects.{subject}").audit(3)
    case = tmp_path / "case.json"
    case.write_text(json.dumps({"subject": subject, **verdict.plain()}))
    monkeypatch.setattr(sys, "argv", ["audit", "--replay", str(case)])
    assert main() == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == verdict.outcome


@pytest.mark.parametrize(
    "content",
    [None, "{", "[1]", '{"subject": "step"}', '{"subject": "os", "choice": {}}', '{"subject": "step", "choice": 3}'],
)
def test_what_is_no_case_is_one_line(content, monkeypatch, tmp_path, capsys):
    case = tmp_path / "case.json"
    if content is not None:
        case.write_text(content)
    monkeypatch.setattr(sys, "argv", ["audit", "--replay", str(case)])
    assert main() == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{case} is not a case")
    assert said.err.count("\n") == 1
    assert not said.out
