"""The scans of a store that a training is about, and the networks they ask for."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from covid3way.base import ConfigError, InputError
from covid3way.jobs.usage import part
from covid3way.networks.registry import METHODS
from covid3way.scans import store
from covid3way.scans.store import StoredScan
from covid3way.segmentation.model import ModelSpec
from covid3way.training import views
from covid3way.training.oblique import ObliquePlanes, find_planes
from covid3way.training.slices import (
  Candidates,
  Masks,
  Samples,
  Slices,
  find_candidates,
)
from covid3way.training.split import identities, named_split, split
from covid3way.training.volumes import SubVolumes, find_sub_volumes


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
  def _masks(self) -> Masks:
    """What of a scan's masks is looked at."""
    window = views.central_window(
      self.settings.extent_mm,
      self.spec.space_shape,
      self.spec.space.spacing_mm,
      strides=self.spec.strides,
    )
    return Masks(self.spec.target, self.settings.region, window)

  @functools.cached_property
  def _in_slices(self) -> Callable[[StoredScan], dict[str, Candidates]]:
    """Of a scan: found once for all views."""
    return functools.lru_cache(maxsize=4096)(
      lambda scan: find_candidates(scan, self._masks)
    )

  def samples(self, scans: list[StoredScan], part: str) -> Samples:
    """What a part of the method is shown of some of the scans."""
    look, masks, spec = self.spec.about.parts[part], self._masks, self.spec
    if look.sampling == 'planes':
      found = [find_planes(scan, masks, spec.plane_grid) for scan in scans]
      return ObliquePlanes(scans, found, masks=masks, grid=spec.plane_grid)
    spacing_mm = spec.space.spacing_mm
    if look.sampling == 'volumes':
      found = [find_sub_volumes(scan, masks, spec.patch) for scan in scans]
      known = {'masks': masks, 'patch': spec.patch, 'spacing_mm': spacing_mm}
      return SubVolumes(scans, found, **known)
    return Slices(
      scans,
      [self._in_slices(scan)[look.view] for scan in scans],
      view=look.view,
      masks=masks,
      offsets=spec.offsets_voxels(part),
      spacing_mm=spacing_mm,
    )

  def ids(self) -> dict[str, list[str]]:
    """Who trains and who validates: a training has to end with whom it began."""
    return {
      'trains_on': [scan.scan_id for scan in self.training],
      'validates_on': [scan.scan_id for scan in self.validation],
    }

  def saw(self) -> dict[str, list[str]]:
    """By what the scans that train or validate can be known again."""
    return identities([*self.training, *self.validation])

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
  spec = spec_of(settings, scans[0])
  _check(spec, settings)
  if settings.split:
    sides = named_split(scans, _named_sides(Path(settings.split)))
    training, validation = sides['training'], sides['validation']
  else:
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


def spec_of(settings: ConfigDict, scan: StoredScan) -> ModelSpec:
  """The networks that `config.training` asks for, in the space of a scan."""
  return ModelSpec(
    target=settings.target,
    space_shape=scan.shape,
    offsets_mm=tuple(settings.offsets_mm),
    features=tuple(settings.features),
    method=settings.method,
    width=settings.width,
    patch_voxels=tuple(settings.patch_voxels),
    planes=settings.planes,
    domain=scan.attributes.get('domain', ''),
  )


def _named_sides(path: Path) -> dict[str, list[str]]:
  """Scan ids of `training`, `validation` and `test`.

  Raises:
    InputError: the file says nothing like this.
  """
  try:
    sides = json.loads(path.read_text())
    return {side: list(sides[side]) for side in ('training', 'validation', 'test')}
  except (OSError, ValueError, KeyError, TypeError) as error:
    found = f'no split of scans ({type(error).__name__})'
    remedy = 'give a JSON file with lists of scan ids: training, validation, test'
    raise InputError(str(path), found, remedy) from error


def _open(folder: Path, settings: ConfigDict, chunks: Any) -> list[StoredScan]:
  scans = [store.open_group(g, chunks=chunks) for g in store.list_groups(folder)]
  for scan in scans:
    if scan.shape != scans[0].shape:
      raise InputError(
        scan.scan_id,
        f'{scan.shape} voxels where {scans[0].scan_id} has {scans[0].shape}',
        'preprocess all scans with one config.space.shape',
      )
    own, first = (s.attributes.get('domain', '') for s in (scan, scans[0]))
    if own != first:
      raise InputError(
        scan.scan_id,
        f'signal of domain {own or "HU"!r} where {scans[0].scan_id} has '
        f'{first or "HU"!r}',
        'signals of different domains cannot be compared: keep them in two stores',
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
  'width': (1e-3, math.inf),
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
      'planes',
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
  if settings.method not in METHODS:
    remedy = f'use one of {", ".join(METHODS)}'
    raise ConfigError('config.training.method', f'{settings.method!r}', remedy)
  about, steps = METHODS[settings.method], settings.epochs * settings.steps_per_epoch
  chosen = [name for name in about.parts if name in settings.views]
  for field, wrong, remedy in (
    (
      'views',
      not chosen
      or len(settings.views) != len(chosen)
      or (about.staged and len(chosen) < len(about.parts)),
      f'{settings.method} has {", ".join(about.parts)}; use '
      + ('all of them' if about.staged else 'one or more, each once'),
    ),
    (
      'offsets_mm',
      settings.distortion.flips
      and sorted(settings.offsets_mm) != sorted(-mm for mm in settings.offsets_mm),
      'use offsets that are symmetric, or no distortion.flips, which mirror a stack',
    ),
    ('class_weights', len(settings.class_weights) != 2, 'give two'),
    (
      'patch_voxels',
      len(settings.patch_voxels) != 3 or min(settings.patch_voxels) < 1,
      'give three sides',
    ),
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
  if any(n % stride for n, stride in zip(spec.space_shape, spec.strides, strict=True)):
    raise ConfigError(
      'config.space.shape',
      f'{spec.space_shape} with {spec.method} of {len(spec.features)} features',
      f'use multiples of {" x ".join(map(str, spec.strides))} or other '
      'config.training.features',
    )
