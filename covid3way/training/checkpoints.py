"""Checkpoints of a training (orbax): the last, to go on from, and the best.

`step_<n>/` holds the whole state and the figures of every epoch so far, with a checksum
of both, so that a damaged one is told and not gone on from. Writing goes on beside the
training; a checkpoint appears whole or not at all. Only one training at a time keeps
checkpoints in a folder.
"""

import contextlib
import errno
import fcntl
import hashlib
import operator
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from covid3way.base import Covid3wayError, ModelError, StorageError
from covid3way.scans.files import checksum, storing
from covid3way.training import devices

Figures = list[dict[str, Any]]

_REMEDY = (
  'remove it and run the training again: it goes on from the checkpoint before it, or '
  'begins anew'
)
_REMEDY_LOST = (
  'put it back, or remove every step_* beside it and run the training again: it begins '
  'anew'
)


class Keeper:
  """Keeps one training's checkpoints; only the first process of several writes any."""

  def __init__(self, folder: Path):
    self._folder = folder
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
    self._manager = _opened(folder, options)

  def keep(self, state: Any, figures: Sequence[Mapping[str, Any]]) -> None:
    """Begins to write a checkpoint; an error of the one before surfaces here.

    Args:
      state: with its `step`.
      figures: of every epoch so far, JSON values; the last is the state's own when it
        ends an epoch.

    Raises:
      StorageError: the disk refused a write.
    """
    step, state = int(state.step), jax.tree.map(np.asarray, jax.device_get(state))
    figures = [dict(row) for row in figures]
    told = {'figures': figures, 'sha256': _sha256(state, figures)}
    own = figures[-1] if figures and figures[-1]['step'] == step else {}
    with storing(self._folder):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), figures=ocp.args.JsonSave(told)
        ),
        metrics={'validation_dice': _known(own.get('validation_dice'))},
      )

  def last(self, state: Any) -> tuple[Any, Figures]:
    """What was kept last; the given state when there is nothing.

    Raises:
      ModelError: a checkpoint is damaged, or the best one is absent. That a later one
        is absent is in none that is left: the training goes on from what there is.
    """
    step = self._manager.latest_step()
    if step is None:
      return state, []
    template = jax.tree.map(np.asarray, jax.device_get(state))
    restored, figures = _restore(self._manager, self._folder, step, template)
    # By these the manager tells which is the best one, to be kept.
    measured = {row['step']: row['validation_dice'] for row in figures}
    for each in self._manager.all_steps():
      dice = _known(measured.get(each))
      with _telling_damage(self._folder / f'step_{each}'):
        if self._manager.metrics(each) != {'validation_dice': dice}:
          raise ValueError('another Dice')
    _check_best(self._folder, self._manager.all_steps(), measured)
    return restored, figures

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

  Raises:
    StorageError: the disk refused a write, or another training writes there.
    ModelError: what is kept there is damaged.
  """
  if not devices.is_first():
    yield _Silent()
    return
  with storing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  with _locked(folder):
    keeper = Keeper(folder)
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
    ModelError: nothing was kept there, it is damaged, or the best one is absent.
  """
  options = ocp.CheckpointManagerOptions(
    step_prefix='step', read_only=True, create=False, **_alone()
  )
  with _opened(folder, options) as manager:
    steps = manager.all_steps()
    if not steps:
      raise ModelError(str(folder), 'no checkpoint of a training', 'run the train job')
    last, figures = _restore(manager, folder, max(steps), None)
    measured = {row['step']: row['validation_dice'] for row in figures}
    _check_best(folder, steps, measured)
    chosen = max(steps, key=lambda s: (_known(measured.get(s)), s))
    state = last
    if chosen != max(steps):
      state, _ = _restore(manager, folder, chosen, None)
  return state.get('averaged') or state['variables'], figures


def _check_best(
  folder: Path, steps: Sequence[int], measured: Mapping[int, float | None]
) -> None:
  """Refuses a training whose best checkpoint is absent; equal ones stand in for it."""
  dice_of = {step: _known(dice) for step, dice in measured.items()}
  best_step = max(dice_of, key=dice_of.get, default=None)
  kept = max((dice_of[step] for step in steps if step in dice_of), default=-1.0)
  if best_step is not None and dice_of[best_step] > kept:
    raise ModelError(
      str(folder / f'step_{best_step}'),
      f'the best checkpoint (validation Dice {dice_of[best_step]:.3f}) is absent',
      _REMEDY_LOST,
    )


def _known(dice: float | None) -> float:
  """A Dice to compare: below all others where none was measured."""
  return -1.0 if dice is None else dice


def _opened(folder: Path, options: Any) -> Any:
  """The manager of a folder; it reads something of each checkpoint."""
  with _telling_damage(folder):
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _restore(manager, folder: Path, step: int, template: Any) -> tuple[Any, Figures]:
  with _telling_damage(folder / f'step_{step}'):
    kept = manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(template), figures=ocp.args.JsonRestore()
      ),
    )
    state, figures = kept['state'], kept['figures']['figures']
    if _sha256(state, figures) != kept['figures']['sha256']:
      raise ValueError('another checksum')
  return state, figures


@contextlib.contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
  try:
    yield
  except Covid3wayError:
    raise
  except Exception as error:  # Orbax and tensorstore have many.
    found = f'a damaged checkpoint ({type(error).__name__})'
    raise ModelError(str(path), found, _REMEDY) from error


def _sha256(state: Any, figures: Figures) -> str:
  """Of every array with its name, type and shape, and of the figures.

  The same whether the state is the training's own or made of dicts and lists, as it is
  restored without a template.
  """
  leaves = {
    '/'.join(_key(entry) for entry in path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  whole = hashlib.sha256(checksum(figures).encode())
  for name, leaf in sorted(leaves.items()):
    whole.update(f'{name} {leaf.dtype} {leaf.shape}'.encode())
    whole.update(leaf.tobytes())
  return whole.hexdigest()


def _key(entry: Any) -> str:
  """One step of the way to an array: a key, a field or a number."""
  kinds = ('key', 'name', 'idx')
  return next(str(getattr(entry, kind)) for kind in kinds if hasattr(entry, kind))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
  """Keeps other processes out of a folder, until the block or this process ends.

  Raises:
    StorageError: another process is in it.
  """
  lock = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:  # Or this file system has no locks of folders.
    if error.errno == errno.EWOULDBLOCK:
      os.close(lock)
      raise StorageError(
        str(folder),
        'another training writes its checkpoints here',
        'wait until it has ended, or choose another --workdir',
      ) from None
  try:
    yield
  finally:
    os.close(lock)


def _alone() -> dict[str, Any]:
  """Options of a manager that waits for no other process."""
  own = jax.process_index()
  return {
    'multiprocessing_options': ocp.options.MultiprocessingOptions(
      primary_host=own, active_processes={own}, barrier_sync_key_prefix=f'only-{own}'
    )
  }
