"""The script and the Slurm job of docs/howto/cluster.md run as they stand, on two processes of this machine."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape.checkpoint.contents import contents
from landscape.checkpoint.loading import Selection, load_weights

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "howto" / "cluster.md").read_text()


def block(language, start):
    return next(b for b in re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if start in b)


def lines(folder, steps):
    """What the job prints; srun and scontrol are those of a cluster of one node."""
    (folder / "sam_fsdp.py").write_text(block("py", "# sam_fsdp.py"))
    (folder / "job.sh").write_text(block("sh", "srun torchrun").replace("10000 runs/fsdp", f"{steps} runs/fsdp"))
    torchrun = f'exec {sys.executable} -m torch.distributed.run "$@"'
    commands = {"srun": 'exec "$@"', "scontrol": "echo localhost", "torchrun": torchrun}
    for name, command in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{command}\n")
        (folder / name).chmod(0o755)
    slurm = {"NNODES": "1", "GPUS_ON_NODE": "2", "JOB_ID": str(random.randrange(10000)), "JOB_NODELIST": "n1"}
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in slurm.items()}}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh", "job.sh"], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_the_job_trains_and_leaves_a_checkpoint(tmp_path):
    printed = lines(tmp_path, 6)
    losses = [float(line.rpartition(" ")[2]) for line in printed]
    assert [line.split(":")[0] for line in printed] == [f"step {i}" for i in range(6)]
    assert losses[-1] < losses[0] < 5
    folder = tmp_path / "runs" / "fsdp" / "step-00000006"
    assert {p.name for p in folder.glob("method-*.pt")} == {"method-0.pt", "method-1.pt"}
    assert torch.load(folder / "method-1.pt", weights_only=True)["steps"] == 6
    blocks = [
        nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True) for _ in range(2)
    ]
    model = nn.Sequential(nn.Embedding(97, 64), *blocks, nn.Linear(64, 97))
    load_weights(model, contents(folder), folder, Selection(key="model"))
    text = (torch.arange(97)[:, None] + torch.arange(17)) % 97
    loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
    assert loss < losses[0] - 0.2


@pytest.mark.slow
def test_a_requeued_job_goes_on(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert lines(tmp_path / "parts", 3) + lines(tmp_path / "parts", 6) == lines(tmp_path / "whole", 6)


def test_the_analysis_of_sharded_weights_is_that_of_whole_ones(tmp_path):
    lines(tmp_path, 2)
    (tmp_path / "curvature_fsdp.py").write_text(block("py", "# curvature_fsdp.py"))
    kept = sorted((tmp_path / "runs" / "fsdp").iterdir())[-1]
    printed = []
    for processes in (1, 2):
        ran = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "curvature_fsdp.py", kept],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        printed.append([float(x) for x in re.findall(r"\d+\.\d+", ran.stdout)])
    assert len(printed[0]) == 3
    assert printed[1] == pytest.approx(printed[0], rel=2e-4)
