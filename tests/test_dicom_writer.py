import numpy as np
import pydicom
import pytest
import series

from covid3way import base
from covid3way.scans import dicom, dicom_writer

TURNED = np.array([[0, 0, -2.5, -40], [0.75, 0, 0, 3], [0, -0.5, 0, 7], [0, 0, 0, 1.0]])


def grid(shape=(5, 4, 6), affine=TURNED):
  return base.Grid(shape, affine)


def volume(shape=(5, 4, 6)):
  return np.random.default_rng(0).integers(-1024, 1500, shape).astype(np.float32)


def write(folder, hu=None, header=None, **options):
  folder.mkdir()
  hu = volume() if hu is None else hu
  options = {'seed_uid': 'phantom-1', **options}
  dicom_writer.write_series(folder, hu, grid(), header=header or {}, **options)
  return folder


def test_what_is_written_reads_back(tmp_path):
  header = {'Manufacturer': 'ACME', 'WindowCenter': -600, 'WindowWidth': 1200}
  scan = dicom.read_series(write(tmp_path / 'a', header=header), scan_id='s1')
  np.testing.assert_allclose(scan.grid.native_affine, TURNED, atol=1e-9)
  np.testing.assert_array_equal(scan.grid.to_native(scan.hu), volume())
  assert scan.windows == (base.Window(-600, 1200, 'dicom tag'),)
  assert scan.provenance['manufacturer'] == 'ACME'
  assert scan.warnings == ()


def test_tags_by_hand(tmp_path):
  folder = write(tmp_path / 'a', file_names=[f'{9 - k}' for k in range(6)])
  dataset = pydicom.dcmread(folder / '7')
  assert dataset.ImagePositionPatient == [-45, 3, 7]
  assert dataset.ImageOrientationPatient == [0, 1, 0, 0, 0, -1]
  assert dataset.PixelSpacing == [0.5, 0.75]
  assert dataset.SliceThickness == 2.5
  hu = dataset.pixel_array * float(dataset.RescaleSlope) + dataset.RescaleIntercept
  np.testing.assert_array_equal(hu, volume()[:, :, 2].T)


@pytest.mark.parametrize(
  'header',
  [
    {'RescaleIntercept': 0},
    {'RescaleIntercept': -1000, 'RescaleSlope': 0.25},
    {'RescaleIntercept': -2000, 'PixelRepresentation': 0},
  ],
)
def test_rescale_of_the_header_is_used(tmp_path, header):
  scan = dicom.read_series(write(tmp_path / 'a', header=header), scan_id='s1')
  np.testing.assert_array_equal(scan.grid.to_native(scan.hu), volume())


def test_same_input_same_bytes_and_other_seed_other_uids(tmp_path):
  a, b = write(tmp_path / 'a'), write(tmp_path / 'b')
  other = write(tmp_path / 'c', seed_uid='phantom-2')
  for path in series.files(a):
    assert path.read_bytes() == (b / path.name).read_bytes()
  uids = {pydicom.dcmread(p).SOPInstanceUID for p in [*a.iterdir(), *other.iterdir()]}
  assert len(uids) == 12
  assert all(len(uid) <= 64 and uid.is_valid for uid in uids)


def test_hu_that_do_not_fit_are_refused(tmp_path):
  with pytest.raises(ValueError, match='do not fit'):
    write(tmp_path / 'a', volume() * 1000)
  with pytest.raises(ValueError, match='grid'):
    write(tmp_path / 'b', volume((4, 5, 6)))
