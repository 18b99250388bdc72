"""Groups of the store as the rest of the world reads them: OME-Zarr 0.5."""

import json

import foreign
import numpy as np
import pytest

from covid3way.scans import store

try:
  import zarr
  from ome_zarr.io import parse_url
  from ome_zarr.reader import Label, Multiscales, Reader
  from ome_zarr_models.v05 import Image, ImageLabel
except ImportError:
  foreign.absent('ome-zarr', 'pip install -r tests/requirements.txt')

SHAPE, SPACING_MM = (70, 65, 30), (2.0, 3.0, 5.0)


@pytest.fixture(scope='module')
def volumes():
  rng = np.random.default_rng(0)
  return {
    'signal': rng.normal(0, 0.3, SHAPE).astype(np.float16),
    'lungs': rng.integers(0, 3, SHAPE).astype(np.uint8),
    'infection': rng.random(SHAPE) < 0.1,
  }


@pytest.fixture(scope='module')
def maps():
  rng = np.random.default_rng(1)
  parts = ('xy', 'yz', 'xz')
  return {f'probability_{p}': rng.integers(0, 256, SHAPE, np.uint8) for p in parts}


@pytest.fixture(scope='module')
def scan(volumes, tmp_path_factory):
  path = store.group_path(tmp_path_factory.mktemp('store'), 'p1')
  store.write_group(path, volumes, {'spacing_mm': SPACING_MM})
  return path


@pytest.fixture(scope='module')
def prediction(volumes, maps, tmp_path_factory):
  path = store.group_path(tmp_path_factory.mktemp('store'), 'p1')
  found = {'infection': volumes['infection']} | maps
  store.write_group(path, found, {'spacing_mm': SPACING_MM})
  return path


def nodes(path):
  """What the package's reader finds, by the last part of its name."""
  found = [n for n in Reader(parse_url(path))() if n.load(Multiscales)]
  return {n.zarr.basename(): n for n in found}


def test_image_and_masks_are_read_as_such(scan, volumes):
  found = nodes(scan)
  assert set(found) == {'p1.zarr', 'lungs', 'infection'}
  assert [n for n, each in found.items() if each.load(Label)] == ['lungs', 'infection']
  named = {'signal': found['p1.zarr'], **{n: found[n] for n in ('lungs', 'infection')}}
  for name, node in named.items():
    (data,) = node.data  # z, y, x
    np.testing.assert_array_equal(data.compute().transpose(), volumes[name])
  assert found['lungs'].metadata['properties'] == {
    1: {'name': 'left lung'},
    2: {'name': 'right lung'},
  }
  # What the viewer shows of the signal is the lung window of Eq. (1).
  assert found['p1.zarr'].metadata['contrast_limits'] == [[-0.5, 0.5]]


def test_maps_are_channels_of_one_image(prediction, maps, volumes):
  found = nodes(prediction)
  assert set(found) == {'p1.zarr', 'infection'}
  (data,) = found['p1.zarr'].data  # c, z, y, x
  assert found['p1.zarr'].metadata['channel_names'] == list(maps)
  for channel, each in zip(data.compute(), maps.values(), strict=True):
    np.testing.assert_array_equal(channel.transpose(), each)
  (mask,) = found['infection'].data
  np.testing.assert_array_equal(mask.compute().transpose(), volumes['infection'])
  for name, each in maps.items():
    own = store.open_group(prediction).volumes[name]
    assert own.shape == SHAPE
    np.testing.assert_array_equal(own.read().result(), each)


@pytest.mark.parametrize('kind', ['scan', 'prediction'])
def test_every_image_is_where_it_is_in_mm(kind, request):
  """Voxel centres, from the middle of the space; axes named as they are."""
  for node in nodes(request.getfixturevalue(kind)).values():
    axes = [a for a in node.metadata['axes'] if a['type'] == 'space']
    assert [(a['name'], a['unit']) for a in axes] == [(n, 'millimeter') for n in 'zyx']
    ((scale, move),) = node.metadata['coordinateTransformations']
    spacing, first = np.array(scale['scale'][-3:]), np.array(move['translation'][-3:])
    np.testing.assert_array_equal(spacing, SPACING_MM[::-1])
    last = first + spacing * (np.array(SHAPE[::-1]) - 1)
    np.testing.assert_allclose(first, -last)


@pytest.mark.parametrize('kind', ['scan', 'prediction'])
def test_the_metadata_are_valid_by_the_models_of_the_standard(kind, request):
  path = request.getfixturevalue(kind)
  image = Image.from_zarr(zarr.open_group(path, mode='r'))
  assert image.attributes.ome.version == '0.5'
  assert image.labels is not None
  for name in json.loads((path / 'labels' / 'zarr.json').read_text())['attributes'][
    'ome'
  ]['labels']:
    label = ImageLabel.from_zarr(zarr.open_group(path / 'labels' / name, mode='r'))
    assert label.attributes.ome.image_label.source.image == '../../'


def test_voxels_of_unknown_size_are_not_called_mm(volumes, tmp_path):
  path = store.group_path(tmp_path, 'p1')
  store.write_group(path, volumes, {})
  for node in nodes(path).values():
    assert all('unit' not in axis for axis in node.metadata['axes'])
    ((scale, _),) = node.metadata['coordinateTransformations']
    assert scale['scale'] == [1, 1, 1]


def test_a_mask_without_an_image_is_still_a_label(volumes, tmp_path):
  path = store.group_path(tmp_path, 'p1')
  store.write_group(path, {'infection': volumes['infection']}, {})
  (node,) = nodes(path / 'labels' / 'infection').values()
  np.testing.assert_array_equal(node.data[0].compute().T, volumes['infection'])
