"""What a scheduler says before it takes a machine away: SIGTERM."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event


class PreemptedError(Exception):
  """The scheduler wants the machine; all is kept, and the same command goes on."""


@contextlib.contextmanager
def watching() -> Iterator[Callable[[], bool]]:
  """Gives a function that tells whether SIGTERM has come, which then ends nothing.

  Only within the block; only in a process's main thread, as Python has it.
  """
  came = []
  before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
  try:
    yield lambda: bool(came)
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def forwarding(told: Event) -> Iterator[None]:
  """For a process whose children work: SIGTERM sets `told` and reaches them, too.

  Args:
    told: for children that are yet to begin.
  """

  def tell(*_):
    told.set()
    end_children()

  before = signal.signal(signal.SIGTERM, tell)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def end_children() -> None:
  """Sends SIGTERM to all processes that this one began."""
  for child in multiprocessing.active_children():
    child.terminate()
