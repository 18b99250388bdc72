"""What predict and quantify write of a scan: files, numbers, DICOM, courses."""

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys

import highdicom
import jax
import nibabel
import numpy as np
import pydicom
import pytest
import small_chest
from conftest import ROOT, run_job
from scipy import ndimage
from small_chest import GRID, PATIENT, SHAPE, SPACING_MM, chest

from covid3way.base import (
  ConfigError,
  DamagedFileError,
  Grid,
  InputError,
  MaskGridError,
)
from covid3way.jobs import outputs, predict
from covid3way.jobs.batch import SomeFailedError
from covid3way.scans import dicom_writer, nifti
from covid3way.scans.manifest import read_manifest, write_manifest
from covid3way.segmentation import aggregators
from covid3way.segmentation.model import Model, ModelSpec, write_model
from covid3way.standard import resample, space
from covid3way.training import views
from covid3way.training.step import fresh_variables

FILES = {
  'infection.nii.gz',
  'lungs.nii.gz',
  'quantification.json',
  'overview.png',
  'report.html',
}
DICOM = {'infection.dcm', 'probability.dcm', 'measurements.dcm'}
MAPS = {f'probability{view}.nii.gz' for view in ('', '_xy', '_yz', '_xz')}


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
  """Two scans of one patient, one of another, DICOM; masks beside them."""
  return small_chest.write_cohort(tmp_path_factory.mktemp('cohort'))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """Small and untrained."""
  spec = ModelSpec('infection', (32, 32, 48), (-10.0, 0.0, 10.0), (3, 4))
  return write_untrained(tmp_path_factory.mktemp('model') / 'model', spec)


def write_untrained(folder, spec):
  shape = spec.sample_shape('xy')
  variables = {
    view: fresh_variables(spec.network, jax.random.key(i), shape)
    for i, view in enumerate(views.NORMAL_AXIS)
  }
  write_model(folder, Model(spec, variables, aggregators.plain(tuple(variables))), {})
  return folder


@pytest.fixture(scope='module')
def done(cohort, model, tmp_path_factory):
  """The workdir of a predict job with all outputs."""
  workdir = tmp_path_factory.mktemp('predicted')
  run_predict(workdir, cohort, model)
  return workdir


def run_predict(workdir, cohort, model, **changes):
  run_job(
    'predict',
    workdir,
    **{
      'input': str(cohort / 'manifest.csv'),
      'model': str(model),
      'prediction': {'threshold': 1.5, 'keep_views': True},
      'export': {'dicom': True},
    }
    | changes,
  )


def run_quantify(workdir, manifest, **changes):
  run_job('quantify', workdir, input=str(manifest), **changes)


def report_of(workdir, scan_id):
  return json.loads((workdir / scan_id / 'quantification.json').read_text())


def names_in(folder):
  return {path.name for path in folder.iterdir()}


def read(path):
  return np.asarray(nibabel.load(path).dataobj)


def test_a_scans_folder_holds_every_output_and_nothing_else(done):
  for scan_id in ('a-1', 'a-2', 'b-1'):
    assert names_in(done / scan_id) == FILES | DICOM | MAPS
  assert names_in(done) == {
    *('a-1', 'a-2', 'b-1', 'courses', 'predict.json', 'quantification.csv')
  }


def test_numbers_are_those_of_the_files(done, cohort):
  report, folder = report_of(done, 'a-1'), done / 'a-1'
  infection, lungs, probability = (
    read(folder / f'{name}.nii.gz') for name in ('infection', 'lungs', 'probability')
  )
  ml = np.prod(SPACING_MM) / 1000
  assert 0 < infection.sum() < (lungs > 0).sum()
  assert report['infection_ml'] == pytest.approx(infection.sum() * ml, abs=1e-3)
  assert report['lung_ml'] == pytest.approx((lungs > 0).sum() * ml, abs=1e-3)
  np.testing.assert_array_equal(lungs, read(cohort / 'a-1-lung.nii.gz'))
  assert probability.dtype == np.float32 and not probability[lungs == 0].any()
  assert 0 <= probability.min() and 0.2 < probability.max() <= 1
  assert (report['day'], report['stage']) == (0.0, 'early')
  assert sum(report['densities']['infection_voxels']) == infection.sum()
  assert set(report['disagreement']['pair_dice']) == {'xy-yz', 'xy-xz', 'yz-xz'}
  assert set(report['per_lobe']) >= {'left_upper', 'right_lower'}
  assert 'per_lobe' not in report_of(done, 'b-1')
  assert report['severity']['maximum'] == 25


def test_the_probability_is_the_mean_of_the_views(done):
  whole, *each = (read(done / 'b-1' / name).astype(float) for name in sorted(MAPS))
  assert np.abs(each[0] - each[1]).max() > 0.05
  inside = ndimage.binary_erosion(read(done / 'b-1' / 'lungs.nii.gz') > 0)
  np.testing.assert_allclose(whole[inside], np.mean(each, axis=0)[inside], atol=1e-3)


def test_dicom_holds_the_same_masks(done):
  """Voxels by highdicom, the stored order by pydicom."""
  folder = done / 'a-2'
  seg = highdicom.seg.segread(folder / 'infection.dcm')
  header = pydicom.dcmread(folder / 'infection.dcm')
  assert header.PatientID == 'a-2' and header.SegmentationType == 'BINARY'
  volume = seg.get_volume(combine_segments=False, rescale_fractional=False)
  numbers = volume.get_channel_values('ReferencedSegmentNumber')
  for number, mask in (
    (1, read(folder / 'infection.nii.gz') > 0),
    (2, read(folder / 'lungs.nii.gz') == 1),
    (3, read(folder / 'lungs.nii.gz') == 2),
  ):
    chosen = volume.array[..., numbers.index(number)]
    assert np.count_nonzero(chosen) == np.count_nonzero(mask) > 0
    index = np.argwhere(chosen).mean(0)
    lps = volume.affine[:3, :3] @ index + volume.affine[:3, 3]
    np.testing.assert_allclose(lps, np.argwhere(mask).mean(0) * SPACING_MM, atol=1e-3)
  report = report_of(done, 'a-2')
  told = str(pydicom.dcmread(folder / 'measurements.dcm'))
  assert str(report['infection_ml']) in told and str(report['lung_ml']) in told


def test_nothing_names_the_patient_unless_told_to(done, cohort, model, tmp_path):
  """Neither a file's bytes nor its name; the manifest's own name is hashed, too."""
  for path in done.rglob('*'):
    assert 'Zebedee' not in path.name and 'QXZ' not in path.name
    if path.is_file():
      assert not re.search(rb'Zebedee|Quirin|QXZ4711', path.read_bytes()), path.name
  only = cohort / 'only.csv'
  write_manifest(only, read_manifest(cohort / 'manifest.csv')[2:])
  named = {'dicom': True, 'identified': True}
  run_predict(tmp_path, cohort, model, input=str(only), export=named)
  for name in DICOM:
    header = pydicom.dcmread(tmp_path / 'b-1' / name)
    assert (header.PatientName, header.PatientID) == (PATIENT, 'QXZ4711')
  for path in (tmp_path / 'b-1').iterdir():
    if path.suffix != '.dcm':
      assert not re.search(rb'Zebedee|Quirin|QXZ4711', path.read_bytes()), path.name


def test_serial_scans_have_a_course(done):
  (folder,) = (done / 'courses').iterdir()
  assert folder.name.startswith('patient-')
  with (folder / 'course.csv').open() as stream:
    rows = [*csv.DictReader(stream)]
  assert [(row['scan_id'], float(row['day'])) for row in rows] == [
    ('a-1', 0.0),
    ('a-2', 4.5),
  ]
  assert [float(row['infection_ml']) for row in rows] == [
    report_of(done, row['scan_id'])['infection_ml'] for row in rows
  ]
  assert (folder / 'course.png').stat().st_size > 5_000


def test_dicom_of_a_nifti_file_is_refused_before_anything_is_computed(
  cohort, model, tmp_path, monkeypatch
):
  monkeypatch.setattr(predict, 'read_and_cast', None)
  row, *_ = read_manifest(cohort / 'manifest.csv')
  with pytest.raises(InputError, match=r'a-1-lung: a NIfTI file.*give the DICOM'):
    run_predict(tmp_path, cohort, model, input=str(row.lung_mask))
  assert names_in(tmp_path) == {'predict.json', 'quantification.csv'}
  with pytest.raises(ConfigError, match=r'add --config\.export\.dicom=True'):
    run_predict(tmp_path / 'b', cohort, model, export={'identified': True})
  assert not (tmp_path / 'b').exists()


def test_a_rerun_skips_what_is_done_and_refuses_other_outputs(done, cohort, model):
  before = {
    p: p.stat().st_mtime_ns for p in done.glob('*/*') if p.parent.name[0] != 'c'
  }
  run_predict(done, cohort, model)
  with pytest.raises(ConfigError, match='export differ'):
    run_predict(done, cohort, model, export={'dicom': False})
  with pytest.raises(ConfigError, match=r'--workdir: predict wrote into .* for q'):
    run_quantify(done, cohort / 'manifest.csv', predictions=str(done))
  assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_damaged_report_is_told_and_not_in_the_table(cohort, model, tmp_path):
  manifest = cohort / 'manifest.csv'
  run_quantify(tmp_path, manifest)
  path = tmp_path / 'a-1' / 'quantification.json'
  path.write_text(path.read_text().replace('"day": 0.0', '"day": 1.0'))
  with pytest.raises(DamagedFileError, match='remove the folder a-1'):
    outputs.read_report(tmp_path / 'a-1')
  with pytest.raises(SomeFailedError, match='1 of 3 scans failed'):
    run_quantify(tmp_path, manifest)
  with (tmp_path / 'quantification.csv').open() as stream:
    assert [row['scan_id'] for row in csv.DictReader(stream)] == ['a-2', 'b-1']


def test_two_runs_on_one_folder_end_as_one(cohort, model, tmp_path, monkeypatch):
  """The second run does all scans while the first is about to write its own first."""
  write, began = outputs.write, []

  def slow(*arguments):
    if not began:
      began.append(True)
      run_quantify(tmp_path, cohort / 'manifest.csv')
    write(*arguments)

  monkeypatch.setattr(outputs, 'write', slow)
  run_quantify(tmp_path, cohort / 'manifest.csv')
  assert began and not [p for p in tmp_path.rglob('*') if 'partial' in p.name]
  for scan_id in ('a-1', 'a-2', 'b-1'):
    assert names_in(tmp_path / scan_id) == FILES
    assert outputs.read_report(tmp_path / scan_id)['scan_id'] == scan_id


def test_quantify_of_a_predict_run_finds_its_numbers(done, cohort, tmp_path):
  run_quantify(
    tmp_path, cohort / 'manifest.csv', predictions=str(done), export={'dicom': True}
  )
  assert (tmp_path / 'quantification.csv').read_bytes() == (
    done / 'quantification.csv'
  ).read_bytes()
  for scan_id in ('a-1', 'b-1'):
    assert names_in(tmp_path / scan_id) == FILES | DICOM - {'probability.dcm'}
    again, first = report_of(tmp_path, scan_id), report_of(done, scan_id)
    assert set(again) - set(first) == {'masks'} and set(first) <= set(again)
    differ = {key for key in first if again[key] != first[key]}
    assert differ <= {'checksum'}
    for name in ('infection.nii.gz', 'lungs.nii.gz', 'overview.png'):
      assert (tmp_path / scan_id / name).read_bytes() == (
        done / scan_id / name
      ).read_bytes()


def test_quantify_compiles_nothing(cohort, tmp_path, monkeypatch):
  monkeypatch.setattr(jax.stages.Lowered, 'compile', None)
  monkeypatch.setattr(resample, 'apply', None)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: events.append(name)
  )
  run_quantify(tmp_path, cohort / 'manifest.csv')
  assert not [name for name in events if 'compile' in name or 'trace' in name]


def test_quantify_does_again_what_has_another_mask_since(cohort, tmp_path):
  rows = list(read_manifest(cohort / 'manifest.csv'))
  path = tmp_path / 'mask.nii.gz'
  infection = chest(1)[-1].copy()
  nifti.write_volume(path, infection, GRID, dtype=np.uint8)
  rows[0] = dataclasses.replace(rows[0], infection_mask=path)
  write_manifest(tmp_path / 'manifest.csv', rows)
  run_quantify(tmp_path / 'out', tmp_path / 'manifest.csv')
  first = report_of(tmp_path / 'out', 'a-1')
  kept = (tmp_path / 'out' / 'a-2' / 'quantification.json').stat().st_mtime_ns
  infection[18:22, 8:12, 10:14] = True  # And some outside the lungs.
  infection[15, 8:12, 10:14] = True
  nifti.write_volume(path, infection, GRID, dtype=np.uint8)
  run_quantify(tmp_path / 'out', tmp_path / 'manifest.csv')
  again = report_of(tmp_path / 'out', 'a-1')
  ml = np.prod(SPACING_MM) / 1000
  assert again['infection_ml'] - first['infection_ml'] == pytest.approx(64 * ml)
  assert first['per_lung']['left']['infection_ml'] == 0
  (told,) = [w for w in again['warnings'] if w['kind'] == 'infection_outside_lungs']
  assert f'{16 * ml:.2f} ml' in told['message']
  after = (tmp_path / 'out' / 'a-2' / 'quantification.json').stat().st_mtime_ns
  assert after == kept


def test_quantify_names_what_is_missing(cohort, tmp_path):
  row = read_manifest(cohort / 'manifest.csv')[2]

  def of(**changes):
    write_manifest(tmp_path / 'm.csv', [dataclasses.replace(row, **changes)])
    run_quantify(tmp_path / 'out', tmp_path / 'm.csv')

  with pytest.raises(InputError, match=r'b-1: no infection mask; give it'):
    of(infection_mask=None)
  other = Grid(SHAPE, np.diag([*SPACING_MM[:2], 9.0, 1.0]))
  nifti.write_volume(tmp_path / 'm.nii.gz', chest(1)[1], other, dtype=np.uint8)
  with pytest.raises(MaskGridError, match='on the grid of the scan'):
    of(infection_mask=tmp_path / 'm.nii.gz')
  with pytest.raises(InputError, match=r'config\.predictions: no such folder'):
    run_quantify(tmp_path / 'out', tmp_path / 'm.csv', predictions=str(tmp_path / 'x'))
  with pytest.raises(InputError, match=r'b-1: no infection mask'):
    run_quantify(tmp_path / 'out', tmp_path / 'm.csv', predictions=str(tmp_path))
  assert not (tmp_path / 'out' / 'b-1').exists()


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize('signs', [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32, np.int16])
def test_slabs_are_the_bytes_that_nibabel_writes_of_the_whole(
  order, signs, dtype, tmp_path
):
  affine = np.eye(4)
  affine[:3, :3] = (np.diag([0.7, 0.8, 1.3]) * signs)[:, order]
  affine[:3, 3] = (-40.0, 12.5, 3.0)
  grid = Grid((5, 6, 70), affine)
  native = np.random.default_rng(0).uniform(0, 200, grid.native_shape).astype(dtype)
  volume, asked = grid.to_lps(native), []

  def part(region):
    asked.append(volume[region].size)
    return volume[region]

  nifti.write_slabs(tmp_path / 'slabs.nii', part, grid, dtype=dtype)
  ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
  image = nibabel.Nifti1Image(native, ras)
  image.set_sform(ras, code='scanner')
  image.set_qform(ras, code='scanner')
  image.header.set_xyzt_units('mm')
  image.to_filename(tmp_path / 'whole.nii')
  slabs, whole = ((tmp_path / f'{n}.nii').read_bytes() for n in ('slabs', 'whole'))
  assert slabs == whole
  assert max(asked) < native.size / 2 and sum(asked) == native.size


@pytest.mark.parametrize('dtype', [np.float32, np.float16, bool])
def test_what_is_brought_back_in_slabs_is_interpolated_linearly(dtype):
  """A reference by scipy, where the own grid is the finer one."""
  values = np.random.default_rng(0).uniform(0, 2, (20, 24, 36)).astype(dtype)
  standard = space.StandardSpace(values.shape)
  own = (2 * resample._SLAB_PLANES + 7, 31, 71)
  placement = space.Placement(standard, own, (15.0, 11.0, 9.0), (11.2, 14.7, 33.3))
  places = [placement.to_standard(axis, np.arange(n)) for axis, n in enumerate(own)]
  expected = ndimage.map_coordinates(
    values.astype(np.float64),
    np.meshgrid(*places, indexing='ij'),
    order=1,
    mode='grid-constant',
  )
  got = space.return_volume(values, placement)
  np.testing.assert_allclose(got, expected, atol=1e-5)
  region = slice(2, 29), slice(None), slice(30, 71)
  part = space.return_volume(values, placement, region)
  np.testing.assert_allclose(part, expected[region], atol=1e-5)
  mask = space.return_mask(values > 0.7, placement)
  back = space.return_volume(values > 0.7, placement)
  sure = np.abs(back - 0.5) > 1e-5
  np.testing.assert_array_equal(mask[sure], (back > 0.5)[sure])


@pytest.mark.slow
def test_all_outputs_of_600_slices_of_512_x_512_take_at_most_5_gib(tmp_path):
  """The whole process, a DICOM series by networks of the released size."""
  shape, spacing_mm = (512, 512, 600), (0.68, 0.68, 0.6)
  x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
  body = (x[:, None] / 0.85) ** 2 + (y / 0.6) ** 2 < 1
  lung = ((np.abs(x) - 0.4)[:, None] / 0.28) ** 2 + (y / 0.4) ** 2
  hu = np.empty(shape, np.int16)
  for k, height in enumerate(z):
    hu[:, :, k] = np.where(body, 40, -1000)
    hu[lung + (height / 0.8) ** 2 < 1, k] = -850
  hu[150:190, 230:280, 200:300] = -300
  grid, folder = Grid(shape, np.diag([*spacing_mm, 1.0])), tmp_path / 'ct'
  folder.mkdir()
  dicom_writer.write_series(folder, hu, grid, header={}, seed_uid='large')
  del hu
  offsets_mm, features = (-5.0, -2.0, 0.0, 2.0, 5.0), (16, 32, 64, 128, 256)
  spec = ModelSpec('infection', (512, 512, 512), offsets_mm, features)
  write_untrained(tmp_path / 'model', spec)
  started = subprocess.Popen(
    [
      *(sys.executable, '-m', 'covid3way.main', '--config=configs/predict.py'),
      f'--workdir={tmp_path / "out"}',
      f'--config.input={folder}',
      f'--config.model={tmp_path / "model"}',
      *('--config.export.dicom=True', '--config.prediction.keep_views=True'),
    ],
    cwd=ROOT,
  )
  _, status, usage = os.wait4(started.pid, 0)
  started.returncode = os.waitstatus_to_exitcode(status)
  assert started.returncode == 0
  assert names_in(tmp_path / 'out' / 'ct') == FILES | DICOM | MAPS
  peak_gib = usage.ru_maxrss / 2**20
  print(f'peak memory {peak_gib:.2f} GiB')
  assert peak_gib <= 5, f'peak memory {peak_gib:.2f} GiB'
