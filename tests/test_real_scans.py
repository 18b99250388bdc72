"""The whole path on real scans; geometry checked by independent pydicom code."""

import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pydicom
import pytest
from conftest import ROOT, run_job

from covid3way.scans import nifti, source
from covid3way.segmentation import aggregators
from covid3way.segmentation.model import Model, ModelSpec, write_model
from covid3way.segmentation.quantify import LEFT, RIGHT
from covid3way.standard import space as spaces
from covid3way.training import views

SCANS = ('covid-ct-md/P001', 'covid-ct-md/normal001', 'lung1-003/ct', 'lung-dx-A0002')


def geometry(folder):
  """Shape (columns, rows, slices) and RAS affine of a series, by pydicom alone."""
  headers = [
    pydicom.dcmread(path, stop_before_pixels=True) for path in folder.glob('*.dcm')
  ]
  headers = sorted(
    (h for h in headers if h.Modality == 'CT'),
    key=lambda h: float(h.ImagePositionPatient[2]),
  )
  first, last = headers[0], headers[-1]
  row, column = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
  between_rows, between_columns = (float(x) for x in first.PixelSpacing)
  start, end = (np.array(h.ImagePositionPatient, float) for h in (first, last))
  lps = np.eye(4)
  lps[:3, 0] = row * between_columns
  lps[:3, 1] = column * between_rows
  lps[:3, 2] = (end - start) / (len(headers) - 1)
  lps[:3, 3] = start
  return (first.Columns, first.Rows, len(headers)), np.diag([-1, -1, 1, 1]) @ lps


def check_outputs(folder, series):
  """Every mask on exactly the series' grid; left is left; numbers agree."""
  shape, affine = geometry(series)
  volumes = {}
  for name in ('infection', 'probability', 'lungs'):
    image = nibabel.load(folder / f'{name}.nii.gz')
    assert image.shape == shape
    np.testing.assert_allclose(image.affine, affine, atol=1e-3)
    volumes[name] = np.asarray(image.dataobj)
  assert set(np.unique(volumes['infection'])) <= {0, 1}
  lungs = volumes['lungs']
  assert set(np.unique(lungs)) == {0, LEFT, RIGHT}
  x_ras = [
    nibabel.affines.apply_affine(affine, np.argwhere(lungs == side)).mean(0)[0]
    for side in (LEFT, RIGHT)
  ]
  assert x_ras[0] < x_ras[1]  # RAS: x grows to the right.
  report = json.loads((folder / 'quantification.json').read_text())
  voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
  assert report['lung_ml'] == pytest.approx((lungs > 0).sum() * voxel_ml, rel=1e-3)
  infected = volumes['infection'] > 0
  assert report['infection_ml'] == pytest.approx(infected.sum() * voxel_ml, abs=0.01)
  assert (folder / 'overview.png').stat().st_size > 50_000
  return report


@pytest.mark.parametrize('name', SCANS)
def test_masks_have_the_series_shape_and_affine(name, real_data, quickstart, tmp_path):
  run_job(
    'predict',
    tmp_path,
    input=str(real_data / name),
    model=str(quickstart / 'model'),
  )
  (folder,) = [p for p in tmp_path.iterdir() if p.is_dir()]
  report = check_outputs(folder, real_data / name)
  assert 2000 < report['lung_ml'] < 8000
  tagged = name != 'lung1-003/ct'
  assert report['window']['source'] == ('dicom tag' if tagged else 'default')
  if tagged:  # Of 50/350 and -600/1200, the lung window.
    assert (report['window']['level_hu'], report['window']['width_hu']) == (-600, 1200)


@pytest.mark.parametrize('name', ['lung1-003/ct', 'lung-dx-A0002'])
def test_lung_mask_survives_the_way_there_and_back(name, real_data):
  """Own grid -> 512^3 -> own grid, 3 mm and 8 mm slices: Dice at least 0.98."""
  from covid3way.standard.lungs import find_lungs

  (row,) = source.resolve(real_data / name)
  scan = source.read_scan(row)
  if name == 'lung1-003/ct':
    path = real_data / 'lung1-003' / 'lungs.nii.gz'
    lungs = nifti.read_mask(path, scan.grid, scan_id='lung1-003')
  else:
    lungs, _ = find_lungs(scan.hu, scan.grid.spacing_mm)
  placement = spaces.place(
    scan.grid.shape, scan.grid.spacing_mm, spaces.StandardSpace(), lungs
  )
  back = spaces.return_mask(spaces.cast_mask(lungs > 0, placement), placement)
  assert back.shape == lungs.shape
  dice = 2 * (back & (lungs > 0)).sum() / (back.sum() + (lungs > 0).sum())
  assert dice >= 0.98


@pytest.fixture
def released_size(tmp_path):
  """A model at 512^3 with networks of the released size, untrained."""
  spec = ModelSpec(
    'infection', (512, 512, 512), (-5.0, -2.0, 0.0, 2.0, 5.0), (16, 32, 64, 128, 256)
  )
  variables = {
    view: spec.network.init(jax.random.key(i), jnp.zeros((1, 16, 16, 5)), train=False)
    for i, view in enumerate(views.NORMAL_AXIS)
  }
  model = Model(spec, variables, aggregators.plain(tuple(variables)))
  write_model(tmp_path / 'model', model, {})
  return tmp_path / 'model'


@pytest.mark.slow
def test_full_size_prediction_stays_within_6_gib(real_data, released_size, tmp_path):
  series = real_data / 'covid-ct-md' / 'P001'
  subprocess.run(
    [
      sys.executable,
      '-m',
      'covid3way.main',
      '--config=configs/predict.py',
      f'--workdir={tmp_path / "out"}',
      f'--config.input={series}',
      f'--config.model={released_size}',
    ],
    cwd=ROOT,
    check=True,
  )
  peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
  (folder,) = [p for p in (tmp_path / 'out').iterdir() if p.is_dir()]
  check_outputs(folder, series)
  assert peak_gib <= 6, f'peak memory {peak_gib:.2f} GiB'
