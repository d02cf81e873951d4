"""Architectures of torchvision and timm with state dicts as these libraries write them.

`make test-vision` runs these tests in an environment of their own: the torchvision that is published fits another torch
than the one that is pinned here.
"""

import pytest
import torch

import cli
import landscape
from landscape import InputError

models = pytest.importorskip(
    "torchvision.models", reason="torchvision is not installed (make test-vision)", exc_type=ImportError
)
timm = pytest.importorskip("timm", reason="timm is not installed (make test-vision)", exc_type=ImportError)
pytestmark = pytest.mark.torchvision

X = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 5


def trained(build, name, **arguments):
    """A network with running statistics and weights that are not its initial ones."""
    torch.manual_seed(1)
    network = build(name, **arguments)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    output = network(X)
    loss = torch.nn.functional.cross_entropy(getattr(output, "logits", output), Y)
    loss.backward()
    optimizer.step()
    return network.eval(), optimizer


def loss_of(network):
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(network(X), Y).item()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torchvision:resnet18", {"num_classes": 5}),
        ("torchvision:mobilenet_v2", {"num_classes": 5}),
        ("torchvision:vit_b_16", {"num_classes": 5, "image_size": 64}),
        ("torchvision:densenet121", {"num_classes": 5}),
        ("timm:resnet18", {"num_classes": 5}),
        ("timm:vit_tiny_patch16_224", {"num_classes": 5, "img_size": 64}),
        ("timm:convnext_atto", {"num_classes": 5}),
        ("timm:efficientnet_b0.ra_in1k", {"num_classes": 5}),
    ],
)
def test_a_state_dict_is_the_network_that_wrote_it(name, arguments, tmp_path):
    library, _, architecture = name.partition(":")
    build = models.get_model if library == "torchvision" else timm.create_model
    network, _ = trained(build, architecture, **arguments)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    problem = landscape.problem_from(
        tmp_path / "x.pth", model=name, model_arguments=arguments, data=[(X, Y)], device="cpu"
    )
    assert float(problem.loss()) == pytest.approx(loss_of(network), rel=1e-5)
    v = torch.randn(problem.dimension, generator=torch.Generator().manual_seed(2))
    assert problem.hvp(v).isfinite().all()


def test_a_checkpoint_of_timm_is_read_and_its_average_is_chosen(tmp_path):
    from timm.utils import CheckpointSaver, ModelEmaV3

    network, optimizer = trained(timm.create_model, "resnet10t", num_classes=5)
    average = ModelEmaV3(network, decay=0.5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.01)
    average.update(network)
    saver = CheckpointSaver(
        network, optimizer, model_ema=average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(epoch=0, metric=0.5)
    path = tmp_path / "last.pth.tar"
    made = {"model": "timm:resnet10t", "model_arguments": {"num_classes": 5}, "data": [(X, Y)], "device": "cpu"}
    with pytest.raises(InputError, match="several sets of weights that fit: state_dict, state_dict_ema; say which"):
        landscape.problem_from(path, **made)
    for key, right in (("state_dict", network), ("state_dict_ema", average.module)):
        assert float(landscape.problem_from(path, key=key, **made).loss()) == pytest.approx(loss_of(right), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "torchvision:resnet19"], "did you mean 'resnet18'"),
        (["--model", "timm:resnet19"], "did you mean 'resnet18'"),
        (["--model", "torchvision:resnet18"], "fc.weight is (5, 512), the model needs (1000, 512)"),
        (["--model", "torchvision:resnet18", "--model-arg", "classes=5"], "refuses its arguments"),
        (["--model", "torchvision:resnet34", "--model-arg", "num_classes=5"], "it lacks layer1.2.conv1.weight"),
    ],
)
def test_another_network_is_refused_in_one_line(options, message, tmp_path, capsys):
    network, _ = trained(models.get_model, "resnet18", num_classes=5)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    data = ["--data", "random-images:shape=3x64x64,n=4,classes=5", "--device", "cpu", "--quiet"]
    assert cli.run(["analyze", str(tmp_path / "x.pth"), *data, *options]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("landscape:")]
    assert message in line


@pytest.mark.parametrize(("size", "crop"), [(16, 12), (20, 20)])
@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (33, 33)])
def test_pictures_get_the_very_pixels_of_torchvision(tmp_path, shape, size, crop):
    from PIL import Image
    from torchvision import transforms

    from trainers.datasets import load_data

    (tmp_path / "a").mkdir()
    pixels = torch.randint(256, (*shape, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    chosen = transforms.Compose([
        transforms.Resize(size), transforms.CenterCrop(crop), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    data = load_data(f"images:{tmp_path}", size=size, crop=crop, normalization="imagenet")
    torch.testing.assert_close(data.x_train[0], chosen(Image.fromarray(pixels)), rtol=1e-5, atol=1e-5)
