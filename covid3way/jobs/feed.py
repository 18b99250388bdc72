"""What the training of a view reads, as the config asks for it: batches, validation."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.jobs import augment
from covid3way.jobs.cohort import Cohort
from covid3way.scans import store
from covid3way.scans.store import StoredScan
from covid3way.training import devices, pipeline
from covid3way.training.slices import every
from covid3way.training.step import Batch


def made(kind: type, section: ConfigDict) -> Any:
  """A dataclass whose fields are fields of a config section."""
  return kind(**{field.name: section[field.name] for field in dataclasses.fields(kind)})


def reader(
  cohort: Cohort, view: str, folder: Path, now: progress.Doing
) -> Callable[[range], Iterator[Batch]]:
  """Numbers of an epoch's steps -> this process's rows of their batches."""
  settings = cohort.settings

  @functools.lru_cache(maxsize=1)
  def sampler(number: int | None) -> pipeline.Sampler:
    scans = cohort.training
    if number is not None:
      now.is_('simulating anew')
      scans = _renewed(cohort, folder, number)
    now.is_('looking for slices')
    sampling = made(pipeline.Sampling, settings)
    return pipeline.Sampler(cohort.samples(scans, view), sampling)

  def read(numbers: range) -> Iterator[Batch]:
    period = settings.renew_epochs * settings.steps_per_epoch
    return pipeline.read_ahead(
      sampler(numbers.start // period if period else None),
      numbers,
      devices.my_rows(settings.batch_size),
      threads=settings.reading_threads,
      batches=settings.batches_ahead,
    )

  return read


def _renewed(cohort: Cohort, folder: Path, number: int) -> list[StoredScan]:
  """The real scans, and simulated ones that no other number has."""
  real = [s for s in cohort.training if 'simulated' not in s.attributes]
  patients = {scan.attributes['patient_id'] for scan in real}
  own = folder / str(number)
  if devices.is_first():
    for earlier in set(folder.glob('*')) - {own}:
      shutil.rmtree(earlier)
    progress.say(f'simulating anew, {number}')
    seed = cohort.settings.seed + 1 + number
    augment.renew(cohort.folder.parent, patients, seed, own)
  devices.from_first(np.int32(0))  # The others wait.
  groups = store.finished_groups(own)
  return real + [store.open_group(path, chunks=cohort.chunks) for path in groups]


def validation(cohort: Cohort, view: str) -> list[Batch]:
  """The same slices after every epoch: evenly spread over all there are to draw."""
  settings = cohort.settings
  if not cohort.validation:
    return []
  samples = cohort.samples(cohort.validation, view)
  known, size = every(samples), settings.batch_size
  n = min(settings.validation_slices, len(known))
  if not n:
    return []
  spread = np.linspace(0, len(known) - 1, n).astype(int)
  mine, batches = list(devices.my_rows(size)), []
  for start in range(0, n, size):
    # The last batch is filled up with slices that do not count.
    rows = np.arange(start, start + size)
    batch = samples.read(known[spread[np.minimum(rows, n - 1)]][mine])
    counts = (rows < n)[mine].reshape(-1, *[1] * (batch['weights'].ndim - 1))
    batch['weights'] &= counts
    batches.append(batch)
  return batches
