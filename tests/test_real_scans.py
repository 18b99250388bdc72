"""The whole path on real scans; geometry checked by independent pydicom code."""

import json

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from conftest import run_job
from nibabel.affines import from_matvec
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from covid3way.scans import nifti, source
from covid3way.segmentation.quantify import LEFT, RIGHT
from covid3way.standard import space as spaces

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


def check_dicom(folder):
  """Each segment has the NIfTI mask's voxels: highdicom's places against nibabel's."""
  seg = highdicom.seg.segread(folder / 'infection.dcm')
  volume = seg.get_volume(combine_segments=False, rescale_fractional=False)
  numbers = volume.get_channel_values('ReferencedSegmentNumber')
  images = {n: nibabel.load(folder / f'{n}.nii.gz') for n in ('infection', 'lungs')}
  voxels = {name: np.asarray(image.dataobj) for name, image in images.items()}
  affine = images['lungs'].affine
  places = np.linalg.inv(affine) @ np.diag([-1, -1, 1, 1]) @ volume.affine
  turn = io_orientation(places)
  back = places @ inv_ornt_aff(turn, volume.array.shape[:3])
  start = np.rint(back[:3, 3]).astype(int)
  np.testing.assert_allclose(back, from_matvec(np.eye(3), start), atol=1e-3)
  for number, name, label in (
    (1, 'infection', 1),
    (2, 'lungs', LEFT),
    (3, 'lungs', RIGHT),
  ):
    segment = volume.array[..., numbers.index(number)] > 0
    found = np.zeros(voxels[name].shape, bool)
    part = apply_orientation(segment, turn)
    found[tuple(slice(a, a + n) for a, n in zip(start, part.shape, strict=True))] = part
    assert np.array_equal(found, voxels[name] == label), (name, label)


def check_page(folder, report):
  """A page that says the share, as the numbers do."""
  page = (folder / 'report.html').read_text()
  assert f'<strong>{report["infected_percent"]:.2f} %</strong> of the lungs' in page


def check_quantify(folder, series, workdir):
  """The job says of the masks what predict said."""
  run_job('quantify', workdir, input=str(series), predictions=str(folder.parent))
  first, again = (
    json.loads((each / folder.name / 'quantification.json').read_text())
    for each in (folder.parent, workdir)
  )
  for report in (first, again):
    del report['checksum']
  assert again.pop('masks') and again == first


@pytest.mark.parametrize('name', SCANS)
def test_every_output_of_a_real_scan(name, real_data, quickstart, tmp_path):
  """Masks of the series' shape and affine; DICOM, page and quantify that agree."""
  series, workdir = real_data / name, tmp_path / 'predicted'
  model, export = str(quickstart / 'model'), {'dicom': True}
  run_job('predict', workdir, input=str(series), model=model, export=export)
  (folder,) = [p for p in workdir.iterdir() if p.is_dir()]
  report = check_outputs(folder, series)
  assert 2000 < report['lung_ml'] < 8000
  tagged = name != 'lung1-003/ct'
  assert report['window']['source'] == ('dicom tag' if tagged else 'default')
  if tagged:  # Of 50/350 and -600/1200, the lung window.
    assert (report['window']['level_hu'], report['window']['width_hu']) == (-600, 1200)
  check_dicom(folder)
  check_page(folder, report)
  check_quantify(folder, series, tmp_path / 'quantified')


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
