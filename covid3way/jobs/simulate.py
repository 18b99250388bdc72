"""One scan in; the course of its infection out: states, scans, numbers and pictures."""

import csv
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, InputError, Scan, SerialError
from covid3way.evaluation import course
from covid3way.evaluation.course import Frame
from covid3way.jobs import laws, series
from covid3way.jobs.batch import claim
from covid3way.jobs.preprocess import attributes_of, read_and_cast
from covid3way.jobs.usage import required
from covid3way.scans import nifti, source, store
from covid3way.scans.files import read_json, sha256, whole
from covid3way.scans.manifest import ManifestRow, file_name
from covid3way.segmentation.quantify import quantify
from covid3way.simulator import parameters, trajectory
from covid3way.simulator.fit import LEAST_VOXELS
from covid3way.simulator.law import RECOVERY, STAGE, TRANSITIONS_PER_DAY, Law
from covid3way.simulator.parameters import Parameters
from covid3way.simulator.prior import Location
from covid3way.simulator.serial import take_infection
from covid3way.simulator.state import Anatomy, Settings, State
from covid3way.standard import space as spaces
from covid3way.standard.cast import StandardScan
from covid3way.standard.change import changed_hu, changed_mask
from covid3way.standard.space import WHOLE, Region

_TENTH = TRANSITIONS_PER_DAY // 10  # Outputs are named by tenths of a day.


def run(config: ConfigDict, workdir: Path) -> None:
  """Simulates from `config.input`, one scan with its infection mask.

  Writes, per output day, `course/<scan_id>-day<day>.zarr` (the state in standard space)
  and `nifti/day<day>/` on the scan's own grid (`ct.nii.gz`, `infection.nii.gz`, and
  `stages.nii.gz`: 1 ground glass, 2 consolidation); `course.csv`, `strip.png` and
  `course.gif` for all of them.
  """
  row, plan = _row(config), config.simulation
  settings = laws.simulator_settings(config.simulator)
  location = laws.location_of(config.simulator)
  w = _parameters(plan, config.simulator.law, settings.law, row.scan_id)
  outputs, shown = _schedule(plan)
  about = {
    'parent_scan': row.scan_id,
    'W': parameters.as_dict(w),
    'seed': plan.seed,
    'law': config.simulator.law,
    'settings': {k: v for k, v in config.simulator.to_dict().items() if k != 'law'},
  }
  chosen = {
    # Not by its path, which may be named after the patient.
    'infection_mask_sha256': sha256(row.infection_mask),
    'outputs': outputs,
    'shown': shown,
    **{section: config[section].to_dict() for section in ('space', 'window')},
  }
  claim(workdir, 'simulate', about | chosen)
  if (workdir / 'course.csv').exists():
    progress.say(f'{row.scan_id}: the course in {workdir} is finished')
    return
  origin = _begin(row, location, config)
  _tell_recovering(origin)
  regions = course.planes(origin.infection, origin.lungs, origin.scan.grid.spacing_mm)
  key, frames, columns, table = jax.random.key(plan.seed), [], [], []
  times = sorted({*outputs, *shown})
  states = _states(key, origin, w, settings, times)
  for time, state in zip(progress.track(times, what='simulate'), states, strict=True):
    frame = _frame(time, state, origin, regions)
    frames.append(frame)
    if time not in outputs:
      continue
    line = _write(time, state, origin, about, workdir)
    table.append(line)
    ml = {k: line[k] for k in ('ggo_ml', 'consolidation_ml')}
    columns.append(dataclasses.replace(frame, **ml))
    progress.say(
      f'{row.scan_id}: day {line["day"]:g}, {line["infected_percent"]:.2f} % infected'
    )
  _write_pictures(frames, columns, origin, plan.days, workdir)
  _write_table(table, workdir / 'course.csv')


def _row(config: ConfigDict) -> ManifestRow:
  """The one scan there is, with its infection mask."""
  path = Path(required(config, 'input'))
  rows = source.resolve(path)
  if len(rows) != 1:
    remedy = 'give a scan, or a manifest with one line'
    raise InputError('config.input', f'{len(rows)} scans in {path.name}', remedy)
  row = rows[0]
  if config.infection_mask:
    row = dataclasses.replace(row, infection_mask=Path(config.infection_mask))
  if not row.infection_mask:
    remedy = 'add --config.infection_mask=MASK.nii.gz, as the predict job writes it'
    raise ConfigError('config.infection_mask', 'not given', remedy)
  if not row.infection_mask.is_file():
    found = f'no file {row.infection_mask.name}'
    raise InputError(row.scan_id, found, 'check the path')
  return row


def _parameters(
  section: ConfigDict, law_name: str, law: Law, scan_id: str
) -> Parameters:
  """W: the law's own or the fitted one, and over it what the config gives.

  Raises:
    ParameterError: see `laws.parameters_of`.
    Covid3wayError: see `_fitted`.
  """
  given = {name: value for name, value in section.W.items() if value is not None}
  fitted = _fitted(section.fit, section.pair, law_name)
  values = fitted or parameters.as_dict(law.parameters())
  return laws.parameters_of(values | given, law, subject=scan_id)


def _fitted(path: str, pair: int, law_name: str) -> dict[str, Any]:
  """W of one pair of a patient's fits, empty without such a file.

  Raises:
    InputError: the file is none that the fit job writes.
    ConfigError: it has no such pair.
    SerialError: it was fitted with another law.
  """
  if not path:
    return {}
  try:
    fits = read_json(Path(path), remedy='run the fit job again')
    found, every = fits['law'], [dict(each['W']) for each in fits['pairs']]
  except (InputError, KeyError, TypeError, ValueError) as error:
    remedy = 'give fits/<patient>.json, as the fit job writes it'
    raise InputError('config.simulation.fit', f'no fits in {path}', remedy) from error
  if found != law_name:
    remedy = 'give config.simulator.law that name, or fit again'
    raise SerialError(Path(path).name, f'fitted with the law {found}', remedy)
  if not -len(every) <= pair < len(every):
    remedy = f'use {-len(every)} to {len(every) - 1}; -1 is the last'
    raise ConfigError('config.simulation.pair', f'{pair}', remedy)
  return every[pair]


def _schedule(section: ConfigDict) -> tuple[list[int], list[int]]:
  """After how many transitions there is an output, and a picture of the animation.

  Raises:
    ConfigError: no course, or days that are no tenths.
  """
  tenths = {}
  for name in ('days', 'every_days'):
    days = section[name]
    tenths[name] = round(10 * days) if np.isfinite(days) else 0
    if tenths[name] < 1 or abs(10 * days - tenths[name]) > 1e-6:
      remedy = 'use tenths of a day: 0.1, 0.2, ...'
      raise ConfigError(f'config.simulation.{name}', f'{days:g} days', remedy)
  if section.frames < 2:
    remedy = 'use 2 or more'
    raise ConfigError('config.simulation.frames', f'{section.frames}', remedy)
  last = tenths['days']
  outputs = {*range(0, last, tenths['every_days']), last}
  shown = {*np.linspace(0, last, section.frames).round().astype(int).tolist()}
  return tuple([_TENTH * t for t in sorted(some)] for some in (outputs, shown))


@dataclasses.dataclass(frozen=True, eq=False)
class _Origin:
  """What the course starts from.

  Attributes:
    row: of the manifest.
    scan: as read.
    lungs: (x, y, z) bool on the own grid.
    infection: (x, y, z) bool on the own grid, within the lungs.
    standard: the scan in standard space.
    start: Y at day 0.
    anatomy: where infection may spread.
    volumes: of its group, those that never change.
    attributes: of its group.
    is_whole: whether all HU of the scan are whole numbers that 16 bits hold.
  """

  row: ManifestRow
  scan: Scan
  lungs: np.ndarray
  infection: np.ndarray
  standard: StandardScan
  start: State
  anatomy: Anatomy
  volumes: dict[str, np.ndarray]
  attributes: dict[str, Any]
  is_whole: bool

  def on_own_grid(
    self, state: State, region: Region = WHOLE
  ) -> tuple[np.ndarray, np.ndarray]:
    """A state on a region of the scan's own grid.

    Returns:
      HU, and stages: uint8, 0 normal, 1 ground glass, 2 consolidation.
    """
    where = {'within': self.lungs, 'region': region}
    placement = self.standard.placement
    hu = changed_hu(
      self.scan.hu,
      self.start.signal,
      state.signal,
      placement,
      self.standard.window,
      **where,
    )
    infection = changed_mask(
      self.infection, self.start.infection, state.infection, placement, **where
    )
    consolidated = state.infection & (state.signal >= STAGE)
    stages = infection.astype(np.uint8)
    stages[infection & spaces.return_mask(consolidated, placement, region)] = 2
    if self.is_whole:  # As CT is stored; what changed is rounded.
      hu = np.rint(hu).astype(np.int16)
    return hu, stages


def _begin(row: ManifestRow, location: Location, config: ConfigDict) -> _Origin:
  """Reads and casts the scan and its mask.

  Raises:
    SerialError: the mask is empty, too small, or lies elsewhere than in the lungs.
    Covid3wayError: a file cannot be read.
  """
  space = spaces.StandardSpace(tuple(config.space.shape))
  scan, lungs, standard = read_and_cast(row, space, config.window)
  known = {'subject': f'scan {row.scan_id}', 'scan_id': row.scan_id}
  given = nifti.read_mask(row.infection_mask, scan.grid, scan_id=row.scan_id)
  infection, warnings = take_infection(given, lungs, **known, least=1)
  own = spaces.cast_mask(infection, standard.placement)
  seeds, _ = take_infection(own, standard.lungs, **known, least=LEAST_VOXELS)
  standard = dataclasses.replace(standard, warnings=standard.warnings + warnings)
  volumes, susceptible = {'lungs': standard.lungs}, None
  if row.susceptible_mask:
    mask = nifti.read_mask(row.susceptible_mask, scan.grid, scan_id=row.scan_id)
    susceptible = spaces.cast_mask(mask > 0, standard.placement)
    volumes['susceptible'] = susceptible
  signal = np.asarray(standard.signal)
  return _Origin(
    row,
    scan,
    lungs > 0,
    infection,
    standard,
    State(standard.signal, jnp.asarray(seeds)),
    series.anatomy_of(signal, standard.lungs, seeds, susceptible, location),
    volumes,
    attributes_of(row, scan, standard),
    bool(np.abs(scan.hu).max() < 2**14 and (scan.hu == np.rint(scan.hu)).all()),
  )


def _tell_recovering(origin: _Origin) -> None:
  """Says how much of the mask is too dark to stay infected: part of the model."""
  infected = np.asarray(origin.start.signal)[np.asarray(origin.start.infection)]
  percent = 100 * np.mean(infected < RECOVERY)
  if percent >= 1:
    progress.say(
      f'{origin.row.scan_id}: {percent:.0f} % of the infected voxels are darker than '
      f'{RECOVERY:g} and recover at once'
    )


def _states(
  key: jax.Array,
  origin: _Origin,
  w: Parameters,
  settings: Settings,
  times: Sequence[int],
) -> Iterator[State]:
  """Y after each of these numbers of transitions, ascending."""
  state, done = origin.start, 0
  for time in times:
    state = trajectory.run(
      key, state, w, origin.anatomy, settings, steps=time - done, start=done
    )
    done = time
    yield state


def _frame(
  time: int, state: State, origin: _Origin, regions: dict[str, Region]
) -> Frame:
  """What is shown of a state; volumes are those in standard space."""
  hu, stages = {}, {}
  for view, region in regions.items():
    normal = course.PANELS[view][0]
    planes = origin.on_own_grid(state, region)
    hu[view], stages[view] = (plane.squeeze(normal) for plane in planes)
  infected = np.asarray(state.signal)[np.asarray(state.infection)]
  voxel_ml = np.prod(origin.anatomy.spacing_mm) / 1000
  dense = np.count_nonzero(infected >= STAGE)
  return Frame(
    time / TRANSITIONS_PER_DAY,
    hu,
    stages,
    float(voxel_ml * (infected.size - dense)),
    float(voxel_ml * dense),
    np.histogram(infected, course.SIGNAL_EDGES)[0],
  )


def _write(
  time: int, state: State, origin: _Origin, about: dict[str, Any], workdir: Path
) -> dict[str, float]:
  """Writes one output day; returns its line of the table."""
  day = time / TRANSITIONS_PER_DAY
  name = f'day{day:05.1f}'
  scan_id = file_name(f'{origin.row.scan_id}-{name}', 'sim')
  first = origin.row.day
  store.write_group(
    store.group_path(workdir / 'course', scan_id),
    origin.volumes | {'signal': state.signal, 'infection': state.infection},
    {
      **origin.attributes,
      'scan_id': scan_id,
      'day': None if first is None else first + day,
      'simulated': about | {'transitions': time},
    },
  )
  hu, stages = origin.on_own_grid(state)
  grid, folder = origin.scan.grid, workdir / 'nifti' / name
  volumes = {'ct': hu, 'infection': (stages > 0).astype(np.uint8), 'stages': stages}
  for kind, volume in volumes.items():
    nifti.write_volume(folder / f'{kind}.nii.gz', volume, grid, dtype=volume.dtype)
  numbers = quantify(stages > 0, origin.lungs, grid.voxel_ml)
  return {
    'day': day,
    'transitions': time,
    'infected_ml': numbers['infection_ml'],
    'ggo_ml': round(np.count_nonzero(stages == 1) * grid.voxel_ml, 4),
    'consolidation_ml': round(np.count_nonzero(stages == 2) * grid.voxel_ml, 4),
    'infected_percent': numbers['infected_percent'],
  }


def _write_pictures(
  frames: list[Frame],
  columns: list[Frame],
  origin: _Origin,
  days: float,
  workdir: Path,
) -> None:
  spacing_mm, window = origin.scan.grid.spacing_mm, origin.standard.window
  title = f'{origin.row.scan_id}: simulated course of {days:g} days'
  lung_ml = np.count_nonzero(origin.lungs) * origin.scan.grid.voxel_ml
  with whole(workdir / 'strip.png') as aside:
    course.strip(aside, columns, spacing_mm, window, title, lung_ml=lung_ml)
  with whole(workdir / 'course.gif') as aside:
    course.animation(aside, frames, spacing_mm, window, title)


def _write_table(table: list[dict[str, float]], path: Path) -> None:
  with whole(path) as aside, aside.open('w', newline='') as stream:
    writer = csv.DictWriter(stream, table[0])
    writer.writeheader()
    writer.writerows(table)
