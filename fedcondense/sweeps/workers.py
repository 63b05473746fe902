"""Where cells are computed: in this process, in several processes side by side, or as tasks on a Ray cluster.

A worker is given a function that can be imported and its arguments, and hands back a value: it writes no file, so that
a cluster needs no shared disk. A killed worker loses only its current cell.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol

from fedcondense.errors import FedcondenseError, MissingExtraError, SettingError
from fedcondense.progress import still_working

__all__ = ["Here", "Processes", "Ray", "Workers"]

_KILLED = "a worker was killed, perhaps for want of memory; the same command goes on, with fewer --workers if need be"

_SAY_S = 5.0  # after which a parent says that it still waits, if it is time

Call = tuple[Any, ...]
"""The arguments of one call."""


class Workers(Protocol):
    """Calls a function with each of many arguments."""

    def map(self, function: Callable[..., Any], calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Yield the number of a call and what it returned, as they end; an exception ends it all."""


class Here:
    """In this process, one after another."""

    def map(self, function: Callable[..., Any], calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Yield the number of a call and what it returned."""
        for number, call in enumerate(calls):
            yield number, function(*call)


@dataclass(frozen=True)
class Processes:
    """Side by side in processes of this machine, with one torch thread each unless `start` says otherwise.

    Args:
        number: How many.
        start: What each does first, such as running a user's plugins; it must be importable.
    """

    number: int
    start: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if self.number < 1:
            raise SettingError(f"{self.number} workers; needed: 1 or more")

    def map(self, function: Callable[..., Any], calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Yield the number of a call and what it returned, as they end; processes end when the caller leaves."""
        if not calls:
            return
        spawn = multiprocessing.get_context("spawn")  # a forked torch may wait for a thread that was not forked
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(min(self.number, len(calls)), spawn, _begin, (self.start,))
        try:
            futures: dict[Future[Any], int] = {pool.submit(function, *call): n for n, call in enumerate(calls)}
            while futures:
                done, _ = wait_for(futures, _SAY_S, FIRST_COMPLETED)
                for future in done:
                    yield futures.pop(future), future.result()
                still_working()
            pool.shutdown()
        except BrokenProcessPool:
            raise FedcondenseError(_KILLED) from None
        finally:  # after Ctrl-C, an error, or a caller that had enough: nobody waits for what is running
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.kill()


def _begin(start: Callable[[], None] | None) -> None:
    """Set a worker process up: what ends a group of processes is its parent's business, which it does not outlive."""
    import torch

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if start is not None:
        start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@dataclass(frozen=True)
class Ray:
    """As tasks of one core each on a Ray cluster, whose nodes have the toolkit, its plugins and the data.

    Args:
        address: As `ray.init` takes it: ``"auto"``, ``"local"`` to start one here, or ``"ray://host:10001"``.
        start: What each task does first.
        gpus: The share of a GPU that a task takes.
    """

    address: str
    start: Callable[[], None] | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError("ray", "simulation")

    def map(self, function: Callable[..., Any], calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Yield the number of a call and what it returned, as they end."""
        import ray

        try:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            advice = "give auto, local or ray://HOST:10001"
            raise SettingError(f"no Ray cluster at {self.address!r} ({error}); {advice}") from None
        try:
            task = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=0)(_with_start)
            waiting = {task.remote(self.start, function, call): number for number, call in enumerate(calls)}
            while waiting:
                done, _ = ray.wait(list(waiting), timeout=_SAY_S)
                still_working()
                for reference in done:
                    yield waiting.pop(reference), ray.get(reference)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            raise FedcondenseError(_KILLED) from None
        finally:
            ray.shutdown()


def _with_start(start: Callable[[], None] | None, function: Callable[..., Any], call: Call) -> Any:
    import torch

    torch.set_num_threads(1)
    if start is not None:
        start()
    return function(*call)
