"""Checkpoints of a training (orbax): the last, to go on from, and the best.

`step_<n>/` holds the whole state and the figures of every epoch so far. Writing goes on
beside the training; a checkpoint appears whole or not at all.
"""

import contextlib
import operator
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from covid3way.base import ModelError
from covid3way.scans.files import storing
from covid3way.training import devices

Figures = list[dict[str, Any]]


class Keeper:
  """Keeps one training's checkpoints; only the first process of several writes any."""

  def __init__(self, folder: Path):
    self._folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    self._clean()  # A killed process may have left something.
    dice = operator.itemgetter('validation_dice')
    best = policies.BestN(get_metric_fn=dice, n=1)
    options = ocp.CheckpointManagerOptions(
      best_fn=dice,  # Without it metrics are not written at all.
      preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
      step_prefix='step',
      create=False,
      **_alone(),
    )
    self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

  def keep(self, state: Any, figures: Sequence[Mapping[str, Any]]) -> None:
    """Begins to write a checkpoint; an error of the one before surfaces here.

    Args:
      state: with its `step`.
      figures: of every epoch so far, JSON values; the last is the state's own when it
        ends an epoch.

    Raises:
      StorageError: the disk refused a write.
    """
    step, state = int(state.step), jax.device_get(state)
    own = figures[-1] if figures and figures[-1]['step'] == step else {}
    with storing(self._folder):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(jax.tree.map(np.asarray, state)),
          figures=ocp.args.JsonSave(list(figures)),
        ),
        metrics={'validation_dice': _known(own.get('validation_dice'))},
      )

  def last(self, state: Any) -> tuple[Any, Figures]:
    """What was kept last; the given state when there is nothing."""
    step = self._manager.latest_step()
    if step is None:
      return state, []
    template = jax.tree.map(np.asarray, jax.device_get(state))
    return _restore(self._manager, self._folder, step, template)

  def wait(self) -> None:
    """Waits until all is written.

    Raises:
      StorageError: the disk refused a write.
    """
    with storing(self._folder):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and ends the threads that write; of an error nothing half-written stays.

    Raises:
      StorageError: the disk refused a write.
    """
    try:
      self.wait()
      self._manager.close()
    finally:
      self._clean()

  def _clean(self) -> None:
    for left in self._folder.glob('*orbax-checkpoint-tmp*'):
      shutil.rmtree(left, ignore_errors=True)


class _Silent:
  """What the other processes keep: nothing."""

  def keep(self, state, figures):
    del state, figures

  def last(self, state):
    return state, []

  def wait(self):
    pass

  close = wait


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[Keeper | _Silent]:
  """A training's checkpoints, all written when the block ends.

  Args:
    folder: of the training.
  """
  keeper = Keeper(folder) if devices.is_first() else _Silent()
  try:
    yield keeper
  finally:
    keeper.close()


def best(folder: Path) -> tuple[Any, Figures]:
  """The variables to predict with, of the best validation Dice, and all figures.

  Where nothing was validated, those kept last.

  Args:
    folder: of the training.

  Raises:
    ModelError: nothing was kept there, or it is damaged.
  """
  options = ocp.CheckpointManagerOptions(
    step_prefix='step', read_only=True, create=False, **_alone()
  )
  with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
    steps = manager.all_steps()
    if not steps:
      raise ModelError(str(folder), 'no checkpoint of a training', 'run the train job')
    last, figures = _restore(manager, folder, max(steps), None)
    measured = {row['step']: row['validation_dice'] for row in figures}
    chosen = max(steps, key=lambda s: (_known(measured.get(s)), s))
    state = last
    if chosen != max(steps):
      state, _ = _restore(manager, folder, chosen, None)
  return state.get('averaged') or state['variables'], figures


def _known(dice: float | None) -> float:
  """A Dice to compare: below all others where none was measured."""
  return -1.0 if dice is None else dice


def _restore(manager, folder: Path, step: int, template: Any) -> tuple[Any, Figures]:
  try:
    kept = manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(template), figures=ocp.args.JsonRestore()
      ),
    )
  except (ValueError, KeyError, OSError) as error:
    path = folder / f'step_{step}'
    raise ModelError(
      str(path), f'a damaged checkpoint ({type(error).__name__})', 'remove it'
    ) from error
  return kept['state'], kept['figures']


def _alone() -> dict[str, Any]:
  """Options of a manager that waits for no other process."""
  own = jax.process_index()
  return {
    'multiprocessing_options': ocp.options.MultiprocessingOptions(
      primary_host=own, active_processes={own}, barrier_sync_key_prefix=f'only-{own}'
    )
  }
