"""The presets paper and gpu need a GPU: here every task that they plan is checked up to where it would run."""

import importlib
import inspect

import pytest
import torch

from figures import FIGURES
from figures.study.study import Study
from figures.study.tasks import Machine, Training
from landscape.errors import InputError
from trainers import METHODS
from trainers.datasets import load_data
from trainers.loop.settings import Settings
from trainers.models import arguments_for, build_model
from trainers.names import parse_name

IMAGES = {"cifar10": ((3, 32, 32), 10), "fashion-mnist": ((1, 28, 28), 10)}


@pytest.fixture(scope="module", params=["paper", "gpu"])
def planned(request, tmp_path_factory):
    """Figure -> its tasks, with the trainings that they need."""
    directory = tmp_path_factory.mktemp(request.param)
    study = Study(directory, request.param, data_dir=str(directory))
    return {name: study.missing(list(FIGURES[name]().plan(study))) for name in FIGURES}


def test_every_training_has_settings_and_hyperparameters_that_are_accepted(planned):
    models = set()
    for name, tasks in planned.items():
        assert tasks, name
        for task in tasks:
            if isinstance(task, Training):
                METHODS[task.method](**task.arguments)
                settings = Settings(**task.settings)
                models.add((settings.model, settings.data))
    assert len(models) > 5
    for model, data in models:
        name, _ = parse_name(data)
        network, arguments = parse_name(model)
        if name in IMAGES:
            shape, classes = IMAGES[name]
            arguments |= {"classes": classes, "input_shape": shape}
        else:
            try:
                arguments |= arguments_for(network, load_data(data))
            except InputError as error:
                if " needs tokenizers: " not in str(error):
                    raise
                continue
        inputs = torch.zeros(1, *arguments["input_shape"], dtype=torch.int64 if "vocabulary" in arguments else None)
        with torch.no_grad():
            assert build_model(network, **arguments).eval()(inputs).shape == (1, arguments["classes"]), model


def test_every_computation_exists_and_takes_its_arguments(planned):
    for tasks in planned.values():
        for task in tasks:
            if not isinstance(task, Training):
                module, name = task.function.split(":")
                signature = inspect.signature(getattr(importlib.import_module(module), name))
                machine = {"machine": Machine()} if "machine" in signature.parameters else {}
                signature.bind(*["run"] * len(task.trainings), **task.arguments, **machine)
