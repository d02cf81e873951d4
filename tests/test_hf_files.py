"""Files that the real libraries write, each through one command, beside the loss of the network in memory."""

import argparse

import pytest
import torch
from hf_cases import REASON, Reference, batches, network, run, saved

from landscape.checkpoint import contents

transformers = pytest.importorskip("transformers", reason=REASON)
pytestmark = pytest.mark.hf
GPT = "GPT2LMHeadModel"
DATA = "test_hf_files:data"


def data():
    return batches(GPT)


def analyzed(capsys, path, folder, *options):
    """The loss that one command states."""
    (seen,) = run(
        capsys, *["analyze", path, "--model", f"hf:{folder}", "--data", DATA, "--loss", "own", "--dtype", "float64"],
        *["--device", "cpu", "--grid", 0, "--measure", "sam_sharpness", *options],
    )["checkpoints"]  # fmt: skip
    return seen["loss"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return saved(network(GPT), tmp_path / "net")


def right(model=None):
    return pytest.approx(Reference(model or network(GPT), data()).loss(), rel=1e-6)  # of a loss in float32


def test_shards_of_safetensors(folder, tmp_path, capsys):
    network(GPT).save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    shards = sorted((tmp_path / "shards").glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    for path in (tmp_path / "shards", shards[1], tmp_path / "shards" / "model.safetensors.index.json"):
        assert analyzed(capsys, path, tmp_path / "shards", "--out", path.name) == right()


def test_pytorch_model_bin(folder, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text((folder / "config.json").read_text())
    torch.save(network(GPT).state_dict(), tmp_path / "old" / "pytorch_model.bin")
    assert analyzed(capsys, tmp_path / "old", tmp_path / "old") == right()


def test_a_checkpoint_of_its_trainer(tmp_path, capsys, monkeypatch):
    """checkpoint-N with the states of the optimizer beside the weights; the run's folder is a run."""
    monkeypatch.chdir(tmp_path)
    rows = [{k: v[i] for k, v in b.items()} for b in data() for i in range(len(b["labels"]))]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=4, save_steps=2, per_device_train_batch_size=2, use_cpu=True,
        report_to=[], disable_tqdm=True, learning_rate=0.01,
    )  # fmt: skip
    model = network(GPT)
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    last = tmp_path / "run" / "checkpoint-4"
    assert {"optimizer.pt", "trainer_state.json", "training_args.bin"} <= {p.name for p in last.iterdir()}
    assert analyzed(capsys, last, last) == right(model)
    over = run(
        capsys, *["analyze", tmp_path / "run", "--model", f"hf:{last}", "--data", DATA, "--loss", "own"],
        *["--device", "cpu", "--measure", "sam_sharpness"],
    )  # fmt: skip
    assert [row["step"] for row in over["checkpoints"]] == [2, 4]


def test_lightning_with_a_namespace(folder, tmp_path, capsys):
    lightning = pytest.importorskip("lightning", reason="needs lightning")

    class Module(lightning.LightningModule):
        def __init__(self, options):
            super().__init__()
            self.save_hyperparameters()
            self.net = network(GPT)

        def training_step(self, batch, index):
            return self.net(**batch).loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=self.hparams.options.rate)

    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    module = Module(argparse.Namespace(rate=0.01, path=tmp_path, name="x"))
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(data(), batch_size=None))
    trainer.save_checkpoint(tmp_path / "lightning.ckpt")
    assert analyzed(capsys, tmp_path / "lightning.ckpt", folder) == right(module.net)


def test_distributed_checkpoint(folder, tmp_path, capsys):
    distributed = pytest.importorskip("torch.distributed.checkpoint")
    model = network(GPT)
    distributed.save({"model": model.state_dict(), "step": 3}, checkpoint_id=str(tmp_path / "dcp"))
    assert (tmp_path / "dcp" / ".metadata").is_file()
    assert isinstance(contents(tmp_path / "dcp"), dict)
    assert analyzed(capsys, tmp_path / "dcp", folder) == right(model)


def test_accelerate(folder, tmp_path, capsys):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(network(GPT))
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.save_model(model, str(tmp_path / "model"))
    for path in (tmp_path / "state", tmp_path / "model"):
        assert analyzed(capsys, path, folder, "--out", path.name) == right(accelerator.unwrap_model(model))
