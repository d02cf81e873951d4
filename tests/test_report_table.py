"""Printed numbers, rows and the terminal's table."""

import math
import re

import pytest
from report_cases import analysis, sharpness

from figures.page import rows, table
from landscape import formatting as numbers
from landscape.results import cells
from landscape.results.result import Result


@pytest.fixture(scope="module")
def one():
    return analysis()


@pytest.fixture(scope="module")
def two():
    return [analysis("a"), analysis("b", 2.0)]


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (12, "12"),
        (-0.5, "−0.5"),
        (1.5e-7, "1.5×10⁻⁷"),
        (0.99999999, "1"),
        (123456.7, "123,457"),
        (2.5e9, "2.5×10⁹"),
        (math.nan, "–"),
        (None, "–"),
        (-math.inf, "−∞"),
        (0.0, "0"),
    ],
)
def test_number(value, text):
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.0321, "1.235 ± 0.033"),  # rounded up: an error must not shrink in print
        (1.23456, 0.04, "1.235 ± 0.040"),
        (100.0, 20.0, "100 ± 20"),
        (0.001, 0.5, "0.00 ± 0.50"),
        (0.0, 0.5, "0.00 ± 0.50"),
        (0.026, 0.0069, "0.0260 ± 0.0069"),
        (1.2e-6, 3e-7, "1.20×10⁻⁶ ± 3.0×10⁻⁷"),
        (12345.6, 130, "12,346 ± 130"),
        (1.23456, None, "1.235"),
        (0.0578701, 6.9e-8, "0.057870 ± 6.9×10⁻⁸"),  # never more than five digits
    ],
)
def test_number_with_error(value, error, text):
    assert cells.Cell(value, error, cells.INTERVAL if error is not None else "").text == text


@pytest.mark.parametrize("error", [0.0321, 1.001e-9, 5.5e7, 0.1, 0.3, 2e-16])
def test_printed_error_never_below_the_error(error):
    assert error <= numbers.rounded_up(error) * (1 + 1e-9) <= 1.1 * error * (1 + 1e-9)


# -- rows ------------------------------------------------------------------------------------------------------------


def test_rows_hold_values_errors_and_words(one):
    found = {r.key: r for r in rows.rows([one])}
    assert list(found) == ["loss", "accuracy", *one.measures]
    cell = found["sam_sharpness"].cells[0]
    assert (cell.value, cell.kind) == (pytest.approx(0.01), cells.INTERVAL)
    assert cell.error == pytest.approx(0.001)
    assert "raises the loss by 0.01, from 0.1 to 0.11" in found["sam_sharpness"].meaning
    largest = found["hessian_top_eigenvalues"].cells[0]
    assert (largest.value, largest.error, largest.kind) == (8.0, 0.01, cells.BOUND)
    assert "then 4, 2" in largest.note
    assert found["accuracy"].cells[0].short == "93.75%"


def test_accuracy_has_wilsons_interval():
    cell = rows.rows([analysis(accuracy=1.0, classified=100)])[1].cells[0]
    # Wilson's lower end at p = 1 is n / (n + z^2); scipy.stats.binomtest(100, 100).proportion_ci(method="wilson").
    assert cell.error == pytest.approx(1 - 100 / (100 + 1.959963984540054**2))
    cell = rows.rows([analysis(accuracy=0.5, classified=400)])[1].cells[0]
    assert cell.error == pytest.approx(1.96 * math.sqrt(0.25 / 400), rel=0.01)


def test_exact_values_differ_exactly():
    class Exact(Result):
        number = 2.0

        def summary(self):
            return {"value": self.number, "stderr": 0.0, "exact": True}

    other = Exact()
    object.__setattr__(other, "number", 5.0)
    row = rows.rows([analysis("a", measures={"t": Exact()}), analysis("b", measures={"t": other})])[-1]
    assert (row.cells[0].kind, row.cells[0].text) == (cells.EXACT, "2")
    assert (row.differences[1].value, row.differences[1].kind, row.differences[1].clear) == (3.0, cells.EXACT, True)


def test_difference_of_intervals_and_of_bounds(two):
    found = {r.key: r for r in rows.rows(two)}
    interval = found["sam_sharpness"].differences
    assert interval[0] is None
    assert interval[1].value == pytest.approx(0.01)
    assert interval[1].error == pytest.approx(math.hypot(0.001, 0.001))
    assert interval[1].clear
    bound = found["hessian_top_eigenvalues"].differences[1]
    assert (bound.value, bound.error, bound.kind) == (8.0, pytest.approx(0.02), cells.BOUND)
    alone = found["adaptive_sharpness"].differences[1]
    assert alone.error is None
    assert not alone.clear
    assert found["loss"].difference_text(1) == "0"


def test_differences_computed_elsewhere_win(two):
    stated = {"sam_sharpness": [None, {"value": 0.5, "low": -0.1, "high": 1.1}]}
    cell = next(r for r in rows.rows(two, stated) if r.key == "sam_sharpness").differences[1]
    assert (cell.value, cell.error, cell.clear) == (0.5, pytest.approx(0.6), False)


def test_the_longer_side_of_an_interval_that_is_not_centered(two):
    """Agresti and Min's interval lies nearer to 0 than the difference: it may hold 0 where a half does not."""
    stated = {"accuracy": [None, {"value": 0.1, "low": -0.005, "high": 0.185}]}
    cell = next(r for r in rows.rows(two, stated) if r.key == "accuracy").differences[1]
    assert (cell.error, cell.clear) == (pytest.approx(0.105), False)


@pytest.mark.parametrize(
    ("kinds", "error", "kind"),
    [
        ((cells.BOUND, cells.INTERVAL), 7.0, cells.INTERVAL),
        ((cells.INTERVAL, cells.BOUND), 7.0, cells.INTERVAL),
        ((cells.BOUND, cells.BOUND), 7.0, cells.BOUND),
        ((cells.INTERVAL, cells.INTERVAL), 5.0, cells.INTERVAL),
    ],
)
def test_no_difference_from_an_interval_is_a_bound(kinds, error, kind):
    both = tuple(cells.Cell(value, half, k) for value, half, k in zip((1.0, 3.0), (3.0, 4.0), kinds, strict=True))
    made = rows._difference(*both)
    assert (made.value, made.error, made.kind) == (2.0, error, kind)


def test_unknown_measure_gets_a_row():
    class Novel(Result):
        def summary(self):
            return {"value": 3.5, "stderr": 0.25, "seconds": 1.0}

    found = rows.rows([analysis(measures={"brand_new:rho=1": Novel()})])[-1]
    assert (found.key, found.label) == ("brand_new:rho=1", "Brand new")
    assert found.cells[0].value == 3.5
    assert found.cells[0].error == pytest.approx(1.96 * 0.25, rel=1e-4)


def test_measure_without_value_shows_its_scalars():
    class Fields(Result):
        def summary(self):
            return {"alpha": 1.5, "beta": None, "seconds": 2.0, "name": "x"}

    found = rows.rows([analysis(measures={"odd": Fields()})])
    assert [r.key for r in found] == ["loss", "accuracy", "odd.alpha"]


def test_measures_that_one_checkpoint_lacks():
    a, b = analysis("a"), analysis("b", measures={"sam_sharpness": sharpness(3.0)})
    row = next(r for r in rows.rows([a, b]) if r.key == "hessian_top_eigenvalues")
    assert row.cells[1] is None
    assert row.differences[1] is None
    assert row.difference_text(1) == "–"


# -- terminal --------------------------------------------------------------------------------------------------------


def test_terminal_table_is_aligned_and_complete(one):
    lines = table.text([one], width=120).splitlines()
    line = next(line for line in lines if line.startswith("SAM sharpness"))
    assert "ρ = 0.1" in line
    assert "0.0100 ± 0.0010" in line
    ends = {
        m.end()
        for row in lines
        if (m := re.search(r"(0\.0100 ± 0\.0010|93\.75% ± 5\.\d+%|8\.000 ± 0\.010)(?=\s|$)", row))
    }
    assert len(ends) == 1, "values are not aligned on the right"


def test_the_terminal_says_what_its_errors_speak_of(one, two):
    for shown in ([one], two):
        words = " ".join(table.text(shown, width=120).split())
        assert "An interval speaks of these examples and probes, not of other training seeds" in words
        assert "an error bound of the arithmetic alone" in words
    bounds = table.text([analysis(measures={}, accuracy=None, history=None)], width=120)
    assert "seeds" not in bounds, "no error, no word about errors"


@pytest.mark.parametrize("width", [80, 100, 160])
def test_terminal_comparison_fits(two, width):
    text = table.text([*two, analysis("a-third-run", 3.0)], width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "+0.0100 ± 0.0015 *" in text
    assert "a-third-run" in text


def test_terminal_shows_markup_literally():
    assert "[red]x[/red]" in table.text([analysis("[red]x[/red]"), analysis("b")], width=120)


def test_long_names_stay_apart_in_a_narrow_terminal():
    common = "resnet18_cifar10_augmented_cosine_batch128_momentum09_decay5e-4_"
    text = table.text([analysis(f"{common}{end}") for end in ("first", "second")], width=60)
    assert "…" not in text
    assert text.count("first") == text.count("second") + 1  # the difference is from the first
