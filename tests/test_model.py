"""Methods' rows and model directories: what fits what; what is read is as written."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import hurried

from configs import default, train
from covid3way.base import ModelError
from covid3way.jobs import cohort
from covid3way.networks.registry import METHODS
from covid3way.scans.store import StoredScan
from covid3way.segmentation import aggregators, oblique_map
from covid3way.segmentation.maps import probability_map
from covid3way.segmentation.model import Model, ModelSpec, read_model, write_model
from covid3way.training import views
from covid3way.training.step import fresh_variables

FULL, COARSE = (512, 512, 512), (128, 128, 192)


def spec_of(method, shape=FULL):
  """The networks of a method as its config asks for them."""
  settings = train.get_config(f'method={method}').training
  signal = np.broadcast_to(np.float16(0), shape)
  return cohort.spec_of(settings, StoredScan('s', {'signal': signal}, {}))


def test_every_method_has_a_row_and_settings():
  assert set(METHODS) == set(default.METHODS)


@pytest.mark.parametrize('method', METHODS)
def test_the_parts_of_a_config_are_those_of_the_method(method):
  about, settings = METHODS[method], train.get_config(f'method={method}').training
  assert settings.method == method and tuple(settings.views) == tuple(about.parts)
  for part in about.parts.values():
    assert part.sampling in {'slices', 'planes', 'volumes'}
    assert (part.view in views.NORMAL_AXIS) == (part.sampling == 'slices')


@pytest.mark.parametrize(
  ('method', 'predicting'),
  [
    ('three_way', ('xy', 'yz', 'xz')),
    ('unet_2d', ('xy',)),
    ('h_dense_unet', ('hybrid',)),
    ('mpunet', ('oblique',)),
    ('unet_3d', ('volume',)),
    ('vnet_3d', ('volume',)),
  ],
)
def test_every_part_predicts_but_stages_before_the_last(method, predicting):
  about = METHODS[method]
  assert about.predicting(tuple(about.parts)) == predicting
  # An ablation trains fewer.
  assert about.predicting(predicting[-1:]) == predicting[-1:]


@pytest.mark.parametrize(
  ('method', 'shape', 'strides', 'patch', 'samples'),
  [
    ('three_way', FULL, (16,) * 3, None, {v: (16, 16, 5) for v in ('xy', 'yz', 'xz')}),
    ('unet_2d', FULL, (16,) * 3, None, {'xy': (16, 16, 1)}),
    (
      'h_dense_unet',
      FULL,
      (32, 32, 4),
      (224, 224, 12),
      {'planes': (32, 32, 3), 'volumes': (32, 32, 4, 1), 'hybrid': (32, 32, 4, 1)},
    ),
    ('h_dense_unet', COARSE, (32, 32, 4), (128, 128, 12), {}),
    ('mpunet', FULL, (16,) * 3, None, {'oblique': (16, 16, 1)}),
    ('unet_3d', FULL, (8,) * 3, (128,) * 3, {'volume': (8, 8, 8, 1)}),
    ('vnet_3d', FULL, (8,) * 3, (128,) * 3, {'volume': (8, 8, 8, 1)}),
    # Sides are those of the space where it is smaller, in multiples of the stride.
    ('vnet_3d', (20, 64, 4), (8,) * 3, (16, 64, 8), {}),
  ],
)
def test_sides_of_what_a_network_is_shown(method, shape, strides, patch, samples):
  spec = spec_of(method, shape)
  assert spec.strides == strides
  assert patch is None or spec.patch == patch
  assert {part: spec.sample_shape(part) for part in samples} == samples


@pytest.mark.parametrize(
  ('method', 'millions'),
  [
    ('three_way', 1.94),
    ('unet_2d', 3.03),
    ('h_dense_unet', 48.3),
    ('mpunet', 62.1),
    ('unet_3d', 4.08),
    ('vnet_3d', 12.87),
  ],
)
def test_a_template_has_the_methods_parameters_and_what_else_it_keeps(method, millions):
  spec = spec_of(method)
  (part, *_) = METHODS[method].predicting(tuple(METHODS[method].parts))
  template = spec.template(part)
  leaves = jax.tree.leaves(template['params'])
  assert sum(leaf.size for leaf in leaves) / 1e6 == pytest.approx(millions, rel=0.01)
  assert set(template) - {'fusion'} == {'params', 'batch_stats'}
  assert (template['batch_stats'] == {}) == (method == 'unet_3d')
  assert ('fusion' in template) == (method == 'mpunet')
  if method == 'mpunet':
    shapes = {name: leaf.shape for name, leaf in template['fusion'].items()}
    assert shapes == {'weights': (6,), 'bias': ()}


def test_width_scales_all_channels():
  spec = dataclasses.replace(spec_of('unet_3d'), width=0.25)
  assert spec.network.features == (8, 16, 32, 64)


TINY = {
  'mpunet': ModelSpec(
    'infection', (24, 24, 32), (0.0,), (4, 8), 'mpunet', planes=2, domain='8-bit'
  ),
  'unet_3d': ModelSpec(
    'infection', (16, 16, 16), (0.0,), (4, 8), 'unet_3d', patch_voxels=(16, 16, 16)
  ),
}
SAW = {'patients': ['p'], 'series': [], 'voxels': ['f0', 'f1']}


@pytest.fixture(params=TINY)
def model(request):
  """A small network, untrained."""
  spec = TINY[request.param]
  (part,) = spec.about.parts
  variables = fresh_variables(spec.network, jax.random.key(0), spec.sample_shape(part))
  if request.param == 'mpunet':
    fusion = {'weights': np.array([3.0, 1.5], np.float32), 'bias': np.float32(-2)}
    variables |= {'fusion': fusion}
  tuned = aggregators.plain((part,), threshold=1.7)
  return Model(spec, {part: variables}, tuned, saw=SAW)


def test_a_model_is_read_as_it_was_written(model, tmp_path):
  write_model(tmp_path / 'model', model, {'settings': {'seed': 3}})
  again = read_model(tmp_path / 'model')
  assert (again.spec, again.saw) == (model.spec, SAW)
  assert again.aggregator == model.aggregator
  assert len(again.sha256) == 64 and again.parameters == model.parameters > 0
  jax.tree.map(np.testing.assert_array_equal, again.variables, dict(model.variables))
  told = json.loads((tmp_path / 'model' / 'model.json').read_text())
  assert told['settings'] == {'seed': 3} and told['method'] == model.spec.method


def test_weights_of_another_network_are_told(model, tmp_path):
  write_model(tmp_path / 'model', model, {})
  path = tmp_path / 'model' / 'model.json'
  changed = json.loads(path.read_text()) | {'features': [4, 16]}
  del changed['checksum']
  path.write_text(json.dumps(changed))
  with pytest.raises(ModelError, match='weights of another network'):
    read_model(tmp_path / 'model')


def drawn(spec, reach):
  """A signal, and lungs in its middle."""
  signal = np.random.default_rng(0).normal(size=spec.space_shape).astype(np.float32)
  lungs = np.zeros(spec.space_shape, np.uint8)
  lungs[tuple(slice(n // 2 - reach, n // 2 + reach) for n in lungs.shape)] = 1
  return signal, lungs


def map_of(model, signal, lungs, batch_size=2):
  (part,) = model.variables
  return probability_map(model, part, jnp.asarray(signal), lungs, batch_size=batch_size)


@pytest.mark.parametrize('model', ['unet_3d'], indirect=True)
def test_a_sub_volume_that_covers_the_space_is_predicted_as_it_is(model):
  signal, lungs = drawn(model.spec, 5)
  got = map_of(model, signal, lungs)
  apply = hurried(functools.partial(model.spec.network.apply, train=False))
  logits = apply(model.variables['volume'], signal[None, ..., None])
  expected = np.where(lungs, 255 * jax.nn.softmax(logits)[0, ..., 1], 0)
  assert got.dtype == np.uint8 and np.ptp(got[lungs > 0]) > 5
  np.testing.assert_allclose(got, expected, atol=0.51)


@pytest.mark.parametrize('model', ['mpunet'], indirect=True)
def test_oblique_planes_are_fused_by_the_models_own_fusion(model):
  spec, known = model.spec, dict(model.variables['oblique'])
  known.pop('fusion')
  signal, lungs = drawn(spec, 4)

  @hurried
  def predict(planes):
    logits = spec.network.apply(known, planes[..., None], train=False)
    return jax.nn.softmax(logits)[..., 1]

  seen = oblique_map.seen_from(predict, spec.plane_grid, signal, lungs, batch_size=3)
  score = 3.0 * seen[0] + 1.5 * seen[1] - 2
  got = map_of(model, signal, lungs)
  assert got.dtype == np.uint8 and np.ptp(got[lungs > 0]) > 5
  np.testing.assert_allclose(got[lungs > 0], 255 / (1 + np.exp(-score)), atol=0.51)
  assert not got[lungs == 0].any()
