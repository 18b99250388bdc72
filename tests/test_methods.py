"""Every method trains and predicts through the same jobs."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from conftest import run_job
from test_main import command, the_line

from configs import default
from configs import train as train_config
from covid3way.base import ConfigError
from covid3way.jobs import train, watching
from covid3way.networks.dense_unet import HDenseUNet
from covid3way.networks.registry import METHODS
from covid3way.scans import nifti
from covid3way.scans.manifest import read_manifest
from covid3way.segmentation.model import read_model

TINY = default.SMOKE_TRAINING | {
  'steps_per_epoch': 6,
  'batch_size': 2,
  'stacks_per_slab': 1,
  'validation_slices': 4,
  'extent_mm': (290.0, 290.0, 290.0),
  'learning_rate': 1e-2,
}
OWN = {
  'unet_2d': {},
  'mpunet': {'planes': 2},
  'unet_3d': {'features': (4, 8), 'patch_voxels': (32, 32, 32)},
  'vnet_3d': {'features': (4, 8), 'patch_voxels': (32, 32, 32)},
  'h_dense_unet': {'features': (8, 4, 4, 8), 'patch_voxels': (64, 64, 4)},
}


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  """An H-DenseUNet of 8 dense layers in place of 105, which compile for minutes."""
  one = (1, 1, 1, 1)
  network = functools.partial(HDenseUNet, blocks_2d=one, blocks_3d=one)
  changed = dataclasses.replace(METHODS['h_dense_unet'], network=network)
  monkeypatch.setitem(METHODS, 'h_dense_unet', changed)


def test_all_methods_are_here():
  assert set(OWN) | {'three_way'} == set(METHODS) == set(default.METHODS)
  for name, method in METHODS.items():
    config = train_config.get_config(f'method={name}')
    assert config.training.method == name
    assert tuple(config.training.views) == tuple(method.parts)


# To compile them takes as long as all the rest.
SLOW = dict.fromkeys(('h_dense_unet', 'unet_3d', 'vnet_3d'), pytest.mark.slow)


@pytest.mark.parametrize(
  'name',
  [pytest.param(n, marks=SLOW.get(n, ())) for n in OWN],
)
def test_a_method_trains_and_predicts(name, quickstart, tmp_path):
  config = train_config.get_config(f'method={name}')
  config.input = str(quickstart / 'store')
  config.training.update(TINY | OWN[name])
  train.run(config, tmp_path / 'model')
  model, method = read_model(tmp_path / 'model' / 'model'), METHODS[name]
  assert model.spec.method == name
  assert tuple(model.variables) == method.predicting(tuple(method.parts))
  for part in method.parts:
    rows = watching.rows(tmp_path / 'model' / 'training' / part)
    assert [(row['epoch'], row['step']) for row in rows] == [(1, 6), (2, 12)]
    assert rows[1]['loss'] < rows[0]['loss']
    assert all(0 <= row['validation_dice'] <= 1 for row in rows)
  if name == 'mpunet':
    fusion = model.variables['oblique']['fusion']
    assert fusion['weights'].shape == (2,) and np.abs(fusion['weights']).min() > 0
  (row,) = read_manifest(quickstart / 'held_out.csv')
  run_job(
    'predict',
    tmp_path / 'out',
    input=str(quickstart / 'held_out.csv'),
    model=str(tmp_path / 'model' / 'model'),
  )
  infection, probability, lungs = (
    nifti.read_volume(tmp_path / 'out' / row.scan_id / f'{n}.nii.gz', scan_id='t')[0]
    for n in ('infection', 'probability', 'lungs')
  )
  inside = lungs > 0
  assert not infection[~inside].any() and not probability[~inside].any()
  assert 0 <= probability.min() and probability.max() <= 1
  # It sees what it looks at: not the same everywhere, and high where it is infected.
  assert probability[inside].std() > 1e-3
  chosen = (infection > 0) & inside
  if chosen.any() and not chosen[inside].all():
    assert probability[chosen].mean() > probability[inside & ~chosen].mean()
  told = tmp_path / 'out' / row.scan_id / 'quantification.json'
  assert json.loads(told.read_text())['model']['method'] == name


def test_an_unknown_method_is_a_named_error(quickstart, tmp_path):
  line = the_line(
    command('--config=configs/train.py:method=nonsense', f'--workdir={tmp_path}')
  )
  assert "no method 'nonsense', only three_way, unet_2d" in line
  config = train_config.get_config('smoke')
  config.input, config.training.method = str(quickstart / 'store'), 'nonsense'
  with pytest.raises(ConfigError, match="method: 'nonsense'; use one of three_way, un"):
    train.run(config, tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('name', 'changes', 'words'),
  [
    ('unet_3d', {'views': ('xy',)}, 'unet_3d has volume; use one or more'),
    ('h_dense_unet', {'views': ('planes', 'hybrid')}, 'hybrid; use all of them'),
    ('vnet_3d', {'patch_voxels': (32, 32)}, r'patch_voxels: \(32, 32\); give three'),
    ('mpunet', {'planes': 0}, 'planes: 0; use 1 or more'),
    ('unet_2d', {'width': 0.0}, 'width: 0.0; use 0.001 or more'),
  ],
)
def test_what_a_method_cannot_train_is_named(name, changes, words, tmp_path):
  config = train_config.get_config(f'method={name}')
  config.update({'input': 'x', 'training': changes})
  with pytest.raises(ConfigError, match=words):
    train.run(config, tmp_path)


def test_three_way_still_gives_what_is_on_record(quickstart):
  """Losses of the quickstart's epochs, of 28 November 2026.

  Those before differed by up to 0.8 %: convolutions were rounded otherwise, and the fit
  ended at another W, by which scans are simulated.
  """
  known = json.loads((quickstart / 'model' / 'model.json').read_text())['training']
  for part, losses in {
    'xy': (2.01157, 2.07321),
    'yz': (2.04383, 2.05598),
    'xz': (2.24994, 1.82957),
  }.items():
    assert [row['loss'] for row in known[part]] == pytest.approx(losses, rel=2e-3)
