"""What changes while a run goes on, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from trainers.loop.averaging import WeightAverage
from trainers.loop.base import base_optimizer, clip_gradient, inner_decay, load_optimizer
from trainers.loop.settings import Settings
from trainers.method import examples, network
from trainers.method.method import State
from trainers.method.task import Task
from trainers.storable import require_like, without_tuples


@dataclass
class RunState:
    """Everything that the next step depends on, besides the settings and the data.

    Attributes:
        model: the network.
        optimizer: the base optimizer.
        scaler: loss scaling for float16, else None.
        task: passes on the network, and their count.
        method: the method's state.
        epoch: finished epochs.
        step: finished steps.
        seconds: training time, evaluation and saving not counted.
        skipped: steps that float16 skipped.
        average: of the weights, if one is asked for.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    task: Task
    method: State = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    average: WeightAverage | None = None

    @classmethod
    def fresh(cls, model: nn.Module, settings: Settings, device: torch.device) -> RunState:
        """Before the first step."""

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return examples.cross_entropy(outputs, targets, settings.label_smoothing)

        optimizer = base_optimizer(settings, model)
        scaler = torch.amp.GradScaler(device.type) if settings.precision == "float16" else None
        task = Task(
            model,
            loss,
            optimizer=optimizer,
            precision=settings.precision,
            scaler=scaler,
            decay=inner_decay(settings, model),
            group_size=settings.m,
            synchronized=not settings.per_process,
        )
        average = None if settings.average is None else WeightAverage(settings, task.parameters)
        return cls(model, optimizer, scaler, task, average=average)

    def apply(self, clip: float | None) -> bool:
        """Clip the gradient and take the optimizer's step; False if fp16 overflowed and it was skipped."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if clip is not None:
            clip_gradient(self.task.parameters, clip)
        if self.scaler is None:
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def pack(self) -> dict[str, Any]:
        """The entries of a checkpoint that change, but for the states of model and method."""
        return {
            "optimizer": without_tuples(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "random": {"streams": self._streams()},
            "epoch": self.epoch,
            "step": self.step,
            "spent": {
                "seconds": self.seconds,
                "skipped": self.skipped,
                "forward_examples": int(self.task.passes.forward),
                "backward_examples": int(self.task.passes.backward),
            },
            **({} if self.average is None else {"average": self.average.state}),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Take up a checkpoint.

        Raises:
            InputError: it was written by another number of processes, or holds another network or the state of another
                method.
        """
        streams = content["random"]["streams"]
        if len(streams) != self.task.world:
            raise InputError(f"the run had {len(streams)} processes, this is {self.task.world}: resume with as many")
        _require_same_network(content, self.model, self.optimizer)
        require_like(content["method"].get("state"), self.method, "method.state")
        if self.average is not None:
            require_like(content.get("average"), self.average.state, "average")
            self.average.count, sets = content["average"]["count"], content["average"]["sets"]
            self.average.sets = _onto(sets, self.average.sets, self.task.device)
        self.model.load_state_dict(content["model"]["state"])
        load_optimizer(self.optimizer, _onto(content["optimizer"], None, None))
        if self.scaler is not None:
            self.scaler.load_state_dict(content["scaler"])
        self.method = _onto(content["method"]["state"], self.method, self.task.device)
        network.set_random_state(self.task.device, streams[self.task.rank])
        self.epoch, self.step, spent = content["epoch"], content["step"], content["spent"]
        self.seconds, self.skipped = spent["seconds"], spent["skipped"]
        self.task.passes.forward, self.task.passes.backward = spent["forward_examples"], spent["backward_examples"]

    def _streams(self) -> list[dict[str, Tensor]]:
        """The global random streams of every process; all other draws follow from the seed."""
        here = network.random_state(self.task.device)
        if self.task.world == 1:
            return [here]
        states: list[Any] = [None] * self.task.world
        torch.distributed.all_gather_object(states, here)
        return states


def _require_same_network(content: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise InputError where a checkpoint has other weights than the network, or trains others of them."""
    need = "resume with the network that the run was started with, or choose another --out"
    stored, now = ({n: _kind(t) for n, t in state.items()} for state in (content["model"]["state"], model.state_dict()))
    for name in {**stored, **now}:
        before, here = stored.get(name, "absent"), now.get(name, "absent")
        if before != here:
            raise InputError(f"{name} is {before} in the checkpoint and {here} in this network: {need}")
    groups = content["optimizer"]["param_groups"], optimizer.param_groups
    trained, trainable = ([len(group["params"]) for group in held] for held in groups)
    if trained != trainable:
        raise InputError(
            f"the run trains {sum(trained)} parameters, {sum(trainable)} of this network are trainable (in groups: "
            f"{trained} and {trainable}): {need}"
        )


def _kind(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" if isinstance(value, Tensor) else "a state"


def _onto(saved: Any, fresh: Any, device: torch.device | None) -> Any:
    """Copies of saved tensors on the devices of a fresh state's tensors, else on `device`."""
    if isinstance(saved, Tensor):
        return saved.detach().clone().to(fresh.device if isinstance(fresh, Tensor) else device)
    if isinstance(saved, dict):
        inner = fresh if isinstance(fresh, dict) else {}
        return {k: _onto(v, inner.get(k), device) for k, v in saved.items()}
    if isinstance(saved, list):
        beside = fresh if isinstance(fresh, list) and len(fresh) == len(saved) else [None] * len(saved)
        return [_onto(v, f, device) for v, f in zip(saved, beside, strict=True)]
    return saved
