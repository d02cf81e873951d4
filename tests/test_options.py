"""Option groups: one record a command receives, with the defaults that its help shows and the ranges that it states."""

import dataclasses

import click
import pytest
from click.testing import CliRunner

from commands import analyze, invariance, options, path, surface
from commands.options import OutputOptions, ProblemOptions
from landscape.errors import InputError

GROUPS = (ProblemOptions, OutputOptions, analyze.MeasureOptions, surface.GridOptions, invariance.RescalingOptions)


def parsed(decorate, *arguments):
    """What a command that uses the group receives."""
    received = []
    command = click.command()(decorate(lambda **values: received.append(values)))
    CliRunner().invoke(command, arguments, standalone_mode=False, catch_exceptions=False)
    return received[0]


@pytest.mark.parametrize("kind", GROUPS)
def test_a_record_without_options_holds_the_defaults(kind):
    assert parsed(options.group(kind, "record"))["record"] == kind()


def test_every_field_is_an_option_of_its_command():
    for command, kinds in (
        (analyze.command, (analyze.MeasureOptions, ProblemOptions, OutputOptions)),
        (surface.command, (surface.GridOptions, ProblemOptions, OutputOptions)),
        (invariance.command, (invariance.RescalingOptions, ProblemOptions, OutputOptions)),
        (path.command, (ProblemOptions, OutputOptions)),
    ):
        names = {parameter.name for parameter in command.params}
        assert {field.name for kind in kinds for field in dataclasses.fields(kind)} <= names


def test_a_command_changes_a_default_where_it_uses_the_group():
    decorate = options.problem(dtype={"default": "float64"})
    assert parsed(decorate)["problem"] == ProblemOptions(dtype="float64")
    written = parsed(decorate, "--dtype", "bfloat16", "--parameters", "a*", "--parameters", "b", "--seed", "3")
    assert written["problem"] == ProblemOptions(dtype="bfloat16", parameters=("a*", "b"), seed=3)
    assert ProblemOptions().dtype == "float32"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_radius_is_positive_and_finite(value):
    with pytest.raises(InputError, match=f"--radius must be positive and finite, received {float(value)}"):
        parsed(options.group(analyze.MeasureOptions, "measured"), "--radius", value)


def test_the_surface_of_an_analysis_has_a_center():
    for grid in (0, 1, 21):
        assert analyze.MeasureOptions(grid=grid).grid == grid
    for grid in (2, -1):
        with pytest.raises(InputError, match=f"--grid must be odd.* received {grid}"):
            analyze.MeasureOptions(grid=grid)
