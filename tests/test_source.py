import errno
import hashlib
import os
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import series

from covid3way import base
from covid3way.scans import source
from covid3way.scans.dicom_files import CtFile, File
from covid3way.scans.dicom_pixels import Pixels


def dicom_folder(path, **tags):
  return series.write(path, series.slices(**tags))


def nifti_file(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  hu = np.linspace(-1000, 100, 120, dtype=np.float32).reshape(4, 5, 6)
  nibabel.Nifti1Image(hu, np.eye(4)).to_filename(path)
  return path


def ids(path):
  return [row.scan_id for row in source.resolve(path)]


def test_dicom_folder_is_one_scan(tmp_path):
  folder = dicom_folder(tmp_path / 'chest 01')
  (row,) = source.resolve(folder)
  assert (row.scan_id, row.patient_id) == ('chest_01', 'chest_01')
  assert row.image == folder
  assert source.read_scan(row).scan_id == 'chest_01'


def test_every_child_of_a_folder_is_a_scan(tmp_path):
  dicom_folder(tmp_path / 'b' / 'deeper')
  nifti_file(tmp_path / 'a.nii.gz')
  nifti_file(tmp_path / 'd.nii')
  with zipfile.ZipFile(tmp_path / 'c.zip', 'w') as archive:
    for k, dataset in enumerate(series.slices()):
      archive.writestr(f'x/{k}', series.to_bytes(dataset))
  (tmp_path / 'labels.csv').write_text('a,b\n')
  (tmp_path / '.hidden').mkdir()
  (tmp_path / 'empty').mkdir()
  assert ids(tmp_path) == ['a', 'b', 'c', 'd']
  shapes = [source.read_scan(row).hu.shape for row in source.resolve(tmp_path)]
  assert shapes == [(4, 5, 6), (6, 7, 5), (6, 7, 5), (4, 5, 6)]


def test_single_files(tmp_path):
  assert ids(nifti_file(tmp_path / 'scan.v1.nii.gz')) == ['scan.v1']
  path = tmp_path / 'one.dcm'
  path.write_bytes(series.to_bytes(series.slices()[0]))
  assert ids(path) == ['one']
  path.rename(tmp_path / 'IM1')
  assert ids(tmp_path / 'IM1') == ['IM1']


def test_manifest_names_its_scans_itself(tmp_path):
  dicom_folder(tmp_path / 'doe')
  (tmp_path / 'cohort.csv').write_text('patient_id,scan_id,image\np,jane-doe,doe\n')
  (row,) = source.resolve(tmp_path / 'cohort.csv')
  assert row.patient_id == 'p'
  assert source.read_scan(row).scan_id == 'jane-doe'


def test_equal_names_are_told_apart(tmp_path):
  for name in ('a.nii', 'a.nii.gz', 'a b.nii', 'a_b.nii'):
    nifti_file(tmp_path / name)
  assert ids(tmp_path) == ['a_b', 'a', 'a-2', 'a_b-2']


HASHED = 'scan-' + hashlib.sha256(b'1.2.3.4').hexdigest()[:8]


@pytest.mark.parametrize(
  ('folder', 'tags'),
  [
    ('DOE chest', {}),
    ('2020_jane', {}),
    ('hosp-4711', {}),
    ('1961-04-05_ct', {'PatientBirthDate': '19610405'}),
    (
      'Mu\u0308ller',
      {'PatientName': 'M\u00fcller^Ann', 'SpecificCharacterSet': 'ISO_IR 192'},
    ),
    ('Li Wu', {'PatientName': 'Li^Wu'}),
    ('Wu_Li', {'PatientName': 'Li^Wu'}),
    ('24.12.1961', {'PatientBirthDate': '19611224'}),
    ('1.2.3.4', {}),
    ('ACC20201234', {'AccessionNumber': 'ACC20201234'}),
    ('ct 20200304', {'StudyDate': '20200304'}),
  ],
)
def test_names_of_patients_become_hashes(tmp_path, folder, tags):
  path = dicom_folder(tmp_path / folder, **tags)
  assert ids(path) == [HASHED]
  assert ids(tmp_path) == [HASHED]
  (row,) = source.resolve(path)
  assert row.patient_id == HASHED
  assert source.read_scan(row).scan_id == HASHED


@pytest.mark.parametrize('folder', ['chest', 'jan', 'scan-1961'])
def test_other_names_stay(tmp_path, folder):
  tags = {'PatientName': 'Doe^Jane^A', 'PatientBirthDate': '19610405'}
  assert ids(dicom_folder(tmp_path / folder, **tags)) == [folder]


def test_the_id_stays_where_the_header_says_it_is_a_pseudonym(tmp_path):
  assert ids(dicom_folder(tmp_path / 'hosp-4711', PatientIdentityRemoved='YES')) == [
    'hosp-4711'
  ]
  told = dicom_folder(tmp_path / 'hosp_4711', PatientIdentityRemoved='NO')
  assert ids(told) == [HASHED]


def test_identity_is_found_behind_damaged_files(tmp_path):
  folder = dicom_folder(tmp_path / 'jane')
  (folder / 'AAA.dcm').write_bytes(b'')
  assert ids(folder) == [HASHED]


def test_identity_is_kept_from_errors_about_folders_without_ct(tmp_path):
  dicom_folder(tmp_path / 'jane', SOPClassUID='1.2.840.10008.5.1.4.1.1.128')
  (row,) = source.resolve(tmp_path)
  with pytest.raises(base.NoCtError, match='no CT image') as caught:
    source.read_scan(row)
  assert 'jane' not in str(caught.value)


def test_files_named_after_the_patient_are_not_named_in_errors(tmp_path):
  folder = dicom_folder(tmp_path / 'jane')
  damaged = series.to_bytes(series.slices(shape=(6, 7, 6))[5])[:-40]
  (folder / 'Doe-0005.dcm').write_bytes(damaged)
  (row,) = source.resolve(folder)
  with pytest.raises(base.DamagedFileError, match='<name hidden>') as caught:
    source.read_scan(row)
  assert 'doe' not in str(caught.value).casefold()


def test_nothing_to_read(tmp_path):
  with pytest.raises(base.NoCtError, match='empty'):
    source.resolve(tmp_path)
  (tmp_path / 'notes.txt').write_text('x')
  with pytest.raises(base.NoCtError, match=r'nothing to read.*DICOM'):
    source.resolve(tmp_path)
  with pytest.raises(base.InputError, match=r'notes.txt: not a file that holds a scan'):
    source.resolve(tmp_path / 'notes.txt')
  with pytest.raises(base.InputError, match='no such file'):
    source.resolve(tmp_path / 'absent')


@pytest.mark.parametrize('domain', ['', 'equalised'])
def test_only_a_named_domain_may_hold_other_than_hu(tmp_path, domain):
  picture = np.arange(120, dtype=np.uint8).reshape(4, 5, 6) * 2
  nibabel.Nifti1Image(picture, np.eye(4)).to_filename(tmp_path / 'a.nii.gz')
  text = f'patient_id,scan_id,image,domain\np,a,a.nii.gz,{domain}\n'
  (tmp_path / 'cohort.csv').write_text(text)
  (row,) = source.resolve(tmp_path / 'cohort.csv')
  if domain:
    assert source.read_scan(row).hu.max() == 238
    return
  with pytest.raises(base.SignalError, match=r'^a: values from 0 to 238.*windowed'):
    source.read_scan(row)


def test_a_broken_scan_is_told_when_it_is_read(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'notes.txt').write_text('x')
  dicom_folder(tmp_path / 'b')
  broken, sound = source.resolve(tmp_path)
  with pytest.raises(base.NoCtError, match=r'^a: no CT image'):
    source.read_scan(broken)
  assert source.read_scan(sound).hu.shape == (6, 7, 5)


@pytest.fixture
def locked(tmp_path, monkeypatch):
  """A folder that may not be listed; as root may anything, the system refuses it."""
  folder = tmp_path / 'cohort' / 'jane' / 'locked'
  folder.mkdir(parents=True)

  def refusing(whole):
    def listed(path='.'):
      if Path(path) == folder:
        raise PermissionError(errno.EACCES, 'Permission denied', str(path))
      return whole(path)

    return listed

  for name in ('scandir', 'listdir'):
    monkeypatch.setattr(os, name, refusing(getattr(os, name)))
  return folder


def test_a_scan_is_not_shortened_by_a_folder_that_may_not_be_read(locked):
  dicom_folder(locked.parent)
  cohort = locked.parent.parent
  assert ids(cohort) == ids(locked.parent) == [HASHED]
  (row,) = source.resolve(cohort)
  with pytest.raises(base.InputError, match=f'{HASHED}: a folder in it may not be'):
    source.read_scan(row)


def test_a_scan_that_may_not_be_read_at_all_is_one_of_the_cohort(locked):
  dicom_folder(locked.parent.parent / 'b')
  refused, sound = source.resolve(locked.parent.parent)[::-1]
  assert source.read_scan(sound).hu.shape == (6, 7, 5)
  with pytest.raises(base.InputError, match='jane: a folder in it may not be read'):
    source.read_scan(refused)


def test_hidden_folders_are_not_looked_into(locked):
  locked.rename(locked.with_name('.locked'))
  dicom_folder(locked.parent / 'b')
  (row,) = source.resolve(locked.parent.parent)
  assert source.read_scan(row).hu.shape == (6, 7, 5)


def test_what_the_system_refuses_is_told_without_the_path(locked, tmp_path):
  (tmp_path / 'dir.csv').mkdir()
  table = tmp_path / 'long.csv'
  table.write_text(f'patient_id,scan_id,image\np,s,{"x" * 300}\n')
  for path, found in (
    (locked, 'locked: cannot be read .Permission denied'),
    (tmp_path / 'dir.csv', 'dir.csv: cannot be read .Is a directory'),
    (tmp_path / ('y' * 300), '^y{90}: cannot be read .File name too long'),
    (table, 'long.csv: line 2, column image: no file x{300}'),
  ):
    with pytest.raises(base.Covid3wayError, match=found) as caught:
      source.resolve(path)
    assert str(tmp_path) not in str(caught.value)


def test_one_damaged_archive_is_told_when_it_is_read(tmp_path):
  """What zipfile raises on these has three names."""
  for name in 'abcd':
    with zipfile.ZipFile(tmp_path / f'{name}.zip', 'w') as archive:
      for k, dataset in enumerate(series.slices()):
        archive.writestr(f'\u00e9{k}', series.to_bytes(dataset))
  whole = (tmp_path / 'a.zip').read_bytes()
  directory = whole.index(b'PK\1\2')
  places = {'b': whole.rindex(b'\xc3\xa9'), 'c': directory + 6, 'd': directory}
  for name, place in places.items():
    damaged = whole[:place] + b'\xff' + whole[place + 1 :]
    (tmp_path / f'{name}.zip').write_bytes(damaged)
  sound, *broken = source.resolve(tmp_path)
  assert source.read_scan(sound).hu.shape == (6, 7, 5)
  for row, name in zip(broken, places, strict=True):
    with pytest.raises(base.DamagedFileError, match=f'{name}.zip is not a whole .zip'):
      source.read_scan(row)


@pytest.mark.parametrize('error', [OSError(errno.EIO, 'gone'), zipfile.BadZipFile()])
def test_a_file_that_is_gone_when_its_pixels_are_read(error):
  def refuse():
    raise error

  images = [CtFile(File('a', refuse), series.slices()[0])]
  with pytest.raises(base.DamagedFileError, match='s: file a can no longer be read'):
    next(Pixels('s').read(images))


def test_real_cohort():
  rows = source.resolve(series.real('covid-ct-md'))
  assert len(rows) == 2
  # The patient's ID is the folder's name there.
  assert all(row.scan_id.startswith('scan-') for row in rows)
