import zipfile

import numpy as np
import pydicom
import pytest
import series
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
  DeflatedExplicitVRLittleEndian,
  EnhancedCTImageStorage,
  ExplicitVRBigEndian,
  ImplicitVRLittleEndian,
  RTStructureSetStorage,
)

from covid3way import base
from covid3way.base import WarningKind
from covid3way.scans import dicom

ORIENTATIONS = {
  'supine': series.SUPINE,
  'prone': series.PRONE,
  'feet first': series.FEET_FIRST,
  'coronal': series.CORONAL,
  'sagittal': series.SAGITTAL,
}


def read(path):
  return dicom.read_series(path, scan_id='s1')


def world_of(grid):
  """(x, y, z, 3) mm, of every voxel."""
  index = np.moveaxis(np.indices(grid.shape), 0, -1)
  return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def assert_every_voxel_in_place(scan):
  np.testing.assert_allclose(scan.hu, series.hu_at(world_of(scan.grid)), atol=1e-3)


def kinds(scan):
  return [warning.kind for warning in scan.warnings]


def refused(path, error, *words):
  """Reading fails with a message that says who, what, and what to do."""
  with pytest.raises(error) as caught:
    read(path)
  assert type(caught.value) is error
  assert str(caught.value).startswith('s1: ')
  assert caught.value.remedy
  for word in words:
    assert word in str(caught.value)
  for secret in ('Doe', 'Jane', 'HOSP4711'):
    assert secret not in str(caught.value)


# Known answers


@pytest.mark.parametrize('orientation', ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_voxel_lies_where_the_standard_says(tmp_path, orientation):
  scan = read(series.write(tmp_path, series.slices(orientation)))
  assert_every_voxel_in_place(scan)
  assert (np.diag(scan.grid.affine)[:3] > 0).all()  # x to the left, y back, z to head
  assert scan.hu.dtype == np.float32
  assert scan.hu.flags.c_contiguous
  assert scan.warnings == ()


def test_supine_series_by_hand(tmp_path):
  scan = read(series.write(tmp_path, series.slices()))
  assert scan.grid.native_shape == scan.hu.shape == (6, 7, 5)
  assert scan.grid.spacing_mm == (1.0, 2.0, 2.0)
  np.testing.assert_array_equal(
    scan.grid.native_affine,
    [[1, 0, 0, -10], [0, 2, 0, -8], [0, 0, 2, -30], [0, 0, 0, 1]],
  )
  assert scan.hu[4, 3, 2] == series.hu_at(np.array([-6.0, -2.0, -26.0]))


def test_feet_first_native_order_runs_along_the_normal(tmp_path):
  scan = read(series.write(tmp_path, series.slices(series.FEET_FIRST)))
  np.testing.assert_array_equal(scan.grid.native_affine[:3, 2], [0, 0, -2])
  np.testing.assert_array_equal(scan.grid.native_affine[:3, 3], [-10, -8, -30])


def test_oblique_series_keeps_its_axes_and_says_so(tmp_path):
  c, s = np.cos(np.radians(5)), np.sin(np.radians(5))
  datasets = series.slices((c, s, 0, -s, c, 0), slope=0.02, intercept=0, signed=True)
  scan = read(series.write(tmp_path, datasets))
  np.testing.assert_allclose(scan.hu, series.hu_at(world_of(scan.grid)), atol=0.02)
  assert kinds(scan) == [WarningKind.OBLIQUE]
  assert '5.0 degrees' in scan.warnings[0].message


@pytest.mark.parametrize('syntax', series.COMPRESSED, ids=lambda s: s.name)
@pytest.mark.parametrize('signed', [False, True])
def test_compressed_syntaxes_decode(tmp_path, syntax, signed):
  datasets = series.slices(shape=(40, 36, 3), signed=signed, intercept=-1000)
  for path in series.files(series.write(tmp_path, datasets)):
    series.compress(path, syntax)
  scan = read(tmp_path)
  assert_every_voxel_in_place(scan)
  assert scan.provenance['transfer_syntax'] == syntax.name


def test_slope_and_intercept_are_those_of_each_slice(tmp_path):
  datasets = series.slices(slope=1, intercept=-1024)
  for k, other in enumerate(series.slices(slope=0.5, intercept=-2000)):
    if k % 2:
      datasets[k] = other
  assert_every_voxel_in_place(read(series.write(tmp_path, datasets)))


def test_unused_bits_are_no_signal(tmp_path):
  datasets = series.slices(shape=(6, 7, 3))
  for dataset in datasets:
    stored = np.frombuffer(dataset.PixelData, '<u2')
    assert stored.max() < 4096
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.PixelData = (stored | 0x8000).tobytes()  # an overlay, as of old
  assert_every_voxel_in_place(read(series.write(tmp_path, datasets)))


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize(('high', 'moved'), [(11, 0), (15, 4), (13, 2)])
def test_garbage_beside_the_used_bits_is_no_signal(tmp_path, signed, high, moved):
  """12 bits used, wherever in the word they lie; ones in all the others."""
  datasets = series.slices(signed=signed, intercept=0 if signed else -1024)
  for dataset in datasets:
    words = np.frombuffer(dataset.PixelData, '<u2').astype(np.uint32) & 0xFFF
    garbage = 0xFFFF & ~(0xFFF << moved)
    dataset.BitsStored, dataset.HighBit = 12, high
    dataset.PixelData = (words << moved | garbage).astype('<u2').tobytes()
  assert_every_voxel_in_place(read(series.write(tmp_path, datasets)))


@pytest.mark.parametrize(
  'syntax',
  [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian],
)
@pytest.mark.parametrize('signed', [False, True])
def test_uncompressed_syntaxes(tmp_path, syntax, signed):
  datasets = series.slices(signed=signed, intercept=-1000)
  for k, dataset in enumerate(datasets):
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
      words = np.frombuffer(dataset.PixelData, '<u2')
      dataset.PixelData = words.astype('>u2').tobytes()
      dataset['PixelData'].VR = 'OW'
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(tmp_path / str(k), enforce_file_format=True)
  assert_every_voxel_in_place(read(tmp_path))


@pytest.mark.parametrize('syntax', series.LOSSY, ids=lambda s: s.name)
def test_lossy_syntaxes_decode_closely(tmp_path, syntax):
  datasets = series.slices(shape=(40, 36, 3), BitsStored=12, HighBit=11)
  for path in series.files(series.write(tmp_path, datasets)):
    series.compress(path, syntax)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
  scan = read(tmp_path)
  np.testing.assert_allclose(scan.hu, series.hu_at(world_of(scan.grid)), atol=3)
  assert scan.provenance['transfer_syntax'] == syntax.name


@pytest.mark.parametrize(
  ('word', 'signed', 'used'),
  [(63536, False, 16), (4095, False, 12), (63536, False, 12)],
)
def test_padding_that_reads_as_dense_becomes_air(tmp_path, word, signed, used):
  """-2000 in unsigned words is 63536; another exporter pads with the highest value."""
  datasets = series.slices(intercept=-1024)
  for dataset in datasets:
    stored = np.frombuffer(dataset.PixelData, '<u2').reshape(7, 6).copy()
    stored[-1] = word
    dataset.PixelData = stored.tobytes()
    dataset.PixelPaddingValue = word
    dataset.BitsStored, dataset.HighBit = used, used - 1
  scan = read(series.write(tmp_path, datasets))
  assert (scan.hu[:, -1] == -1024).all()
  assert kinds(scan) == [WarningKind.PADDING_REPLACED]
  assert scan.warnings[0].message.startswith('14.3%')
  expected = series.hu_at(world_of(scan.grid))
  np.testing.assert_allclose(scan.hu[:, :-1], expected[:, :-1], atol=1e-3)


def test_a_range_of_padding(tmp_path):
  datasets = series.slices(intercept=-1024)
  for dataset in datasets:
    stored = np.frombuffer(dataset.PixelData, '<u2').reshape(7, 6).copy()
    stored[-1] = np.arange(6) + 60000
    dataset.PixelData = stored.tobytes()
    dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = 60000, 60004
  refused(series.write(tmp_path, datasets), base.SignalError, '58981', 'negative')
  for dataset in datasets:
    dataset.PixelPaddingRangeLimit = 60005
  scan = read(series.write(tmp_path, datasets))
  assert (scan.hu[:, -1] == -1024).all()


def test_padding_that_reads_as_tissue_stays(tmp_path):
  """A padding value of 0 HU is one that exporters write without meaning it."""
  datasets = series.slices(intercept=0, signed=True, PixelPaddingValue=-250)
  assert any(-250 in np.frombuffer(d.PixelData, '<i2') for d in datasets)
  assert_every_voxel_in_place(read(series.write(tmp_path, datasets)))


def test_padding_is_clipped_and_counted(tmp_path):
  datasets = series.slices(shape=(6, 7, 5), signed=True, intercept=0)
  for dataset in datasets:
    stored = np.frombuffer(dataset.PixelData, '<i2').reshape(7, 6).copy()
    stored[-1] = -3024
    dataset.PixelData = stored.tobytes()
    dataset.PixelPaddingValue = -3024
  scan = read(series.write(tmp_path, datasets))
  assert scan.hu.min() == -1024
  assert (scan.hu[:, -1] == -1024).all()
  assert kinds(scan) == [WarningKind.PADDING_CLIPPED]
  assert scan.warnings[0].message.startswith('14.3%')


def test_zip_equals_folder(tmp_path):
  folder = series.write(tmp_path / 'series', series.slices())
  with zipfile.ZipFile(tmp_path / 'scan.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
    for path in series.files(folder):
      archive.write(path, path.relative_to(tmp_path))
    archive.writestr('__MACOSX/series/._IM0.dcm', b'a resource fork')
  scan, zipped = read(folder), read(tmp_path / 'scan.zip')
  np.testing.assert_array_equal(scan.hu, zipped.hu)
  assert zipped.warnings == ()
  assert {p.name for p in tmp_path.iterdir()} == {'series', 'scan.zip'}


def test_files_without_preamble_or_file_header_are_read(tmp_path):
  for path in series.files(series.write(tmp_path, series.slices())):
    data = path.read_bytes()
    header_length = pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength
    path.write_bytes(data[132 + 12 + header_length :])
  assert_every_voxel_in_place(read(tmp_path))


# What is beside the series


def test_other_objects_are_ignored_and_counted(tmp_path):
  folder = series.write(tmp_path, series.slices())
  structures, scout = series.slices(shape=(2, 2, 2))
  structures.SOPClassUID = RTStructureSetStorage
  scout.ImageType = ['ORIGINAL', 'PRIMARY', 'LOCALIZER']
  (folder / 'rs').write_bytes(series.to_bytes(structures))
  (folder / 'scout').write_bytes(series.to_bytes(scout))
  (folder / 'notes.txt').write_text('x')
  (folder / '.DS_Store').write_text('x')
  scan = read(folder)
  assert_every_voxel_in_place(scan)
  assert scan.warnings == (
    base.ScanWarning(
      WarningKind.FILES_IGNORED,
      '3 file(s) are no CT slices: '
      '1 RT Structure Set Storage, 1 localizer, 1 not DICOM',
    ),
  )


def test_the_finest_of_the_long_axial_series_is_chosen(tmp_path):
  offered = {
    'thick': series.slices(step_mm=4.0, shape=(6, 7, 6), SeriesInstanceUID='1.1'),
    'wanted': series.slices(step_mm=2.0, shape=(6, 7, 10), SeriesInstanceUID='1.2'),
    'short': series.slices(step_mm=1.0, shape=(6, 7, 5), SeriesInstanceUID='1.3'),
    'coronal': series.slices(series.CORONAL, shape=(6, 7, 40), SeriesInstanceUID='1.4'),
  }
  for name, datasets in offered.items():
    series.write(tmp_path / name, datasets)
  scan = read(tmp_path)
  assert scan.hu.shape == (6, 7, 10)
  assert kinds(scan) == [WarningKind.SERIES_CHOSEN]
  assert '4 CT series' in scan.warnings[0].message
  assert '10 slices, 2.00 mm apart' in scan.warnings[0].message


def test_exact_copies_are_dropped(tmp_path):
  series.write(tmp_path / 'a', series.slices())
  series.write(tmp_path / 'b', series.slices()[:2])
  scan = read(tmp_path)
  assert_every_voxel_in_place(scan)
  assert kinds(scan) == [WarningKind.DUPLICATE_FILE_DROPPED]
  assert scan.warnings[0].message.startswith('2 file')


def test_slices_that_share_one_uid_are_no_copies(tmp_path):
  datasets = series.slices(SOPInstanceUID='1.2.3.4.1')
  assert read(series.write(tmp_path, datasets)).hu.shape[2] == 5


def test_copies_under_another_uid_are_dropped(tmp_path):
  datasets = series.slices()
  copies = series.slices()[1:4]
  for k, dataset in enumerate(copies):
    dataset.SOPInstanceUID = f'1.2.3.9.{k}'
  series.write(tmp_path / 'a', datasets)
  series.write(tmp_path / 'b', copies)
  scan = read(tmp_path)
  assert_every_voxel_in_place(scan)
  assert kinds(scan) == [WarningKind.DUPLICATE_FILE_DROPPED]
  assert scan.warnings[0].message.startswith('3 file')


def two_in_one(folder, mine, other):
  """A series of right slices, and of others over them, told apart by their tags."""
  others = series.slices(**other)
  for k, dataset in enumerate(others):
    dataset.SOPInstanceUID = f'1.2.3.9.{k}'
    noise = np.frombuffer(dataset.PixelData, '<u2') + np.uint16(300 + k)
    dataset.PixelData = noise.tobytes()
  series.write(folder / 'a', series.slices(**mine))
  return series.write(folder / 'b', others)


@pytest.mark.parametrize(
  ('mine', 'other', 'told'),
  [
    ({'ConvolutionKernel': 'B31f'}, {'ConvolutionKernel': 'B60f'}, 'ConvolutionKernel'),
    ({'SliceThickness': 2.0}, {'SliceThickness': 5.0}, 'SliceThickness'),
    ({'AcquisitionNumber': 1}, {'AcquisitionNumber': 2}, 'AcquisitionNumber'),
    ({'AcquisitionTime': '1010'}, {'AcquisitionTime': '1011'}, 'AcquisitionTime'),
    (
      {'ImageType': ['ORIGINAL', 'PRIMARY', 'AXIAL']},
      {'ImageType': ['DERIVED', 'PRIMARY', 'AXIAL', 'MIP']},
      'ImageType',
    ),
    (  # finer, and from another position
      {'SliceThickness': 1.0, 'shape': (6, 7, 9), 'step_mm': 1.0},
      {'SliceThickness': 4.0, 'shape': (6, 7, 3), 'step_mm': 4.0},
      'SliceThickness',
    ),
    (  # in between, no position twice
      {'ConvolutionKernel': 'A', 'shape': (6, 7, 6)},
      {'ConvolutionKernel': 'B', 'shape': (6, 7, 6), 'origin_mm': (-10, -8, -29.4)},
      'ConvolutionKernel',
    ),
  ],
)
def test_one_of_two_reconstructions_in_a_series_is_taken(tmp_path, mine, other, told):
  two_in_one(tmp_path, mine, other)
  scan = read(tmp_path)
  assert_every_voxel_in_place(scan)
  assert kinds(scan) == [WarningKind.SERIES_CHOSEN]
  assert f'2 reconstructions or phases in one series, told apart by {told}' in (
    scan.warnings[0].message
  )


def test_kernels_and_phases_at_once(tmp_path):
  for k, kernel in enumerate('AB'):
    for phase in (1, 2):
      tags = {'ConvolutionKernel': kernel, 'AcquisitionNumber': phase}
      datasets = series.slices(**tags, origin_mm=(-10, -8, -30))
      for j, dataset in enumerate(datasets):
        dataset.SOPInstanceUID = f'1.2.3.9.{k}.{phase}.{j}'
        if (kernel, phase) != ('A', 1):
          stored = np.frombuffer(dataset.PixelData, '<u2') + np.uint16(9 * k + phase)
          dataset.PixelData = stored.tobytes()
      series.write(tmp_path / f'{kernel}{phase}', datasets)
  scan = read(tmp_path)
  assert_every_voxel_in_place(scan)
  assert '4 recon' in scan.warnings[0].message
  assert 'ConvolutionKernel and AcquisitionNumber' in scan.warnings[0].message


def test_parts_of_one_acquisition_stay_together(tmp_path):
  """Numbers that change along the patient tell no layers apart."""
  datasets = series.slices(shape=(6, 7, 8))
  for k, dataset in enumerate(datasets):
    dataset.AcquisitionNumber, dataset.AcquisitionTime = k // 4, str(1010 + k)
  scan = read(series.write(tmp_path, datasets))
  assert_every_voxel_in_place(scan)
  assert scan.hu.shape == (6, 7, 8)
  assert scan.warnings == ()


def test_localizers_that_do_not_say_so_are_left_out(tmp_path):
  scouts = [
    *series.slices(series.CORONAL, shape=(6, 7, 1)),
    *series.slices(series.SAGITTAL, shape=(9, 9, 2)),
  ]
  for k, dataset in enumerate(scouts):
    dataset.SOPInstanceUID = f'1.2.3.9.{k}'
  series.write(tmp_path / 'a', scouts)
  series.write(tmp_path / 'b', series.slices())
  scan = read(tmp_path)
  assert_every_voxel_in_place(scan)
  assert kinds(scan) == [WarningKind.SLICES_IGNORED]
  assert scan.warnings[0].message.startswith('3 slice(s)')


def test_two_orientations_of_like_length_are_refused(tmp_path):
  coronal = series.slices(series.CORONAL, shape=(6, 7, 5))
  for k, dataset in enumerate(coronal):
    dataset.SOPInstanceUID = f'1.2.3.9.{k}'
  series.write(tmp_path / 'a', coronal)
  series.write(tmp_path / 'b', series.slices())
  refused(tmp_path, base.GeometryError, '5 of 10', 'orientation')


def test_windows_are_pairs_in_order_and_unique(tmp_path):
  datasets = series.slices(WindowCenter=[50, -600], WindowWidth=[350, 1200])
  datasets[-1].WindowCenter, datasets[-1].WindowWidth = -500, 1500
  scan = read(series.write(tmp_path, datasets))
  pairs = [(50, 350), (-600, 1200), (-500, 1500)]
  assert scan.windows == tuple(base.Window(*pair, 'dicom tag') for pair in pairs)


def test_absent_window_tags_give_no_candidate(tmp_path):
  assert read(series.write(tmp_path, series.slices())).windows == ()
  for dataset in (datasets := series.slices()):
    dataset.WindowCenter, dataset.WindowWidth = '', ''
  assert read(series.write(tmp_path, datasets)).windows == ()


def test_provenance_tells_the_scanner_and_nobody(tmp_path):
  tags = {'StudyDate': '20200301', 'SeriesDescription': 'Doe thorax', 'KVP': 120}
  scan = read(series.write(tmp_path, series.slices(**tags)))
  assert scan.provenance['manufacturer'] == 'ACME'
  assert scan.provenance['slices'] == 5
  assert float(scan.provenance['kvp']) == 120
  for secret in ('Doe', 'HOSP4711', '20200301', '1.2.3.4', 'thorax'):
    assert secret not in repr(scan.provenance) + repr(scan.warnings)


# Wrong inputs


def test_empty_folder(tmp_path):
  refused(tmp_path, base.NoCtError, 'empty', 'give the folder')


def test_folder_without_ct(tmp_path):
  (tmp_path / 'notes.txt').write_text('x')
  dataset = series.slices()[0]
  dataset.SOPClassUID = RTStructureSetStorage
  (tmp_path / 'rs.dcm').write_bytes(series.to_bytes(dataset))
  refused(tmp_path, base.NoCtError, 'no CT', '1 not DICOM', '1 RT Structure Set')


def test_no_such_path(tmp_path):
  refused(tmp_path / 'absent', base.InputError, 'no such file')


@pytest.mark.parametrize(
  'other',
  [{'PatientID': 'B', 'PatientName': ''}, {'PatientID': '', 'PatientName': 'B'}],
)
def test_two_patients_in_one_folder(tmp_path, other):
  mine = {'PatientID': other['PatientID'] and 'A', 'PatientName': 'A'}
  series.write(tmp_path / 'a', series.slices(**mine))
  series.write(tmp_path / 'b', series.slices(**other, SeriesInstanceUID='1.9'))
  refused(tmp_path, base.MixedPatientsError, '2 patients', 'one folder per patient')


def test_blank_identities_are_one_patient(tmp_path):
  datasets = series.slices(PatientID='', PatientName='')
  assert_every_voxel_in_place(read(series.write(tmp_path, datasets)))


def test_missing_slice(tmp_path):
  datasets = series.slices(shape=(6, 7, 7))
  del datasets[3]
  refused(
    series.write(tmp_path, datasets),
    base.MissingSliceError,
    'gap of 4.00 mm at -26.00 mm',
    '2.00 mm apart',
  )


def test_two_slices_at_one_position(tmp_path):
  datasets = series.slices()
  datasets[2].ImagePositionPatient = datasets[1].ImagePositionPatient
  refused(
    series.write(tmp_path, datasets),
    base.DuplicateSliceError,
    'at -28.00 mm',
    'keep one',
  )


def test_rounded_positions_are_even_enough(tmp_path):
  datasets = series.slices(shape=(6, 7, 9))
  for k, dataset in enumerate(datasets):
    dataset.ImagePositionPatient = [0, 0, round(0.625 * k, 1)]
  assert read(series.write(tmp_path, datasets)).hu.shape == (6, 7, 9)


@pytest.mark.parametrize(
  ('tags', 'word'),
  [
    ({'ImageOrientationPatient': [1, 0, 0, 0, 0.98, 0.199]}, 'orientation'),
    ({'PixelSpacing': [2.0, 1.5]}, 'pixel spacing'),
    ({'Rows': 6}, 'size'),
  ],
)
def test_slices_unlike_each_other(tmp_path, tags, word):
  datasets = series.slices()
  for keyword, value in tags.items():
    setattr(datasets[3], keyword, value)
  refused(series.write(tmp_path, datasets), base.GeometryError, word, '1 of 5')


def test_too_few_slices(tmp_path):
  folder = series.write(tmp_path, series.slices(shape=(6, 7, 2)))
  refused(folder, base.GeometryError, 'only 2')
  refused(series.files(folder)[0], base.GeometryError, 'only 1')


@pytest.mark.parametrize(
  'keyword',
  ['ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'RescaleSlope'],
)
def test_slice_without_what_it_must_say(tmp_path, keyword):
  datasets = series.slices()
  delattr(datasets[0], keyword)
  refused(series.write(tmp_path, datasets), base.DamagedFileError, 'IM2z')


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'PhotometricInterpretation': 'MONOCHROME1'}, 'MONOCHROME1'),
    ({'RescaleType': 'OD'}, 'values are OD'),
    ({'RescaleIntercept': 0}, 'no air and no lung'),
    ({'RescaleIntercept': -2048}, 'nothing but air'),
    ({'RescaleSlope': 0.1, 'RescaleIntercept': -50}, 'windowed already'),
    ({'RescaleSlope': 0.001, 'RescaleIntercept': -1}, 'normalised already'),
    ({'RescaleSlope': 100}, 'negative numbers'),
  ],
)
def test_values_that_are_no_hu(tmp_path, change, words):
  datasets = series.slices()
  for dataset in datasets:
    for keyword, value in change.items():
      setattr(dataset, keyword, value)
  refused(series.write(tmp_path, datasets), base.SignalError, words)


def test_unspecified_units_are_judged_by_their_values(tmp_path):
  for unit in ('HU', 'US', ''):
    series.write(tmp_path / f'is{unit}', series.slices(RescaleType=unit))
    assert_every_voxel_in_place(read(tmp_path / f'is{unit}'))


def test_another_domain_may_hold_what_it_likes(tmp_path):
  series.write(tmp_path, series.slices(RescaleType='OD', intercept=-2000))
  for path in series.files(tmp_path):
    dataset = pydicom.dcmread(path)
    dataset.RescaleIntercept = 0
    dataset.save_as(path)
  scan = dicom.read_series(tmp_path, scan_id='s1', domain='density')
  assert scan.hu.min() > 1000


def test_multi_frame_ct(tmp_path):
  datasets = series.slices(SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=5)
  refused(series.write(tmp_path, datasets), base.InputError, 'multi-frame', 'convert')


def cut_file(path, start):
  """Cut a file so many bytes after the start of its pixel data element."""
  data = path.read_bytes()
  path.write_bytes(data[: data.rindex(b'\xe0\x7f\x10\x00') + start])


@pytest.mark.parametrize('start', [-400, -200, -90, -25, 2, 40])
def test_file_cut_short(tmp_path, start):
  path = series.files(series.write(tmp_path, series.slices()))[1]
  cut_file(path, start)
  refused(tmp_path, base.DamagedFileError, path.name, 'again')


@pytest.mark.parametrize('syntax', series.COMPRESSED, ids=lambda s: s.name)
def test_compressed_file_cut_short(tmp_path, syntax):
  datasets = series.slices(shape=(32, 32, 3))
  paths = series.files(series.write(tmp_path, datasets))
  for path in paths:
    series.compress(path, syntax)
  cut_file(paths[1], 100)
  refused(tmp_path, base.DamagedFileError, paths[1].name)


@pytest.mark.parametrize('share', [0.3, 0.7, 0.95])
@pytest.mark.parametrize('syntax', series.COMPRESSED, ids=lambda s: s.name)
def test_frame_cut_short_in_a_whole_file(tmp_path, syntax, share):
  paths = series.files(series.write(tmp_path, series.slices(shape=(32, 32, 3))))
  for path in paths:
    series.compress(path, syntax)
  dataset = pydicom.dcmread(paths[1])
  frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
  dataset.PixelData = encapsulate([frame[: int(share * len(frame)) // 2 * 2]])
  dataset.save_as(paths[1])
  refused(tmp_path, base.DamagedFileError, paths[1].name, syntax.name)


def test_empty_file_named_dcm(tmp_path):
  series.write(tmp_path, series.slices())
  (tmp_path / '0003.dcm').touch()
  refused(tmp_path, base.DamagedFileError, '0003.dcm')


def test_damaged_archive(tmp_path):
  path = tmp_path / 'scan.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('0.dcm', series.to_bytes(series.slices()[0]))
  whole = path.read_bytes()
  path.write_bytes(whole[:200] + b'damage' + whole[206:])
  refused(path, base.DamagedFileError, 'file <name hidden>', '.zip')
  path.write_bytes(whole[:300])
  refused(path, base.DamagedFileError, 'scan.zip')


# Real scans


@pytest.mark.parametrize(
  ('name', 'count', 'spacing_mm'),
  [
    ('covid-ct-md/P001', 148, (0.748, 0.748, 2.0)),
    ('covid-ct-md/normal001', 154, (0.635, 0.635, 2.0)),
    ('lung1-003/ct', 107, (0.977, 0.977, 3.0)),
    ('lung-dx-A0002', 30, (0.646, 0.646, 8.0)),
  ],
)
def test_real_scan(name, count, spacing_mm):
  folder = series.real(name)
  scan = read(folder)
  slices = sorted(
    (pydicom.dcmread(p, stop_before_pixels=True) for p in folder.glob('*.dcm')),
    key=lambda d: d.ImagePositionPatient[2],
  )
  step = slices[1].ImagePositionPatient[2] - slices[0].ImagePositionPatient[2]
  affine = np.diag([*slices[0].PixelSpacing[::-1], step, 1.0])
  affine[:3, 3] = slices[0].ImagePositionPatient
  np.testing.assert_allclose(scan.grid.affine, affine, atol=1e-3)
  np.testing.assert_allclose(scan.grid.spacing_mm, spacing_mm, atol=5e-4)
  assert scan.hu.shape == (512, 512, count)
  assert scan.hu.min() >= -1024

  middle = pydicom.dcmread(folder / f'{count // 2:04d}.dcm')  # numbered from the feet
  hu = middle.pixel_array * float(middle.RescaleSlope) + float(middle.RescaleIntercept)
  np.testing.assert_array_equal(scan.hu[:, :, count // 2], np.maximum(hu.T, -1024))


def test_two_reconstructions_with_one_uid_for_all_slices_are_not_called_copies(
  tmp_path,
):
  """As some anonymisers leave them: by UID and place one would pass for the other."""
  soft, sharp = series.slices(ConvolutionKernel='B30'), series.slices()
  for dataset in sharp:
    dataset.ConvolutionKernel = 'B80'
    dataset.RescaleIntercept += 50
  for dataset in (*soft, *sharp):
    dataset.SOPInstanceUID = '1.2.3.4.1'
  series.write(tmp_path / 'soft', soft)
  series.write(tmp_path / 'sharp', sharp)
  scan = dicom.read_series(tmp_path, scan_id='s1')
  assert kinds(scan) == [WarningKind.SERIES_CHOSEN]
  expected = series.hu_at(world_of(scan.grid))
  assert len(np.unique(np.round(scan.hu - expected))) == 1


def test_two_kernels_between_each_other_are_two_series(tmp_path):
  datasets = series.slices(shape=(6, 7, 16))
  for k, dataset in enumerate(datasets):
    dataset.ConvolutionKernel = ('B30', 'B80')[k % 2]
  scan = dicom.read_series(series.write(tmp_path, datasets), scan_id='s1')
  assert kinds(scan) == [WarningKind.SERIES_CHOSEN] and scan.hu.shape[2] == 8


def test_two_reconstructions_a_hair_apart_lie_at_one_place(tmp_path):
  datasets = series.slices(shape=(6, 7, 6))
  datasets += series.slices(shape=(6, 7, 6), origin_mm=(-10.0, -8.0, -29.98))
  for dataset in datasets[6:]:
    dataset.RescaleIntercept += 300
  for k, dataset in enumerate(datasets):
    dataset.SOPInstanceUID = f'1.2.3.4.{k + 1}'
  refused(series.write(tmp_path, datasets), base.DuplicateSliceError, '6 such pair')


def test_another_patient_without_an_id_is_noticed(tmp_path):
  datasets = series.slices(shape=(6, 7, 8))
  for dataset in datasets[5:]:
    dataset.PatientID, dataset.PatientName = '', 'Roe^Richard'
  refused(series.write(tmp_path, datasets), base.MixedPatientsError, 'PatientName')


def test_free_text_of_the_header_is_no_provenance(tmp_path):
  tags = {'ConvolutionKernel': 'DOE 61', 'ManufacturerModelName': 'of <Dr. X>'}
  path = series.write(tmp_path, series.slices(**tags))
  told = dicom.read_series(path, scan_id='s1').provenance
  assert told['manufacturer'] == 'ACME' and not {'kernel', 'model'} & set(told)
