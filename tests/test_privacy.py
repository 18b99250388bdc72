"""Nothing that identifies a patient gets out: of a header, a file's name or a folder's.

Unique strings are planted in every identifying attribute there is, at the top, in
sequences and in private blocks, then looked for in all that is written and said.
"""

import base64
import gzip
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import fresh_model
import numpy as np
import pydicom
import pytest
from conftest import ROOT, run_job
from identifying import IDENTIFYING
from PIL import Image
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from covid3way.base import Covid3wayError
from covid3way.jobs.batch import SomeFailedError
from covid3way.scans import nifti, source, store
from covid3way.scans.manifest import ManifestRow, read_manifest, write_manifest

SHAPE, SPACING_MM = (64, 64, 40), 5.0
SPACE = (32, 32, 48)
NAME, GIVEN, PATIENT_ID = 'QZNAMEQZ', 'QZGIVENQZ', 'QZ4711IDQZ'
PER_SLICE = ('SOPInstanceUID',)
# Of these a stored scan could be read wrongly, or DICOM could not be written.
KEPT = ('ContentSequence',)


def planted(keyword, number):
  """A value that the attribute can have, and what of it to look for."""
  vr = dictionary_VR(keyword)
  text = f'QZ{number:03}P'
  if keyword == 'PatientName':
    return f'{NAME}^{GIVEN}', (NAME, GIVEN)
  if keyword == 'PatientID':
    return PATIENT_ID, (PATIENT_ID,)
  if vr == 'SQ':
    inner = Dataset()
    inner.PatientID, inner.InstitutionName = f'{text}INNERID', f'{text}INNERPLACE'
    inner.ReferencedSOPInstanceUID = f'1.2.840.77{number:03}.987654.1'
    outer = Dataset()
    outer.PatientName, outer.ReferencedStudySequence = f'{text}OUTER^QZ', [inner]
    found = (
      f'{text}INNERID',
      f'{text}INNERPLACE',
      f'{text}OUTER',
      f'77{number:03}.9876',
    )
    return [outer], found
  if vr == 'UI':
    return f'1.2.840.99{number:03}.123456', (f'99{number:03}.123456',)
  dated = f'{1700 + number // 28:04}11{1 + number % 28:02}'
  timed = f'{number // 60:02}{number % 60:02}47.135791'
  # An age, or a number, is too short to be looked for by itself.
  return {
    'DA': (dated, (dated, f'{dated[:4]}-{dated[4:6]}-{dated[6:]}')),
    'TM': (timed, (timed,)),
    'DT': (f'{dated}{timed}', (dated, timed)),
    'AS': ('097Y', ()),
    'DS': (f'{number}.7391', (f'{number}.7391',)),
    'IS': (f'7391{number:03}', (f'7391{number:03}',)),
    'FD': (1000.0 * number + 0.7391, (f'{number}000.7391',)),
    'US': (number, ()),
    'OB': (f'{text}BYTES'.ljust(20).encode(), (f'{text}BYTES',)),
    'UN': (f'{text}BYTES'.ljust(20).encode(), (f'{text}BYTES',)),
  }.get(vr, (text, (text,)))


PLANTED = {
  keyword: planted(keyword, number)
  for number, keyword in enumerate(IDENTIFYING)
  if keyword not in KEPT
}
META = {
  'SourceApplicationEntityTitle': 'QZMETAAE',
  'SendingApplicationEntityTitle': 'QZSENDAE',
  'ReceivingApplicationEntityTitle': 'QZRECVAE',
  'ImplementationVersionName': 'QZVERSION',
}
PRIVATE = ('QZPRIVATECREATOR', 'QZPRIVATETEXT', 'QZPREAMBLE', 'QZPRIVATEMETA')
NAMES = ('QZFILENAME', 'QZFOLDER')
WORDS = {
  *(word for _, words in PLANTED.values() for word in words),
  *META.values(),
  *PRIVATE,
  *NAMES,
}


def chest():
  """(rows, columns) HU of each slice: a body with two lungs."""
  x, y, z = np.meshgrid(
    *((np.arange(n) - (n - 1) / 2) * SPACING_MM for n in SHAPE), indexing='ij'
  )
  hu = np.where((x / 140) ** 2 + (y / 100) ** 2 < 1, 40.0, -1000.0)
  for side in (-1, 1):
    lung = ((x - side * 65) / 45) ** 2 + (y / 65) ** 2 + (z / 85) ** 2 < 1
    hu[lung] = -850
  hu += np.random.default_rng(0).normal(0, 8, SHAPE)
  return hu.transpose(2, 1, 0).round()


def slices():
  result = []
  for k, hu in enumerate(chest()):
    ds = Dataset()
    for keyword, (value, _) in PLANTED.items():
      setattr(ds, keyword, value)
    ds.SOPClassUID, ds.Modality = CTImageStorage, 'CT'
    ds.SOPInstanceUID = f'{PLANTED["SOPInstanceUID"][0]}.{k + 1}'
    ds.ImageType = ['ORIGINAL', 'PRIMARY', 'AXIAL']
    ds.Manufacturer = 'ACME'
    ds.Rows, ds.Columns = hu.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation, ds.RescaleSlope, ds.RescaleIntercept = 0, 1, -1024
    ds.PixelSpacing, ds.SliceThickness = [SPACING_MM] * 2, SPACING_MM
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [0, 0, k * SPACING_MM]
    ds.InstanceNumber = k + 1
    ds.WindowCenter, ds.WindowWidth = -600, 1200
    ds.PixelData = (hu + 1024).clip(0).astype('<u2').tobytes()
    block = ds.private_block(0x0009, PRIVATE[0], create=True)
    block.add_new(0x01, 'LO', PRIVATE[1])
    ds.file_meta = FileMetaDataset()
    for keyword, value in META.items():
      setattr(ds.file_meta, keyword, value)
    ds.file_meta.PrivateInformationCreatorUID = '1.2.3'
    ds.file_meta.PrivateInformation = PRIVATE[3].encode() + b' '
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.preamble = PRIVATE[2].encode().ljust(128, b'\0')
    result.append(ds)
  return result


def write(folder, datasets):
  """A series in a folder that is named after the patient, as are those above it."""
  where = folder / f'QZFOLDER_{PATIENT_ID}' / f'{NAME}_{GIVEN}'
  where.mkdir(parents=True)
  for k, ds in enumerate(datasets):
    ds.save_as(where / f'QZFILENAME{PATIENT_ID}_{k}.dcm', enforce_file_format=True)
  return where


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return fresh_model.write(tmp_path_factory.mktemp('model') / 'model', SPACE)


def contents(path):
  """All that a file holds, packed or not, as bytes."""
  raw = path.read_bytes()
  yield raw
  if path.name.endswith('.gz'):
    yield gzip.decompress(raw)
  if path.suffix == '.png':
    with Image.open(path) as picture:
      yield repr(picture.info).encode()
  if path.suffix == '.dcm':
    ds = pydicom.dcmread(path)
    yield f'{ds.file_meta}\n{ds}'.encode()
  if path.suffix == '.html':
    for each in re.findall(rb'base64,([A-Za-z0-9+/=]+)', raw):
      yield base64.b64decode(each)


def leaks(folder, kinds=None):
  """What of the planted is in names and contents of files, by file."""
  found = {}
  for path in sorted(folder.rglob('*')):
    if kinds and path.suffix not in kinds:
      continue
    name = str(path.relative_to(folder))
    texts = [name.encode(), *(contents(path) if path.is_file() else ())]
    if path.suffix == '.zarr':
      volumes = store.open_group(path).volumes.values()
      texts += [each.read().result().tobytes() for each in volumes]
    if words := set().union(*map(in_text, texts)):
      found[name] = words
  return found


def in_text(text):
  text = text if isinstance(text, bytes) else text.encode()
  text = text.upper()
  return {word for word in WORDS if word.encode() in text}


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
  return write(tmp_path_factory.mktemp('cohort'), slices())


@pytest.fixture(scope='module')
def predicted(cohort, model, tmp_path_factory):
  """The workdir of a predict job."""
  workdir = tmp_path_factory.mktemp('predicted')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    run_job('predict', workdir, input=str(cohort), model=str(model))
  return workdir


@pytest.fixture(scope='module')
def manifest(cohort):
  """Two scans of one patient; their masks are named after the patient, too."""
  (found,) = source.resolve(cohort)
  grid, rows = source.read_scan(found).grid, []
  for day, scan_id in enumerate((found.scan_id, 'later')):
    mask = np.zeros(SHAPE, np.uint8)
    mask[12:25, 22:40, 8 : 28 + 2 * day] = 1
    path = cohort.with_name(f'{NAME}_{PATIENT_ID}_{day}.nii.gz')
    nifti.write_volume(path, mask, grid, dtype=np.uint8)
    rows.append(ManifestRow('p1', scan_id, cohort, day=day, infection_mask=path))
  path = cohort.parents[1] / 'manifest.csv'
  write_manifest(path, rows)
  return path


def run(job, workdir, capfd, **inputs):
  """Runs a job; all it says, however it ends."""
  told = []
  with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter('always')
    try:
      run_job(job, workdir, **inputs)
    except (Covid3wayError, SomeFailedError) as error:
      told.append(str(error))
  told += [str(each.message) for each in warned]
  return '\n'.join([*told, *capfd.readouterr()])


def test_the_planted_is_found_where_it_is(cohort):
  """Or the tests below would find nothing whatever there is."""
  raw = b''.join(p.read_bytes() for p in cohort.iterdir())
  assert WORDS - in_text(raw) <= {
    *NAMES,
    *(w for w in WORDS if '-' in w or '000.7' in w),
  }
  assert len(WORDS) > 300
  path = next(cohort.iterdir())
  assert in_text(path.name) == {'QZFILENAME', PATIENT_ID}
  assert PATIENT_ID in in_text(json.dumps({'a': f'x{PATIENT_ID.lower()}'}))


@pytest.mark.parametrize('name', ['preprocess', 'check', 'predict'])
def test_no_output_and_no_line_holds_any_of_it(name, cohort, model, tmp_path, capfd):
  inputs = {'input': str(cohort)}
  if name == 'predict':
    inputs |= {'model': str(model), 'export': {'dicom': True}}
    inputs |= {'prediction': {'keep_views': True}}
  else:
    inputs['space'] = {'shape': SPACE}
  told = run(name, tmp_path, capfd, **inputs)
  assert not in_text(told), told
  assert leaks(tmp_path) == {}
  made = {p.suffix for p in tmp_path.rglob('*') if p.is_file()}
  assert (
    made
    >= {
      'preprocess': {'.json', ''},
      'check': {'.csv', '.json'},
      'predict': {'.csv', '.json', '.gz', '.dcm', '.png', '.html'},
    }[name]
  )


def test_only_dicom_names_the_patient_and_only_if_told_to(
  cohort, model, tmp_path, capfd
):
  export = {'dicom': True, 'identified': True}
  told = run(
    'predict', tmp_path, capfd, input=str(cohort), model=str(model), export=export
  )
  assert not in_text(told), told
  found = leaks(tmp_path)
  assert found and {Path(name).suffix for name in found} == {'.dcm'}
  assert all({NAME, PATIENT_ID} <= words for words in found.values())
  # And no more than a PACS needs to file them.
  for words in found.values():
    assert not words & {*META.values(), *PRIVATE, *NAMES}
    assert len(words) < 25, words


@pytest.mark.parametrize('identified', [False, True])
def test_quantify_is_as_silent_as_predict(
  identified, cohort, predicted, tmp_path, capfd
):
  given = {'input': str(cohort), 'predictions': str(predicted)}
  export = {'dicom': True, 'identified': identified}
  told = run('quantify', tmp_path, capfd, **given, export=export)
  assert not in_text(told), told
  found, written = leaks(tmp_path), set(tmp_path.glob('*/*.dcm'))
  assert {path.name for path in written} == {'infection.dcm', 'measurements.dcm'}
  assert {tmp_path / name for name in found} == (written if identified else set())
  assert all({NAME, PATIENT_ID} <= words for words in found.values())


def test_no_job_that_is_given_a_manifest_tells_any_of_it(
  manifest, predicted, tmp_path, capfd
):
  """But for paths that were given, in two files whose formats ask for them."""
  space, one = {'shape': SPACE}, manifest.with_name('one.csv')
  given, serial = {'input': str(manifest)}, tmp_path / 'serial'
  write_manifest(one, read_manifest(manifest)[:1])
  known = {'input': str(one), 'predictions': str(predicted)}
  told = [
    run('fit', serial, capfd, **given, space=space, fit={'iterations': 1}),
    run('augment', serial, capfd, **given, augmentation={'ratio': 1.0, 'steps': 3}),
    run('simulate', tmp_path / 'course', capfd, input=str(one), space=space),
    run('evaluate', tmp_path / 'figures', capfd, **known, space=space),
  ]
  assert not in_text('\n'.join(told)), told
  found = leaks(tmp_path)
  assert set(found) == {'serial/augmented.csv', 'figures/summary.json'}
  assert set().union(*found.values()) == in_text(manifest.read_bytes())
  assert len(list(serial.glob('store/*-sim-*.zarr'))) == 2
  assert [path.name for path in serial.glob('fits/*.json')] == ['p1.json']
  assert (tmp_path / 'course' / 'course.csv').exists()
  assert ',ok,' in (tmp_path / 'figures' / 'evaluation.csv').read_text()


def truncated(datasets):
  datasets[3].PixelData = datasets[3].PixelData[:1000]


def mixed(datasets):
  datasets[5].PatientID = f'{PATIENT_ID}OTHER'
  datasets[5].PatientName = f'{GIVEN}^{NAME}'


def gap(datasets):
  del datasets[10:13]


def without_place(datasets):
  for ds in datasets:
    del ds.ImagePositionPatient


def values_that_are_none(datasets):
  """As exports have them: a library tells of such in its own words."""
  for ds in datasets:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      ds.PatientBirthDate, ds.StudyTime = 'QZ001P', 'QZ002P'
      ds.AccessionNumber = f'QZ003P{"X" * 40}'
      ds.PatientSex = 'QZ004Psex'
      ds.StudyInstanceUID = f'{PATIENT_ID}.uid'


BREAKS = {
  truncated: 'pixel data that do not decode',
  mixed: 'patients',
  gap: 'missing',
  without_place: 'position',
  values_that_are_none: '1/1: ',
}


@pytest.mark.parametrize('broken', BREAKS)
def test_no_error_holds_any_of_it(broken, model, tmp_path, capfd):
  datasets = slices()
  broken(datasets)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    cohort = write(tmp_path / 'in', datasets)
  given = {'input': str(cohort), 'model': str(model), 'export': {'dicom': True}}
  told = run('predict', tmp_path / 'out', capfd, **given)
  assert BREAKS[broken] in told
  assert not in_text(told), told
  assert leaks(tmp_path / 'out') == {}


def test_the_program_itself_says_none_of_it_with_debug(tmp_path):
  """Of broken scans and an odd one: lines, warnings, tracebacks, a report."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for number, broken in enumerate((truncated, mixed, values_that_are_none)):
      datasets = slices()
      broken(datasets)
      write(tmp_path / 'in' / str(number), datasets)
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'covid3way.main', '--config=configs/preprocess.py'),
      f'--workdir={tmp_path / "out"}',
      f'--config.input={tmp_path / "in"}',
      '--config.space.shape=(32, 32, 48)',
      '--debug',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 1, done.stderr
  told = done.stdout + done.stderr
  assert told.count('Traceback') >= 3  # Of each scan that failed, and of the job.
  assert not in_text(told), told
  assert leaks(tmp_path / 'out') == {}
