"""The scans of a store that a training is about, and the networks they ask for."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from covid3way.base import ConfigError, InputError
from covid3way.jobs.batch import part
from covid3way.scans import store
from covid3way.scans.store import StoredScan
from covid3way.segmentation.model import ModelSpec
from covid3way.training import views
from covid3way.training.slices import Candidates, Slices, find_candidates
from covid3way.training.split import split


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
  """Scans with a reference for the target.

  Attributes:
    folder: the store.
    chunks: its cache.
    training: to train on, real and simulated.
    validation: real scans of other patients.
    spec: of the networks.
    settings: `config.training`.
  """

  folder: Path
  chunks: Any
  training: list[StoredScan]
  validation: list[StoredScan]
  spec: ModelSpec
  settings: ConfigDict

  @functools.cached_property
  def _masks(self) -> dict[str, Any]:
    """What of a scan's masks is looked at."""
    window = views.central_window(
      self.settings.extent_mm,
      self.spec.space_shape,
      self.spec.space.spacing_mm,
      stride=self.spec.network.stride,
    )
    region = self.settings.region
    return {'target': self.spec.target, 'region': region, 'window': window}

  @functools.cached_property
  def _candidates(self) -> Callable[[StoredScan], dict[str, Candidates]]:
    """Of a scan: found once for all views."""
    return functools.lru_cache(maxsize=4096)(
      lambda scan: find_candidates(scan, **self._masks)
    )

  def slices(self, scans: list[StoredScan], view: str) -> Slices:
    """The slices of a view in some of the scans."""
    return Slices(
      scans,
      [self._candidates(scan)[view] for scan in scans],
      view=view,
      offsets=self.spec.offsets_voxels(view),
      spacing_mm=self.spec.space.spacing_mm,
      **self._masks,
    )

  def ids(self) -> dict[str, list[str]]:
    """Who trains and who validates: a training has to end with whom it began."""
    return {
      'trains_on': [scan.scan_id for scan in self.training],
      'validates_on': [scan.scan_id for scan in self.validation],
    }

  def windows(self) -> list[dict[str, Any]]:
    """The lung windows of the training's scans, and how many have each."""
    found = {}
    for scan in self.training:
      window = scan.attributes['window']
      key = tuple(sorted(window.items()))
      found[key] = found.get(key, 0) + 1
    return [dict(key) | {'scans': n} for key, n in sorted(found.items())]


def open_cohort(folder: Path, settings: ConfigDict) -> Cohort:
  """Opens a store and splits it by patient.

  Raises:
    InputError: no scan has a reference, or they lie in different spaces.
    ConfigError: settings that cannot be trained.
    LeakError: a patient is in doubt.
  """
  chunks = store.cache(int(settings.cache_gib * 2**30))
  scans = _open(folder, settings, chunks)
  spec = ModelSpec(
    settings.target,
    scans[0].shape,
    tuple(settings.offsets_mm),
    tuple(settings.features),
  )
  _check(spec, settings)
  training, validation = split(
    scans,
    validation_share=settings.validation_share,
    fold=part(settings.fold, 'config.training.fold') if settings.fold else None,
    simulated=settings.simulated_ratio > 0,
    seed=settings.seed,
  )
  if settings.patience and not validation:
    found, remedy = 'given, but nobody validates', 'raise validation_share, or use 0'
    raise ConfigError('config.training.patience', found, remedy)
  return Cohort(folder, chunks, training, validation, spec, settings)


def _open(folder: Path, settings: ConfigDict, chunks: Any) -> list[StoredScan]:
  scans = [store.open_group(g, chunks=chunks) for g in store.list_groups(folder)]
  for scan in scans:
    if scan.shape != scans[0].shape:
      raise InputError(
        scan.scan_id,
        f'{scan.shape} voxels where {scans[0].scan_id} has {scans[0].shape}',
        'preprocess all scans with one config.space.shape',
      )
  usable = [s for s in scans if settings.target in s.volumes]
  if not usable:
    raise InputError(
      str(folder),
      f'no scan has a reference for {settings.target!r}',
      f'give {settings.target}_mask in the manifest and preprocess again',
    )
  return usable


# Smallest and largest of what a training is given.
_LIMITS = {
  'validation_share': (0, 1),
  'foreground_share': (0, 1),
  'ema_decay': (0, 1),
  'simulated_ratio': (0, math.inf),
  'renew_epochs': (0, math.inf),
  'patience': (0, math.inf),
  'warmup_steps': (0, math.inf),
  'weight_decay': (0, math.inf),
  'clip_norm': (0, math.inf),
  **dict.fromkeys(
    (
      'epochs',
      'steps_per_epoch',
      'batch_size',
      'parts',
      'open_slabs',
      'stacks_per_slab',
      'reading_threads',
      'batches_ahead',
    ),
    (1, math.inf),
  ),
}


def check_numbers(settings: ConfigDict) -> None:
  """Refuses numbers of `config.training` that mean nothing.

  Raises:
    ConfigError: one is too small, too large, or of no use with another.
  """
  for field, (low, high) in _LIMITS.items():
    if not low <= settings[field] <= high:
      remedy = f'use {low} to {high}' if high < math.inf else f'use {low} or more'
      raise ConfigError(f'config.training.{field}', f'{settings[field]}', remedy)
  known, steps = views.NORMAL_AXIS, settings.epochs * settings.steps_per_epoch
  chosen = set(settings.views) & set(known)
  for field, wrong, remedy in (
    (
      'views',
      not chosen or len(settings.views) != len(chosen),
      f'use one or more of {", ".join(known)}, each once',
    ),
    (
      'offsets_mm',
      settings.distortion.flips
      and sorted(settings.offsets_mm) != sorted(-mm for mm in settings.offsets_mm),
      'use offsets that are symmetric, or no distortion.flips, which mirror a stack',
    ),
    ('class_weights', len(settings.class_weights) != 2, 'give two'),
    ('warmup_steps', settings.warmup_steps >= steps, f'use fewer than {steps}'),
    (
      'renew_epochs',
      settings.renew_epochs and not settings.simulated_ratio,
      'use 0 where no simulated scan is trained on',
    ),
  ):
    if wrong:
      raise ConfigError(f'config.training.{field}', f'{settings[field]}', remedy)


def _check(spec: ModelSpec, settings: ConfigDict) -> None:
  """Refuses settings that cannot be trained."""
  allowed = {'infection': ('lungs', 'all'), 'lungs': ('all',)}
  if settings.region not in allowed.get(spec.target, ()):
    raise ConfigError(
      'config.training',
      f'target {spec.target!r} with region {settings.region!r}',
      "use target 'infection' with 'lungs' or 'all', or target 'lungs' with 'all'",
    )
  stride = spec.network.stride
  if any(size % stride for size in spec.space_shape):
    raise ConfigError(
      'config.space.shape',
      f'{spec.space_shape} with {len(spec.features)} levels',
      f'use multiples of {stride} or fewer config.training.features',
    )
