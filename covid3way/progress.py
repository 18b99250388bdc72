"""Progress: a bar on a terminal, plain lines otherwise."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

import tqdm
from absl import logging

Item = TypeVar('Item')


def track(items: Sequence[Item], *, what: str) -> Iterator[Item]:
  """Yields the items, showing on a terminal how many are done and for how long."""
  return iter(tqdm.tqdm(items, desc=what, disable=not sys.stderr.isatty()))


def say(message: str) -> None:
  """One plain line that a running bar does not overwrite."""
  if sys.stderr.isatty():
    tqdm.tqdm.write(message, file=sys.stderr)
  else:
    logging.info('%s', message)
