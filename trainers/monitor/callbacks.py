"""Monitor in loops of others: what calls its `step` in Lightning's and in Hugging Face's Trainer."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError
from trainers.monitor.logs import logged

if TYPE_CHECKING:
    from trainers.monitor.monitor import Monitor


def lightning_callback(monitor: Monitor) -> Any:
    """A `Callback`: looks before the first step and after every optimizer step; rows go to the Trainer's loggers.

    Raises:
        InputError: Lightning is not installed.
    """
    # Two packages hold the same library; a callback of the one that is in use is wanted.
    names = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda n: n not in sys.modules)
    base: Any = _imported("lightning", *names).Callback

    class MonitorCallback(base):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._look(trainer)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self._look(trainer)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            monitor.close()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            monitor.close()

        def _look(self, trainer: Any) -> None:
            row = monitor.step(trainer.global_step)
            if row:
                for logger in trainer.loggers:
                    logger.log_metrics(logged(row), row["step"])

    return MonitorCallback()


def hugging_face_callback(monitor: Monitor, trainer: Any = None) -> Any:
    """A `TrainerCallback`: looks before the first step and after every optimizer step.

    Args:
        monitor: what looks.
        trainer: rows go to `trainer.log`, and with it to its history and to all that it reports to. Made before the
            callback, which `trainer.add_callback` takes.

    Raises:
        InputError: Transformers is not installed.
    """
    base: Any = _imported("transformers", "transformers").TrainerCallback

    class MonitorCallback(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._look(state, control)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._look(state, control)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            monitor.close()

        def _look(self, state: Any, control: Any) -> None:
            row = monitor.step(state.global_step)
            if row and trainer is not None:
                due = control.should_log  # logging takes it for its own and clears it
                trainer.log(logged(row))
                control.should_log = due

    return MonitorCallback()


def _imported(package: str, *modules: str) -> Any:
    for name in modules:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise InputError(f"{package} is not installed: pip install {package}")
