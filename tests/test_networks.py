"""Networks of the compared methods: sizes, layers, locality, gradients, stages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import hurried
from jax import lax

from covid3way.networks import dense_unet, layers, unet3d
from covid3way.networks.dense_unet import HDenseUNet
from covid3way.networks.unet import UNet
from covid3way.networks.unet3d import UNet3D
from covid3way.networks.vnet3d import VNet3D

HYBRID = HDenseUNet((4, 3, 2, 4), (1, 2, 1, 1), (1, 1, 1, 1))
TINY = {
  'unet_3d': (UNet3D((4, 8)), (2, 4, 4, 8, 1)),
  'vnet_3d': (VNet3D((2, 4, 4)), (2, 8, 8, 8, 1)),
  'planes': (HYBRID.clone(stage='planes'), (3, 64, 64, 3)),
  'volumes': (HYBRID.clone(stage='volumes'), (1, 64, 64, 8, 1)),
  'hybrid': (HYBRID, (1, 64, 64, 8, 1)),
}


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@functools.cache
def variables_of(network, shape):
  return hurried(lambda key: network.init(key, jnp.zeros(shape), train=False))(
    jax.random.key(0)
  )


@pytest.mark.parametrize(
  'network, shape, copies, millions',
  [
    (UNet((20, 40, 80, 160, 320)), (1, 16, 16, 5), 1, 2.9),
    (UNet((20, 40, 80, 160, 320)), (1, 16, 16, 5), 3, 8.6),
    (UNet(), (1, 16, 16, 5), 3, 5.8),  # As released.
    (HDenseUNet(), (1, 32, 32, 4, 1), 1, 49),
    (UNet((90, 181, 362, 724, 1448)), (1, 16, 16, 1), 1, 62),
    (UNet3D(), (1, 8, 8, 8, 1), 1, 4.1),
    (VNet3D(), (1, 8, 8, 8, 1), 1, 12),
  ],
)
def test_parameters_are_as_many_as_in_the_papers_table_vi(
  network, shape, copies, millions
):
  made = jax.eval_shape(
    lambda: network.init(jax.random.key(0), jnp.zeros(shape), train=False)
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(made['params']))
  assert copies * count / 1e6 == pytest.approx(millions, rel=0.1)


@pytest.mark.parametrize('name', TINY)
def test_logits_are_float32_of_the_inputs_sides_whatever_the_precision(name):
  network, shape = TINY[name]
  network = network.clone(classes=3, dtype=jnp.bfloat16)
  made = jax.eval_shape(
    lambda: network.init_with_output(jax.random.key(0), jnp.zeros(shape), train=True)
  )
  assert made[0].shape == (*shape[:-1], 3) and made[0].dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(made[1])} == {jnp.dtype('float32')}


@pytest.mark.parametrize('name', TINY)
def test_sides_that_do_not_halve_evenly_are_refused(name):
  network, shape = TINY[name]
  strides = np.broadcast_to(network.stride, len(shape) - 2)
  for axis, stride in enumerate(strides, start=1):
    odd = np.array(shape)
    odd[axis] += stride // 2
    with pytest.raises(ValueError, match='must be multiples of'):
      jax.eval_shape(
        lambda odd=tuple(odd): network.init(
          jax.random.key(0), jnp.zeros(odd), train=False
        )
      )


def test_a_stage_that_there_is_not_is_refused():
  with pytest.raises(ValueError, match='planes, volumes, hybrid'):
    HDenseUNet(stage='both').init(jax.random.key(0), jnp.zeros(4), train=False)


@pytest.mark.parametrize('size', [3, 5, 7])
@pytest.mark.parametrize('strides', [(1, 1, 1), (2, 2, 2), (2, 2, 1)])
def test_a_convolution_of_volumes_is_that_of_lax_and_so_are_its_gradients(
  rng, size, strides
):
  x = jnp.asarray(rng.normal(size=(2, 8, 6, 4, 3)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(size, size, size, 3, 2)), jnp.float32)

  def wanted(x, kernel):
    form = ('NXYZC', 'XYZIO', 'NXYZC')
    return lax.conv_general_dilated(x, kernel, strides, 'SAME', dimension_numbers=form)

  def got(x, kernel):
    return layers.convolved(x, kernel, strides, 'SAME')

  y, pull = jax.vjp(wanted, x, kernel)
  z, pull_too = jax.vjp(got, x, kernel)
  cotangent = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
  np.testing.assert_allclose(z, y, atol=1e-4)
  for one, other in zip(pull_too(cotangent), pull(cotangent), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_blocks_times_a_matrix_are_a_strided_convolution_and_its_transpose(rng):
  x = jnp.asarray(rng.normal(size=(1, 4, 6, 8, 3)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(2, 2, 2, 3, 5)), jnp.float32)
  form = ('NXYZC', 'XYZIO', 'NXYZC')
  y, pull = jax.vjp(
    lambda x: lax.conv_general_dilated(
      x, kernel, (2, 2, 2), 'VALID', dimension_numbers=form
    ),
    x,
  )
  matrix = kernel.reshape(-1, 5)
  np.testing.assert_allclose(layers.blocks(x) @ matrix, y, atol=1e-5)
  np.testing.assert_allclose(layers.unblocked(y @ matrix.T), pull(y)[0], atol=1e-4)
  np.testing.assert_array_equal(layers.unblocked(layers.blocks(x)), x)


def test_pooling_and_its_inverse():
  x = jnp.arange(16.0).reshape(1, 2, 4, 2, 1)
  np.testing.assert_array_equal(layers.pooled(x, (2, 2, 2)).ravel(), [11, 15])
  halves = layers.pooled(x, (1, 2, 1), mean=True)
  np.testing.assert_array_equal(halves.ravel(), [1, 2, 5, 6, 9, 10, 13, 14])
  for window in ((2, 2, 1), (1, 2, 2)):
    again = layers.pooled(layers.repeated(x, window), window, mean=True)
    np.testing.assert_array_equal(again, x)


def test_groups_divide_any_width():
  counts = {1: 1, 4: 4, 8: 8, 9: 3, 12: 6, 13: 1, 14: 7, 48: 8, 96: 8}
  assert {width: unet3d.groups(width) for width in counts} == counts


def test_slices_come_with_their_neighbours_and_go_back_to_their_places(rng):
  volumes = rng.normal(size=(2, 3, 4, 5, 1)).astype(np.float32)
  stacks = dense_unet.slice_stacks(volumes)
  for volume in range(2):
    for z, around in enumerate([(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 4)]):
      expected = volumes[volume][:, :, around, 0]
      np.testing.assert_array_equal(stacks[5 * volume + z], expected)
  np.testing.assert_array_equal(dense_unet.standing(stacks[..., 1:2], 2), volumes)


@pytest.mark.parametrize(
  'network, shape, reach',
  [
    # How far the network sees along x; further there are only empty voxels.
    (UNet3D((4, 8)), (1, 40, 4, 4, 1), 12),
    (VNet3D((2, 4)), (1, 48, 4, 4, 1), 16),
    (HYBRID, (1, 416, 32, 4, 1), 160),
  ],
)
def test_what_moves_by_a_stride_has_its_logits_move_with_it(rng, network, shape, reach):
  stride = np.broadcast_to(network.stride, 3)[0]
  start, side = shape[1] // 2 - stride, stride
  lesion = rng.normal(size=(side, *shape[2:4]))
  variables = variables_of(network, shape)
  apply = hurried(lambda x: network.apply(variables, x, train=False))
  logits = []
  for begin in (start, start + stride):
    volume = np.zeros(shape, np.float32)
    volume[0, begin : begin + side, ..., 0] = lesion
    logits.append(np.asarray(apply(volume)))
  one, other = (
    logits[0][:, reach : -reach - stride],
    logits[1][:, reach + stride : -reach],
  )
  assert np.ptp(one[..., 0], axis=1).max() > 0.1
  np.testing.assert_allclose(one, other, atol=1e-4)


INTRA = {'planes', 'classify_planes'}


def learns(name, path):
  """Whether a training in one of `TINY` changes a parameter or statistic."""
  intra = path[0].key in INTRA
  return {'planes': intra, 'volumes': not intra}.get(name, True)


@functools.cache
def step_of(name):
  """Statistics before, and after a training step; gradient of every parameter.

  One tree serves all stages.
  """
  rng, (network, shape) = np.random.default_rng(0), TINY[name]
  whole = TINY['hybrid'] if isinstance(network, HDenseUNet) else TINY[name]
  before = dict(variables_of(*whole))
  params = before.pop('params')
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  wanted = jnp.asarray(rng.normal(size=(*shape[:-1], 2)), jnp.float32)

  def objective(params):
    logits, after = network.apply(
      {'params': params, **before}, x, train=True, mutable=['batch_stats']
    )
    return ((logits - wanted) ** 2).sum(), after

  return before, *reversed(hurried(jax.grad(objective, has_aux=True))(params))


@pytest.mark.parametrize('name', TINY)
def test_the_gradient_reaches_exactly_the_parameters_that_learn(name):
  _, _, gradient = step_of(name)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.isfinite(leaf).all()
    assert np.any(leaf != 0) == learns(name, path), jax.tree_util.keystr(path)


@pytest.mark.parametrize('name', ['vnet_3d', 'planes', 'volumes', 'hybrid'])
def test_statistics_that_do_not_learn_come_back_unchanged(name):
  before, after, _ = step_of(name)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  old = jax.tree_util.tree_leaves_with_path(before['batch_stats'])
  new = jax.tree.leaves(after['batch_stats'])
  for (path, one), other in zip(old, new, strict=True):
    same = np.array_equal(one, other)
    assert same != learns(name, path), jax.tree_util.keystr(path)


def test_both_stages_of_volumes_predict_the_same(rng):
  network, shape = TINY['hybrid']
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  one, other = (
    hurried(functools.partial(network.clone(stage=stage).apply, train=False))(
      variables_of(network, shape), x
    )
    for stage in ('volumes', 'hybrid')
  )
  np.testing.assert_allclose(one, other, atol=1e-6)
