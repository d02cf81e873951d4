"""The names of `landscape` and `trainers`: typed for tools, imported when they are used, one name a thing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import landscape
import trainers

ROOT = Path(__file__).parent.parent
PUBLIC = [f"{module.__name__}.{name}" for module in (landscape, trainers) for name in module.__all__]
# What a user writes, and the types that a checker must see.
USE = """
def of_a_user(problem: landscape.Problem, run: Path) -> None:
    reveal_type(problem.weights)
    reveal_type(landscape.sam_sharpness(problem, rho=0.05).value)
    reveal_type(landscape.top_eigenvalues(problem, k=3).values)
    reveal_type(landscape.trace(problem).stderr)
    reveal_type(landscape.surface(problem, grid=11).loss)
    reveal_type(landscape.path(problem, problem).barrier)
    reveal_type(landscape.load(run))
    reveal_type(landscape.MEASURES["gradient_norm"])
    reveal_type(trainers.METHODS["sam"](rho=0.05))
    landscape.no_such_name
    landscape.surface(problem, gird=11)
"""
ARRAY = r"numpy\.ndarray\[.*\]"
TYPES = [
    r"torch\._tensor\.Tensor",
    "float",
    ARRAY,
    "float",
    ARRAY,
    "float",
    r".*results\.result\.Result.*",
    r"def .*",
    r"trainers\..*\.Method",
]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What mypy says of every public name and of the lines above, in their order: (revealed types, errors)."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("user")
    names = [f"reveal_type({name})" for name in PUBLIC]
    text = ["from pathlib import Path", "import landscape, trainers", *names, USE]
    (folder / "use.py").write_text("\n".join(text))
    # As in a user's environment, where mypy is silent about installed packages: here they lie in the folder it runs in.
    rooms = "landscape.*,trainers.*,figures.*,commands.*"
    (folder / "mypy.ini").write_text(f"[mypy]\n[mypy-{rooms}]\nfollow_imports = silent\n")
    options = ["--config-file", folder / "mypy.ini", "--cache-dir", ROOT / ".mypy_cache" / "user"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, folder / "use.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    return re.findall(r'Revealed type is "(.*)"', done.stdout), re.findall(r":\d+: error: (.*)", done.stdout)


def test_no_public_name_is_any(checked):
    types = dict(zip(PUBLIC, checked[0], strict=False))
    for name, text in types.items():
        assert text != "Any", name
        assert not text.endswith("-> Any"), (name, text)
    assert types["landscape.Problem"].endswith("-> landscape.problem.problem.Problem")
    assert types["landscape.rescaling"] == "types.ModuleType"


def test_what_a_user_writes_has_types(checked):
    types = checked[0][len(PUBLIC) :]
    assert len(types) == len(TYPES)
    for found, expected in zip(types, TYPES, strict=True):
        assert re.fullmatch(expected, found), (found, expected)


def test_misspelled_names_and_options_are_seen(checked):
    expected = [r".*has no attribute \"no_such_name\".*", r"Unexpected keyword argument \"gird\" for \"surface\".*"]
    assert len(checked[1]) == len(expected), checked[1]
    for found, pattern in zip(checked[1], expected, strict=True):
        assert re.fullmatch(pattern, found)


def test_every_public_name_can_be_imported_and_is_listed():
    namespace = {}
    exec("from landscape import *", namespace)
    assert set(landscape.__all__) <= set(namespace)
    assert set(dir(landscape)) == set(landscape.__all__)


def test_one_name_a_thing():
    things = {}
    for name in landscape.__all__:
        thing = getattr(landscape, name)
        assert things.setdefault(id(thing), name) == name


def test_modules_are_reached_by_attribute_without_importing_them():
    code = "import landscape; landscape.rescaling.find, landscape.surfaces, landscape.errors.InputError"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = landscape.no_such_name
