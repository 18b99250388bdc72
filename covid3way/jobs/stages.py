"""The stages that `benchmark` measures, each as a `Work`, and what bounds their speed.

Scans are `config.input`'s, or the plain chest on a grid that grows with the standard
space. Least bytes and operations are counted, not measured: each array that goes in or
comes out once, and the products and sums of the plain formula; convolutions in
Winograd tiles take fewer, so the share of a network can exceed 1.
"""

import dataclasses
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from covid3way.base import ConfigError, Scan
from covid3way.jobs import outputs
from covid3way.jobs.laws import location_of, simulator_settings
from covid3way.jobs.preprocess import lungs_of, window_of
from covid3way.jobs.series import anatomy_of
from covid3way.networks import inference
from covid3way.phantom.plain import plain_chest, plain_scan
from covid3way.scans import dicom_writer, source
from covid3way.scans.manifest import ManifestRow
from covid3way.segmentation import aggregators, windows
from covid3way.segmentation.maps import probability_map
from covid3way.segmentation.model import Model, ModelSpec, write_model
from covid3way.simulator import histogram, population, trajectory
from covid3way.simulator.fit import fit
from covid3way.simulator.state import State
from covid3way.standard import space as spaces
from covid3way.standard.cast import StandardScan, cast
from covid3way.standard.space import StandardSpace
from covid3way.training import views

_FEATURES = (16, 32, 64, 128, 256)
_OFFSETS_MM = (-5.0, -2.0, 0.0, 2.0, 5.0)
_LANCZOS_TAPS, _LINEAR_TAPS = 8, 2
# An infected voxel in a transition: signal and mask, read and written.
_BYTES_PER_UPDATE = 2 * (4 + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
  """What a stage does again and again.

  Attributes:
    run: does it once; gives how much was done, in `unit`.
    unit: of the rate.
    bytes_each: least number of bytes that one of these moves.
    operations_each: least number of floating-point operations of one.
    further: columns of its own, once the median of a warm run is known, s.
  """

  run: Callable[[], float]
  unit: str
  bytes_each: float = 0.0
  operations_each: float = 0.0
  further: Callable[[float], Mapping[str, Any]] = lambda warm_s: {}


def parse(stage: str, case: str) -> tuple[int, float]:
  """'512-03' -> 512 voxels a side, 3 % of the lung infected; without it 3 %.

  Raises:
    ConfigError: it is no such thing.
  """
  found = re.fullmatch(r'(\d+)(?:-(\d+))?', case)
  if not found:
    raise ConfigError(
      'config.benchmark.cases', f'{stage!r}, {case!r}', 'use e.g. 128 or 512-03'
    )
  return int(found[1]), int(found[2] or 3) / 100


def make(stage: str, case: str, config: ConfigDict, folder: Path) -> Work:
  """A stage, ready to run.

  Args:
    stage: a key of `STAGES`.
    case: voxels a side of the standard space, and for the simulator the infected share
      of the lungs in percent, as '512-03'.
    config: of the benchmark.
    folder: to write to.

  Raises:
    ConfigError: there is no such case.
  """
  n, share = parse(stage, case)
  if stage in ('simulate', 'fit'):
    return STAGES[stage](n, share, config)
  return STAGES[stage](Given(n, config, folder))


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
  """A scan, and what is made of it on the way to a stage.

  Attributes:
    n: voxels a side of the standard space.
    config: of the benchmark.
    folder: to write to.
  """

  n: int
  config: ConfigDict
  folder: Path

  @functools.cached_property
  def row(self) -> ManifestRow:
    """The first scan of the input; else the chest, written as DICOM."""
    if self.config.input:
      return source.resolve(Path(self.config.input))[0]
    series = self.folder / 'chest'
    series.mkdir()
    hu, grid = plain_scan(self.n)
    dicom_writer.write_series(series, hu, grid, header={}, seed_uid='benchmark')
    return source.resolve(series)[0]

  @functools.cached_property
  def scan(self) -> Scan:
    """As read."""
    return source.read_scan(self.row)

  @functools.cached_property
  def lungs(self) -> np.ndarray:
    """On its own grid."""
    return lungs_of(self.row, self.scan)[0]

  @functools.cached_property
  def standard(self) -> StandardScan:
    """In the standard space."""
    window, _ = window_of(self.row, self.scan, self.lungs, self.config.window)
    return cast(self.scan, self.lungs, window, StandardSpace((self.n,) * 3))

  @functools.cached_property
  def model(self) -> Model:
    """Three untrained networks of the released size."""
    spec = ModelSpec('infection', (self.n,) * 3, _OFFSETS_MM, _FEATURES)
    trees = {
      view: spec.network.init(
        jax.random.key(number), jnp.zeros((1, *spec.sample_shape(view))), train=False
      )
      for number, view in enumerate(views.NORMAL_AXIS)
    }
    return Model(spec, trees, aggregators.plain(tuple(trees)))


def _read(given: Given) -> Work:
  files = sum(f.stat().st_size for f in given.row.image.rglob('*') if f.is_file())

  def run() -> int:
    source.read_scan(given.row)
    return 1

  return Work(run, 'scans/s', files + given.scan.hu.nbytes)


def _lungs(given: Given) -> Work:
  hu = given.scan.hu

  def run() -> int:
    lungs_of(given.row, given.scan)
    return 1

  return Work(run, 'scans/s', hu.nbytes + hu.size)


def _cast(given: Given) -> Work:
  hu, standard = given.scan.hu, given.standard
  placement, window = standard.placement, standard.window

  def run() -> int:
    spaces.cast_signal(hu, placement, window).block_until_ready()
    return 1

  into, taps = standard.signal.size, 2 * _LANCZOS_TAPS
  first = hu.shape[1] * hu.shape[2] * given.n + hu.shape[2] * given.n**2
  return Work(run, 'scans/s', hu.nbytes + 4 * into, taps * (first + into))


def _return(given: Given) -> Work:
  standard = given.standard
  volume = np.where(standard.lungs > 0, np.float16(0.5), np.float16(0))

  def run() -> int:
    spaces.return_volume(volume, standard.placement)
    return 1

  own = given.scan.hu.size
  return Work(
    run, 'scans/s', volume.nbytes + 4 * own, 2 * _LINEAR_TAPS * (volume.size + 2 * own)
  )


def _stacks(given: Given) -> Work:
  """A stack of each slice that crosses the lungs, of each view."""
  signal, spec = given.standard.signal, given.model.spec
  gather = jax.jit(views.gather, static_argnums=2)
  wanted = []
  for view, axis in views.NORMAL_AXIS.items():
    others = tuple(a for a in range(3) if a != axis)
    crossing = np.flatnonzero(given.standard.lungs.any(axis=others))
    offsets = spec.offsets_voxels(view)
    wanted += [(view, views.stack_indices([i], offsets, given.n)) for i in crossing]

  def run() -> int:
    for view, indices in wanted:
      gather(signal, indices, view).block_until_ready()
    return len(wanted)

  return Work(run, 'stacks/s', 2 * 4 * len(_OFFSETS_MM) * given.n**2)


def _networks(given: Given) -> Work:
  """The three maps; what counts is every slice of every view, computed or not."""
  signal, lungs, spec = given.standard.signal, given.standard.lungs, given.model.spec
  batch_size = given.config.prediction.batch_size

  def run() -> int:
    for view in given.model.variables:
      probability_map(given.model, view, signal, lungs, batch_size=batch_size)
    return 3 * given.n

  operations = sum(
    len(indices) * inference.operations(_FEATURES, len(_OFFSETS_MM), where)
    for axis in views.NORMAL_AXIS.values()
    for indices, where in windows.over(lungs, axis, spec.network.stride, 1)
  )
  whole = inference.boxes((0, 0), (given.n,) * 2, (given.n,) * 2, spec.network.stride)
  of_all = 3 * given.n * inference.operations(_FEATURES, len(_OFFSETS_MM), whole)
  return Work(
    run,
    'slices/s',
    operations_each=operations / (3 * given.n),
    further=lambda warm_s: {'share_computed': round(operations / of_all, 3)},
  )


def _export(given: Given) -> Work:
  """All files of a scan; infected is what of the lungs is in its densest tenth."""
  standard, config = given.standard, given.config
  infection = (given.lungs > 0) & (given.scan.hu > np.percentile(given.scan.hu, 90))
  volume = np.where(standard.lungs > 0, np.float16(0.5), np.float16(0))

  def part(region: spaces.Region) -> np.ndarray:
    return spaces.return_volume(volume, standard.placement, region)

  found = outputs.Finding(
    given.scan,
    infection,
    given.lungs,
    standard.window,
    (),
    probabilities={'probability': part},
    about={'given': []},
  )

  def run() -> int:
    outputs.write(given.folder / 'written', given.row, found, config.export)
    return 1

  return Work(run, 'scans/s', given.scan.hu.size * (4 + 1 + 1))


def _predict(given: Given) -> Work:
  """The whole program, all outputs; warm with what an earlier run compiled."""
  model = given.folder / 'model'
  write_model(model, given.model, {})
  peaks, numbers = [], iter(range(100))
  export = given.config.export.to_dict()
  command = [
    *(sys.executable, '-m', 'covid3way.main', '--config=configs/predict.py'),
    f'--config.input={given.row.image}',
    f'--config.model={model}',
    '--config.prediction.keep_views=True',
    *(f'--config.export.{name}={value}' for name, value in export.items()),
  ]
  cache = {'JAX_COMPILATION_CACHE_DIR': str(given.folder / 'compiled')}

  def run() -> int:
    workdir = given.folder / f'predicted-{next(numbers)}'
    process = subprocess.Popen(
      [*command, f'--workdir={workdir}'],
      env=os.environ | cache,
      stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
      raise RuntimeError(f'predict ended with exit code {process.returncode}')
    peaks.append(usage.ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10))
    return 1

  def further(warm_s: float) -> dict[str, Any]:
    networks = _networks(given)
    networks.run()
    start = time.monotonic()
    networks.run()
    spent = time.monotonic() - start
    return {
      'peak_mib': round(max(peaks), 1),
      'networks_s': round(spent, 2),
      'share_outside_networks': round(1 - spent / warm_s, 3),
    }

  networks = _networks(given)
  each = networks.operations_each * 3 * given.n
  return Work(run, 'scans/s', operations_each=each, further=further)


def _start(given: Given) -> Work:
  """`--help`, and a config that there is not."""

  def run() -> int:
    for flag in ('--help', '--config=configs/none.py'):
      subprocess.run(
        [sys.executable, '-m', 'covid3way.main', flag], capture_output=True, check=False
      )
    return 2

  return Work(run, 'starts/s')


def _simulate(n: int, share: float, config: ConfigDict) -> Work:
  """T(W) on a volume; counts voxel updates."""
  settings = simulator_settings(config.simulator)
  signal, lungs, infection = plain_chest(n, share)
  state = State(jnp.asarray(signal), jnp.asarray(infection))
  place = location_of(config.simulator)
  anatomy = anatomy_of(signal, lungs, infection, lungs, place)
  w = jax.tree.map(jnp.float32, settings.law.parameters())
  key = jax.random.key(0)

  def run() -> float:
    after, infected = trajectory.observe(
      key,
      state,
      w,
      anatomy,
      settings,
      steps=config.benchmark.transitions,
      what=_count,
    )
    after.signal.block_until_ready()
    return float(infected.sum(dtype=np.float64))

  return Work(run, 'voxel updates/s', _BYTES_PER_UPDATE)


def _count(signal: jax.Array, infection: jax.Array) -> jax.Array:
  return infection.sum()


def _fit(n: int, share: float, config: ConfigDict) -> Work:
  """W out of the histograms of a scan and of what the law makes of it."""
  law = simulator_settings(config.simulator).law
  signal, _, infection = plain_chest(n, share)
  before = histogram.counts(signal[infection])
  w = law.parameters(growth=0.005, conversion=0.12, absorption=0.0007)
  transitions = config.benchmark.transitions
  after = np.asarray(population.evolve(w, before, transitions, law))

  def run() -> int:
    fit(before, after, transitions, law=law)
    return 1

  return Work(run, 'pairs/s')


STAGES: Mapping[str, Callable[..., Work]] = {
  'start': _start,
  'read': _read,
  'lungs': _lungs,
  'cast': _cast,
  'return': _return,
  'stacks': _stacks,
  'networks': _networks,
  'export': _export,
  'predict': _predict,
  'simulate': _simulate,
  'fit': _fit,
}
