"""Trainings of the preset gpu: data and augmentation on the device, bfloat16, bitwise after a kill; on a CPU too."""

import pytest
import torch

from figures.study import recipes
from trainers import train
from trainers.loop.trainer import Trainer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = {**recipes.GPU, "data": "digits", "model": "small-cnn", "epochs": 3}


def state(run):
    return torch.load(run / "ckpt.pt", weights_only=True, map_location="cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["sgd", "sam", "saf"])
def test_a_killed_run_goes_on_bitwise(method, device, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(method, out=whole, device=device, **SMALL)
    real = Trainer._train_epoch

    def interrupted(self, bar):
        if self.now.epoch == 1:
            raise KeyboardInterrupt
        real(self, bar)

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(method, out=killed, device=device, **SMALL)
    monkeypatch.undo()
    train(method, out=killed, resume=True, device=device, **SMALL)
    for part in ("model", "method", "optimizer"):
        torch.testing.assert_close(state(killed)[part]["state"], state(whole)[part]["state"], rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_every_image_is_augmented_anew_in_every_epoch(device, monkeypatch):
    """Inputs are on the device, shifted and mirrored otherwise in each epoch, the labels those of their images."""
    seen = []
    real = Trainer._step

    def look(self, share, context):
        order = share.indices.argsort()
        assert share.inputs.device.type == device
        assert torch.equal(share.targets, self.data.targets(share.indices))
        seen.append(share.inputs[order].cpu())
        plain = self.data.inputs(share.indices)[order].cpu()
        assert plain.shape == seen[-1].shape
        assert not torch.equal(plain, seen[-1])
        return real(self, share, context)

    monkeypatch.setattr(Trainer, "_step", look)
    train("sgd", device=device, **{**SMALL, "epochs": 2, "batch_size": 2000})
    assert len(seen) == 2
    same = (seen[0] == seen[1]).flatten(1).all(1).float().mean()
    assert float(same) < 0.05  # of 81 shifts and 2 mirrorings the same is drawn twice


def test_settings_of_convolutions_are_put_back(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen = []
    real = Trainer.run

    def look(self):
        seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
        real(self)

    monkeypatch.setattr(Trainer, "run", look)
    train("sgd", data="toy2d:n=64,n_test=32", model="table2-mlp", epochs=1)
    assert seen == [(True, False)]
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)
