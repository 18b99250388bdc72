"""Progress: a bar on a terminal, plain lines otherwise."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

import tqdm

Item = TypeVar('Item')


def track(items: Sequence[Item], *, what: str) -> Iterator[Item]:
  """Yields the items, showing on a terminal how many are done and for how long."""
  return iter(tqdm.tqdm(items, desc=what, leave=False, disable=None))


def say(message: str) -> None:
  """Prints one line that a running bar does not overwrite."""
  tqdm.tqdm.write(message, file=sys.stderr)
