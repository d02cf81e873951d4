"""One thread a worker: the suite runs a worker a core, and small problems gain nothing from more threads."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """name -> the directory where that figure was made; figures share one study."""
    from figures.study import figure
    from figures.study.study import Study

    root = tmp_path_factory.mktemp("figures")
    study = Study(root / "study", "smoke")
    finished = set()

    def make(name):
        if name not in finished:
            figure.make([name], study, root)
            finished.add(name)
        return root, study

    return make


@pytest.fixture
def styled():
    """Ticks are made when they are drawn, in the style of that moment."""
    from figures.drawing import style

    with style.use():
        yield
