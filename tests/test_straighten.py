"""Tilted gantries and uneven slices: every voxel keeps its place in the patient."""

import json
import tracemalloc

import nibabel
import numpy as np
import pytest
import series

from covid3way import base
from covid3way.base import WarningKind
from covid3way.scans import dicom, dicom_geometry, nifti, straighten

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
ORIENTATIONS = {
  'supine': series.SUPINE,
  'prone': series.PRONE,
  'feet first': series.FEET_FIRST,
  'coronal': series.CORONAL,
  'sagittal': series.SAGITTAL,
}
EVEN = np.arange(9) * 2.0
UNEVEN = {
  'zones': np.cumsum([0, 1, 1, 1, 1, 3, 3, 3, 3]),
  'growing': EVEN + 0.03 * np.arange(9) ** 2,
  'ragged': np.cumsum([0, 2.0, 2.6, 1.9, 2.4, 1.8, 2.5, 2.1, 1.7]),
}


def shifts(along_mm, rows=0.0, columns=0.0):
  """(slices, 3): sideways mm per mm along the normal."""
  along_mm = np.asarray(along_mm, float)
  return np.stack([rows * along_mm, columns * along_mm, along_mm], axis=1)


def read(folder, along_mm, rows=0.0, columns=0.0, orientation=series.SUPINE, **more):
  """A series of the known function of the world, 0.05 HU fine."""
  datasets = series.slices(
    orientation,
    shape=(9, 11, len(along_mm)),
    origin_mm=(-10, 8 if orientation == series.PRONE else -8, -30),
    shifts_mm=shifts(along_mm, rows, columns),
    slope=0.05,
    intercept=0,
    signed=True,
    **more,
  )
  scan = dicom.read_series(series.write(folder, datasets), scan_id='s1')
  return scan, datasets


def kinds(scan):
  return [warning.kind for warning in scan.warnings]


def world_of(grid):
  index = np.moveaxis(np.indices(grid.shape), 0, -1)
  return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def assert_in_place(scan, datasets):
  """Voxels inside of slices hold the function; those beyond all slices are air."""
  world = world_of(scan.grid).reshape(-1, 3)
  hu = scan.hu.ravel()
  right = np.abs(hu - series.hu_at(world)) < 0.1
  first = datasets[0]
  positions = np.array([d.ImagePositionPatient for d in datasets], float)
  row, column = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
  normal = np.cross(row, column)
  along = (world - positions[0]) @ normal
  place = [
    np.interp(along, (positions - positions[0]) @ normal, p) for p in positions.T
  ]
  apart = world - np.stack(place, axis=1)
  u, v = apart @ row / first.PixelSpacing[1], apart @ column / first.PixelSpacing[0]
  size = first.Columns - 1, first.Rows - 1
  # By four taps, and between slices that lean by half a voxel on each other.
  inside = (u >= 1.5) & (u <= size[0] - 1.5) & (v >= 1.5) & (v <= size[1] - 1.5)
  outside = (u < -2) | (u > size[0] + 2) | (v < -2) | (v > size[1] + 2)
  assert inside.sum() > 200
  assert right[inside].all()
  np.testing.assert_allclose(hu[outside], base.AIR_HU, atol=1e-3)
  return outside


@pytest.mark.parametrize('orientation', ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize('lean', [(0, 0.3), (0, -0.57), (0.4, 0), (0.2, -0.3)])
def test_tilted_slices_stand_upright(tmp_path, orientation, lean):
  scan, datasets = read(tmp_path, EVEN, *lean, orientation=orientation)
  assert assert_in_place(scan, datasets).any()
  assert kinds(scan) == [WarningKind.TILT_CORRECTED]
  degrees = np.degrees(np.arctan(np.hypot(*lean)))
  assert f'{degrees:.1f} degrees' in scan.warnings[0].message
  directions = scan.grid.affine[:3, :3] / scan.grid.spacing_mm
  np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
  np.testing.assert_allclose(np.sort(scan.grid.spacing_mm), [1, 2, 2])


def test_tilt_by_hand(tmp_path):
  """0.75 mm back per slice of 2 mm, rows of 2 mm: 6 mm in all, three rows more."""
  scan, _ = read(tmp_path, EVEN, columns=0.375)
  acquired = scan.grid.acquired
  assert scan.grid.native_shape == (9, 14, 9)
  assert acquired.shape == (9, 11, 9)
  np.testing.assert_allclose(
    acquired.affine,
    [[1, 0, 0, -10], [0, 2, 0.75, -8], [0, 0, 2, -30], [0, 0, 0, 1]],
    atol=1e-9,
  )
  expected = np.stack([0 * EVEN, 0.375 * np.arange(9), np.arange(9)], axis=1)
  np.testing.assert_allclose(acquired.places, expected, atol=1e-9)


@pytest.mark.parametrize('along', UNEVEN.values(), ids=UNEVEN)
@pytest.mark.parametrize('lean', [(0, 0), (0, 0.3)])
def test_uneven_slices_are_made_even(tmp_path, along, lean):
  scan, datasets = read(tmp_path, along, *lean)
  assert_in_place(scan, datasets)
  evened, stored = WarningKind.SPACING_EVENED, WarningKind.GRID_NOT_STORED
  tilted = [WarningKind.TILT_CORRECTED] if any(lean) else []
  assert kinds(scan) == [*tilted, evened, stored]
  gaps = np.diff(along)
  assert f'{gaps.min():.2f} and {gaps.max():.2f} mm' in scan.warnings[-2].message
  assert scan.grid.acquired.affine is None
  ends = (
    scan.grid.affine[2, 3]
    + np.array([0, scan.grid.shape[2] - 1]) * (scan.grid.spacing_mm[2])
  )
  np.testing.assert_allclose(ends, [-30, -30 + along[-1]], atol=1e-6)


def test_the_finest_zone_gives_the_increment(tmp_path):
  scan, _ = read(tmp_path, UNEVEN['zones'])
  assert scan.grid.spacing_mm[2] == 1.0
  assert scan.grid.shape[2] == 17


def test_slices_go_back_to_where_they_were_acquired(tmp_path):
  """A volume of the known function is, at each stored slice, what was stored."""
  for name, along in {'tilted': EVEN, **UNEVEN}.items():
    scan, datasets = read(tmp_path / name, along, columns=0.3)
    native = scan.grid.to_native(series.hu_at(world_of(scan.grid)))
    back = straighten.to_acquired(native, scan.grid, labels=False)
    stored = np.stack([d.pixel_array.T * 0.05 for d in datasets], axis=2)
    assert back.shape == stored.shape
    # The function is linear: only rounding to 0.05 HU and to 1e-6 mm is in between.
    np.testing.assert_allclose(back, stored, atol=0.1)


@pytest.mark.parametrize(
  ('gaps', 'missing'),
  [
    ([2, 2, 4, 2, 2, 2], True),
    ([2, 2, 2, 2, 4], True),  # beside the last slice
    ([2, 2, 2, 6, 2, 2, 2], True),
    ([2, 2, 4, 4, 2, 2, 2], True),  # every other slice of a few
    ([1, 1, 1, 4, 4, 4], False),
    ([1, 3, 1, 3, 1, 3, 1, 3], False),
    ([1, 1, 4] * 5, False),
    ([2, 2.3, 2.6, 3, 3.4], False),
  ],
)
def test_which_gap_is_a_missing_slice(gaps, missing):
  along = np.cumsum([0, *gaps])
  planes = [dicom_geometry.plane(d) for d in slices_at(shifts(along))]
  if missing:
    with pytest.raises(base.MissingSliceError, match='a gap of'):
      dicom_geometry.stack(planes, scan_id='s1')
  else:
    (first, _) = dicom_geometry.stack(planes, scan_id='s1').warnings
    assert first.kind == WarningKind.SPACING_EVENED


def slices_at(shifts_mm):
  return series.slices(shape=(3, 3, len(shifts_mm)), shifts_mm=shifts_mm)


def test_a_grid_stays_within_bounds_however_close_some_slices_are():
  along = [0, 2.1, 4.2, 6.3, 56, 106, 156, 206]
  planes = [dicom_geometry.plane(d) for d in slices_at(shifts(along))]
  grid = dicom_geometry.stack(planes, scan_id='s1').grid
  assert grid.native_shape[2] == 3 * len(along) + 1


def test_a_few_slices_close_together_do_not_set_the_increment():
  along = np.r_[0:300:1.0, 300:300.9:0.2, 301:600:1.0]
  planes = [dicom_geometry.plane(d) for d in slices_at(shifts(along))]
  grid = dicom_geometry.stack(planes, scan_id='s1').grid
  assert grid.native_shape[2] == 600


def test_slices_that_lie_anyhow_are_refused():
  sideways = shifts(EVEN, columns=0.3)
  sideways[4, 0] += 2.0
  steep = shifts(EVEN, columns=1.1)
  for moved, words in ((sideways, 'off a line'), (steep, '47.7 degrees')):
    planes = [dicom_geometry.plane(d) for d in slices_at(moved)]
    with pytest.raises(base.GeometryError, match=words):
      dicom_geometry.stack(planes, scan_id='s1')


def test_slices_strewn_far_apart_are_refused_before_memory_is(tmp_path):
  datasets = slices_at(shifts(EVEN * 1000, columns=0.9))
  planes = [dicom_geometry.plane(d) for d in datasets]
  with pytest.raises(base.GeometryError, match='so far apart'):
    dicom_geometry.stack(planes, scan_id='s1')
  affine = np.diag([1.0, 0.002, 800.0, 1.0])
  affine[1, 2] = 400.0
  path = sheared_file(tmp_path / 'a.nii', blobs((9, 9, 9)), affine)
  with pytest.raises(base.GeometryError, match='so far apart'):
    nifti.read_volume(path, scan_id='s1')


# Masks and NIfTI


def sheared_file(path, array, affine_lps):
  image = nibabel.Nifti1Image(array, LPS_TO_RAS @ affine_lps)
  image.set_sform(LPS_TO_RAS @ affine_lps, code=1)
  image.set_qform(None)
  image.to_filename(path)
  return path


def blobs(shape):
  rng = np.random.default_rng(0)
  return rng.integers(0, 3, shape).astype(np.uint8)


@pytest.mark.parametrize('lean', [(0, 0.3), (0.31, -0.57)])
@pytest.mark.parametrize('orientation', ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_a_mask_of_tilted_slices_goes_there_and_back(tmp_path, lean, orientation):
  scan, _ = read(tmp_path / 'ct', EVEN, *lean, orientation=orientation)
  acquired = scan.grid.acquired
  drawn = blobs(acquired.shape)
  path = sheared_file(tmp_path / 'm.nii.gz', drawn, acquired.affine)
  mask = nifti.read_mask(path, scan.grid, scan_id='s1')
  assert mask.shape == scan.hu.shape
  nifti.write_volume(tmp_path / 'back.nii.gz', mask, scan.grid, dtype=np.uint8)
  back = nibabel.load(tmp_path / 'back.nii.gz')
  np.testing.assert_array_equal(np.asarray(back.dataobj), drawn)
  np.testing.assert_allclose(back.affine, LPS_TO_RAS @ acquired.affine, atol=1e-5)
  assert (int(back.header['qform_code']), int(back.header['sform_code'])) == (0, 1)
  # Voxel by voxel it lies where it was drawn, to half a voxel.
  for label in (1, 2):
    there = np.c_[np.argwhere(drawn == label), np.ones((drawn == label).sum())]
    there = there @ acquired.affine[:3].T
    here = world_of(scan.grid)[mask == label]
    apart = np.linalg.norm(there[:, None] - here[None], axis=2)
    assert apart.min(axis=1).max() <= np.linalg.norm([0.5, 1]) + 1e-6


def test_a_mask_in_another_voxel_order_fits_tilted_slices(tmp_path):
  scan, _ = read(tmp_path / 'ct', EVEN, columns=0.3)
  drawn, acquired = blobs(scan.grid.acquired.shape), scan.grid.acquired
  path = sheared_file(tmp_path / 'm.nii', drawn, acquired.affine)
  image = nibabel.as_closest_canonical(nibabel.load(path))
  assert not np.array_equal(np.asarray(image.dataobj), drawn)
  image.to_filename(tmp_path / 'turned.nii')
  np.testing.assert_array_equal(
    nifti.read_mask(tmp_path / 'turned.nii', scan.grid, scan_id='s1'),
    nifti.read_mask(path, scan.grid, scan_id='s1'),
  )


def test_a_mask_on_the_upright_grid_is_taken_as_it_is(tmp_path):
  scan, _ = read(tmp_path / 'ct', EVEN, columns=0.3)
  native = blobs(scan.grid.native_shape)
  affine = LPS_TO_RAS @ scan.grid.native_affine
  nibabel.Nifti1Image(native, affine).to_filename(tmp_path / 'm.nii')
  mask = nifti.read_mask(tmp_path / 'm.nii', scan.grid, scan_id='s1')
  np.testing.assert_array_equal(mask, scan.grid.to_lps(native))
  elsewhere = nibabel.Nifti1Image(native[:-1], affine)
  elsewhere.to_filename(tmp_path / 'n.nii')
  with pytest.raises(base.MaskGridError, match='9 x 11 x 9 voxels'):
    nifti.read_mask(tmp_path / 'n.nii', scan.grid, scan_id='s1')


def test_outputs_of_uneven_slices_lie_on_the_even_grid(tmp_path):
  scan, _ = read(tmp_path / 'ct', UNEVEN['zones'])
  nifti.write_volume(tmp_path / 'v.nii', scan.hu, scan.grid, dtype=np.float32)
  image = nibabel.load(tmp_path / 'v.nii')
  assert image.shape == scan.grid.native_shape
  affine = LPS_TO_RAS @ scan.grid.native_affine
  np.testing.assert_allclose(image.affine, affine, atol=1e-5)
  again = nifti.read_mask(
    sheared_file(tmp_path / 'm.nii', blobs(image.shape), scan.grid.native_affine),
    scan.grid,
    scan_id='s1',
  )
  np.testing.assert_array_equal(again, scan.grid.to_lps(blobs(image.shape)))


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('by', [0.7, -0.8])
def test_sheared_nifti_stands_upright(tmp_path, axis, by):
  """Slices along any axis of the file, and shifted along both others."""
  affine = np.diag([1.0, 1.5, 2.0, 1.0])
  others = [a for a in range(3) if a != axis]
  affine[others[0], axis], affine[others[1], axis] = by, 0.4
  affine[:3, 3] = [-10, -8, -30]
  index = np.moveaxis(np.indices((9, 10, 11)), 0, -1)
  world = index @ affine[:3, :3].T + affine[:3, 3]
  hu = series.hu_at(world).astype(np.float32) - 150
  path = sheared_file(tmp_path / 'ct.nii.gz', hu, affine)
  scan = nifti.read_scan(path, scan_id='s1')
  assert kinds(scan) == [WarningKind.TILT_CORRECTED]
  stored = np.linalg.solve(
    affine[:3, :3], (world_of(scan.grid) - affine[:3, 3]).reshape(-1, 3).T
  ).T
  inside = ((stored >= 1) | (np.arange(3) == axis)).all(axis=1)
  inside &= (stored <= np.array(hu.shape) - 2 + (np.arange(3) == axis)).all(axis=1)
  expected = series.hu_at(world_of(scan.grid)).ravel() - 150
  assert inside.sum() > 300
  np.testing.assert_allclose(scan.hu.ravel()[inside], expected[inside], atol=0.01)
  outside = ((stored < -2) | (stored > np.array(hu.shape) + 1)).any(axis=1)
  np.testing.assert_allclose(scan.hu.ravel()[outside], base.AIR_HU, atol=1e-3)

  drawn = blobs(hu.shape)
  drawn_path = sheared_file(tmp_path / 'm.nii.gz', drawn, affine)
  mask = nifti.read_mask(drawn_path, scan.grid, scan_id='s1')
  nifti.write_volume(tmp_path / 'back.nii', mask, scan.grid, dtype=np.uint8)
  back = nibabel.load(tmp_path / 'back.nii')
  np.testing.assert_array_equal(np.asarray(back.dataobj), drawn)
  np.testing.assert_allclose(back.affine, LPS_TO_RAS @ affine, atol=1e-5)


def test_slabs_of_tilted_slices_join(tmp_path, monkeypatch):
  """Written three slices at a time, or all at once: the same file."""
  for axis in range(3):
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[(axis + 1) % 3, axis] = affine[(axis + 2) % 3, axis] = 0.4
    hu = np.linspace(-1000, 400, 9 * 10 * 11, dtype=np.float32).reshape(9, 10, 11)
    path = sheared_file(tmp_path / 'ct.nii', hu, affine)
    scan = nifti.read_scan(path, scan_id='s1')
    for count in (3, 32):
      monkeypatch.setattr(nifti, '_SLAB_SLICES', count)
      for dtype in (np.uint8, np.float32, np.int16):
        name = f'{np.dtype(dtype)}-{count}.nii'
        nifti.write_volume(tmp_path / name, scan.hu, scan.grid, dtype=dtype)
    for dtype in ('uint8', 'float32', 'int16'):
      three, whole = (tmp_path / f'{dtype}-{n}.nii' for n in (3, 32))
      assert three.read_bytes() == whole.read_bytes()


# As stored in the scan's group


@pytest.mark.parametrize('along', [EVEN, UNEVEN['zones']], ids=['tilted', 'uneven'])
def test_a_grid_is_json_and_back(tmp_path, along):
  grid = read(tmp_path, along, columns=0.3)[0].grid
  again = base.Grid.from_json(json.loads(json.dumps(grid.to_json())))
  assert again.native_shape == grid.native_shape
  assert again.acquired.shape == grid.acquired.shape
  np.testing.assert_array_equal(again.native_affine, grid.native_affine)
  np.testing.assert_array_equal(again.acquired.places, grid.acquired.places)
  assert (again.acquired.affine is None) == (grid.acquired.affine is None)
  plain = base.Grid((2, 3, 4), np.eye(4))
  assert plain.to_json()['acquired'] is None
  older = {'native_shape': [2, 3, 4], 'native_affine_lps': np.eye(4).tolist()}
  assert base.Grid.from_json(older).acquired is None


def test_a_tilted_volume_needs_little_more_memory_than_itself():
  shape = (64, 64, 200)
  positions = np.outer(np.arange(200), [0, 0.3, 1.0])
  grid = straighten.lay(
    shape, np.eye(3)[:, :2], positions, np.arange(200), 1.0, affine=None, still_mm=0.1
  )
  slices = (np.full(shape[:2], k, np.float32) for k in range(200))
  result = np.empty(grid.native_shape, np.float32)
  tracemalloc.start()
  straighten.place_slices(slices, grid, result, fill=0.0)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 0.4 * result.nbytes
  for k in (0, 100, 199):
    assert result[32, round(0.3 * k) + 30, k] == k


def test_source_slices_are_those_that_were_read(tmp_path):
  _, datasets = read(tmp_path, EVEN, columns=0.3, PatientName='Doe^Jane')
  found = dicom.source_slices(tmp_path, scan_id='s1')
  assert [header.SOPInstanceUID for header, _ in found] == [
    dataset.SOPInstanceUID for dataset in datasets
  ]
  assert {frame for _, frame in found} == {0}
  assert found[0][0].PatientName == 'Doe^Jane'
  assert 'PixelData' not in found[0][0]


@pytest.mark.parametrize('axes', [(0, 1, 2), (2, 0, 1)])
def test_slices_first_is_the_order_of_a_file(axes):
  volume = np.arange(70 * 33 * 5, dtype=np.float32).reshape(70, 33, 5).transpose(axes)
  turned = straighten.slices_first(volume[::-1], np.uint16)
  assert turned.dtype == np.uint16 and turned.flags.c_contiguous
  expected = volume[::-1].astype(np.uint16).tobytes(order='F')
  assert turned.tobytes() == expected
