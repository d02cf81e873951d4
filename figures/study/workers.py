"""How tasks are run: shared among processes, what measures time alone, a failure kept to what depends on it."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from figures.study import tasks
from figures.study.tasks import Machine, Task, needed
from landscape.allocator import keep_freed_memory
from landscape.errors import InputError, is_out_of_memory

Outcome = tuple["Job", "Exception | None"]
"""A job that ended, and the error that ended it."""


@dataclass(frozen=True)
class Job:
    """A task, with where it reads and writes.

    Attributes:
        task: what to run.
        path: where its outcome goes.
        inputs: where the trainings lie that it reads.
        machine: it is run on.
    """

    task: Task
    path: Path
    inputs: Sequence[Path]
    machine: Machine

    @property
    def alone(self) -> bool:
        """Whether it, or a training that it waits for, measures time."""
        return self.task.timed or any(t.timed for t in needed(self.task))


def execute(jobs: Sequence[Job], workers: int, failed: dict[Path, Exception] | None = None) -> Iterator[Outcome]:
    """Run jobs and yield each with the error that ended it, or None, as they end.

    They start in the given order, in which a training comes before what reads it. Jobs that measure time run behind
    all others, in this process, one after the other. A job whose training failed is not run and ends with that error.
    A job has one thread whatever the number of processes: so many small networks train fastest, and sums come out the
    same on every machine. `failed` are trainings that failed in an earlier call; those of this one are added.
    """
    failed = {} if failed is None else failed
    together = [j for j in jobs if not j.alone]
    shared = _in_processes if min(workers, len(together)) > 1 else _here
    for run, part in ((shared, together), (_here, [j for j in jobs if j.alone])):
        for job, error in run(part, workers, failed):
            if error is not None:
                if _is_the_machine(error):  # nothing else could be done either
                    raise error
                failed[job.path] = error
            yield job, error


def _is_the_machine(error: Exception) -> bool:
    """Whether the disk or the memory is full: no failure of one figure."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return full or is_out_of_memory(error)


def _here(jobs: Sequence[Job], workers: int, failed: Mapping[Path, Exception]) -> Iterator[Outcome]:
    for job in jobs:
        error = _lost(job, failed)
        if error is None:
            try:
                with _one_thread():
                    tasks.run_task(job.task, job.path, job.inputs, job.machine)
            except Exception as raised:
                error = raised
        yield job, error


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_processes(jobs: Sequence[Job], workers: int, failed: Mapping[Path, Exception]) -> Iterator[Outcome]:
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker)
    waiting, running, unfinished = list(jobs), dict[Future, Job](), {j.path for j in jobs}
    try:
        while waiting or running:
            # More than there are processes: none of them waits while this one draws.
            ready = [j for j in waiting if not unfinished.intersection(j.inputs)]
            for job in ready[: max(0, 4 * workers - len(running))]:
                waiting.remove(job)
                error = _lost(job, failed)
                if error is None:
                    with _interrupts_held():
                        future = pool.submit(tasks.run_task, job.task, job.path, job.inputs, job.machine)
                    running[future] = job
                else:
                    unfinished.discard(job.path)
                    yield job, error
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                job, raised = running.pop(future), future.exception()
                if isinstance(raised, BrokenProcessPool):
                    raise InputError(
                        f"a process died in {job.task.name}, probably for want of memory: use fewer --workers"
                    ) from raised
                if raised is not None and not isinstance(raised, Exception):
                    raise raised
                unfinished.discard(job.path)
                yield job, raised
    except BaseException:
        # Whatever a worker is at goes on from its last checkpoint with the next call.
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that is started within never sees an interrupt, from its first import on: this one answers alone."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lost(job: Job, failed: Mapping[Path, Exception]) -> Exception | None:
    return next((failed[path] for path in job.inputs if path in failed), None)


def _start_worker() -> None:
    """One thread. The parent alone answers an interrupt; where it is killed the worker ends."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()


def _end_with_parent() -> None:
    """Else it would wait for work for ever, or train on where the next call trains too."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # workers are started by one
    parent.join()
    os._exit(1)
