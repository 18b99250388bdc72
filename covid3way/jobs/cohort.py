"""The scans of a store that a training is about, and the networks they ask for."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from covid3way.base import ConfigError, InputError
from covid3way.jobs.batch import part
from covid3way.scans import store
from covid3way.scans.store import StoredScan
from covid3way.segmentation.model import ModelSpec
from covid3way.training import views
from covid3way.training.slices import Slices
from covid3way.training.split import split


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
  """Scans with a reference for the target.

  Attributes:
    training: to train on, real and simulated.
    validation: real scans of other patients.
    spec: of the networks.
    settings: `config.training`.
  """

  training: list[StoredScan]
  validation: list[StoredScan]
  spec: ModelSpec
  settings: ConfigDict

  def slices(self, scans: list[StoredScan], view: str) -> Slices:
    """The slices of a view in some of the scans."""
    return Slices(
      scans,
      view=view,
      target=self.spec.target,
      region=self.settings.region,
      offsets=self.spec.offsets_voxels(view),
      window=views.central_window(
        self.settings.extent_mm,
        self.spec.space_shape,
        self.spec.space.spacing_mm,
        stride=self.spec.network.stride,
      ),
    )

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
  scans = _open(folder, settings)
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
  return Cohort(training, validation, spec, settings)


def _open(folder: Path, settings: ConfigDict) -> list[StoredScan]:
  chunks = store.cache(int(settings.cache_gib * 2**30))
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
  size = settings.batch_size
  for field, n, of in (
    ('batch_size', jax.device_count() * settings.parts, 'devices times parts'),
    ('batch_size', settings.open_slabs, 'config.training.open_slabs'),
    ('open_slabs', jax.process_count(), 'processes'),
  ):
    if (size if field == 'batch_size' else settings[field]) % n:
      raise ConfigError(
        f'config.training.{field}',
        f'{settings[field]} with {n} {of}',
        f'use a multiple of {n}',
      )
