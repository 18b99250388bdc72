"""Predicted masks against references: figures known by hand, and no silent zero."""

import contextlib
import csv
import dataclasses
import json
import math

import nibabel
import numpy as np
import pytest
import serial_scans
from conftest import run_job
from scipy import ndimage

from covid3way.base import ConfigError, Grid, InputError
from covid3way.evaluation.results import EVALUATIONS, METRICS
from covid3way.jobs.batch import SomeFailedError
from covid3way.scans import nifti
from covid3way.scans.manifest import ManifestRow, write_manifest

# Scans lie in the standard space as they are, and fill it.
SPACE = serial_scans.SPACE
GRID = Grid(SPACE.shape, np.diag([*SPACE.spacing_mm, 1.0]))
VOXEL_ML = math.prod(SPACE.spacing_mm) / 1000


def box(x=10, size=2):
  mask = np.zeros(SPACE.shape, np.uint8)
  mask[x : x + size, 10 : 10 + size, 20 : 20 + size] = 1
  return mask


def write(path, mask, grid=GRID):
  path.parent.mkdir(parents=True, exist_ok=True)
  nifti.write_volume(path, mask, grid, dtype=mask.dtype)
  return path


def row(folder, scan_id, reference=None, lungs=None):
  """A scan, whose image nobody reads, with its masks."""
  known = {
    f'{name}_mask': write(folder / f'{scan_id}-{name}.nii.gz', mask)
    for name, mask in (('infection', reference), ('lung', lungs))
    if mask is not None
  }
  image = write(folder / f'{scan_id}.nii.gz', box())
  return ManifestRow(f'p-{scan_id}', scan_id, image, stage='early', **known)


def evaluate(folder, rows, failing=0, **changes):
  """What the job writes of predictions in `predictions`, as text, by scan and kind."""
  write_manifest(folder / 'manifest.csv', rows)
  given = {
    'input': str(folder / 'manifest.csv'),
    'predictions': str(folder / 'predictions'),
    'space': {'shape': SPACE.shape},
  }
  fails = contextlib.nullcontext()
  if failing:
    fails = pytest.raises(SomeFailedError, match=f'{failing} of {len(rows)} scans')
  with fails:
    run_job('evaluate', folder / 'out', **given | changes)
  with (folder / 'out' / 'evaluation.csv').open() as file:
    table = list(csv.DictReader(file))
  found = {(r['scan_id'], r['evaluation']): r for r in table}
  assert len(found) == len(table)
  return found


def figures(row, *names):
  return [float(row[name]) for name in names]


def test_figures_known_by_hand_in_both_layouts(tmp_path):
  """A cube of 2 voxels a side and one beside it, which has half of it."""
  names, lungs = ('as-predict', 'as-others'), serial_scans.lungs()
  rows = [row(tmp_path, name, box(), lungs) for name in names]
  write(tmp_path / 'predictions' / 'as-predict' / 'infection.nii.gz', box(11))
  write(tmp_path / 'predictions' / 'as-others.nii.gz', box(11))
  found = evaluate(tmp_path, rows)
  assert set(found) == {(name, kind) for name in names for kind in EVALUATIONS}
  for name in names:
    for kind in ('native', 'standard'):
      each = found[name, kind]
      assert each['status'] == 'ok' and each['patient_id'] == f'p-{name}'
      assert each['stage'] == 'early'
      assert figures(each, 'dice', 'recall', 'precision') == [0.5] * 3
      assert figures(each, 'dice_2_voxels', 'lesion_recall') == [1.0, 1.0]
      ml = figures(each, 'infection_ml_reference', 'infection_ml_predicted')
      assert ml == pytest.approx([8 * VOXEL_ML] * 2)
      volume = np.count_nonzero(lungs)
      assert figures(each, 'lung_ml') == pytest.approx([volume * VOXEL_ML])
      (share,) = figures(each, 'infected_percent_predicted')
      assert share == pytest.approx(100 * 8 / volume)
    # 4 voxels a side each, 3 of 4 in common.
    assert figures(found[name, 'dilated'], 'dice', 'recall') == [0.75, 0.75]
  summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  assert summary['foreground_mean']['Dice'] == 0.5
  assert [case['metrics']['1']['TP'] for case in summary['metric_per_case']] == [4, 4]
  assert summary['metric_per_case'][0]['prediction_file'].endswith('infection.nii.gz')


def test_the_dilated_evaluation_is_that_of_scipys_dilation(tmp_path):
  rng, lungs = np.random.default_rng(0), serial_scans.lungs()
  masks = [ndimage.gaussian_filter(rng.random(SPACE.shape), 2) > 0.52 for _ in range(2)]
  reference, predicted = ((m & (lungs > 0)).astype(np.uint8) for m in masks)
  write(tmp_path / 'predictions' / 's.nii.gz', predicted)
  kinds = {'evaluation': {'kinds': ('dilated',)}}
  found = evaluate(tmp_path, [row(tmp_path, 's', reference, lungs)], **kinds)
  (only,) = found.values()
  assert only['evaluation'] == 'dilated'
  cube = np.ones((3, 3, 3), bool)
  a, b = (ndimage.binary_dilation(m, cube) for m in (reference, predicted))
  dice = 2 * (a & b).sum() / (a.sum() + b.sum())
  assert 0.1 < dice < 0.95
  assert figures(only, 'dice') == pytest.approx([dice], rel=1e-12)
  assert figures(only, 'recall') == pytest.approx([(a & b).sum() / a.sum()], rel=1e-12)


def test_what_cannot_be_compared_has_a_row_that_says_why_and_no_figures(tmp_path):
  folder, one = tmp_path / 'predictions', box()
  shifted = np.array(GRID.native_affine)
  shifted[0, 3] = 30.0
  elsewhere = Grid(SPACE.shape, shifted)
  rows = [row(tmp_path, 'sound', one)]
  expected = {'sound': 'ok'}

  def add(name, status, predicted=one, grid=GRID, reference=one, **known):
    rows.append(row(tmp_path, name, reference, **known))
    expected[name] = status
    if predicted is not None:
      write(folder / f'{name}.nii.gz', predicted, grid)

  write(folder / 'sound.nii.gz', one)
  add('absent', 'no prediction', predicted=None)
  add('unknown', 'no reference', reference=None)
  add('moved', 'reference on another grid', grid=elsewhere)
  cut = 'prediction: file cut.nii.gz is cut short, or no NIfTI'
  add('cut', cut)
  path = folder / 'cut.nii.gz'
  path.write_bytes(path.read_bytes()[:-40])
  add('torn', 'reference: file torn-infection.nii.gz is cut short, or no NIfTI')
  path = rows[-1].infection_mask
  path.write_bytes(path.read_bytes()[:-40])
  add('lungs', 'lungs on another grid')
  known = write(tmp_path / 'other-lungs.nii.gz', serial_scans.lungs(), elsewhere)
  rows[-1] = dataclasses.replace(rows[-1], lung_mask=known)
  labels = 'prediction: mask {}.nii.gz holds other than whole numbers from 0 to 255'
  add('shares', labels.format('shares'), predicted=one * np.float32(0.7))
  add('nan', labels.format('nan'), predicted=np.where(one, np.nan, 0).astype('f4'))
  write(folder / 'stranger.nii.gz', one)
  expected['stranger'] = 'prediction without its scan'
  write(folder / 'guest' / 'infection.nii.gz', one)
  expected['guest'] = 'prediction without its scan'

  found = evaluate(tmp_path, rows, failing=7)
  assert {scan for scan, _ in found} == set(expected)
  for (scan, _), each in found.items():
    assert each['status'] == expected[scan]
    if scan != 'sound':
      assert {each[name] for name in METRICS} == {''}
  assert len(found) == 3 * len(expected)
  assert figures(found['sound', 'native'], 'dice') == [1.0]
  summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  assert len(summary['metric_per_case']) == 1


def test_a_prediction_stored_in_another_order_lies_where_it_lies(tmp_path):
  """Axes swapped and mirrored: as other programs write the same mask."""
  path = write(tmp_path / 'predictions' / 's.nii.gz', box(11))
  image = nibabel.load(path)
  nibabel.save(
    image.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])),
    path,
  )
  found = evaluate(tmp_path, [row(tmp_path, 's', box())])
  assert figures(found['s', 'native'], 'dice') == [0.5]


def test_what_empty_masks_and_absent_lungs_give(tmp_path):
  """A scan without infection asks no recall; one that was missed has Dice 0."""
  nothing = np.zeros(SPACE.shape, np.uint8)
  rows = [row(tmp_path, 'healthy', nothing), row(tmp_path, 'missed', box())]
  for each in rows:
    write(tmp_path / 'predictions' / f'{each.scan_id}.nii.gz', nothing)
  found = evaluate(tmp_path, rows)
  healthy, missed = found['healthy', 'native'], found['missed', 'native']
  assert healthy['status'] == missed['status'] == 'ok'
  assert figures(healthy, 'dice', 'infection_ml_predicted') == [1.0, 0.0]
  assert figures(missed, 'dice', 'recall') == [0.0, 0.0]
  for each, names in (
    (healthy, ('recall', 'precision', 'lung_ml', 'hausdorff_95_mm')),
    (missed, ('precision', 'infected_percent_predicted')),
  ):
    assert np.isnan(figures(each, *names)).all()


def test_lungs_that_predict_wrote_beside_its_mask_are_taken(tmp_path):
  lungs, folder = serial_scans.lungs(), tmp_path / 'predictions' / 's'
  write(folder / 'infection.nii.gz', box())
  write(folder / 'lungs.nii.gz', lungs)
  found = evaluate(tmp_path, [row(tmp_path, 's', box())])
  wanted = np.count_nonzero(lungs) * VOXEL_ML
  for kind in ('native', 'standard'):
    assert figures(found['s', kind], 'lung_ml') == pytest.approx([wanted])


def test_nothing_to_compare_writes_rows_and_no_summary(tmp_path):
  (tmp_path / 'predictions').mkdir()
  found = evaluate(tmp_path, [row(tmp_path, 's', box())], failing=1)
  assert {each['status'] for each in found.values()} == {'no prediction'}
  assert not (tmp_path / 'out' / 'summary.json').exists()


@pytest.mark.parametrize(
  ('changes', 'error', 'words'),
  [
    (
      {'evaluation': {'kinds': ('native', 'warped')}},
      ConfigError,
      r"'warped'\); use some of native, standard, dilated",
    ),
    ({'evaluation': {'kinds': ()}}, ConfigError, r'kinds: \(\); use some of native'),
    ({'predictions': '/nowhere/at/all'}, InputError, 'at/all: no such folder; give'),
    ({'predictions': ''}, ConfigError, r'not given; add --config\.predictions='),
    ({'input': ''}, ConfigError, r'not given; add --config\.input='),
  ],
)
def test_what_cannot_be_evaluated_is_named(changes, error, words, tmp_path):
  (tmp_path / 'predictions').mkdir()
  with pytest.raises(error, match=words):
    evaluate(tmp_path, [row(tmp_path, 's', box())], **changes)
  assert not (tmp_path / 'out').exists()


def test_lungs_that_predict_found_are_compared_with_the_manifests(tmp_path):
  """Shifted by a voxel of 10.7 mm along z: no surface within 1 mm at the ends in z."""
  reference = serial_scans.lungs()
  found = np.roll(reference, 1, axis=2)
  folder = tmp_path / 'predictions' / 's'
  write(folder / 'infection.nii.gz', box())
  write(folder / 'lungs.nii.gz', found)
  rows = evaluate(tmp_path, [row(tmp_path, 's', box(), reference)])
  native = rows['s', 'native']
  overlap = np.count_nonzero((reference > 0) & (found > 0))
  size = np.count_nonzero(reference)
  assert float(native['lungs_dice']) == pytest.approx(overlap / size)
  assert 0.5 < float(native['lungs_surface_dice_1_mm']) < 1
  assert rows['s', 'dilated']['lungs_dice'] == ''
