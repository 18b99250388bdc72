"""What a running training shows: a log, a picture, TensorBoard if it is installed."""

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from covid3way.evaluation.figures import training_curves
from covid3way.scans.files import whole
from covid3way.training import devices


@contextlib.contextmanager
def showing(
  folder: Path, view: str
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
  """Gives a function of the figures so far that renews what is shown, beside the work.

  Writes `metrics.jsonl` and `progress.png` anew, whole, and the TensorBoard events; all
  are there when the block ends.

  Args:
    folder: of one view's training.
    view: that is trained.

  Raises:
    StorageError: the disk refused a write; of the call before.
  """
  running = []
  with ThreadPoolExecutor(1) as thread:

    def refresh(figures):
      if running:
        running.pop().result()
      if figures and devices.is_first():
        running.append(thread.submit(_refresh, folder, view, list(figures)))

    yield refresh
    if running:
      running.pop().result()


def _refresh(folder: Path, view: str, figures: Sequence[Mapping[str, Any]]) -> None:
  with whole(folder / 'metrics.jsonl') as aside:
    aside.write_text(''.join(json.dumps(row) + '\n' for row in figures))
  with whole(folder / 'progress.png') as aside:
    training_curves(aside, {view: figures})
  _tensorboard(folder / 'tensorboard', figures)


def rows(folder: Path) -> list[dict[str, Any]]:
  """What the log says, epoch by epoch."""
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def _tensorboard(folder: Path, figures: Sequence[Mapping[str, Any]]) -> None:
  """All events in one file, made anew: as short as the log, and never out of step."""
  try:
    writer = importlib.import_module('tensorboardX').SummaryWriter
  except ImportError:
    return
  with whole(folder) as aside, writer(str(aside)) as events:
    for row in figures:
      for name, value in row.items():
        if name not in ('epoch', 'step') and value is not None:
          events.add_scalar(name, value, row['step'])
