"""Networks by name for anybody's weights, and `problem_from`: the same loss as the command line builds."""

import json
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape
from landscape import InputError
from landscape.errors import CheckpointWarning
from tests.checkpoint_cases import build, saved, trained, under
from trainers.datasets import load_data
from trainers.models import build_model
from trainers.rebuild import subject

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 3
HERE = "tests.test_foreign_networks"


def batches():
    return [(X, Y)]


def sized(hidden, activation="tanh"):
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh() if activation == "tanh" else nn.ReLU(), nn.Linear(hidden, 3))


def by_hand(model, x=X, y=Y):
    with torch.no_grad():
        return F.cross_entropy(model.eval()(x), y)


def require_loss(problem, right):
    # The passes are in float32, in batches of another size.
    torch.testing.assert_close(problem.loss().cpu(), right.double(), rtol=2e-6, atol=0)


def test_callables_take_arguments(tmp_path):
    model = trained(lambda: sized(6, "relu"))
    path = saved(model.state_dict(), tmp_path / "x.pt")
    arguments = {"hidden": 6, "activation": "relu"}
    for make in (sized, f"{HERE}:sized"):
        problem = landscape.problem_from(
            path, model=make, model_arguments=arguments, data=f"{HERE}:batches", device="cpu"
        )
        require_loss(problem, by_hand(model))
    with pytest.raises(
        InputError, match=r"cannot be called with \{'width': 6\}: missing a required argument: 'hidden'"
    ):
        landscape.problem_from(path, model=sized, model_arguments={"width": 6}, data=batches)
    with pytest.raises(InputError, match="--model-arg is for the network that --model names"):
        landscape.problem_from(path, model_arguments={"hidden": 6}, data=batches)


def test_problem_from_takes_what_the_command_line_takes(tmp_path):
    model = trained()
    path = saved({"a": model.state_dict(), "b": under("module.", trained(factor=0.5).state_dict())}, tmp_path / "x.pt")
    chosen = {"key": "b", "dtype": "float64", "parameters": ["2.*"], "device": "cpu"}
    problem = landscape.problem_from(path, model=build, data=batches, **chosen)
    assert problem.dimension == 5 * 3 + 3
    assert problem.weights.dtype == torch.float64
    right = by_hand(trained(factor=0.5).double(), X.double())
    require_loss(problem, right)


def test_problem_from_takes_a_network_and_batches_as_they_are(tmp_path):
    model, other = trained(), trained(factor=0.5)
    path = saved(model.state_dict(), tmp_path / "x.pt")
    before = {k: v.clone() for k, v in other.state_dict().items()}
    problem = landscape.problem_from(path, model=other, data=batches(), dtype="float64", device="cpu")
    require_loss(problem, by_hand(model.double(), X.double()))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    for dtype in ("float46", "int64", "nn"):
        with pytest.raises(InputError, match=f"dtype '{dtype}': float32, float64 or bfloat16 is needed"):
            landscape.problem_from(path, model=other, data=batches(), dtype=dtype)


def test_foreign_float64_weights_are_not_rounded(tmp_path):
    model = trained().double()
    with torch.no_grad():
        model[0].weight.add_(1e-12)
    path = saved(model.state_dict(), tmp_path / "x.pt")
    seen = subject(path, model=build, data=batches, dtype=torch.float64).model
    assert torch.equal(seen[0].weight, model[0].weight)


def test_a_built_in_network_takes_its_shape_from_the_data(tmp_path):
    model = build_model("mlp", classes=10, input_shape=(1, 8, 8), hidden=(5,), seed=3)
    path = saved({"net": under("module.", model.state_dict())}, tmp_path / "x.pt")
    problem = landscape.problem_from(path, model="mlp:hidden=5", data="digits", device="cpu")
    assert problem.dimension == sum(p.numel() for p in model.parameters())
    digits = load_data("digits")
    require_loss(problem, by_hand(model, digits.x_train, digits.y_train))
    with pytest.raises(InputError, match="unknown model 'resnet44': did you mean 'resnet"):
        landscape.problem_from(path, model="resnet44:shortcut=pad", data=batches)
    with pytest.raises(InputError, match="unknown model 'mpl': did you mean 'mlp'"):
        landscape.problem_from(path, model="mpl", data="digits")
    with pytest.raises(InputError, match=r"--model mlp for batches of your own: say classes and input_shape"):
        landscape.problem_from(path, model="mlp", data=batches)
    arguments = {"classes": 3, "input_shape": (4,), "hidden": (5,)}
    own = build_model("mlp", **arguments, seed=3)
    path = saved(own.state_dict(), tmp_path / "own.pt")
    problem = landscape.problem_from(path, model="mlp", model_arguments=arguments, data=batches, device="cpu")
    require_loss(problem, by_hand(own))


def test_complex_weights_are_named(tmp_path):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))

    path = saved(Spectral().state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError, match="the model's 'weight' is complex: weights must be real"):
        subject(path, model=Spectral, data=batches)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("torchvision:resnet18", "torchvision", "vision"),
        ("timm:resnet18", "timm", "vision"),
        ("hf", "transformers", "hf"),
    ],
)
def test_a_library_that_is_absent_is_named_with_its_extra(name, module, extra, tmp_path, monkeypatch):
    for known in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "config.json").write_text("{}")
    name = f"hf:{tmp_path}" if name == "hf" else name
    path = saved(trained().state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError, match=rf"--model .*{module}.*pip install 'loss-landscape-toolkit\[{extra}\]'"):
        landscape.problem_from(path, model=name, data=batches)


def test_architectures_of_a_library_are_looked_up(tmp_path, monkeypatch):
    """By a library of the test's own: the names, the arguments and that no weights are fetched."""
    seen = []

    def create_model(name, **arguments):
        seen.append((name, arguments))
        if "width" in arguments:
            raise TypeError("unexpected 'width'")
        return build()

    timm = types.SimpleNamespace(list_models=lambda: ["small_net", "other"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", timm)
    path = saved(trained().state_dict(), tmp_path / "x.pt")
    problem = landscape.problem_from(path, model="timm:small_net", model_arguments={"num_classes": 3}, data=batches)
    require_loss(problem, by_hand(trained()))
    assert seen == [("small_net", {"pretrained": False, "num_classes": 3})]
    with pytest.raises(InputError, match="unknown architecture of timm 'smal_net': did you mean 'small_net'"):
        landscape.problem_from(path, model="timm:smal_net", data=batches)
    with pytest.raises(InputError, match="refuses its arguments"):
        landscape.problem_from(path, model="timm:small_net", model_arguments={"width": 3}, data=batches)


def test_a_folder_without_a_configuration_is_refused_without_a_download(tmp_path):
    path = saved(trained().state_dict(), tmp_path / "x.pt")
    for name in ("hf:bert-base-uncased", f"hf:{tmp_path}"):
        with pytest.raises(InputError, match="a folder with a config.json is needed"):
            landscape.problem_from(path, model=name, data=batches)


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20}
NETWORKS = {
    "BertForMaskedLM": {**TINY, "model_type": "bert"},
    "BertForSequenceClassification": {**TINY, "model_type": "bert", "num_labels": 3},
    "GPT2LMHeadModel": {
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 16,
        "vocab_size": 20,
    },
    "LlamaForCausalLM": {**TINY, "model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
}


def tokens(model):
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(2))
    labels = torch.arange(4) % 3 if "Sequence" in type(model).__name__ else ids
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}]


@pytest.mark.hf
@pytest.mark.oracle
@pytest.mark.parametrize("architecture", NETWORKS)
def test_networks_of_a_hugging_face_folder(architecture, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**NETWORKS[architecture])
    model = getattr(transformers, architecture)(config).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    model.save_pretrained(tmp_path)
    data = tokens(model)
    with torch.no_grad():
        right = model(**data[0]).loss
    problem = landscape.problem_from(tmp_path, model=f"hf:{tmp_path}", data=lambda: data, loss="own", device="cpu")
    require_loss(problem, right)
    assert problem.dimension == sum(p.numel() for p in model.parameters())


@pytest.mark.hf
@pytest.mark.oracle
def test_a_configuration_with_code_is_refused(tmp_path):
    pytest.importorskip("transformers")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}, "architectures": ["Mine"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('pwned').touch()")
    path = saved(trained().state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError, match="transformers cannot make the network"):
        landscape.problem_from(path, model=f"hf:{tmp_path}", data=batches)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.hf
@pytest.mark.oracle
def test_an_adapter_over_its_base(tmp_path):
    peft = pytest.importorskip("peft")

    def base():
        torch.manual_seed(0)
        return build()

    def adapted():
        torch.manual_seed(0)
        return peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"]))

    with torch.random.fork_rng():
        model = adapted()
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                nn.init.normal_(weight)
        model.save_pretrained(tmp_path)
        for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
            with pytest.warns(CheckpointWarning, match="an adapter; the .* tensors of the network below it"):
                problem = landscape.problem_from(
                    path, model=adapted, data=batches, parameters=["*lora_*"], device="cpu"
                )
            require_loss(problem, by_hand(model))
            assert problem.dimension == 2 * 4 + 5 * 2
        with pytest.warns(CheckpointWarning, match="an adapter; the network below it is as the model was built"):
            problem = landscape.problem_from(tmp_path, model=base, data=batches, device="cpu")
        require_loss(problem, by_hand(model))
        assert problem.dimension == 2 * 4 + 5 * 2 + 5 * 3 + 3


@pytest.mark.oracle
def test_a_checkpoint_of_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, rate=0.5):
            super().__init__()
            self.save_hyperparameters()
            self.model = build()

        def forward(self, x):
            return self.model(x)

        def training_step(self, batch, index):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=self.hparams.rate)

    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet)
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 4))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    for make in (build, Module):
        problem = landscape.problem_from(tmp_path / "x.ckpt", model=make, data=batches, device="cpu")
        require_loss(problem, by_hand(module))
