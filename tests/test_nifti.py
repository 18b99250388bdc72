import errno
import gzip

import nibabel
import numpy as np
import pydicom
import pytest
import series

from covid3way import base
from covid3way.base import WarningKind
from covid3way.scans import dicom_geometry, nifti

# RAS: native axes run (to the back, to the head, to the left), 0.5, 2 and 1.5 mm.
RAS = np.array([[0, 0, -1.5, 10], [-0.5, 0, 0, 20], [0, 2, 0, -30], [0, 0, 0, 1.0]])
SHAPE = (4, 5, 6)


def values(shape=SHAPE):
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) * 10 - 1000


def save(path, array=None, affine=RAS, **header):
  array = values() if array is None else array
  image = nibabel.Nifti1Image(array, affine, dtype=array.dtype)
  image.set_qform(affine, code=1)
  for field, value in header.items():
    image.header[field] = value
  image.to_filename(path)
  return path


def grid():
  return base.Grid(SHAPE, np.diag([-1, -1, 1, 1]) @ RAS)


def read(path):
  return nifti.read_scan(path, scan_id='s1')


def refused(error, function, *words):
  with pytest.raises(error) as caught:
    function()
  assert type(caught.value) is error
  assert str(caught.value).startswith('s1: ')
  assert caught.value.remedy
  for word in words:
    assert word in str(caught.value)


# Known answers


@pytest.mark.parametrize('suffix', nifti.SUFFIXES)
def test_axes_by_hand(tmp_path, suffix):
  scan = read(save(tmp_path / f'a{suffix}'))
  assert scan.grid.native_shape == SHAPE
  assert scan.hu.shape == (6, 4, 5)  # left, back, head
  assert scan.grid.spacing_mm == (1.5, 0.5, 2.0)
  assert scan.hu[5, 1, 2] == values()[1, 2, 5]
  # R = 10 - 1.5 * 5 = 2.5 is L = -2.5; A = 20 - 0.5 is P = -19.5.
  np.testing.assert_allclose(scan.grid.affine @ [5, 1, 2, 1], [-2.5, -19.5, -26, 1])
  assert scan.hu.dtype == np.float32
  assert scan.hu.flags.c_contiguous
  assert scan.warnings == ()


def test_right_to_left_file_is_mirrored(tmp_path):
  """A RAS+ file, nibabel's canonical one: x and y run against ours."""
  scan = read(save(tmp_path / 'a.nii', affine=np.diag([1.0, 1, 1, 1])))
  np.testing.assert_array_equal(scan.hu, values()[::-1, ::-1])


def test_slope_and_intercept_are_honoured(tmp_path):
  image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(SHAPE), RAS)
  image.header.set_slope_inter(10, -1000)
  image.to_filename(tmp_path / 'a.nii.gz')
  stored = nibabel.load(tmp_path / 'a.nii.gz').dataobj.get_unscaled()
  scan = read(tmp_path / 'a.nii.gz')
  np.testing.assert_array_equal(scan.grid.to_native(scan.hu), stored * 10.0 - 1000)


def test_padding_is_clipped(tmp_path):
  array = values()
  array[0, 0, :3] = -3024
  scan = read(save(tmp_path / 'a.nii', array))
  assert scan.hu.min() == -1024
  assert [w.kind for w in scan.warnings] == [WarningKind.PADDING_CLIPPED]
  assert scan.warnings[0].message.startswith('2.5%')


@pytest.mark.parametrize('suffix', nifti.SUFFIXES)
@pytest.mark.parametrize('dtype', [np.float32, np.int16])
def test_padding_is_clipped_in_more_slices_than_are_read_at_once(
  tmp_path, suffix, dtype
):
  array = np.resize(values(), (4, 5, 40)).astype(dtype)
  array[0] = -3000
  scan = read(save(tmp_path / f'a{suffix}', array))
  np.testing.assert_array_equal(scan.grid.to_native(scan.hu), np.maximum(array, -1024))


def test_one_volume_in_four_dimensions_is_three(tmp_path):
  assert read(save(tmp_path / 'a.nii', values()[..., None])).hu.shape == (6, 4, 5)


def test_unknown_orientation_is_told(tmp_path):
  image = nibabel.Nifti1Image(values(), None)
  image.header.set_zooms((0.5, 2.0, 1.5))
  image.to_filename(tmp_path / 'a.nii')
  scan = read(tmp_path / 'a.nii')
  assert [w.kind for w in scan.warnings] == [WarningKind.ORIENTATION_ASSUMED]
  assert scan.grid.spacing_mm == (0.5, 2.0, 1.5)
  np.testing.assert_array_equal(scan.hu, values()[:, ::-1])  # as its message says


# Wrong inputs


def test_several_volumes(tmp_path):
  path = save(tmp_path / 'a.nii', np.stack([values()] * 2, axis=3))
  refused(base.GeometryError, lambda: read(path), '4 x 5 x 6 x 2', 'one 3-D volume')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path, value):
  array = values()
  array[1, 2, 3] = value
  path = save(tmp_path / 'a.nii.gz', array)
  refused(base.NonFiniteError, lambda: read(path), 'NaN or infinity')


@pytest.mark.parametrize(
  ('row', 'column', 'by'),
  [(1, 1, 2.5), (0, 0, 9.0)],
  ids=['two axes at once', 'past 45 degrees'],
)
def test_axes_sheared_otherwise_than_by_a_tilted_gantry(tmp_path, row, column, by):
  affine = RAS.copy()
  affine[row, column] += by
  if column:
    affine[0, 1], affine[1, 2] = 0.7, 0.5
  nibabel.Nifti1Image(values(), affine).to_filename(tmp_path / 'a.nii')
  refused(
    base.GeometryError, lambda: read(tmp_path / 'a.nii'), 'axes sheared by', 'resample'
  )


@pytest.mark.parametrize('suffix', nifti.SUFFIXES)
@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.95])
def test_file_cut_short(tmp_path, suffix, share):
  noise = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
  path = save(tmp_path / f'a{suffix}', noise)
  path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
  refused(base.DamagedFileError, lambda: read(path), path.name, 'again')


@pytest.mark.parametrize('name', ['a.nii.gz', 'A.NII.GZ'])
def test_another_checksum_than_the_compressed_file_says(tmp_path, name):
  noise = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
  data = bytearray(save(tmp_path / 'b.nii.gz', noise * 300 - 500).read_bytes())
  data[-6] ^= 0x10
  (tmp_path / name).write_bytes(data)
  refused(base.DamagedFileError, lambda: read(tmp_path / name), name)


@pytest.mark.parametrize('suffix', nifti.SUFFIXES)
def test_a_file_that_may_not_be_read_is_no_damaged_one(tmp_path, suffix, monkeypatch):
  path = save(tmp_path / f'a{suffix}')

  def refuse(*_, **__):
    raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr('io.open', refuse)  # Root may read anything.
  refused(base.InputError, lambda: read(path), 'may not be read', 'permissions')


def test_not_nifti(tmp_path):
  path = tmp_path / 'a.nii'
  path.write_bytes(b'hello' * 200)
  refused(base.DamagedFileError, lambda: read(path), 'no NIfTI')
  refused(base.InputError, lambda: read(tmp_path / 'b.nii'), 'no file b.nii')


def test_colours_metres_and_flat_images(tmp_path):
  rgb = np.zeros(SHAPE, [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
  path = save(tmp_path / 'a.nii', rgb)
  refused(base.GeometryError, lambda: read(path), 'one number')
  path = save(tmp_path / 'b.nii', xyzt_units=1)
  refused(base.GeometryError, lambda: read(path), 'meter', 'mm')
  path = save(tmp_path / 'c.nii', values((4, 5, 1)))
  refused(base.GeometryError, lambda: read(path), '4 x 5 x 1')


@pytest.mark.parametrize('size_mm', [0.0, 1e-9, 1e9, np.nan])
def test_voxel_sizes_of_nothing_real(tmp_path, size_mm):
  affine = RAS.copy()
  affine[2, 1] = size_mm
  image = nibabel.Nifti1Image(values(), RAS)
  image.header['sform_code'] = 1
  image.to_filename(tmp_path / 'a.nii')
  data = bytearray((tmp_path / 'a.nii').read_bytes())
  data[280:328] = affine[:3].astype('<f4').tobytes()  # srow_x, srow_y, srow_z
  (tmp_path / 'a.nii').write_bytes(data)
  refused(base.GeometryError, lambda: read(tmp_path / 'a.nii'), 'no usable voxel size')


@pytest.mark.parametrize('highest', [1.0, 255.0, 1e5])
def test_values_that_are_no_hu(tmp_path, highest):
  array = np.linspace(0, highest, 120, dtype=np.float32).reshape(SHAPE)
  words = {1.0: 'windowed', 255.0: 'windowed', 1e5: 'negative numbers'}[highest]
  path = save(tmp_path / 'a.nii', array)
  refused(base.SignalError, lambda: read(path), words, 'domain')
  assert nifti.read_scan(path, scan_id='s1', domain='mr').hu.max() == highest


# Masks


def mask_values():
  return (np.arange(120).reshape(SHAPE) % 3).astype(np.uint8)


def read_mask(path):
  return nifti.read_mask(path, grid(), scan_id='s1')


def test_mask_lies_on_its_scan(tmp_path):
  mask = read_mask(save(tmp_path / 'm.nii.gz', mask_values()))
  assert mask.dtype == np.uint8
  np.testing.assert_array_equal(mask, grid().to_lps(mask_values()))


def test_mask_in_another_voxel_order_is_turned(tmp_path):
  image = nibabel.Nifti1Image(mask_values(), RAS)
  nibabel.as_closest_canonical(image).to_filename(tmp_path / 'm.nii')
  assert nibabel.load(tmp_path / 'm.nii').shape == (6, 4, 5)
  np.testing.assert_array_equal(
    read_mask(tmp_path / 'm.nii'), grid().to_lps(mask_values())
  )


def test_mask_elsewhere(tmp_path):
  path = save(tmp_path / 'm.nii', mask_values()[:, :, :5])
  found = '5 x 4 x 5 voxels', 'the scan is 6 x 4 x 5 voxels'
  refused(base.MaskGridError, lambda: read_mask(path), *found, 'resample')
  moved = RAS.copy()
  moved[2, 3] += 2
  path = save(tmp_path / 'm.nii', mask_values(), moved)
  refused(base.MaskGridError, lambda: read_mask(path), '-28.00', '-30.00')
  path = save(tmp_path / 'm.nii', mask_values(), RAS @ np.diag([1, 1.02, 1, 1]))
  refused(base.MaskGridError, lambda: read_mask(path), '2.040', '2.000')


@pytest.mark.parametrize('value', [0.5, -1, 256, np.nan])
def test_mask_of_other_than_labels(tmp_path, value):
  array = mask_values().astype(np.float32)
  array[0, 0, 0] = value
  path = save(tmp_path / 'm.nii', array)
  refused(base.InputError, lambda: read_mask(path), 'whole numbers')


# Writing


@pytest.mark.parametrize('name', ['v.nii', 'v.nii.gz'])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_written_volume_has_shape_and_affine_of_the_scan(tmp_path, name, dtype):
  volume = grid().to_lps(mask_values())
  nifti.write_volume(tmp_path / name, volume, grid(), dtype=dtype)
  image = nibabel.load(tmp_path / name)
  assert image.shape == SHAPE
  assert image.get_data_dtype() == dtype
  np.testing.assert_array_equal(np.asarray(image.dataobj), mask_values())
  np.testing.assert_array_equal(image.affine, RAS)
  np.testing.assert_allclose(image.get_qform(), RAS, atol=1e-5)
  assert image.header.get_xyzt_units()[0] == 'mm'
  assert [p.name for p in tmp_path.iterdir()] == [name]
  np.testing.assert_array_equal(read_mask(tmp_path / name), volume)


def test_same_input_same_bytes(tmp_path, monkeypatch):
  names = ['a.nii.gz', 'b.nii.gz']
  for k, name in enumerate(names):
    monkeypatch.setattr('time.time', lambda k=k: 1e9 + 1000 * k)
    nifti.write_volume(tmp_path / name, values((6, 4, 5)), grid(), dtype=np.float32)
  a, b = ((tmp_path / name).read_bytes() for name in names)
  assert a == b
  assert len(gzip.decompress(a)) == 352 + 120 * 4


# Real scans


def test_real_lung_mask_lies_on_its_scan():
  folder = series.real('lung1-003')
  paths = sorted((folder / 'ct').glob('*.dcm'))  # numbered from the feet
  headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in paths]
  planes = [dicom_geometry.plane(header) for header in headers]
  order, grid, _ = dicom_geometry.stack(planes, scan_id='s1')
  assert list(order) == list(range(107))
  mask = nifti.read_mask(folder / 'lungs.nii.gz', grid, scan_id='s1')[:, :, 50]
  middle = pydicom.dcmread(paths[50])
  hu = middle.pixel_array.T * float(middle.RescaleSlope) + middle.RescaleIntercept
  assert np.median(hu[mask > 0]) < -700
  left, right = (np.nonzero(mask == label)[0].mean() for label in (1, 2))
  assert left > right  # x grows to the left
