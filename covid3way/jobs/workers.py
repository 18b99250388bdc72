"""Calls in processes of their own, some at a time."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import (
  CancelledError,
  Future,
  ProcessPoolExecutor,
  ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import Any

from absl import logging

from covid3way.training import preemption
from covid3way.training.preemption import PreemptedError

_BROKEN = (PreemptedError, BrokenProcessPool, CancelledError)


class Workers:
  """Does each call in a fresh process: its memory is its own, and so is its end.

  A context manager. SIGTERM, or an error within the block, ends all processes; those
  that train keep what they have reached.
  """

  def __init__(self, at_once: int):
    self._context = multiprocessing.get_context('spawn')
    self._stopped = self._context.Event()
    self._threads = ThreadPoolExecutor(at_once)
    self._forwarding = preemption.forwarding(self._stopped)

  def __enter__(self) -> 'Workers':
    self._forwarding.__enter__()
    return self

  def __exit__(self, kind, *told) -> None:
    try:
      if kind is not None:
        self._stopped.set()
        preemption.end_children()
      self._threads.shutdown(cancel_futures=kind is not None)
    finally:
      self._forwarding.__exit__(kind, *told)

  def begin(self, call: Callable[..., Any], *arguments: Any) -> Future:
    """Has a call done as soon as fewer than `at_once` are; both can be pickled."""
    return self._threads.submit(self._alone, call, *arguments)

  def result(self, future: Future) -> Any:
    """What a call gave.

    Raises:
      PreemptedError: SIGTERM came.
    """
    try:
      return future.result()
    except _BROKEN as error:
      if not self._stopped.is_set():
        raise
      told = 'stopped by SIGTERM; the same command goes on from there'
      raise PreemptedError(told) from error

  def _alone(self, call: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(
      1,
      mp_context=self._context,
      initializer=_begin,
      initargs=(logging.get_verbosity(), self._stopped),
    ) as pool:
      return pool.submit(call, *arguments).result()


def _begin(verbosity: int, stopped: Event) -> None:
  """Prepares a process, or ends it where nothing more is to begin."""
  logging.set_verbosity(verbosity)
  if stopped.is_set():
    os._exit(0)
