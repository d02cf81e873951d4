"""The `torch.optim.Optimizer` interface for methods that need nothing but gradients at other weights.

For a training loop of your own::

    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = MethodOptimizer(base, METHODS["sam"](rho=0.05), model)
    for inputs, targets in loader:
        def closure():
            optimizer.zero_grad()
            loss = loss_function(model(inputs), targets)
            loss.backward()
            return loss
        optimizer.step(closure)

A closure shows neither single examples nor their indices: methods that need those (esam, k-sam, saf, mesa, ...) say so
and are driven by `trainers.Task` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from trainers.method import sharded
from trainers.method.accumulation import Leftovers, refuse_accelerate, refuse_unknown_scaler
from trainers.method.averages import mean, plus_share
from trainers.method.base_optimizer import (
    require_all_parameters,
    require_no_others,
    require_plain_step,
    require_settings,
)
from trainers.method.closure import Closure, ClosureStep
from trainers.method.context import Context
from trainers.method.method import Method, State
from trainers.method.step import Step
from trainers.method.task import Task
from trainers.names import whole_number
from trainers.storable import without_tuples


class MethodOptimizer(torch.optim.Optimizer):
    """A base optimizer whose gradient comes from a method.

    `param_groups` and `state` are the base optimizer's own, so schedulers and tools that look into them work;
    `state_dict` holds the base optimizer's (momentum included) and the method's state.

    The closure clears the gradients, computes the loss, calls backward and returns the loss; it is called once a pass.
    Gradient accumulation: a closure that goes over several micro-batches gives one perturbation for all of them;
    `gradient(closure, share=1 / k, add=i > 0)` for micro-batches i = 0..k-1 and then `step()` gives one each
    (m-sharpness). Accumulation that does not pass through the closure (Lightning's `accumulate_grad_batches`,
    Accelerate's `accumulate`) is refused: the method would see the last micro-batch alone.

    Parameters may be frozen and unfrozen between steps, and layers added or replaced, with `add_param_group`: from the
    next step on the method takes in those that are trainable then. What it remembers of new ones starts at zero, as
    their gradient was.

    `copy.deepcopy` and `pickle` of ``(model, optimizer)`` together (and the scaler), between steps, give a pair that
    trains on as this one does.

    Mixed precision: autocast inside the closure; in float16 also ``scaler.scale(loss).backward()`` there, then::

        optimizer.gradient(closure)
        scaler.unscale_(optimizer)        # only for clipping
        scaler.step(optimizer)
        scaler.update()

    A step that the scaler skips leaves weights, momentum and the method's state as they were; so does an exception in
    a closure, after which the gradients of micro-batches before it are still there.

    DistributedDataParallel: give the wrapped model. Gradients of every pass are averaged (one perturbation for the
    global batch), or with synchronized=False only the result.

    FSDP2: give the model after `fully_shard`, and a base optimizer of its sharded parameters. Norms run over all
    shards, so that the processes compute what one would; the closure's last backward pass sums the gradients
    (`set_requires_gradient_sync(True)`, the default). `torch.distributed.checkpoint` gets `base`, beside which
    ``state_dict()["method"]`` is kept.

    Args:
        base: a torch optimizer over the model's parameters.
        method: a method, as `METHODS["sam"](rho=0.05)`.
        model: the network: its BatchNorm statistics move in the method's stated pass only, and biases and norm scales
            are told apart by its layers.
        scaler: the torch.amp.GradScaler in use, for float16.
        total_steps: steps of the whole run; methods with a schedule need it.
        steps_per_epoch: steps of an epoch, for methods that count epochs.
        lr_min: learning rate at the end, for methods that follow the learning rate.
        warmup: steps of the learning rate's linear warm-up, for methods that wait for its end (RST, GNP's penalty).
        seed: of the method's draws.
        synchronized: with several processes, whether they share one perturbation.
        same_masks: every pass of a step draws the same from torch's global streams (dropout's masks).

    Raises:
        InputError: the method needs the batch or a schedule's length; the base optimizer calls the closure itself
            (LBFGS), does not hold all trainable parameters, or has maximize or hyperparameters of the method in its
            groups; at a step, that it would move a tensor which is not in the model (of a loss with weights); the
            parameters are sharded otherwise than by `fully_shard` over all processes, or the method or the base
            optimizer needs them whole.
    """

    _COPIED = (
        *("base", "method", "model", "task", "defaults", "method_state", "steps", "lr_max"),
        *("total_steps", "steps_per_epoch", "lr_min", "seed", "warmup"),
    )

    def __init__(
        self,
        base: torch.optim.Optimizer,
        method: Method,
        model: nn.Module,
        *,
        scaler: torch.amp.GradScaler | None = None,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        lr_min: float = 0.0,
        warmup: int = 0,
        seed: int = 0,
        synchronized: bool = True,
        same_masks: bool = True,
    ) -> None:
        if not isinstance(method, Method):
            raise InputError(f"a method such as METHODS['sam'](rho=0.05) is needed, received {method!r}")
        total_steps = None if total_steps is None else whole_number("total_steps", total_steps, 1)
        steps_per_epoch = None if steps_per_epoch is None else whole_number("steps_per_epoch", steps_per_epoch, 1)
        warmup = whole_number("warmup", warmup, 0)
        self.task = Task(
            model,
            None,
            optimizer=base,
            scaler=scaler,
            synchronized=synchronized,
            same_masks=same_masks,
            closures=True,
        )
        if self.task.sharded:
            sharded.require_method(method, base, synchronized=synchronized)
        if method.needs_batch:
            raise InputError(
                f"{method.name} looks at the batch itself, which a closure hides: drive it with "
                "trainers.Task(model, loss) and method.gradient(task.step(batch), state)"
            )
        if method.needs_progress and total_steps is None:
            raise InputError(f"{method.name} follows a schedule over the run: give total_steps")
        require_plain_step(base, MethodOptimizer)
        self.base, self.method, self.model = base, method, model
        require_all_parameters(self.task, base)
        require_settings(method, base, base.param_groups)
        super().__init__(base.param_groups, base.defaults)
        self.total_steps, self.steps_per_epoch, self.lr_min, self.seed = total_steps, steps_per_epoch, lr_min, seed
        self.steps, self.warmup = 0, warmup
        first = base.param_groups[0]  # whose learning rate the context has too
        self.lr_max = float(first.get("initial_lr", first["lr"]))
        self.method_state = method.init(self.task, self.context())
        self._begin()

    _last: Step | None
    _leftovers: Leftovers
    _state_before: State
    _share: float
    _loaded: bool

    # The base optimizer's own, whatever it, or another, replaces them with.
    param_groups = property(lambda self: self.base.param_groups, lambda self, new: self._hand_on("param_groups", new))
    state = property(lambda self: self.base.state, lambda self, new: self._hand_on("state", new))

    def step(self, closure: Closure | None = None) -> Any:
        """Compute the method's gradient with the closure and take the base optimizer's step; returns the loss.

        Without a closure: the step along what `gradient` has left.
        """
        if closure is not None:
            if self.task.scaler is not None:
                raise InputError(
                    "in float16 call optimizer.gradient(closure), then scaler.step(optimizer) and scaler.update()"
                )
            if self._last is not None:
                raise InputError(
                    "a gradient that gradient() has left waits for step(), and step(closure) would drop it: give the "
                    "last micro-batch to gradient(closure, share=..., add=True) too, then call step() (in Lightning, "
                    "whose wrapper adds a closure, optimizer.optimizer.step())"
                )
            loss = self.gradient(closure)
        elif self._last is None:
            raise InputError("no gradient yet: call step(closure), or gradient(closure) first")
        else:
            if self.task.scaler is None:
                refuse_unknown_scaler()
            loss = None
        self.base.step()
        assert self._last is not None
        self.method.after_step(self._last, self.method_state)
        self.steps += 1
        self._last = None
        self._leftovers.keep(self.task.parameters, stepped=True)
        return loss

    def gradient(self, closure: Closure, *, share: float = 1.0, add: bool = False) -> Tensor:
        """Leave the method's gradient in `.grad`; returns the loss that is reported (at the unperturbed weights).

        Args:
            closure: see the class.
            share: weight of this micro-batch.
            add: add to the gradient that the last call left instead of replacing it.
        """
        refuse_accelerate()
        if not add and self._last is not None:  # the scaler skipped the step of the last gradient
            self.method_state = self._state_before
        require_settings(self.method, self.base, self.base.param_groups)
        last = self._last = self._last if add else None
        if last is None:
            self._take_up_parameters()
            require_all_parameters(self.task, self.base)
            self._state_before, self._share = dict(self.method_state), 0.0
        probe = None if last is not None else self._leftovers.foreign(self.task.parameters)
        self._leftovers.forget()
        before = None if last is None else last.gradients()
        step = ClosureStep(self.task, self.model, closure, self.context(), probe)
        state = dict(self._state_before)
        try:
            result = self.method.gradient(step, state)
            require_no_others(self.task, self.base)
        except BaseException:
            self._abandon(last, before)
            raise
        self._add(step, last, before, state, share)
        self._leftovers.keep(self.task.parameters, stepped=False)
        return result.loss

    def _add(self, step: Step, last: Step | None, before: Sequence[Tensor] | None, state: State, share: float) -> None:
        """Add a micro-batch: gradients and what belongs to them are summed, what the method remembers is averaged."""
        self._share += share
        if last is not None:  # as m-groups: each starts from the same state
            step.reached |= last.reached
            state = mean([self.method_state, state], (1 - share / self._share, share / self._share))
        if share != 1.0 or last is not None:
            memory = {} if last is None else last.memory
            step.leave(plus_share(before, step.gradients(), share))
            step.memory.update({k: plus_share(memory.get(k), v, share) for k, v in step.memory.items()})
        self.method_state, self._last = state, step

    def _abandon(self, last: Step | None, before: Sequence[Tensor] | None) -> None:
        """After an exception: the gradient of the micro-batches before, or none."""
        if last is not None and before is not None:
            last.leave(before)
        else:
            for parameter in self.task.parameters:
                parameter.grad = None
        self._leftovers.keep(self.task.parameters, stepped=False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self._leftovers.forget()
        self.base.zero_grad(set_to_none)

    def context(self) -> Context:
        """Where training stands, by the steps taken and the base optimizer's learning rate."""
        total = self.total_steps or 1
        epoch = self.steps // self.steps_per_epoch if self.steps_per_epoch else 0
        return Context(
            epoch=epoch,
            step=self.steps,
            total_steps=total,
            steps_per_epoch=self.steps_per_epoch or 1,
            progress=min(1.0, self.steps / total) if self.total_steps else 0.0,
            lr=float(self.param_groups[0]["lr"]),
            lr_min=self.lr_min,
            lr_max=float(self.param_groups[0].get("max_lr", self.lr_max)),  # OneCycleLR's
            warming=self.steps < self.warmup,
            warmed=min(1.0, (self.steps + 1) / self.warmup) if self.warmup else 1.0,
            warmup_steps=self.warmup,
            seed=self.seed,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; the method takes its parameters in from the next step on."""
        if not any(param_group is group for group in self.base.param_groups):
            require_settings(self.method, self.base, [param_group])
            self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, and under "method" what the method remembers.

        Between `gradient` and `step`, or after a step that the scaler has skipped, it stands before that gradient.
        """
        method = {
            "name": self.method.name,
            "arguments": without_tuples(self.method.arguments),
            "state": self._settled_state(),
            "steps": self.steps,
            "lr_max": self.lr_max,
        }
        return {**self.base.state_dict(), "method": method}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a `state_dict`; a gradient that waits for `step` is dropped.

        Raises:
            InputError: it belongs to another method.
        """
        stored = state_dict.get("method")
        if stored is None or stored["name"] != self.method.name:
            raise InputError(
                f"this state is of {stored['name'] if stored else 'a bare optimizer'}, not of {self.method.name} "
                "(torch.distributed.checkpoint leaves the method's out: give it optimizer.base)"
            )
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "method"})
        self._take_up_parameters()
        self.method_state, self.steps = dict(stored["state"]), stored["steps"]
        self.lr_max = stored.get("lr_max", self.lr_max)  # absent from older files
        self._begin()
        self._loaded = True

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no gradients, so that it stands before those that have not been stepped along yet.
        return {**{name: self.__dict__[name] for name in self._COPIED}, "method_state": self._settled_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def _begin(self) -> None:
        self._last, self._leftovers, self._loaded = None, Leftovers(), False
        self._state_before, self._share = dict(self.method_state), 0.0

    def _settled_state(self) -> State:
        """What the method remembers of the steps that were taken."""
        return self.method_state if self._last is None else self._state_before

    def _hand_on(self, name: str, value: Any) -> None:
        if "_leftovers" in self.__dict__:  # torch's constructor would clear what is the base optimizer's
            setattr(self.base, name, value)

    def _take_up_parameters(self) -> None:
        """Follow what was frozen, unfrozen, added; lists of one tensor per parameter follow in the method's state."""
        if self.task.outdated:
            before = self.task.parameters
            self.task.find_parameters()
            self._move_state(before)
        if self._loaded:
            self._fit_loaded_state()
            self._loaded = False

    def _move_state(self, before: Sequence[Tensor]) -> None:
        now = {id(p) for p in self.task.parameters}
        for parameter in before:
            if id(parameter) not in now:
                parameter.grad = None  # the last step's, along which the base optimizer would go on
        for name, value in self.method_state.items():
            if isinstance(value, list) and [t.shape for t in value] == [p.shape for p in before]:
                known = {id(p): t for p, t in zip(before, value, strict=True)}
                moved = [known.get(id(p), torch.zeros_like(p)) for p in self.task.parameters]
                self.method_state = {**self.method_state, name: moved}

    def _fit_loaded_state(self) -> None:
        """Bring what the method remembers to the devices and dtypes of the parameters, as torch does with momentum."""
        parameters = self.task.parameters
        for name, value in self.method_state.items():
            if not isinstance(value, list):
                continue
            if [t.shape for t in value] != [p.shape for p in parameters]:
                raise InputError(
                    f"the state that was loaded has {self.method.name}'s {name} of {len(value)} other parameters, and "
                    f"{len(parameters)} are trained: freeze or unfreeze as when it was saved before loading it"
                )
            fitting = [t.to(p.device, p.dtype) for t, p in zip(value, parameters, strict=True)]
            self.method_state = {**self.method_state, name: fitting}
