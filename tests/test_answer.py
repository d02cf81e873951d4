"""What a comparison says in sentences, by rule: flatter, sharper, not told apart, disagreeing; and its cautions."""

from __future__ import annotations

import dataclasses

import pytest
from report_cases import analysis, eigenvalues, sharpness

from figures.page.answer import answer
from figures.page.rows import rows
from landscape import MEASURES

PLAIN = {"method": {"name": "sgd", "arguments": {}}, "settings": {"seed": 0}, "epoch": 5}
METHODS = [{**PLAIN, "method": {"name": name, "arguments": {}}} for name in ("sgd", "sam", "asam")]


def analyzed(label, sam, top, *, interval=True, bound=0.01, **changes):
    measures = {"sam_sharpness": sharpness(sam, interval), "hessian_top_eigenvalues": eigenvalues(top, bound)}
    return analysis(label, measures=measures, surface=None, **changes)


def answered(*analyses, differences=None):
    return answer(analyses, rows(analyses, differences))


def test_flatter_by_every_measure():
    says = answered(analyzed("sgd", 1.0, 8.0), analyzed("sam", 0.5, 2.0))
    # The unpaired difference of 0.005 has the error sqrt(2) 0.001, 0.14 of sgd's 0.01; that of 6, 0.02 of 8.
    assert says.sentences == (
        "sam is flatter than sgd: SAM sharpness (ρ = 0.1) 0.50× [0.36, 0.64], "
        "largest Hessian eigenvalue λ₁ (k = 3) 0.2500× [0.2475, 0.2525]; at equal loss.",
    )
    assert says.ranking[0] == ("sam", ("0.50× [0.36, 0.64]", "0.2500× [0.2475, 0.2525]"))
    assert says.ranking[1] == ("sgd", ("1", "1"))


def test_sharper_and_the_order_of_the_ranking():
    says = answered(analyzed("a", 1.0, 8.0), analyzed("b", 3.0, 9.0), analyzed("c", 0.2, 1.0))
    assert says.sentences[0].startswith("b is sharper than a: ")
    assert [label for label, _ in says.ranking] == ["c", "a", "b"]


def test_measures_that_disagree_are_told_both():
    (sentence,) = answered(analyzed("a", 1.0, 8.0), analyzed("b", 0.5, 16.0)).sentences
    assert sentence.startswith("b and a: the measures disagree; b is flatter by SAM")
    assert "sharper by largest Hessian eigenvalue λ₁ (k = 3) 2.00×" in sentence


def test_within_the_errors_nothing_is_claimed():
    (sentence,) = answered(analyzed("a", 1.0, 8.0, bound=5.0), analyzed("b", 1.05, 7.0, bound=5.0)).sentences
    assert sentence.startswith("b and a are not told apart by SAM sharpness")
    assert "flatter" not in sentence


def test_a_paired_difference_decides_where_there_is_one():
    """Each one's own interval is wider than the paired difference's: the sentence follows the table."""
    analyses = analyzed("a", 1.0, 8.0), analyzed("b", 0.9, 8.0)
    paired = {"sam_sharpness": [None, {"value": -0.001, "low": -0.0012, "high": -0.0008}]}
    assert answered(*analyses).sentences[0].startswith("b and a are not told apart")
    assert (
        "b is flatter than a: SAM sharpness (ρ = 0.1) 0.900× [0.880, 0.920]"
        in (answered(*analyses, differences=paired).sentences[0])
    )


def test_a_ratio_of_positive_numbers_is_not_negative():
    (sentence,) = answered(analyzed("a", 1.0, 8.0, bound=9.0), analyzed("b", 1.0, 8.0, bound=9.0)).sentences
    assert "[0.0, 3.2]" in sentence


def test_without_an_error_nothing_is_claimed():
    one, other = (
        analysis(n, measures={"sam_sharpness": sharpness(f, interval=False)}) for n, f in [("a", 1), ("b", 9)]
    )
    assert answered(one, other).sentences == (
        "Whether b or a is flatter is not known; without an interval: SAM sharpness (ρ = 0.1) 9.0×; at equal loss.",
    )


def test_values_that_are_not_positive_have_no_ratio():
    says = answered(analyzed("a", -1.0, -3.0), analyzed("b", 1.0, 3.0))
    assert "no measure of flatness is positive at both" in says.sentences[0]


def test_a_large_sigma_is_the_flat_one():
    """Ranking and sentence turn around for measures whose large values are flat."""
    assert MEASURES.entry("pac_bayes_sigma").facts["flat"] == "large"
    analyses = analyzed("a", 1.0, 8.0), analyzed("b", 3.0, 8.0)
    table = [dataclasses.replace(row, flat="large" if row.key == "sam_sharpness" else "") for row in rows(analyses)]
    says = answer(analyses, table)
    assert says.sentences[0].startswith("b is flatter than a: ")
    assert [label for label, _ in says.ranking] == ["b", "a"]


def test_one_checkpoint_and_no_measure_have_no_answer():
    assert answered(analyzed("a", 1.0, 8.0)) is None
    assert answered(analysis("a", measures={}), analysis("b", measures={})) is None


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_every_measure_says_which_end_is_flat(name):
    assert MEASURES.entry(name).facts.get("flat", "") in ("", "small", "large")


# -- cautions --------------------------------------------------------------------------------------------------------


def cautioned(*changes):
    labels = "abc"[: len(changes)]
    return answered(*(analyzed(n, 1.0, 8.0, **c) for n, c in zip(labels, changes, strict=True))).cautions


def test_nothing_differs_nothing_is_told():
    assert cautioned({"metadata": PLAIN}, {"metadata": {**PLAIN, "settings": {"seed": 1}}}) == ()


def test_losses_that_differ():
    (caution,) = cautioned({"metadata": PLAIN, "loss": 0.1}, {"metadata": PLAIN, "loss": 0.2})
    assert caution.startswith("Losses differ, 0.1 to 0.2: ")
    assert "matched-loss" in caution


def test_passes_that_differ():
    spent = [{"spent": {"forward_examples": n, "backward_examples": n}} for n in (100, 200)]
    changes = [{"metadata": {**PLAIN, **s}} for s in spent]
    (caution,) = cautioned(*changes)
    assert "2× the passes" in caution
    assert "--budget-passes" in caution
    (sentence,) = answered(*(analyzed(n, 1.0, 8.0, **c) for n, c in zip("ab", changes, strict=True))).sentences
    assert sentence.endswith("with 2× its training passes.")


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ("sample_sha256", "different examples"),
        ("batch_norm", "BatchNorm policies (frozen, batch)"),
        ("dtype", "precisions"),
    ],
)
def test_another_function_is_told(fact, words):
    values = {"batch_norm": ("frozen", "batch")}.get(fact, ("one", "two"))
    changes = [{"metadata": PLAIN, "provenance": {fact: value}} for value in values]
    (caution,) = cautioned(*changes)
    assert words in caution


def test_other_networks_and_data():
    first = {**PLAIN, "model": {"name": "mlp"}, "data": {"name": "digits"}}
    other = {**PLAIN, "model": {"name": "vit"}, "data": {"name": "cifar10"}}
    cautions = cautioned({"metadata": first}, {"metadata": other})
    assert any(c.startswith("The networks differ (mlp, vit)") for c in cautions)
    assert any("different data (digits, cifar10)" in c for c in cautions)


def test_a_single_seed_for_each_method():
    assert any(c.startswith("One seed for each method") for c in cautioned(*({"metadata": m} for m in METHODS)))
    twice = [METHODS[0], {**METHODS[0], "settings": {"seed": 1}}, METHODS[1]]
    assert cautioned(*({"metadata": m} for m in twice)) == (
        "A single seed speaks for a method here: another seed may reverse the order.",
    )
    other = {**METHODS[1], "settings": {"seed": 7}}
    assert any("The seeds differ" in c for c in cautioned({"metadata": METHODS[0]}, {"metadata": other}))


def test_files_without_a_training_are_told():
    assert any("What trained these networks" in c for c in cautioned({"metadata": {}}, {"metadata": {}}))
