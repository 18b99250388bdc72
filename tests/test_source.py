import hashlib
import zipfile

import nibabel
import numpy as np
import pytest
import series

from covid3way import base
from covid3way.scans import source


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


def test_real_cohort():
  rows = source.resolve(series.real('covid-ct-md'))
  assert len(rows) == 2
  # The patient's ID is the folder's name there.
  assert all(row.scan_id.startswith('scan-') for row in rows)
