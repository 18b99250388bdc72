import os
import shutil
import subprocess
import sys
from pathlib import Path

import dicom_export
import foreign
import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import series
from dicom_export import ORIENTATIONS, grid_of, masks, on_grid, source_of
from identifying import IDENTIFYING
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from covid3way import base
from covid3way.base import LEFT, RIGHT
from covid3way.scans import dicom, dicom_seg, dicom_source, straighten
from covid3way.scans.dicom_files import quiet

SECRET = 'Qz7secret'
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def segments_of(infection, lungs):
  return {1: infection, 2: lungs == LEFT, 3: lungs == RIGHT}


def write(path, source, grid, infection, lungs):
  dicom_seg.write_seg(path, source, infection, lungs, grid, model='a1')
  return pydicom.dcmread(path)


@pytest.fixture(params=ORIENTATIONS.values(), ids=list(ORIENTATIONS))
def oriented(request):
  slices = series.slices(request.param)
  return slices, grid_of(slices)


def test_pydicom_alone_reads_the_masks_voxel_by_voxel(tmp_path, oriented):
  slices, grid = oriented
  infection, lungs = masks(grid)
  made = write(tmp_path / 'a.dcm', source_of(slices), grid, infection, lungs)
  for number, expected in segments_of(infection, lungs).items():
    found = on_grid(made, made.pixel_array, grid, number)
    np.testing.assert_array_equal(found, expected)


def test_highdicom_finds_them_by_slice_of_the_source(tmp_path, oriented):
  slices, grid = oriented
  infection, lungs = masks(grid)
  source = source_of(slices, identified=True)
  dicom_seg.write_seg(tmp_path / 'a.dcm', source, infection, lungs, grid, model='a1')
  seg = highdicom.seg.segread(tmp_path / 'a.dcm')
  found = seg.get_pixels_by_source_instance([s.SOPInstanceUID for s in slices])
  for number, expected in segments_of(infection, lungs).items():
    native = np.transpose(found[..., number - 1], (2, 1, 0))  # k, rows, columns
    np.testing.assert_array_equal(grid.to_lps(native), expected)
  labels = [(d.segment_label, d.tracking_uid) for d in seg.SegmentSequence]
  assert [label for label, _ in labels] == ['Infection', 'Left lung', 'Right lung']
  assert len(set(labels)) == 3
  assert seg.get_segment_numbers(segmented_property_type=dicom_seg.MEANINGS[2].kind)
  assert seg.SegmentsOverlap == 'YES'


def test_probabilities_come_back_within_a_level(tmp_path, oriented):
  slices, grid = oriented
  probability = np.random.default_rng(1).random(grid.shape).astype(np.float32)
  probability[:, :2] = 0
  path = tmp_path / 'p.dcm'
  part = probability.__getitem__
  dicom_seg.write_probability(path, source_of(slices), part, grid, model='a1')
  made = pydicom.dcmread(path)
  found = on_grid(made, made.pixel_array.reshape(-1, 7, 6), grid, 1) / 255
  np.testing.assert_allclose(found, probability, atol=0.5 / 255 + 1e-6)
  assert (found[:, :2] == 0).all()
  seg = highdicom.seg.segread(path)
  assert seg.segmentation_fractional_type.value == 'PROBABILITY'
  whole = seg.get_volume(combine_segments=False, rescale_fractional=True)
  assert whole.array.sum() == pytest.approx(found.sum())


def test_probabilities_that_are_none_are_refused(tmp_path):
  slices = series.slices()
  grid = grid_of(slices)
  wrong = np.full(grid.shape, 1.5, np.float32)
  for bad in (wrong, wrong - 2, wrong * np.nan):
    with pytest.raises(ValueError, match='from 0 to 1'):
      dicom_seg.write_probability(
        tmp_path / 'p.dcm', source_of(slices), bad.__getitem__, grid, model='a1'
      )
  assert list(tmp_path.iterdir()) == []


def test_a_mask_goes_to_the_slices_of_a_tilted_uneven_series(tmp_path):
  slices = series.slices(shape=(9, 8, 6), origin_mm=(0, 0, 0))
  heights_mm = np.array([0.0, 2, 4, 8, 10, 12])
  for each, z in zip(slices, heights_mm, strict=True):
    each.ImagePositionPatient = [0, round(0.5 * z, 3), z]
  positions = np.array([s.ImagePositionPatient for s in slices], float)
  in_plane = np.array([[1.0, 0, 0], [0, 2.0, 0]]).T
  along = heights_mm / 2
  grid = straighten.lay(
    (9, 8, 6), in_plane, positions, along, 2.0, affine=None, still_mm=0.0
  )
  assert grid.native_shape[2] == 7 and grid.acquired is not None
  infection, lungs = masks(grid)
  made = write(tmp_path / 'a.dcm', source_of(slices, grid), grid, infection, lungs)
  frames = {}
  for item, frame in zip(
    made.PerFrameFunctionalGroupsSequence, made.pixel_array, strict=True
  ):
    number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    frames[number, float(item.PlanePositionSequence[0].ImagePositionPatient[2])] = frame
  for number, volume in segments_of(infection, lungs).items():
    native = grid.to_native(volume)
    for z, y in zip(heights_mm, 0.5 * heights_mm, strict=True):
      start = int(np.floor(y / 2 + 0.5))  # nearest voxel of 2 mm
      expected = native[:, start : start + 8, int(z / 2)].T
      np.testing.assert_array_equal(frames[number, z], expected)


@pytest.mark.parametrize('order', [(0, 1, 2, 3, 4), (3, 0, 4, 2, 1)])
def test_frames_of_a_multi_frame_image_are_named(tmp_path, order):
  slices = series.slices(series.SAGITTAL)
  grid = grid_of(slices)
  image = dicom_export.enhanced(slices, order)
  source = dicom_source.describe(
    [(image, order.index(k)) for k in range(5)], grid, scan_id='s', identified=True
  )
  infection, lungs = masks(grid)
  made = write(tmp_path / 'a.dcm', source, grid, infection, lungs)
  for number, expected in segments_of(infection, lungs).items():
    found = on_grid(made, made.pixel_array, grid, number)
    np.testing.assert_array_equal(found, expected)
  for item in made.PerFrameFunctionalGroupsSequence:
    of = item.DerivationImageSequence[0].SourceImageSequence[0]
    assert of.ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert of.ReferencedSOPClassUID == image.SOPClassUID
    own = image.PerFrameFunctionalGroupsSequence[of.ReferencedFrameNumber - 1]
    assert (
      own.PlanePositionSequence[0].ImagePositionPatient
      == item.PlanePositionSequence[0].ImagePositionPatient
    )
  assert len(made.SourceImageSequence) == 1
  assert len(made.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
  assert dicom_export.errors_of(tmp_path / 'a.dcm') == []


def test_frames_without_any_voxel_are_left_out_and_each_segment_has_one(tmp_path):
  slices = series.slices()
  grid = grid_of(slices)
  lungs = np.zeros(grid.shape, np.uint8)
  lungs[1, 2, 3] = LEFT
  made = write(tmp_path / 'a.dcm', source_of(slices), grid, lungs > 9, lungs)
  numbers = [
    item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    for item in made.PerFrameFunctionalGroupsSequence
  ]
  assert numbers == [1, 2, 3]
  sums = made.pixel_array.sum(axis=(1, 2))
  np.testing.assert_array_equal(sums, [0, 1, 0])
  assert made.SegmentsOverlap == 'NO'
  assert dicom_export.errors_of(tmp_path / 'a.dcm') == []
  np.testing.assert_array_equal(on_grid(made, made.pixel_array, grid, 2), lungs == LEFT)


def test_the_same_input_gives_the_same_bytes_and_another_one_another_uid(tmp_path):
  slices = series.slices()
  grid = grid_of(slices)
  infection, lungs = masks(grid)
  names = 'a', 'b', 'c', 'd'
  variants = (infection, 'a1'), (infection, 'a1'), (~infection, 'a1'), (infection, 'a2')
  for name, (mask, model) in zip(names, variants, strict=True):
    path = tmp_path / name
    dicom_seg.write_seg(path, source_of(slices), mask, lungs, grid, model=model)
  first, same, other, third = (tmp_path / name for name in names)
  assert first.read_bytes() == same.read_bytes()
  uids = {pydicom.dcmread(each).SOPInstanceUID for each in (first, other, third)}
  assert len(uids) == 3


def identifying(**tags):
  """Slices with a secret in every identifying tag that takes text."""
  slices = series.slices(**tags)
  planted = {}
  for k, keyword in enumerate(IDENTIFYING):
    vr = pydicom.datadict.dictionary_VR(keyword)
    if vr in ('PN', 'LO', 'SH', 'ST', 'LT', 'UT', 'AE', 'UC'):
      planted[keyword] = f'{SECRET}{k}'
    elif vr in ('DA', 'DT'):
      planted[keyword] = '19640812'
    elif vr == 'TM':
      planted[keyword] = '112233.445'
    elif vr == 'UI' and 'SOPInstance' not in keyword:
      planted[keyword] = f'1.2.840.99999.{k}'
    elif vr == 'SQ':
      planted[keyword] = [Dataset()]
      planted[keyword][0].PatientName = f'{SECRET}{k}'
  for k, each in enumerate(slices):
    for keyword, value in planted.items():
      setattr(each, keyword, value)
    each.SOPInstanceUID = f'1.2.840.99999.77.{k}'
    each.PatientSex, each.PatientAge = 'F', '055Y'
    each.private_block(0x0099, 'ACME', create=True).add_new(1, 'LO', SECRET)
  return slices


def test_nothing_of_the_patient_is_in_what_is_not_identified(tmp_path):
  slices = identifying()
  grid = grid_of(slices)
  infection, lungs = masks(grid)
  source = source_of(slices)
  write(tmp_path / 'a.dcm', source, grid, infection, lungs)
  share = infection * np.float32(0.3)
  dicom_seg.write_probability(
    tmp_path / 'b.dcm', source, share.__getitem__, grid, model='a1'
  )
  for path in (tmp_path / 'a.dcm', tmp_path / 'b.dcm'):
    made = pydicom.dcmread(path)
    told = list(dicom_export.texts(made))
    for secret in (SECRET, '19640812', '112233', '1.2.840.99999', '055Y', 'ACME'):
      assert not [text for text in told if secret in text]
      assert secret.encode() not in path.read_bytes()
    assert made.PatientID == 'scan-7' and not made.PatientName and not made.PatientSex
    assert made.PatientIdentityRemoved == 'YES' and made.DeidentificationMethod
    dates = {e.keyword for e in made.iterall() if e.VR in ('DA', 'DT') and e.value}
    assert dates == {'ContentDate'} and made.ContentDate == '19700101'
    assert 'InstanceCreationDate' not in made and 'StationName' not in made
    assert str(made.StudyInstanceUID).startswith('2.25.')


def test_no_log_line_tells_who_it_is(tmp_path, caplog):
  caplog.set_level('DEBUG')
  slices = series.slices(PatientName='Mustermann', PatientID='HOSP4711')
  grid = grid_of(slices)
  source = source_of(slices, identified=True)
  made = write(tmp_path / 'a.dcm', source, grid, *masks(grid))
  assert made.PatientName == 'Mustermann'
  assert 'Mustermann' not in caplog.text and 'HOSP4711' not in caplog.text
  assert 'Mustermann' not in repr(source)


def test_what_is_identified_is_filed_where_the_source_is(tmp_path):
  slices = identifying()
  grid = grid_of(slices)
  source = source_of(slices, identified=True)
  made = write(tmp_path / 'a.dcm', source, grid, *masks(grid))
  for keyword in (
    'PatientName',
    'PatientID',
    'PatientBirthDate',
    'PatientSex',
    'StudyInstanceUID',
    'StudyDate',
    'StudyTime',
    'AccessionNumber',
    'StudyID',
    'FrameOfReferenceUID',
    'ReferringPhysicianName',
  ):
    assert made[keyword].value == slices[0][keyword].value, keyword
  assert 'PatientIdentityRemoved' not in made
  assert made.ContentDate == '19640812' and made.SeriesInstanceUID != '1.2.3.4'
  own = {s.SOPInstanceUID for s in slices}
  assert {r.ReferencedSOPInstanceUID for r in made.SourceImageSequence} == own


ODD = {
  'an ID of 90 characters': {'PatientID': 'x' * 90},
  'a birth date that is none': {'PatientBirthDate': '1964-08-12'},
  'a study date of old': {'StudyDate': '2020.03.01'},
  'a sex that is none': {'PatientSex': 'female'},
  'a time that is none': {'StudyTime': 'noon', 'SeriesTime': '99'},
  'an accession number of 40 characters': {'AccessionNumber': '7' * 40},
  'UIDs with letters': {
    keyword: '1.2.abc'
    for keyword in ('StudyInstanceUID', 'SeriesInstanceUID', 'FrameOfReferenceUID')
  },
  'a name in letters of no set': {'PatientName': 'Mu\u0308ller^J\u00f6rg=\u5c71\u7530'},
  'two IDs': {'PatientID': ['a', 'b']},
  'no thickness': {'SliceThickness': None},
  'a thickness below 0': {'SliceThickness': -3},
  'lossy': {
    'LossyImageCompression': '01',
    'LossyImageCompressionRatio': 9.5,
    'LossyImageCompressionMethod': 'ISO_15444_1',
  },
  'an odd character set': {'SpecificCharacterSet': 'ISO_IR 999'},
}


@pytest.mark.parametrize('identified', [False, True])
@pytest.mark.parametrize('tags', ODD.values(), ids=list(ODD))
def test_odd_headers_do_no_harm(tmp_path, tags, identified):
  with quiet():
    slices = series.slices(**tags)
  grid = grid_of(slices)
  infection, lungs = masks(grid)
  source = source_of(slices, identified=identified)
  with quiet():
    made = write(tmp_path / 'a.dcm', source, grid, infection, lungs)
    made.decode()
  np.testing.assert_array_equal(on_grid(made, made.pixel_array, grid, 1), infection)
  if 'PatientID' in tags and identified:
    assert made.PatientID == tags['PatientID']  # whole: a part is another patient's
  if 'PatientName' in tags and identified:
    assert str(made.PatientName) == tags['PatientName']
  kept = {'PatientID', 'AccessionNumber'} & set(tags) if identified else ()
  if not kept:
    assert dicom_export.errors_of(tmp_path / 'a.dcm') == []


def test_rounded_orientations_and_positions_do_no_harm(tmp_path):
  slices = series.slices(dicom_export.TURNED)
  grid = grid_of(slices)
  random = np.random.default_rng(3)
  for each in slices:
    turned = np.array(each.ImageOrientationPatient, float) + random.normal(0, 1e-3, 6)
    each.ImageOrientationPatient = [float(f'{v:.9f}') for v in turned]
    moved = np.array(each.ImagePositionPatient, float) + random.normal(0, 0.02, 3)
    each.ImagePositionPatient = [float(f'{v:.9f}') for v in moved]
  infection, lungs = masks(grid)
  made = write(tmp_path / 'a.dcm', source_of(slices, grid), grid, infection, lungs)
  native = grid.to_native(infection)
  heights = [float(s.ImagePositionPatient[2]) for s in slices]
  frames = zip(made.PerFrameFunctionalGroupsSequence, made.pixel_array, strict=True)
  found = {
    float(item.PlanePositionSequence[0].ImagePositionPatient[2]): frame.T
    for item, frame in frames
    if item.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1
  }
  for k, z in enumerate(heights):
    np.testing.assert_array_equal(found[z], native[:, :, k])
  assert dicom_export.errors_of(tmp_path / 'a.dcm') == []


def test_a_thickness_that_is_no_number_becomes_the_distance(tmp_path):
  slices = series.slices(step_mm=2.5)
  tag = pydicom.tag.Tag('SliceThickness')
  for each in slices:
    each[tag] = RawDataElement(tag, 'DS', 4, b'thin', 0, False, True)
  grid = grid_of(slices)
  made = write(tmp_path / 'a.dcm', source_of(slices), grid, *masks(grid))
  measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
  assert measures.SliceThickness == measures.SpacingBetweenSlices == 2.5


@pytest.mark.parametrize('identified', [False, True])
def test_absent_tags_are_made_up_once_for_all_objects(tmp_path, identified):
  slices = series.slices()
  for each in slices:
    for keyword in ('StudyInstanceUID', 'PatientName', 'PatientID', 'SOPInstanceUID'):
      del each[keyword]
    assert 'FrameOfReferenceUID' not in each
  grid = grid_of(slices)
  infection, lungs = masks(grid)
  source = source_of(slices, identified=identified)
  made = write(tmp_path / 'a.dcm', source, grid, infection, lungs)
  part = (infection * np.float32(1)).__getitem__
  dicom_seg.write_probability(tmp_path / 'b.dcm', source, part, grid, model='a1')
  other = pydicom.dcmread(tmp_path / 'b.dcm')
  for keyword in ('StudyInstanceUID', 'FrameOfReferenceUID', 'SeriesInstanceUID'):
    assert str(made[keyword].value).startswith('2.25.')
    assert made[keyword].value == other[keyword].value
  assert len({r.ReferencedSOPInstanceUID for r in made.SourceImageSequence}) == 5
  assert dicom_export.errors_of(tmp_path / 'a.dcm') == []


@pytest.mark.parametrize('syntax', [None, *series.COMPRESSED])
def test_a_series_on_disk_gives_its_own_slices(tmp_path, syntax):
  slices = series.slices(series.CORONAL, shape=(32, 40, 5))
  folder = series.write(tmp_path / 'ct', slices)
  for path in series.files(folder) if syntax else ():
    series.compress(path, syntax)
  grid = dicom.read_series(folder, scan_id='s').grid
  infection, lungs = masks(grid)
  source = dicom_source.read(folder, grid, scan_id='s', identified=True)
  uids = [s.SOPInstanceUID for s in source.slices]
  assert uids == [s.SOPInstanceUID for s in slices]
  made = write(tmp_path / 'a.dcm', source, grid, infection, lungs)
  np.testing.assert_array_equal(on_grid(made, made.pixel_array, grid, 1), infection)


def test_a_multi_frame_image_on_disk_gives_its_frames(tmp_path):
  order = 3, 0, 4, 2, 1
  slices = series.slices(series.SAGITTAL)
  image = dicom_export.enhanced(slices, order)
  (tmp_path / 'ct').write_bytes(series.to_bytes(image))
  grid = dicom.read_series(tmp_path / 'ct', scan_id='s').grid
  np.testing.assert_allclose(grid.native_affine, grid_of(slices).native_affine)
  source = dicom_source.read(tmp_path / 'ct', grid, scan_id='s', identified=False)
  assert source.frames == tuple(order.index(k) + 1 for k in range(5))
  infection, lungs = masks(grid)
  made = write(tmp_path / 'a.dcm', source, grid, infection, lungs)
  np.testing.assert_array_equal(on_grid(made, made.pixel_array, grid, 1), infection)


def test_a_tilted_series_on_disk_has_frames_on_its_own_slices(tmp_path):
  slices = series.slices(shape=(12, 12, 8), pixel_spacing=(2.0, 2.0), step_mm=4.0)
  for k, each in enumerate(slices):
    each.ImagePositionPatient = [-10, round(-8 + 1.5 * k, 3), -30 + 4 * k]
  folder = series.write(tmp_path / 'ct', slices)
  grid = dicom.read_series(folder, scan_id='s').grid
  assert grid.acquired is not None
  infection, lungs = masks(grid)
  source = dicom_source.read(folder, grid, scan_id='s', identified=True)
  made = write(tmp_path / 'a.dcm', source, grid, infection, lungs)
  stored = straighten.to_acquired(grid.to_native(infection), grid, labels=True)
  found = np.zeros(stored.shape)
  heights = [s.ImagePositionPatient[2] for s in slices]
  for item, frame in zip(
    made.PerFrameFunctionalGroupsSequence, made.pixel_array, strict=True
  ):
    if item.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1:
      position = item.PlanePositionSequence[0].ImagePositionPatient
      k = heights.index(position[2])
      assert position == slices[k].ImagePositionPatient
      found[:, :, k] = frame.T
  np.testing.assert_array_equal(found, stored)


def test_a_series_that_lies_elsewhere_is_refused():
  slices = series.slices()
  grid = grid_of(slices)
  moved, fewer = series.slices(origin_mm=(-10, -8, -25)), slices[:-1]
  larger = series.slices(shape=(8, 7, 5))
  nowhere = series.slices()
  del nowhere[2].ImagePositionPatient
  for wrong in (moved, fewer, larger, nowhere):
    with pytest.raises(base.GeometryError, match=r'^scan-7: .*run the job again'):
      source_of(wrong, grid)


@pytest.mark.parametrize('identified', [False, True])
def test_the_validator_finds_no_error(tmp_path, oriented, identified):
  slices, grid = oriented
  infection, lungs = masks(grid)
  source = source_of(slices, identified=identified)
  write(tmp_path / 'a.dcm', source, grid, infection, lungs)
  share = (infection * np.float32(0.4)).__getitem__
  dicom_seg.write_probability(tmp_path / 'b.dcm', source, share, grid, model='a1')
  assert dicom_export.errors_of(tmp_path / 'a.dcm') == []
  assert dicom_export.errors_of(tmp_path / 'b.dcm') == []


@pytest.mark.slow
def test_dcmqi_reads_the_same_voxels(tmp_path, oriented):
  slices, grid = oriented
  infection, lungs = masks(grid)
  write(tmp_path / 'a.dcm', source_of(slices), grid, infection, lungs)
  found = read_with_dcmqi(tmp_path / 'a.dcm', grid)
  for number, expected in segments_of(infection, lungs).items():
    np.testing.assert_array_equal(found[number], expected)


def read_with_dcmqi(path, grid):
  """Segment -> (x, y, z), out of the NIfTI files that dcmqi makes."""
  beside = Path(sys.executable).parent
  program = shutil.which('segimage2itkimage', path=f'{beside}:{os.environ["PATH"]}')
  if not program:
    foreign.absent('dcmqi', 'pip install -r tests/requirements.txt')
  out = path.parent / 'dcmqi'
  out.mkdir()
  subprocess.run(
    [program, '--inputDICOM', path, '--outputDirectory', out, '-t', 'nii', '-p', 's'],
    check=True,
    capture_output=True,
  )
  result = {}
  for number in (1, 2, 3):
    image = nibabel.load(out / f's-{number}.nii.gz')
    values = np.asarray(image.dataobj)
    assert set(np.unique(values)) <= {0, number, 1}
    affine = RAS @ image.affine
    world = np.moveaxis(np.indices(values.shape), 0, -1) @ affine[:3, :3].T
    result[number] = np.zeros(grid.shape)
    dicom_export.put(result[number], grid, world + affine[:3, 3], values > 0)
  return result
