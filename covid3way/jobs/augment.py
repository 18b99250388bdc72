"""Makes training data: runs the fitted law from stored scans and keeps a few states."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, InputError, SerialError
from covid3way.jobs import fit, laws, series
from covid3way.jobs.batch import claim, for_each
from covid3way.jobs.series import SerialScan, Series
from covid3way.jobs.usage import WHOLE_JOB, Shard, required
from covid3way.scans import source, store
from covid3way.scans.files import read_json
from covid3way.scans.manifest import ManifestRow, file_name, write_manifest
from covid3way.scans.store import StoredScan
from covid3way.simulator import serial, trajectory
from covid3way.simulator.law import TRANSITIONS_PER_DAY
from covid3way.simulator.parameters import Parameters
from covid3way.simulator.prior import Location
from covid3way.simulator.serial import Pair
from covid3way.simulator.state import Settings, State


def run(config: ConfigDict, workdir: Path, shard: Shard = WHOLE_JOB) -> None:
  """Adds simulated scans to `store/` under the workdir; writes `augmented.csv`.

  Reads `config.input` and what the fit job wrote in this workdir, store and fits.
  """
  rows = source.resolve(Path(required(config, 'input')))
  settings = laws.simulator_settings(config.simulator)
  location = laws.location_of(config.simulator)
  _check(config.augmentation)
  folder = workdir / 'store'
  chosen = {'simulator': config.simulator.to_dict(), **config.augmentation.to_dict()}
  claim(workdir, 'augment', chosen)
  patients = series.by_patient(rows)
  try:
    for_each(
      patients,
      lambda known: _augment(known, settings, location, config, workdir, folder),
      what='augment',
      workdir=workdir,
      shard=shard,
      kind='patients',
    )
  finally:
    if shard.is_whole:
      _extend_manifest(rows, folder, workdir)


def renew(workdir: Path, patients: Collection[str], seed: int, folder: Path) -> None:
  """Simulates from the same pairs, by the same laws and settings, with another seed.

  Args:
    workdir: of an augment job.
    patients: of whom.
    seed: in place of `config.augmentation.seed`.
    folder: of the scans that are made; those that are there already stay.

  Raises:
    ConfigError: no augment job ran there.
    DamagedFileError: what it noted is damaged.
  """
  try:
    chosen = read_json(workdir / 'augment.json', remedy='remove it and augment again')
  except InputError as error:
    raise ConfigError(
      'config.training.renew_epochs',
      f'no augment job ran in {workdir}, beside the store',
      'run it, or use 0',
    ) from error
  simulator = ConfigDict(chosen.pop('simulator'))
  config = ConfigDict({'simulator': simulator, 'augmentation': chosen | {'seed': seed}})
  settings, location = laws.simulator_settings(simulator), laws.location_of(simulator)
  for known in _stored_series(workdir / 'store', patients):
    try:
      _augment(known, settings, location, config, workdir, folder)
    except SerialError as error:  # As the job itself goes on without them.
      progress.say(f'left out: {error}')


def _stored_series(folder: Path, patients: Collection[str]) -> list[Series]:
  """The real scans of a store with an infection mask, by patient, in order of day."""
  rows = {}
  for scan in map(store.open_group, store.finished_groups(folder)):
    patient_id = scan.attributes['patient_id']
    real = 'infection' in scan.volumes and 'simulated' not in scan.attributes
    if real and patient_id in patients:
      rows.setdefault(patient_id, []).append(_row(scan, folder))
  for known in rows.values():
    known.sort(key=lambda row: row.day or 0.0)  # A single scan may have none.
  return [Series(patient_id, tuple(known)) for patient_id, known in rows.items()]


def _row(scan: StoredScan, folder: Path) -> ManifestRow:
  """A stored scan as a row of a manifest, its group for image."""
  fields = ('patient_id', 'scan_id', 'day', 'stage', 'scanner', 'site', 'domain')
  # A store of an earlier version knows no domain: it holds HU.
  known = {f: scan.attributes[f] for f in fields if f in scan.attributes}
  return ManifestRow(image=store.group_path(folder, scan.scan_id), **known)


def _extend_manifest(rows: Sequence[ManifestRow], folder: Path, workdir: Path) -> None:
  """Writes the manifest with the simulated scans that are in the store."""
  real = [row for row in rows if not row.is_simulated]
  made = _simulated_rows(folder, {row.scan_id for row in real})
  write_manifest(workdir / 'augmented.csv', [*real, *made])
  progress.say(f'{len(made)} simulated scans of {len(real)} scans under {folder}')


def _check(section: ConfigDict) -> None:
  """Refuses what cannot be drawn."""
  for name, low, high in (
    ('steps', 1, serial.FIRST_TRANSITION),
    ('ratio', 0, section.steps),
  ):
    if not low <= section[name] <= high:
      raise ConfigError(
        f'config.augmentation.{name}', f'{section[name]}', f'use {low} to {high}'
      )
  if section.begin not in ('earlier', 'later'):
    raise ConfigError(
      'config.augmentation.begin', f'{section.begin!r}', "use 'earlier' or 'later'"
    )


def _augment(
  known: Series,
  settings: Settings,
  location: Location,
  config: ConfigDict,
  workdir: Path,
  folder: Path,
) -> None:
  """Simulates from every pair of one patient what is not there yet.

  Reads `store/` and `fits/` under the workdir, writes to the folder.
  """
  pairs, path = known.pairs(), fit.fit_path(workdir, known.patient_id)
  subject = f'patient {known.patient_id}'
  if not path.exists():
    found = f'no fits of this patient in {workdir}'
    raise SerialError(subject, found, 'run the fit job there first')
  fits = fit.read_fits(path)
  if fits['law'] != config.simulator.law:
    found = f'{path.name} was fitted with the law {fits["law"]}'
    raise SerialError(
      subject, found, 'give config.simulator.law that name, or fit again'
    )
  if not fit.covers(fits, pairs):
    found = f'{path.name} holds other pairs than the manifest'
    raise SerialError(subject, found, 'run the fit job again')
  for pair, fitted in zip(pairs, fits['pairs'], strict=True):
    w = laws.parameters_of(fitted['W'], settings.law, subject=pair.subject)
    plan = _plan(pair, fitted['W'], known, config)
    paths = {kept: plan.path(kept, folder) for kept in plan.kept}
    missing = {k: p for k, p in paths.items() if not _is_finished(p, plan.about(k))}
    if missing:
      _simulate(plan, missing, w, settings, location, workdir / 'store')


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is simulated from one pair.

  Attributes:
    pair: whose law is run.
    parent: the scan it is run from.
    start: where that is on the patient's time line, in transitions.
    first_day: of the patient's first scan.
    kept: transitions after which the state is stored, ascending.
    seed: of the simulation.
    facts: of the simulated scans, as JSON values.
  """

  pair: Pair
  parent: ManifestRow
  start: int
  first_day: float | None
  kept: tuple[int, ...]
  seed: int
  facts: Mapping[str, Any]

  @property
  def is_invented(self) -> bool:
    """Whether the law is run from the invented start."""
    return self.start == 0

  def path(self, kept: int, folder: Path) -> Path:
    """Of the group; the time line's number, so that no two pairs share a name."""
    name = f'{self.parent.scan_id}-sim-{self.start + kept:04}'
    return store.group_path(folder, file_name(name, 'sim'))

  def day(self, kept: int) -> float | None:
    """On the patient's own scale, if there is one."""
    elapsed = self.start + kept - serial.FIRST_TRANSITION
    known = self.first_day is not None
    return self.first_day + elapsed / TRANSITIONS_PER_DAY if known else None

  def about(self, kept: int) -> dict[str, Any]:
    """What a simulated scan's attributes say of its origin."""
    return {**self.facts, 'transitions': kept}


def _plan(
  pair: Pair, values: Mapping[str, Any], known: Series, config: ConfigDict
) -> _Plan:
  """The plan of one pair: it depends on the seed and the names of patient and scans."""
  section = config.augmentation
  later = section.begin == 'later'
  parent = known.row(pair.to_scan if later else pair.from_scan or pair.to_scan)
  seed = series.seed_of(section.seed, pair.patient_id, pair.from_scan, pair.to_scan)
  rng = np.random.default_rng(seed)
  facts = {
    'parent_scan': parent.scan_id,
    'from_scan': pair.from_scan,
    'to_scan': pair.to_scan,
    'begin': section.begin,
    'W': dict(values),
    'seed': section.seed,
    'law': config.simulator.law,
    'settings': {k: v for k, v in config.simulator.to_dict().items() if k != 'law'},
  }
  return _Plan(
    pair,
    parent,
    pair.start + later * pair.transitions,
    known.rows[0].day,
    tuple(serial.kept_transitions(rng, section.ratio, section.steps).tolist()),
    seed,
    facts,
  )


def _simulate(
  plan: _Plan,
  missing: Mapping[int, Path],
  w: Parameters,
  settings: Settings,
  location: Location,
  parents: Path,
) -> None:
  """Runs the law once and stores the states that are missing."""
  stored = store.open_group(store.group_path(parents, plan.parent.scan_id))
  scan = series.read(stored, plan.pair)
  start_key, key = jax.random.split(jax.random.key(plan.seed))
  state = State(jnp.asarray(scan.signal), jnp.asarray(scan.infection))
  if plan.is_invented:
    state = serial.invented_start(start_key, state.signal, scan.infection)
  anatomy, done = series.anatomy(scan, location), 0
  for kept, path in missing.items():
    state = trajectory.run(
      key, state, w, anatomy, settings, steps=kept - done, start=done
    )
    _write(path, state, scan, plan.day(kept), plan.about(kept))
    done = kept


def _is_finished(path: Path, about: Mapping[str, Any]) -> bool:
  """Whether a group is there.

  Raises:
    ConfigError: it is, but is not what would be written.
  """
  if not path.exists():
    return False
  found = store.open_group(path).attributes.get('simulated')
  if found != json.loads(json.dumps(about)):
    raise ConfigError(
      path.stem, 'simulated with another W or other settings', f'remove {path}'
    )
  return True


def _write(
  path: Path,
  state: State,
  scan: SerialScan,
  day: float | None,
  about: Mapping[str, Any],
) -> None:
  """Stores a simulated scan in the form of the scan it was simulated from."""
  volumes = {'signal': state.signal, 'lungs': scan.lungs, 'infection': state.infection}
  if 'susceptible' in scan.stored.volumes:
    volumes['susceptible'] = scan.stored.volumes['susceptible'].read().result()
  known = scan.stored.attributes
  dropped = [dataclasses.asdict(warning) for warning in scan.warnings]
  attributes = {
    **known,
    'scan_id': path.stem,
    'day': day,
    'warnings': known['warnings'] + dropped,
    'simulated': about,
  }
  store.write_group(path, volumes, attributes)


def _simulated_rows(folder: Path, parents: Collection[str]) -> list[ManifestRow]:
  """Rows of the simulated scans of these parents that are in the store."""
  scans = map(store.open_group, store.finished_groups(folder))
  made = [(s, s.attributes.get('simulated', {}).get('parent_scan')) for s in scans]
  return [_row(scan, folder) for scan, parent in made if parent in parents]
