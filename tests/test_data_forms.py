"""Data of your own in other files than npz: HDF5, tensors, folders of pictures; and how they are normalized."""

import json

import h5py
import numpy as np
import pytest
import torch
from data_form_cases import features, write_hdf5, write_images, write_npz, write_pt
from PIL import Image

import cli
from landscape.errors import InputError
from trainers.data.standardization import NORMALIZATIONS
from trainers.datasets import load_data
from trainers.rebuild import problem_from

RGB = np.random.default_rng(1).integers(0, 256, (12, 7, 5, 3)).astype(np.uint8)
Y = np.arange(12) % 3


def pixels(data, part="train"):
    """What was read, before normalization."""
    x = data.inputs(slice(None), part)
    return (x * data.std + data.mean) * 255


def one_part(**changes):
    return {"x_train": RGB, "y_train": Y, **changes}


# -- one content, every file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "write"), [("npz", write_npz), ("hdf5", write_hdf5), ("pt", write_pt)])
def test_the_same_arrays_are_the_same_data_in_every_file(tmp_path, kind, write):
    write(tmp_path / "a")
    data, held = load_data(f"{kind}:{tmp_path / 'a'}"), features()
    x = held["x_train"]
    np.testing.assert_allclose(data.x_train, (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5)
    assert data.y_test.tolist() == held["y_test"].tolist()
    write_npz(tmp_path / "b")
    assert data.sha256 == load_data(f"npz:{tmp_path / 'b'}").sha256


@pytest.mark.parametrize(
    "packed",
    [
        {},
        {"chunks": (3, 7, 5, 3)},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf", "chunks": (5, 4, 2, 3)},
    ],
)
def test_hdf5_is_read_packed_and_in_groups(tmp_path, packed):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train/images", data=RGB, **packed)
        file.create_dataset("train/labels", data=Y[:, None].astype(np.uint8))
        file["train"].attrs["note"] = np.arange(3)  # of no interest
    names = {"x_train": "train/images", "y_train": "train/labels"}
    data = load_data(f"hdf5:{tmp_path / 'a.h5'}", **names)
    np.testing.assert_allclose(pixels(data), RGB.transpose(0, 3, 1, 2), atol=1e-3)
    assert data.y_train.tolist() == Y.tolist()
    assert load_data(data.name, **data.arguments).sha256 == data.sha256
    with pytest.raises(
        InputError, match="it holds train/images, train/labels; say which are which, --data-arg x_train"
    ):
        load_data(f"hdf5:{tmp_path / 'a.h5'}")


def test_hdf5_that_points_elsewhere_or_promises_too_much_is_refused(tmp_path):
    write_hdf5(tmp_path / "other.h5", **one_part())
    path, name = tmp_path / "a.h5", f"hdf5:{tmp_path / 'a.h5'}"

    def refused(**arrays):
        with h5py.File(path, "w") as file:
            for key, value in one_part(**arrays).items():
                value(file, key) if callable(value) else file.create_dataset(key, data=value)
        with pytest.raises(InputError) as raised:
            load_data(name)
        return str(raised.value)

    def external(file, key):
        file[key] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x_train")

    def virtual(file, key):
        layout = h5py.VirtualLayout(RGB.shape, np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x_train", RGB.shape)
        file.create_virtual_dataset(key, layout)

    def raw(file, key):
        file.create_dataset(key, RGB.shape, np.uint8, external=[(str(tmp_path / "other.h5"), 0, RGB.nbytes)])

    def unwritten(file, key):
        file.create_dataset(key, (10**6, 7, 5, 3), np.uint8, chunks=(100, 7, 5, 3), compression="gzip")

    def strings(file, key):
        file.create_dataset(key, data=["a", "b"])

    assert "holds y_train and lacks x_train" in refused(x_train=external)
    assert "x_train is stored outside of the file or virtually" in refused(x_train=virtual)
    assert "x_train is stored outside of the file or virtually" in refused(x_train=raw)
    assert "has the shape (1000000, 7, 5, 3), the file holds 0 bytes of it" in refused(x_train=unwritten)
    assert "y_train holds object: numbers are needed" in refused(y_train=strings)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="is not a readable HDF5 file of arrays: truncated, damaged"):
        load_data(name)
    with pytest.raises(InputError, match="does not exist"):
        load_data("hdf5:nowhere.h5")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ((torch.from_numpy(RGB).permute(0, 3, 1, 2), torch.from_numpy(Y)), RGB.transpose(0, 3, 1, 2)),
        ([torch.from_numpy(RGB[..., 0].copy()), torch.from_numpy(Y)], RGB[:, None, ..., 0]),
        ({"x_train": torch.from_numpy(RGB), "y_train": Y.tolist()}, RGB.transpose(0, 3, 1, 2)),
        ({"x_train": (torch.from_numpy(RGB) / 255).bfloat16(), "y_train": torch.from_numpy(Y).int()}, None),
        # 3 rows of 4 columns and 4 channels, or 3 channels: torch stores channels first.
        (
            {"x_train": torch.arange(12 * 48).reshape(12, 3, 4, 4).to(torch.uint8), "y_train": torch.from_numpy(Y)},
            (np.arange(12 * 48) % 256).reshape(12, 3, 4, 4),
        ),
    ],
)
def test_tensors_are_read_with_their_channels_in_place(tmp_path, content, expected):
    torch.save(content, tmp_path / "a.pt")
    data = load_data(f"pt:{tmp_path / 'a.pt'}")
    assert data.y_train.tolist() == Y.tolist()
    if expected is None:  # three digits of bfloat16
        np.testing.assert_allclose(pixels(data) / 255, RGB.transpose(0, 3, 1, 2) / 255, atol=4e-3)
    else:
        np.testing.assert_allclose(pixels(data), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds Tensor: a dict of tensors or a pair"),
        ({"images": torch.zeros(3)}, "it holds images; say which are which"),
        ({"x_train": torch.zeros(2, 3).expand(2, 3), "y_train": "ab"}, r"y_train is a single value \(<U2\)"),
        (torch.utils.data.TensorDataset(torch.zeros(2, 3)), r"TensorDataset\).*data are tensors in a dict"),
    ],
)
def test_tensors_that_are_no_data_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        load_data(f"pt:{tmp_path / 'a.pt'}")


# -- layouts and parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "layout", "expected"),
    [
        (RGB, "auto", RGB.transpose(0, 3, 1, 2)),
        (RGB.transpose(0, 3, 1, 2), "auto", RGB.transpose(0, 3, 1, 2)),
        (RGB.transpose(0, 3, 1, 2), "channels-first", RGB.transpose(0, 3, 1, 2)),
        (RGB[:, :, :3], "channels-first", RGB[:, :, :3]),
        (RGB[:, :3], "auto", RGB[:, :3].transpose(0, 3, 1, 2)),
        (RGB[..., 0], "auto", RGB[:, None, ..., 0]),
        (RGB[..., 0] / np.float32(255), "gray", RGB[:, None, ..., 0]),
    ],
)
def test_images_of_every_layout(tmp_path, x, layout, expected):
    write_npz(tmp_path / "a", x_train=x, y_train=Y)
    np.testing.assert_allclose(pixels(load_data(f"npz:{tmp_path / 'a'}", layout=layout)), expected, atol=1e-3)


def test_a_part_may_be_absent_and_is_asked_for_in_vain(tmp_path):
    write_npz(tmp_path / "a", **one_part())
    data = load_data(f"npz:{tmp_path / 'a'}", train=5)
    assert (data.size("train"), data.size("test")) == (5, 0)
    np.testing.assert_allclose(pixels(data), RGB[:5].transpose(0, 3, 1, 2), atol=1e-3)
    with pytest.raises(InputError, match="has no test examples: give a file that has some, or another --split"):
        data.batches("test", 3)
    write_npz(tmp_path / "b", x_test=RGB, y_test=Y)
    with pytest.raises(InputError, match="holds no training examples, whose mean and deviation"):
        load_data(f"npz:{tmp_path / 'b'}")
    of_test = load_data(f"npz:{tmp_path / 'b'}", normalization="as-is")
    np.testing.assert_allclose(of_test.x_test, RGB.transpose(0, 3, 1, 2) / 255, rtol=1e-6)


def test_training_without_test_examples_is_refused_before_any_work(tmp_path, capsys):
    write_npz(tmp_path / "a", **one_part())
    out = tmp_path / "run"
    assert cli.run(["train", "sgd", "--data", f"npz:{tmp_path / 'a'}", "--model", "mlp:hidden=4", "--epochs", "1",
                    "--out", str(out), "--device", "cpu", "--quiet"]) == 2  # fmt: skip
    assert "has no test examples" in capsys.readouterr().err
    assert not (out / "ckpt.pt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "hwc"}, "unknown layout 'hwc'"),
        ({"train": 0}, "train=0: it is a number of examples, at least 1"),
        ({"train": 99}, "train=99: .* holds 12 examples of x_train"),
        ({"x_train": "images"}, "holds y_train and lacks images"),
        ({"x_trian": "images"}, "did you mean 'x_train'"),
        ({"normalization": "imagnet"}, "did you mean 'imagenet'"),
        ({"normalization": "imagenet", "mean": 0.5, "std": 0.5}, "give one of both"),
        ({"mean": 0.5}, "give one of both"),
        ({"mean": (0.5, 0.5), "std": 0.5}, "one finite number or 3, one a channel"),
        ({"mean": 0.5, "std": 0}, "std above 0"),
        ({"mean": "half", "std": 1}, "mean='half': a number"),
    ],
)
def test_options_that_say_nothing_are_refused(tmp_path, options, message):
    write_npz(tmp_path / "a", **one_part())
    with pytest.raises(InputError, match=message):
        load_data(f"npz:{tmp_path / 'a'}", **options)


# -- normalization -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(NORMALIZATIONS))
@pytest.mark.parametrize("scale", [1, np.float32(1 / 255)])
def test_images_are_normalized_as_their_network_was_trained(tmp_path, name, scale):
    x = RGB[..., :1] if name == "mnist" else RGB
    write_npz(tmp_path / "a", x_train=x * scale if scale != 1 else x, y_train=Y)
    mean, std = (np.array(m, dtype=np.float64) for m in NORMALIZATIONS[name])
    data = load_data(f"npz:{tmp_path / 'a'}", normalization=name)
    expected = ((x / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(data.x_train, expected, rtol=1e-5, atol=1e-6)
    by_numbers = load_data(f"npz:{tmp_path / 'a'}", mean=tuple(mean), std=tuple(std))
    assert torch.equal(by_numbers.x_train, data.x_train)
    assert torch.equal(load_data(data.name, **data.arguments).x_train, data.x_train)


def test_images_in_other_units_are_not_normalized_silently(tmp_path):
    write_npz(tmp_path / "a", x_train=RGB.astype(np.float32), y_train=Y)
    with pytest.raises(
        InputError, match=r"values from 0 to 255, and a normalization is of uint8 or of values in \[0, 1\]"
    ):
        load_data(f"npz:{tmp_path / 'a'}", normalization="imagenet")
    as_it_is = load_data(f"npz:{tmp_path / 'a'}", normalization="as-is")
    np.testing.assert_array_equal(as_it_is.x_train, RGB.transpose(0, 3, 1, 2))


def test_a_built_in_set_takes_a_normalization_too():
    plain, half = (load_data(name) for name in ("digits:normalization=as-is", "digits:normalization=half"))
    np.testing.assert_allclose(half.x_test, 2 * plain.x_test - 1, rtol=1e-6)


def test_a_normalization_of_none_is_none_and_none_at_all_is_the_training_sets():
    as_it_is, default = load_data("digits", normalization="as-is"), load_data("digits")
    for plain in (load_data("digits", normalization="none"), load_data("digits:normalization=none")):
        assert torch.equal(plain.x_train, as_it_is.x_train)
        assert torch.equal(load_data(plain.name, **plain.arguments).x_train, as_it_is.x_train)
    assert torch.equal(load_data("digits", normalization=None).x_train, default.x_train)
    assert not torch.equal(default.x_train, as_it_is.x_train)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_are_numbered_by_the_names_of_their_folders(tmp_path):
    held = write_images(tmp_path, count=3)
    data = load_data(f"images:{tmp_path}")
    for part, name in (("train", "train"), ("test", "val")):
        expected = np.stack([p for p, _ in held[name]]).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(pixels(data, part), expected, atol=1e-3)
        assert data.targets(slice(None), part).tolist() == [label for _, label in held[name]] == [0, 0, 0, 1, 1, 1]
    alone = load_data(f"images:{tmp_path / 'val'}", train=4)  # a folder of classes is the training set
    every = [0, 1, 3, 4]
    np.testing.assert_allclose(
        pixels(alone), np.stack([held["val"][i][0] for i in every]).transpose(0, 3, 1, 2), atol=1e-3
    )
    assert alone.y_train.tolist() == [0, 0, 1, 1]


def test_gray_pictures_have_one_channel_unless_three_are_asked_for(tmp_path):
    held = write_images(tmp_path, count=2, mode="L", parts=("train",))
    expected = np.stack([p for p, _ in held["train"]])[:, None]
    np.testing.assert_allclose(pixels(load_data(f"images:{tmp_path}")), expected, atol=1e-3)
    three = load_data(f"images:{tmp_path}", channels=3)
    np.testing.assert_allclose(pixels(three), np.repeat(expected, 3, 1), atol=1e-3)


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 41), (33, 33)])
def test_pictures_get_the_size_that_torchvision_gives_them(tmp_path, width, height):
    """The resampling is torch's own with antialiasing, within one unit of 255; which pixels stay is arithmetic."""
    held = write_images(tmp_path, count=1, sizes=((width, height),), parts=("train",), classes=("a",))
    data = load_data(f"images:{tmp_path}", size=16, crop=12)
    whole = torch.from_numpy(held["train"][0][0]).permute(2, 0, 1)[None].float()
    sides = [16 if side == min(width, height) else int(16 * side / min(width, height)) for side in (height, width)]
    scaled = torch.nn.functional.interpolate(whole, sides, mode="bilinear", antialias=True)
    top, left = (round((side - 12) / 2) for side in sides)
    np.testing.assert_allclose(pixels(data), scaled[:, :, top : top + 12, left : left + 12].round(), atol=1.01)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: None, {}, r"1.png has 9x4 pixels, .*0.png 7x5: --data-arg size=N"),
        (lambda f: None, {"size": 3, "crop": 4}, "crop=4 does not fit"),
        (lambda f: None, {"channels": 2}, "channels=2: pictures have 1 or 3"),
        (lambda f: None, {"train": 99}, "holds 4 pictures: 99 were asked for"),
        (lambda f: (f / "train" / "ant" / "0.png").write_bytes(b"no picture"), {}, "0.png is not a picture"),
        (lambda f: Image.new("I;16", (7, 5)).save(f / "train/ant/0.png"), {}, r"more than 8 bits a channel \(I;16\)"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(tmp_path, change, options, message):
    write_images(tmp_path, count=2, sizes=((7, 5), (9, 4)), parts=("train",))
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        load_data(f"images:{tmp_path}", **options)


def test_pictures_without_a_class_have_no_label(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="the label of a picture is the folder that it lies in"):
        load_data(f"images:{tmp_path}")
    with pytest.raises(InputError, match="is not a folder"):
        load_data(f"images:{tmp_path / '0.png'}")


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_arguments_of_data_reach_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(105, 3))
    torch.save(net.state_dict(), "net.pt")
    write_npz("a.npz", images=RGB, labels=Y)
    (tmp_path / "made_for_data.py").write_text(
        "import torch\n"
        "def network(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(105, 3))\n"
        "def batches(count, normalization=None):\n"
        "    assert normalization is None\n"
        "    return [(torch.zeros(count, 105), torch.zeros(count, dtype=torch.long))]\n"
    )
    x = torch.from_numpy((RGB / 255 - 0.5) / 0.25).float().permute(0, 3, 1, 2)
    expected = torch.nn.functional.cross_entropy(net(x), torch.from_numpy(Y)).item()
    arguments = {"x_train": "images", "y_train": "labels", "mean": 0.5, "std": 0.25}
    problem = problem_from("net.pt", model=net, data="npz:a.npz", data_arguments=arguments, device="cpu")
    assert float(problem.loss()) == pytest.approx(expected, rel=1e-6)
    common = ["--model", "made_for_data:network", "--measure", "gradient_norm", "--device", "cpu", "--quiet", "--json"]
    said = [f"--data-arg={k}={v}" for k, v in arguments.items()]
    assert cli.run(["analyze", "net.pt", "--data", "npz:a.npz", *said, *common]) == 0
    assert f'"loss": {float(problem.loss())!r}' in capsys.readouterr().out
    plain = [*said[:2], "--data-arg=normalization=none"]
    assert cli.run(["analyze", "net.pt", "--data", "npz:a.npz", *plain, *common]) == 0
    x = torch.from_numpy(RGB / 255).float().permute(0, 3, 1, 2)
    loss = json.loads(capsys.readouterr().out)["checkpoints"][0]["loss"]
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(net(x), torch.from_numpy(Y)).item(), rel=1e-6)
    batches = ["--data", "made_for_data:batches", "--data-arg", "normalization=none"]
    assert cli.run(["analyze", "net.pt", *batches, "--data-arg", "count=5", *common]) == 0
    assert '"samples": 5' in capsys.readouterr().out
    assert cli.run(["analyze", "net.pt", "--data", "made_for_data:batches", "--data-arg", "size=5", *common]) == 2
    assert "--data 'made_for_data:batches' cannot be called with {'size': 5}" in capsys.readouterr().err
