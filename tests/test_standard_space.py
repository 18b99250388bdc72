"""The standard space: known answers, a direct float64 reference, the way back."""

import numpy as np
import pytest

from covid3way.base import AIR_HU, Window
from covid3way.standard import resample, space, window

LUNG = Window(-600.0, 1200.0, 'test')


def smooth_volume(shape, seed=0):
  """A body of tissue and lung with texture, HU; air at the border."""
  rng = np.random.default_rng(seed)
  axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij')
  body = np.sqrt(sum(a**2 for a in axes)) < 0.85
  hu = np.where(body, -300 + 400 * np.sin(6 * axes[0]) * np.cos(5 * axes[1]), AIR_HU)
  return (hu + body * rng.normal(0, 60, shape)).astype(np.float32)


def lanczos_at(hu, point, widen):
  """Direct 3D Lanczos sum at one own-grid point of air-padded `hu`, float64."""
  total = norm = 0.0
  reach = [int(np.ceil(4 * w)) for w in widen]
  ranges = [
    range(int(np.floor(p)) - r, int(np.floor(p)) + r + 2)
    for p, r in zip(point, reach, strict=True)
  ]
  kernels = []
  for p, w, taps in zip(point, widen, ranges, strict=True):
    t = (np.array(taps) - p) / w
    inside = np.abs(t) < 4
    tt = np.where(t == 0, 1, t) * np.pi
    k = np.where(t == 0, 1.0, 4 * np.sin(tt) * np.sin(tt / 4) / tt**2)
    kernels.append(k * inside)
  for i, a in zip(ranges[0], kernels[0], strict=True):
    for j, b in zip(ranges[1], kernels[1], strict=True):
      for k, c in zip(ranges[2], kernels[2], strict=True):
        inside = all(0 <= q < n for q, n in zip((i, j, k), hu.shape, strict=True))
        total += a * b * c * (float(hu[i, j, k]) if inside else AIR_HU)
        norm += a * b * c
  return total / norm


@pytest.mark.parametrize(
  'own_spacing_mm', [(0.7, 0.7, 2.0), (0.5, 0.6, 8.0), (8.0, 7.0, 20.0)]
)
def test_signal_equals_direct_lanczos_to_a_thousandth(own_spacing_mm):
  hu = smooth_volume((48, 44, 20))
  # At 334/512 mm and 1 mm the window of the space shows the scan's middle or corner.
  standard = space.StandardSpace((512, 512, 512))
  if own_spacing_mm[0] > 1:
    standard = space.StandardSpace((40, 40, 40))
  placement = space.place(hu.shape, own_spacing_mm, standard)
  signal = np.asarray(space.cast_signal(hu, placement, LUNG))
  assert signal.shape == standard.shape and signal.dtype == np.float32
  rng = np.random.default_rng(1)
  widen = [
    max(s / o, 1) for s, o in zip(standard.spacing_mm, own_spacing_mm, strict=True)
  ]
  for _ in range(60):
    own = [rng.uniform(-2, n + 1) for n in hu.shape]
    voxel = [round(float(placement.to_standard(a, own[a]))) for a in range(3)]
    voxel = [
      int(np.clip(v, 0, n - 1)) for v, n in zip(voxel, standard.shape, strict=True)
    ]
    point = [float(placement.to_own(a, voxel[a])) for a in range(3)]
    expected = (lanczos_at(hu, point, widen) - LUNG.level_hu) / LUNG.width_hu
    assert abs(signal[tuple(voxel)] - expected) < 1e-3


def test_far_outside_the_scan_lies_exactly_air():
  hu = np.full((10, 10, 10), 40, np.float32)
  placement = space.place(hu.shape, (2.0, 2.0, 2.0), space.StandardSpace((32, 32, 32)))
  signal = np.asarray(space.cast_signal(hu, placement, LUNG))
  air = (AIR_HU + 600) / 1200
  assert signal[0, 0, 0] == pytest.approx(air, abs=1e-6)
  # A scan narrower than one coarse voxel column still averages with the air around.
  assert air < signal[16, 16, 16] <= (40 + 600) / 1200


def test_a_linear_ramp_stays_that_ramp_in_mm():
  spacing = (1.5, 2.0, 3.0)
  x, y, z = np.meshgrid(*[np.arange(60.0)] * 3, indexing='ij')
  hu = (x * 1.5 + 2 * y * 2.0 - z * 3.0).astype(np.float32)
  standard = space.StandardSpace((167, 167, 256))
  placement = space.place(hu.shape, spacing, standard)
  signal = np.asarray(space.cast_signal(hu, placement, Window(0.0, 1.0, 'unit')))
  voxel = np.array([80, 85, 130])
  mm = [placement.to_own(a, voxel[a]) * spacing[a] for a in range(3)]
  assert signal[tuple(voxel)] == pytest.approx(mm[0] + 2 * mm[1] - mm[2], abs=0.05)


def test_constant_body_has_no_ripple_inside():
  weights = resample.axis_weights(resample.lanczos, 100, 73, scale=1.3, first=2.1)
  np.testing.assert_allclose(weights[6:-6].matrix().sum(axis=1), 1, atol=1e-6)


def test_the_space_is_centred_on_the_lungs_else_on_the_scan():
  lungs = np.zeros((50, 40, 30), bool)
  lungs[10:21, 5:16, 20:27] = True
  standard = space.StandardSpace((33, 33, 33))
  on_scan = space.place(lungs.shape, (1, 1, 1), standard)
  placed = space.place(lungs.shape, (1, 1, 1), standard, lungs)
  assert on_scan.centre_voxel == (24.5, 19.5, 14.5)
  assert placed.centre_voxel == (15, 10, 23)
  np.testing.assert_allclose(placed.to_own(2, placed.to_standard(2, 7.3)), 7.3)


def test_lung_outside_the_box_is_measured_in_ml():
  lungs = np.ones((10, 10, 10), bool)
  placement = space.place((10, 10, 10), (50.0, 10.0, 10.0), space.StandardSpace())
  # 334 mm hold the centres at -225 ... 225 mm only for |x| <= 167: six of ten columns.
  assert space.outside_ml(lungs, placement) == pytest.approx(4 * 100 * 5.0)
  inside = space.place((10, 10, 10), (5.0, 5.0, 5.0), space.StandardSpace())
  assert space.outside_ml(lungs, inside) == 0


@pytest.mark.parametrize(
  'spacing_mm,shape',
  [((0.8, 0.8, 2.0), (200, 180, 70)), ((0.6, 0.6, 8.0), (220, 220, 20))],
)
def test_mask_comes_back_binary_and_nearly_equal(spacing_mm, shape):
  mm = np.meshgrid(
    *[(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing_mm, strict=True)],
    indexing='ij',
  )
  mask = (mm[0] / 60) ** 2 + (mm[1] / 50) ** 2 + (mm[2] / 65) ** 2 < 1
  placement = space.place(shape, spacing_mm, space.StandardSpace((256, 256, 512)), mask)
  cast = space.cast_mask(mask, placement)
  back = space.return_mask(cast, placement)
  assert cast.dtype == back.dtype == bool and back.shape == mask.shape
  assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) >= 0.98
  assert mask.sum() == np.count_nonzero(mask)


def dense_weights(kernel, half_width, n_in, n_out, *, scale, first):
  """(n_out, n_in) float64: the kernel at every input, over its sum without ends."""
  widen = max(scale, 1.0)
  position = first + scale * np.arange(n_out)
  far = int(np.ceil(half_width * widen)) + int(np.abs(position).max()) + 2
  every = kernel((np.arange(-far, n_in + far) - position[:, None]) / widen)
  return every[:, far : far + n_in] / every.sum(axis=1, keepdims=True)


def resampled(volume, weights, **options):
  """The whole result, put together from slabs."""
  result = np.full([len(w) for w in weights], 0, np.float32)

  def write(planes, weights):
    region, values = resample.apply(volume, weights, **options)
    result[planes][region] = values

  resample.in_slabs(write, weights)
  return result


AXES = {
  'finer': ((50, 0.6, 3.3), (41, 0.45, -2.0), (33, 0.9, 0.5)),
  'coarser': ((19, 3.7, -1.0), (23, 1.6, 2.0), (9, 5.5, 4.0)),
  'mixed, beyond both ends': ((90, 0.93, -17.0), (70, 1.2, -9.0), (37, 2.0, -31.0)),
  'nothing of it': ((20, 1.0, 200.0), (20, 1.0, 0.0), (20, 1.0, 0.0)),
}


@pytest.mark.parametrize('name', AXES)
@pytest.mark.parametrize('kernel', [(resample.lanczos, 4), (resample.triangle, 1)])
def test_bands_do_what_dense_float64_matrices_do(name, kernel):
  volume = np.random.default_rng(0).uniform(-1, 1, (53, 47, 39)).astype(np.float32)
  volume[:20], volume[:, 30:], volume[:, :, :11] = 0, 0, 0  # Is left out.
  known = [
    (n_in, n_out, {'scale': scale, 'first': first})
    for n_in, (n_out, scale, first) in zip(volume.shape, AXES[name], strict=True)
  ]
  dense = [dense_weights(*kernel, *sizes, **at) for *sizes, at in known]
  expected = np.einsum('xyz,ix,jy,kz', volume.astype(float), *dense, optimize=True)
  banded = tuple(resample.axis_weights(kernel[0], *sizes, **at) for *sizes, at in known)
  got = resampled(volume, banded)
  np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)
  assert (got == 0).any() and (name == 'nothing of it') == (not got.any())
  # Relative to another value, and of a part of the output alone.
  above = resampled(volume + 5, banded, outside=5)
  np.testing.assert_allclose(above, expected, atol=5e-6, rtol=0)
  part = slice(3, 18), slice(0, 0), slice(5, None)
  for region in (part, (part[0], slice(7, 11), part[2])):
    some = tuple(w[r] for w, r in zip(banded, region, strict=True))
    np.testing.assert_allclose(resampled(volume, some), expected[region], atol=1e-6)


@pytest.mark.parametrize('dtype', [bool, np.uint8, np.int16, np.float16, np.float64])
def test_numbers_of_any_kind_are_resampled_in_float32(dtype):
  volume = np.random.default_rng(0).uniform(0, 2, (9, 8, 7)).astype(dtype)
  weights = tuple(
    resample.axis_weights(resample.triangle, n, 12, scale=n / 12, first=-0.2)
    for n in volume.shape
  )
  got = resampled(volume, weights)
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, resampled(volume.astype(np.float32), weights))


def test_an_error_in_a_slab_is_raised():
  weights = (resample.axis_weights(resample.triangle, 40, 40, scale=1, first=0),) * 3

  def work(planes, weights):
    if planes.start:
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    resample.in_slabs(work, weights)


def test_sides_that_touch_have_no_seam_and_each_its_half():
  """On a finer grid the plane between them is cut, and nothing is lost there."""
  lungs = np.zeros((20, 12, 12), np.uint8)
  lungs[2:10, 3:9, 3:9], lungs[10:18, 3:9, 3:9] = 2, 1
  placement = space.place(lungs.shape, (20.0, 20.0, 20.0), space.StandardSpace())
  sides = space.cast_sides(lungs, placement)
  assert sides.dtype == np.uint8
  np.testing.assert_array_equal(sides > 0, space.cast_mask(lungs > 0, placement))
  middle = placement.to_standard(0, 9.5)
  x = np.arange(len(sides))[:, None, None]
  np.testing.assert_array_equal(sides == 1, (sides > 0) & (x > middle))
  np.testing.assert_array_equal(sides == 2, (sides > 0) & (x < middle))


def test_normalise_is_eq_1_unclipped():
  assert space.normalise(-600.0, LUNG) == 0
  assert space.normalise(3000.0, LUNG) == 3
  assert space.normalise(-1200.0, LUNG) == -0.5


MEDIASTINAL, TAG = Window(40, 350, 'dicom tag'), Window(-500, 1500, 'dicom tag')


@pytest.mark.parametrize(
  'manifest,scanner,tags,expected',
  [
    (Window(-400, 1400, 'manifest'), 'a', [TAG], (-400, 1400, 'manifest')),
    (None, 'a', [TAG], (-550, 1500, 'scanner table')),
    (None, '', [MEDIASTINAL, TAG], (-500, 1500, 'dicom tag')),
    (None, 'unknown', [MEDIASTINAL], (-600, 1200, 'default')),
    (None, '', [], (-600, 1200, 'default')),
  ],
)
def test_window_order(manifest, scanner, tags, expected):
  chosen, warnings = window.choose_window(
    manifest=manifest,
    scanner=scanner,
    scanners={'a': (-550, 1500)},
    tags=tags,
    default=(-600, 1200),
  )
  assert (chosen.level_hu, chosen.width_hu, chosen.source) == expected
  assert bool(warnings) == (expected[2] == 'default')
