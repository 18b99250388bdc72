"""Multi-frame CT: every frame is a slice like any other."""

import tracemalloc
import zipfile

import highdicom
import numpy as np
import pydicom
import pytest
import series
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.uid import (
  JPEG2000Lossless,
  JPEGLSLossless,
  LegacyConvertedEnhancedCTImageStorage,
  RLELossless,
)

from covid3way import base
from covid3way.base import WarningKind
from covid3way.scans import dicom, source


def read(path):
  return dicom.read_series(path, scan_id='s1')


def write(folder, *objects):
  folder.mkdir(exist_ok=True)
  for k, dataset in enumerate(objects):
    (folder / f'{k}.dcm').write_bytes(series.to_bytes(dataset))
  return folder


def shuffled(datasets):
  return [datasets[k] for k in np.random.default_rng(1).permutation(len(datasets))]


def same(scan, other):
  np.testing.assert_array_equal(scan.hu, other.hu)
  np.testing.assert_allclose(scan.grid.affine, other.grid.affine)
  assert scan.windows == other.windows


@pytest.mark.parametrize(
  'orientation', [series.SUPINE, series.PRONE, series.SAGITTAL, series.FEET_FIRST]
)
def test_frames_are_slices_in_whatever_order(tmp_path, orientation):
  datasets = series.slices(orientation, WindowCenter=-600, WindowWidth=1200)
  single = read(series.write(tmp_path / 'single', datasets))
  scan = read(write(tmp_path / 'multi', series.enhanced(shuffled(datasets))))
  same(scan, single)
  assert scan.warnings == ()
  assert scan.provenance['slices'] == 5


def test_each_frame_has_its_own_rescale(tmp_path):
  datasets = series.slices(slope=1, intercept=-1024)
  for k, other in enumerate(series.slices(slope=0.5, intercept=-2000)):
    if k % 2:
      datasets[k] = other
  single = read(series.write(tmp_path / 'single', series.slices()))
  same(read(write(tmp_path / 'multi', series.enhanced(datasets))), single)


def test_several_objects_make_one_series(tmp_path):
  datasets = series.slices(shape=(6, 7, 9))
  parts = (series.enhanced(datasets[k::2], k + 1) for k in range(2))
  single = read(series.write(tmp_path / 'single', datasets))
  same(read(write(tmp_path / 'multi', *parts)), single)


@pytest.mark.parametrize('syntax', [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_compressed_frames_decode(tmp_path, syntax):
  datasets = series.slices(shape=(40, 36, 4))
  single = read(series.write(tmp_path / 'single', datasets))
  path = write(tmp_path / 'multi', series.enhanced(shuffled(datasets))) / '0.dcm'
  dataset = pydicom.dcmread(path)
  frames = [dataset.pixel_array[k] for k in range(4)]
  if syntax == JPEGLSLossless:  # each by GDCM, as one frame
    encoded = []
    for frame in frames:
      one = series.ct_slice(0, frame, signed=False)
      (tmp_path / 'one').write_bytes(series.to_bytes(one))
      series.compress(tmp_path / 'one', syntax)
      data = pydicom.dcmread(tmp_path / 'one').PixelData
      encoded += pydicom.encaps.generate_frames(data, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate(encoded)
    dataset['PixelData'].VR = 'OB'
    dataset.file_meta.TransferSyntaxUID = syntax
  else:
    dataset.compress(syntax, generate_instance_uid=False)
  dataset.save_as(path)
  same(read(path), single)
  cut = path.read_bytes()
  path.write_bytes(cut[: cut.rindex(b'\xe0\x7f\x10\x00') + 400])
  with pytest.raises(base.DamagedFileError, match=r'cut short|decode'):
    read(path)


def test_legacy_converted_series_of_highdicom(tmp_path):
  tags = {
    'PatientBirthDate': '',
    'PatientSex': '',
    'StudyDate': '20200301',
    'StudyTime': '',
    'AccessionNumber': '',
    'StudyID': '',
    'ReferringPhysicianName': '',
    'SeriesNumber': 1,
    'FrameOfReferenceUID': '1.2.9',
    'PositionReferenceIndicator': '',
    'AcquisitionDate': '20200301',
    'AcquisitionTime': '120000',
    'ImageType': ['ORIGINAL', 'PRIMARY', 'AXIAL'],
    'KVP': 120,
  }
  datasets = series.slices(WindowCenter=-600, WindowWidth=1200, **tags)
  single = read(series.write(tmp_path / 'single', datasets))
  converted = LegacyConvertedEnhancedCTImage(
    datasets, highdicom.UID(), 1, highdicom.UID(), 1
  )
  assert converted.SOPClassUID == LegacyConvertedEnhancedCTImageStorage
  (tmp_path / 'multi').mkdir()
  converted.save_as(tmp_path / 'multi' / '0.dcm')
  same(read(tmp_path / 'multi'), single)


def test_tilt_phases_and_localizers_among_frames(tmp_path):
  moved = np.outer(np.arange(5), [0, 0.6, 2.0])
  tilted = series.slices(shifts_mm=moved)
  other = series.slices(shifts_mm=moved, slope=0.5)
  for phase, datasets in enumerate((tilted, other)):
    for dataset in datasets:
      dataset.TemporalPositionIndex = phase + 1
      dataset.PixelData = bytes(np.roll(np.frombuffer(dataset.PixelData, 'u1'), phase))
  single = read(series.write(tmp_path / 'single', tilted))
  scout = series.slices(series.CORONAL, shape=(6, 7, 1))
  localizer = series.enhanced(scout, 9)
  localizer.ImageType = ['ORIGINAL', 'PRIMARY', 'LOCALIZER', 'NONE']
  multi = write(tmp_path / 'multi', series.enhanced(tilted + other), localizer)
  scan = read(multi)
  same(scan, single)
  assert [w.kind for w in scan.warnings] == [
    WarningKind.FILES_IGNORED,
    WarningKind.SERIES_CHOSEN,
    WarningKind.TILT_CORRECTED,
  ]
  assert 'told apart by TemporalPositionIndex' in scan.warnings[1].message
  found = dicom.source_slices(multi, scan_id='s1')
  assert [frame for _, frame in found] == [0, 1, 2, 3, 4]
  assert len({id(header) for header, _ in found}) == 1


def test_archive_and_identity(tmp_path):
  folder = write(tmp_path / 'jane', series.enhanced(series.slices()))
  (row,) = source.resolve(folder)
  assert row.scan_id.startswith('scan-')
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
    archive.write(folder / '0.dcm', '0.dcm')
  same(read(tmp_path / 'a.zip'), read(folder))


@pytest.mark.parametrize('syntax', ['1.2.840.10008.1.2', '1.2.840.10008.1.2.1.99'])
def test_implicit_and_deflated_frames(tmp_path, syntax):
  datasets = series.slices()
  multi = series.enhanced(shuffled(datasets))
  multi.file_meta.TransferSyntaxUID = syntax
  single = read(series.write(tmp_path / 'single', datasets))
  same(read(write(tmp_path / 'multi', multi)), single)


def test_a_single_frame_that_says_so(tmp_path):
  scan = read(series.write(tmp_path, series.slices(NumberOfFrames=1)))
  assert scan.hu.shape == (6, 7, 5)


@pytest.mark.parametrize('kind', ['no groups', 'fewer groups', 'classic'])
def test_frames_without_a_place(tmp_path, kind):
  multi = series.enhanced(series.slices())
  if kind == 'fewer groups':
    del multi.PerFrameFunctionalGroupsSequence[3]
  else:
    del multi.PerFrameFunctionalGroupsSequence
  if kind == 'classic':
    multi.SOPClassUID = pydicom.uid.CTImageStorage
  with pytest.raises(base.InputError, match=r'multi-frame CT.*convert'):
    read(write(tmp_path, multi))


@pytest.mark.parametrize('macro', ['PlanePositionSequence', 'FrameVOILUTSequence'])
def test_a_frame_without_a_group(tmp_path, macro):
  multi = series.enhanced(series.slices())
  delattr(multi.PerFrameFunctionalGroupsSequence[2], macro)
  folder = write(tmp_path, multi)
  if macro == 'FrameVOILUTSequence':
    assert read(folder).hu.shape == (6, 7, 5)
    return
  with pytest.raises(base.DamagedFileError, match=r'0\.dcm has no usable position'):
    read(folder)


def test_frames_are_read_one_by_one(tmp_path):
  """No more memory than the volume in float32, and a few slices."""
  datasets = series.slices(shape=(8, 8, 128))
  for dataset in datasets:
    dataset.PixelData = np.kron(
      np.frombuffer(dataset.PixelData, '<u2').reshape(8, 8), np.ones((16, 16), '<u2')
    ).tobytes()
    dataset.Rows = dataset.Columns = 128
  folder = write(tmp_path, series.enhanced(datasets))
  read(folder)  # what is imported or cached for good
  tracemalloc.start()
  hu = read(folder).hu
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert hu.nbytes == 128**3 * 4
  assert peak < 1.4 * hu.nbytes
