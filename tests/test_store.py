"""The zarr store and whole-or-nothing files."""

import errno
import json

import numpy as np
import pytest

from covid3way.base import InputError, StorageError
from covid3way.scans import files, store


@pytest.fixture
def volumes():
  rng = np.random.default_rng(0)
  return {
    'signal': rng.normal(0, 0.3, (70, 65, 30)).astype(np.float32),
    'lungs': rng.integers(0, 3, (70, 65, 30)).astype(np.uint8),
    'susceptible': rng.random((70, 65, 30)) < 0.5,
  }


def test_a_group_comes_back(tmp_path, volumes):
  path = store.group_path(tmp_path, 'p1')
  store.write_group(path, volumes, {'patient_id': 'p1', 'centre': [1.5, 2, 3]})
  scan = store.open_group(path, chunks=store.cache(1 << 20))
  assert scan.scan_id == 'p1' and scan.shape == (70, 65, 30)
  assert scan.attributes == {'patient_id': 'p1', 'centre': [1.5, 2, 3]}
  assert set(scan.volumes) == {'signal', 'lungs', 'susceptible'}
  assert scan.volumes['susceptible'].dtype.name == 'uint8'
  for name in ('lungs', 'susceptible'):
    np.testing.assert_array_equal(scan.volumes[name].read().result(), volumes[name])
  signal = scan.volumes['signal'].read().result()
  assert signal.dtype == np.float16
  np.testing.assert_array_equal(signal, volumes['signal'].astype(np.float16))


def test_chunks_are_cubes_of_64(tmp_path, volumes):
  path = store.group_path(tmp_path, 'p1')
  store.write_group(path, volumes, {})
  meta = json.loads((path / 'signal' / 'zarr.json').read_text())
  assert meta['chunk_grid']['configuration']['chunk_shape'] == [64, 64, 64]
  assert meta['dimension_names'] == ['x', 'y', 'z']


def test_store_without_scans_says_what_to_do(tmp_path):
  with pytest.raises(InputError, match='preprocess'):
    store.list_groups(tmp_path)
  (tmp_path / 'a.zarr').mkdir()
  with pytest.raises(InputError, match=r'a\.zarr'):
    store.open_group(tmp_path / 'a.zarr')


def test_nothing_half_written_is_left(tmp_path, volumes):
  path = store.group_path(tmp_path, 'p1')
  volumes['unknown'] = volumes['lungs']
  with pytest.raises(KeyError):
    store.write_group(path, volumes, {})
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EFBIG, errno.EROFS])
def test_a_disk_that_refuses_is_a_storage_error(tmp_path, code):
  with pytest.raises(StorageError, match='another --workdir'):
    with files.whole(tmp_path / 'a.txt') as aside:
      aside.write_text('half')
      raise OSError(code, 'refused')
  assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_themselves_and_the_old_file_stays(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(ZeroDivisionError):
    with files.whole(path) as aside:
      aside.write_text('half')
      raise ZeroDivisionError
  assert json.loads(path.read_text()) == {'a': 1}
  assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path):
  for content in ('1', '2'):
    with files.whole(tmp_path / 'd') as aside:
      aside.mkdir()
      (aside / content).write_text(content)
  assert [p.name for p in (tmp_path / 'd').iterdir()] == ['2']
