"""A small results folder as a crossval job leaves it: made up, but of one piece."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from covid3way.evaluation import metrics, results
from covid3way.scans import nifti, store
from covid3way.simulator import histogram
from covid3way.simulator.parameters import Parameters, as_dict
from covid3way.standard import space as spaces
from covid3way.standard.space import EXTENT_MM

STAGES = ('early', 'progressive', 'severe')
# (method, ratio, ablation) -> voxels of noise in what it finds: the more the worse.
RUNS = {
  ('three_way', 200, ''): 0.35,
  ('three_way', 50, ''): 0.45,
  ('three_way', 0, ''): 0.6,
  ('three_way', 200, 'padded'): 0.8,
  ('three_way', 200, 'xy'): 0.7,
  ('three_way', 200, 'offsets_2'): 0.5,
  ('unet_2d', 200, ''): 0.9,
  ('unet_2d', 0, ''): 1.1,
  ('vnet_3d', 200, ''): 0.6,
}
FAILED = ('unet_2d', 200, ''), 1  # One scan of one run has no figures.
_VIEWS = ('xy', 'yz', 'xz')


def run_name(method: str, ratio: int, ablation: str) -> str:
  return '-'.join(part for part in (method, str(ratio), ablation) if part)


def write(folder: Path, shape=(32, 32, 32), patients: int = 6) -> None:
  """Two folds of patients, each with one scan, the last one with two."""
  rng = np.random.default_rng(0)
  noise = [_smooth(rng, shape) for _ in range(4)]
  lungs = _lungs(shape)
  scans = [(f'p{i}', f'p{i}-a', float(i)) for i in range(patients)]
  scans.append((f'p{patients - 1}', f'p{patients - 1}-b', patients + 2.0))
  distance, signals = {}, {}
  for number, (patient, scan, day) in enumerate(scans):
    distance[scan] = _lesions(np.random.default_rng(number % patients), lungs, 1 + day)
    infection = (distance[scan] < 0) & (lungs > 0)
    signals[scan] = _signal(rng, lungs, infection, noise[0])
    stage = STAGES[number % 3]
    known = dict(patient_id=patient, scan_id=scan, day=day, stage=stage)
    known |= dict(scanner=f'scanner {number % 2}', site='s') | _place(shape)
    volumes = dict(signal=signals[scan], lungs=lungs, infection=infection)
    store.write_group(store.group_path(folder / 'store', scan), volumes, known)
  simulated = {'patient_id': 'p0', 'simulated': {'parent_scan': 'p0-a'}}
  store.write_group(folder / 'store' / 'p0-a-sim-0.zarr', volumes, simulated)
  names = [scan for _, scan, _ in scans]
  folds = [[s for s in names if int(s[1]) % 2 == k] for k in range(2)]
  splits = [{'train': folds[1 - k], 'val': folds[k]} for k in range(2)]
  _json(folder / 'splits_final.json', splits)
  _json(folder / 'crossval.json', {'folds': 2, 'training': {'epochs': 3}})
  rows = _predict(folder, folds, distance, lungs, noise)
  results.write_rows(folder / 'results.csv', results.RESULTS, rows)
  results.write_rows(folder / 'costs.csv', results.COSTS, _costs())
  results.write_rows(
    folder / 'aggregators.csv', results.AGGREGATORS, _aggregators(folds)
  )
  _json(folder / 'fits' / f'p{patients - 1}.json', _fits(names[-2:], signals, folder))


def _place(shape) -> dict:
  """Each scan's own grid is that of the standard space."""
  space = spaces.StandardSpace(shape)
  placement = spaces.place(shape, space.spacing_mm, space)
  affine = np.diag([*space.spacing_mm, 1.0]).tolist()
  placed = {'placement': dataclasses.asdict(placement)}
  return placed | {'native_shape': shape, 'native_affine_lps': affine}


def _predict(folder, folds, distance, lungs, noise) -> list[dict]:
  rows = []
  for (method, ratio, ablation), spread in RUNS.items():
    run = run_name(method, ratio, ablation)
    for fold, scans in enumerate(folds):
      about = dict(run=run, method=method, ratio_percent=ratio, ablation=ablation)
      for number, scan in enumerate(scans):
        where = folder / 'runs' / run / f'fold{fold}' / 'predictions'
        maps = {
          view: _probability(distance[scan] + 9 * spread * n, lungs)
          for view, n in zip(_VIEWS, noise[1:], strict=True)
        }
        mask = sum(m.astype(int) for m in maps.values()) > 382
        known = store.open_group(store.group_path(folder / 'store', scan)).attributes
        row = dict(about, fold=fold, **{f: known[f] for f in results.SCAN})
        failed = ((method, ratio, ablation), number) == FAILED and fold == 0
        for evaluation in results.EVALUATIONS:
          status = 'no prediction' if failed else 'ok'
          figures = {} if failed else _figures(distance[scan], lungs, mask)
          rows.append(row | dict(evaluation=evaluation, status=status) | figures)
        if not failed:
          volumes = {'infection': mask}
          if method == 'three_way':
            volumes |= {f'probability_{view}': m for view, m in maps.items()}
          if ablation == 'padded':  # Its own standard space is of no use here.
            own = store.open_group(store.group_path(folder / 'store', scan)).grid
            path = where / f'{scan}.nii.gz'
            path.parent.mkdir(parents=True, exist_ok=True)
            nifti.write_volume(path, mask.astype(np.uint8), own, dtype=np.uint8)
            volumes = {name: np.zeros_like(each) for name, each in volumes.items()}
          store.write_group(store.group_path(where, scan), volumes, {})
  return rows


def _figures(distance, lungs, mask) -> dict:
  reference, lung = (distance < 0) & (lungs > 0), np.count_nonzero(lungs)
  ml = float(np.prod(np.divide(EXTENT_MM, lungs.shape))) / 1000
  close = metrics.tolerant_dice(reference, mask, 2)
  return {
    'dice': metrics.dice(reference, mask),
    'recall': metrics.recall(reference, mask),
    'precision': metrics.precision(reference, mask),
    'dice_2_voxels': close,
    'recall_2_voxels': metrics.tolerant_recall(reference, mask, 2),
    'infection_ml_reference': reference.sum() * ml,
    'infection_ml_predicted': mask.sum() * ml,
    'lung_ml': lung * ml,
    'infected_percent_reference': 100 * reference.sum() / lung,
    'infected_percent_predicted': 100 * mask.sum() / lung,
  }


def _costs() -> list[dict]:
  return [
    dict(
      run=run_name(*run),
      method=run[0],
      ratio_percent=run[1],
      ablation=run[2],
      fold=fold,
      parameters=8.6e6 * spread,
      width=0.5,
      training_s=3600 * spread,
      training_steps=3000,
      prediction_s=20 * spread,
      peak_gib=2.5 + fold,
      device='cpu',
      threshold=2.0,
      aggregator='sum > 2',
    )
    for run, spread in RUNS.items()
    for fold in range(2)
  ]


def _aggregators(folds) -> list[dict]:
  about = dict(run='three_way-200', method='three_way', ratio_percent=200, ablation='')
  return [
    about | dict(fold=fold, scan_id=scan, aggregator=name, dice=dice)
    for fold, scans in enumerate(folds)
    for scan in scans
    for name, dice in (('sum > 2', 0.75), ('product', 0.5), ('svm', 0.7 + 0.1 * fold))
  ]


def _fits(pair, signals, folder) -> dict:
  edges = histogram.bin_edges()
  before, after = (
    histogram.counts(
      signals[s][
        store.open_group(folder / 'store' / f'{s}.zarr')
        .volumes['infection']
        .read()
        .result()
        > 0
      ]
    )
    for s in pair
  )
  entry = {
    'from_scan': pair[0],
    'to_scan': pair[1],
    'transitions': 300,
    'W': as_dict(Parameters()),
    'relative_loss': 0.02,
    'observed_from': before.tolist(),
    'observed_to': after.tolist(),
    'predicted': (0.9 * after).tolist(),
    'bin_edges': edges.tolist(),
  }
  return {'patient_id': pair[0].split('-')[0], 'pairs': [entry]}


def _grid_mm(shape):
  axes = [
    (np.arange(n) + 0.5) * e / n - e / 2 for n, e in zip(shape, EXTENT_MM, strict=True)
  ]
  return np.stack(np.meshgrid(*axes, indexing='ij'))


def _lungs(shape) -> np.ndarray:
  """Labels of two ellipsoids, narrow above; x grows to the left."""
  x, y, z = _grid_mm(shape)
  wide = 1 - 0.35 * np.clip(z / 140, -1, 1)
  lungs = np.zeros(shape, np.uint8)
  for side, centre, width in ((1, 75, 52), (2, -75, 58)):
    inside = (
      ((x - centre) / (width * wide)) ** 2 + (y / (85 * wide)) ** 2 + (z / 140) ** 2
    )
    lungs[inside < 1] = side
  return lungs


def _smooth(rng, shape) -> np.ndarray:
  noise = ndimage.gaussian_filter(rng.normal(size=shape), shape[0] / 40)
  return noise / noise.std()


def _lesions(rng, lungs, size) -> np.ndarray:
  """Signed distance to some balls, mm, negative inside."""
  grid, places = _grid_mm(lungs.shape), np.argwhere(lungs)
  spacing = np.divide(EXTENT_MM, lungs.shape)
  distance = np.full(lungs.shape, 1e3)
  for _ in range(6):
    centre = (places[rng.integers(len(places))] + 0.5) * spacing - np.divide(
      EXTENT_MM, 2
    )
    radius = rng.uniform(12, 20) + 2 * size
    own = np.sqrt(np.sum((grid - centre[:, None, None, None]) ** 2, axis=0)) - radius
    distance = np.minimum(distance, own)
  return distance


def _signal(rng, lungs, infection, noise) -> np.ndarray:
  signal = np.where(lungs > 0, -0.24, 0.5) + 0.02 * noise
  signal[infection] = 0.04 + 0.07 * noise[infection]
  return signal + rng.normal(0, 0.02, lungs.shape)


def _probability(distance, lungs) -> np.ndarray:
  return np.where(
    lungs > 0, 255 / (1 + np.exp(np.clip(distance / 4, -30, 30))), 0
  ).astype(np.uint8)


def _json(path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))
