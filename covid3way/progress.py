"""Progress: a bar on a terminal, plain lines otherwise."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import tqdm

Item = TypeVar('Item')

HEARTBEAT_S = 60.0
_quiet = ''


def be_quiet(name: str) -> None:
  """Says nothing any more, as another process says the same, but for heartbeats.

  Args:
    name: of this process, for those.
  """
  global _quiet
  _quiet = name


def track(items: Sequence[Item], *, what: str) -> Iterator[Item]:
  """Yields the items, showing on a terminal how many are done and for how long."""
  return iter(tqdm.tqdm(items, desc=what, leave=False, disable=bool(_quiet) or None))


def say(message: str) -> None:
  """Prints one line that a running bar does not overwrite."""
  if not _quiet:
    tqdm.tqdm.write(message, file=sys.stderr)


class Doing:
  """What a long work is at, and since when."""

  def __init__(self, what: str):
    self.what, self._now = what, ('starting', time.monotonic())

  def is_(self, now: str) -> None:
    """Notes what is done from here on."""
    self._now = now, time.monotonic()

  def __str__(self) -> str:
    now, since = self._now
    return f'{self.what}, {now} for {time.monotonic() - since:.0f} s'


@contextlib.contextmanager
def beating(what: str, *, every_s: float = HEARTBEAT_S) -> Iterator[Doing]:
  """Says every minute what the block is at: whatever hangs, it does not do so silently.

  Args:
    what: the work.
    every_s: seconds between lines.
  """
  doing, over = Doing(what), threading.Event()

  def beat():
    while not over.wait(every_s):
      name = f'{_quiet}: ' if _quiet else ''
      tqdm.tqdm.write(f'{name}{doing}', file=sys.stderr)

  thread = threading.Thread(target=beat, daemon=True)
  thread.start()
  try:
    yield doing
  finally:
    over.set()
    thread.join()
