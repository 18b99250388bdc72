"""The zarr store and whole-or-nothing files."""

import errno
import json
import os
import re
import threading
import time

import numpy as np
import pytest

from covid3way.base import DamagedFileError, InputError, StorageError
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


def test_chunks_are_cubes_of_64_in_one_file_of_an_array(tmp_path, volumes):
  path = store.group_path(tmp_path, 'p1')
  store.write_group(path, volumes, {})
  meta = json.loads((path / 'signal' / 'zarr.json').read_text())
  assert meta['codecs'][0]['configuration']['chunk_shape'] == [64, 64, 64]
  assert meta['dimension_names'] == ['z', 'y', 'x']
  names = ['labels/lungs/0', 'labels/susceptible/0', 'signal']
  assert sorted(str(p.parents[3].relative_to(path)) for p in shards(path)) == names


def shards(path):
  return [p for p in path.rglob('*') if p.is_file() and p.name != 'zarr.json']


def test_parts_are_read_lazily_and_as_numpy_would(tmp_path, volumes):
  path = store.group_path(tmp_path, 'p1')
  store.write_group(path, volumes, {})
  lungs = store.open_group(path).volumes['lungs']
  for where in (np.s_[3], np.s_[:, 64], np.s_[5:9, :, [0, 0, 29]], np.s_[..., 2]):
    want = volumes['lungs'][where]
    assert lungs[where].shape == want.shape
    np.testing.assert_array_equal(lungs[where].read().result(), want)


def test_an_empty_mask_is_not_an_absent_one(tmp_path, volumes):
  """Zarr takes a chunk that is not there for zeros."""
  path = store.group_path(tmp_path, 'p1')
  store.write_group(path, volumes | {'infection': np.zeros((70, 65, 30), bool)}, {})
  assert not store.open_group(path).volumes['infection'].read().result().any()
  (path / 'labels' / 'infection' / '0' / 'c' / '0' / '0' / '0').unlink()
  with pytest.raises(
    DamagedFileError, match=r'^p1: its infection is not in the store; remove its group'
  ):
    store.open_group(path)


def test_a_group_of_an_earlier_version_is_to_be_made_again(tmp_path):
  path = tmp_path / 'old.zarr'
  path.mkdir()
  old = {'zarr_format': 3, 'node_type': 'group', 'attributes': {'patient_id': 'p'}}
  (path / 'zarr.json').write_text(json.dumps(old))
  with pytest.raises(
    InputError, match=r'another version.*run the preprocess job again'
  ):
    store.open_group(path)


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


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO])
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


def test_an_error_with_a_name_keeps_it(tmp_path):
  """A reader's is not told as the disk's refusal to write."""
  with pytest.raises(InputError, match='a: cannot be read'):
    with files.whole(tmp_path / 'a.txt'):
      raise InputError('a', f'cannot be read ({os.strerror(errno.EACCES)})', 'look')


def test_a_folder_replaces_a_folder(tmp_path):
  for content in ('1', '2'):
    with files.whole(tmp_path / 'd') as aside:
      aside.mkdir()
      (aside / content).write_text(content)
  assert [p.name for p in (tmp_path / 'd').iterdir()] == ['2']


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path):
  (tmp_path / 'file').write_text('mine')
  for path in (tmp_path / 'file' / 'a.json', tmp_path / 'file' / 'b' / 'a.json'):
    with pytest.raises(StorageError, match='a file is where a folder should be'):
      files.write_json(path, {})
    with pytest.raises(StorageError, match='a file is where a folder should be'):
      files.write_json_once(path, {})
  assert (tmp_path / 'file').read_text() == 'mine'


def test_a_target_that_is_read_only_is_told(tmp_path, monkeypatch):
  """As root may write anywhere, the system is made to refuse."""

  def refuse(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  monkeypatch.setattr(os, 'mkdir', refuse)
  with pytest.raises(StorageError, match=r'file system is read-only.*--workdir'):
    files.write_json(tmp_path / 'sub' / 'a.json', {})
  assert not list(tmp_path.iterdir())


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  """Else a loss of power leaves an empty file under the final name."""
  synced, sync, replace = [], os.fsync, os.replace

  def noting(number):
    synced.append(os.path.basename(os.readlink(f'/proc/self/fd/{number}')))
    sync(number)

  def naming(one, other):
    synced.append('named')
    replace(one, other)

  monkeypatch.setattr(os, 'fsync', noting)
  monkeypatch.setattr(os, 'replace', naming)
  with files.whole(tmp_path / 'd') as aside:
    (aside / 'sub').mkdir(parents=True)
    (aside / 'sub' / 'a').write_text('1')
    (aside / 'b').write_text('2')
  assert set(synced[:-2]) == {aside.name, 'sub', 'a', 'b'}
  assert synced[-2:] == ['named', tmp_path.name]
  monkeypatch.setattr(os, 'link', naming)
  files.write_json_once(tmp_path / 'c.json', {})
  assert synced[-2:] == ['named', tmp_path.name]


def test_several_may_write_one_folder_at_once(tmp_path):
  """Each reader finds it whole, of one writer; nobody fails; nothing is left."""
  failed, path = [], tmp_path / 'd'

  def write(number):
    try:
      for _ in range(40):
        with files.whole(path) as aside:
          aside.mkdir()
          for name in 'ab':
            (aside / name).write_text(str(number))
    except BaseException as error:
      failed.append(error)

  writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
  for writer in writers:
    writer.start()
  for writer in writers:
    writer.join()
  assert not failed
  assert len({(path / name).read_text() for name in 'ab'}) == 1
  assert list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_goes_after_a_day(tmp_path):
  old, new, deep, own = (
    tmp_path / '.0123abcd.partial.a.zarr',
    tmp_path / '.0123abce.partial.b.json',
    tmp_path / 'store' / '.0123abcf.partial.c.json',
    tmp_path / '.partial.mine',
  )
  (old / 'signal').mkdir(parents=True)
  deep.parent.mkdir()
  for path in (new, deep, own):
    path.write_text('half')
  yesterday = time.time() - 25 * 3600
  for path in (old, deep, own):
    os.utime(path, (yesterday, yesterday))
  files.sweep(tmp_path)
  assert sorted(p for p in tmp_path.rglob('*') if p.is_file()) == sorted([new, own])
  assert not old.exists()


VALUE = {'W': {'growth': 0.0125, 'n': 3}, 'list': [1.5, None, True], 'text': 'ä'}


def test_sealed_json_comes_back_or_is_told(tmp_path):
  """With any one byte changed: the same values, or a named error."""
  path, rng = tmp_path / 'a.json', np.random.default_rng(0)
  files.write_json(path, files.sealed(VALUE))
  assert files.read_json(path, remedy='do it again') == VALUE
  whole = path.read_bytes()
  told = 0
  for place in range(len(whole)):
    damaged = bytearray(whole)
    damaged[place] ^= int(rng.integers(1, 256))
    path.write_bytes(damaged)
    try:
      found = files.read_json(path, remedy='do it again')
    except DamagedFileError as error:
      assert 'do it again' in str(error)
      told += 1
    else:
      assert {k: v for k, v in found.items() if k in VALUE} == VALUE, damaged
  assert told > 0.8 * len(whole)


def test_json_of_anybody_needs_no_seal(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(path, VALUE)
  assert files.read_json(path, remedy='') == VALUE
  changed = {**files.sealed(VALUE), 'text': 'b'}
  files.write_json(path, changed)
  with pytest.raises(DamagedFileError, match="if you changed it, take out its 'check"):
    files.read_json(path, remedy='do it again')
  del changed['checksum']
  files.write_json(path, changed)
  assert files.read_json(path, remedy='')['text'] == 'b'


def test_a_checksum_does_not_depend_on_layout_or_order():
  plain = {'b': (1, 2.0), 'a': {3: 'x'}}
  assert files.checksum(plain) == files.checksum({'a': {'3': 'x'}, 'b': [1, 2.0]})
  assert re.fullmatch('[0-9a-f]{64}', files.checksum(plain))
  assert files.checksum({'a': 1}) != files.checksum({'a': 2})
