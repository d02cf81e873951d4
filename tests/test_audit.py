"""The differential audit: a part of it in the suite, and that it notices what is wrong."""

import json

import pytest

import landscape
from audit.draws import audited, table
from audit.networks import KINDS
from audit.shrink import shrunk
from audit.situation import DIVISIONS
from audit.subjects import function
from audit.verdict import line_fault


@pytest.mark.parametrize("first", range(0, 300, 60))
def test_draws(first):
    wrong = [v for v in audited("function", list(range(first, first + 60)), shrink=False) if v["outcome"] == "wrong"]
    assert not wrong, json.dumps(wrong, indent=1)


def test_a_seed_draws_the_same_again():
    one, again = (function.audit(7).plain() for _ in range(2))
    assert one == again == function.again(one["choice"]).plain()


def test_draws_reach_every_kind_and_division():
    choices = [function.choice(seed) for seed in range(1000)]
    assert {c["network"] for c in choices} == set(KINDS)
    assert {c["division"] for c in choices} == set(DIVISIONS)


def test_a_wrong_number_is_noticed_and_made_small(monkeypatch):
    honest = landscape.Problem.loss
    monkeypatch.setattr(landscape.Problem, "loss", lambda self, w=None: honest(self, w) * (1 + 1e-4))
    found = next(v for v in map(function.audit, range(100)) if v.outcome == "wrong")
    small = shrunk(function, found)
    assert small.outcome == "wrong"
    assert small.choice["examples"] <= 3
    assert small.choice["division"] in ("one", "unequal")


def test_the_table_counts_outcomes():
    verdicts = [{"kind": "a", "outcome": "right"}, {"kind": "a", "outcome": "wrong"}, {"kind": "b", "outcome": "right"}]
    assert [line.split() for line in table(verdicts).splitlines()[1:]] == [
        ["a", "2", "1", "0", "1"],
        ["b", "1", "1", "0", "0"],
        ["all", "3", "2", "0", "1"],
    ]


def test_a_refusal_says_what_to_do():
    assert line_fault("received 3: give at most 2") is None
    assert line_fault("received 3") is not None
    assert line_fault("received 3:\ngive at most 2") is not None
