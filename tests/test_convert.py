"""Public collections, from miniature copies of how they are distributed."""

import dataclasses
import json

import nibabel
import numpy as np
import pytest
from conftest import run_job
from PIL import Image

from covid3way.base import LEFT, RIGHT, ConfigError, InputError, MaskGridError, Window
from covid3way.jobs import augment
from covid3way.jobs.batch import SomeFailedError
from covid3way.scans import nifti, public, source, store
from covid3way.scans.manifest import ManifestRow, read_manifest, write_manifest
from covid3way.standard.lungs import take_lungs

SHAPE = (8, 5, 4)
COVID_SEG_20 = ('COVID-19-CT-Seg_20cases', 'Infection_Mask', 'Lung_Mask')


def save(path, values, affine=None):
  """Stores (x, y, z) with an affine written by hand: RAS, so x and y run down."""
  path.parent.mkdir(parents=True, exist_ok=True)
  affine = np.diag([-1.0, -1.0, 2.0, 1.0]) if affine is None else affine
  nibabel.save(nibabel.Nifti1Image(values, affine), path)


def ct(seed=0):
  return np.random.default_rng(seed).integers(-1000, 400, SHAPE).astype(np.float32)


def byte_values():
  """All 8-bit values that a small scan holds, 0 and 255 among them."""
  return np.linspace(0, 255, 160).round().reshape(SHAPE).astype(np.uint8)


def infection():
  mask = np.zeros(SHAPE, np.uint8)
  mask[1, 2, 1:3] = 1
  return mask


def lungs():
  """1 left, 2 right: x grows to the patient's left."""
  mask = np.zeros(SHAPE, np.uint8)
  mask[:3], mask[5:] = 2, 1
  return mask


def converted(tmp_path, form, **options):
  """The manifest's rows, by name, and the notes."""
  options = {'input': str(tmp_path / 'in'), 'format': form, **options}
  run_job('convert', tmp_path / 'out', **options)
  rows = {row.scan_id: row for row in read_manifest(tmp_path / 'out' / 'manifest.csv')}
  notes = json.loads((tmp_path / 'out' / 'notes.json').read_text())
  assert set(notes) <= set(rows)
  return rows, {scan_id: ' '.join(told) for scan_id, told in notes.items()}


def volume(path):
  return nifti.read_volume(path, scan_id='test')[0]


# COVID-19-CT-Seg-20.


def write_covid_seg_20(folder):
  scans = {
    'coronacases_001': ct(),
    'radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm': byte_values(),
    'radiopaedia_10_85902_3': ct(3),
  }
  for name, values in scans.items():
    save(folder / COVID_SEG_20[0] / f'{name}.nii.gz', values)
    for part, mask in zip(COVID_SEG_20[1:], (infection(), lungs()), strict=True):
      name = name.replace('org_covid-19-pneumonia-', '').replace('-dcm', '')
      save(folder / part / f'{name}.nii.gz', mask)
    save(folder / 'Lung_and_Infection_Mask' / f'{name}.nii.gz', lungs())


def test_covid_seg_20(tmp_path):
  write_covid_seg_20(tmp_path / 'in')
  rows, notes = converted(tmp_path, 'covid-seg-20')
  assert {r.scan_id: (r.patient_id, r.site, r.domain) for r in rows.values()} == {
    'coronacases_001': ('coronacases_001', 'coronacases', ''),
    'radiopaedia_10_85902_1': ('radiopaedia_10', 'radiopaedia', ''),
    'radiopaedia_10_85902_3': ('radiopaedia_10', 'radiopaedia', ''),
  }
  corona, windowed = rows['coronacases_001'], rows['radiopaedia_10_85902_1']
  given = tmp_path / 'in'
  for row, folder in (
    (corona, [given / p for p in COVID_SEG_20]),
    (windowed, [tmp_path / 'out', given / COVID_SEG_20[1], given / COVID_SEG_20[2]]),
  ):
    files = (row.image, row.infection_mask, row.lung_mask)
    for file, place in zip(files, folder, strict=True):
      assert file.resolve().is_relative_to(place)
  assert set(notes) == {windowed.scan_id}
  assert '[-1250, 250]' in notes[windowed.scan_id]
  assert '1.2%' in notes[windowed.scan_id]  # 2 of 160 voxels, 0 and 255.


def test_windowed_scans_are_mapped_back_to_hu(tmp_path):
  write_covid_seg_20(tmp_path / 'in')
  rows, _ = converted(tmp_path, 'covid-seg-20')
  row = rows['radiopaedia_10_85902_1']
  assert row.window == Window(-500, 1500, 'manifest')
  hu = volume(row.image)
  assert (hu.min(), hu.max()) == (-1250, 250)
  np.testing.assert_allclose(hu, -1250 + byte_values() * (1500 / 255), atol=1e-3)
  assert rows['radiopaedia_10_85902_3'].window is None  # In HU as it came.


def test_lungs_are_labelled_as_the_header_says_they_lie(tmp_path):
  write_covid_seg_20(tmp_path / 'in')
  mirrored = np.where(lungs() > 0, 3 - lungs(), 0).astype(np.uint8)
  path = tmp_path / 'in' / COVID_SEG_20[2] / 'coronacases_001.nii.gz'
  save(path, mirrored)
  rows, notes = converted(tmp_path, 'covid-seg-20')
  assert 'labelled by the header' in notes['coronacases_001']
  np.testing.assert_array_equal(volume(rows['coronacases_001'].lung_mask), lungs())
  np.testing.assert_array_equal(volume(path), mirrored)  # The original is untouched.


def test_left_is_told_by_the_header_not_by_the_order_of_voxels(tmp_path):
  affine = np.diag([1.0, -1.0, 2.0, 1.0])  # x runs to the right of the patient.
  save(tmp_path / 'ct.nii.gz', ct(), affine)
  save(tmp_path / 'lungs.nii.gz', lungs()[::-1], affine)
  row = ManifestRow(
    'p', 's', tmp_path / 'ct.nii.gz', lung_mask=tmp_path / 'lungs.nii.gz'
  )
  assert public.convert_volume(tmp_path, row) == public.Imported(row)


def test_a_scan_without_its_mask_is_named(tmp_path):
  write_covid_seg_20(tmp_path / 'in')
  (tmp_path / 'in' / 'Lung_Mask' / 'coronacases_001.nii.gz').unlink()
  with pytest.raises(InputError, match=r'coronacases_001: no mask .* Lung_Mask'):
    converted(tmp_path, 'covid-seg-20')


# MosMedData.


def test_mosmed(tmp_path):
  studies, masks = tmp_path / 'in' / 'studies', tmp_path / 'in' / 'masks'
  save(studies / 'CT-0' / 'study_0001.nii.gz', ct())
  save(studies / 'CT-1' / 'study_0255.nii.gz', ct())
  save(masks / 'study_0255_mask.nii.gz', infection())
  (tmp_path / 'in' / 'dataset_registry.xlsx').touch()
  rows, notes = converted(tmp_path, 'mosmed')
  assert notes == {}
  assert {
    r.scan_id: (r.patient_id, r.stage, r.site, r.infection_mask is None)
    for r in rows.values()
  } == {
    'study_0001': ('study_0001', 'CT-0', 'moscow', True),
    'study_0255': ('study_0255', 'CT-1', 'moscow', False),
  }
  mask = rows['study_0255'].infection_mask
  assert mask.resolve() == masks / 'study_0255_mask.nii.gz'


# COVID-19-20.


def test_covid_19_20(tmp_path):
  train, validation = tmp_path / 'in' / 'Train', tmp_path / 'in' / 'Validation'
  for name in ('volume-covid19-A-0003', 'volume-covid19-A-0070_1'):
    save(train / f'{name}_ct.nii.gz', ct())
    save(train / f'{name}_seg.nii.gz', infection())
  save(validation / 'volume-covid19-A-0070_2_ct.nii.gz', ct())
  rows, _ = converted(tmp_path, 'covid-19-20')
  assert [(r.patient_id, r.infection_mask is None) for r in rows.values()] == [
    ('volume-covid19-A-0003', False),
    ('volume-covid19-A-0070', False),
    ('volume-covid19-A-0070', True),
  ]
  assert 'volume-covid19-A-0070_2' in rows
  (train / 'volume-covid19-A-0003_seg.nii.gz').unlink()
  with pytest.raises(InputError, match=r'A-0003_seg: no mask .* Train'):
    converted(tmp_path, 'covid-19-20')


def test_two_scans_of_one_name_are_told(tmp_path):
  for part in ('Train', 'Validation'):
    save(tmp_path / 'in' / part / 'volume-covid19-A-0001_ct.nii.gz', ct())
  save(tmp_path / 'in' / 'Train' / 'volume-covid19-A-0001_seg.nii.gz', infection())
  with pytest.raises(InputError, match='A-0001: the name of another scan'):
    converted(tmp_path, 'covid-19-20')


# MedSeg.


def classes():
  """1 ground glass, 2 consolidation, 3 pleural effusion."""
  mask = np.zeros(SHAPE, np.uint8)
  mask[1, 1], mask[2, 2], mask[3, 3] = 1, 2, 3
  return mask


def test_medseg_volumes_have_no_effusion_among_the_infection(tmp_path):
  save(tmp_path / 'in' / 'rp_im' / '1.nii.gz', ct())
  save(tmp_path / 'in' / 'rp_msk' / '1.nii.gz', classes())
  save(tmp_path / 'in' / 'rp_lung_msk' / '1.nii.gz', (lungs() > 0).astype(np.uint8))
  rows, notes = converted(tmp_path, 'medseg')
  (row,) = rows.values()
  assert (row.scan_id, row.site, row.domain) == ('medseg-1', 'radiopaedia', '')
  expected = np.isin(classes(), (1, 2))
  np.testing.assert_array_equal(volume(row.infection_mask), expected)
  assert notes == {'medseg-1': 'labels [3] of 1.nii.gz are no infection'}


def test_medseg_slices_are_thin_scans_of_one_unknown_patient(tmp_path):
  lung = (lungs() > 0).astype(np.uint8)
  lung[:, :, 3] = 0  # A slice without a lung mask.
  save(tmp_path / 'in' / 'tr_im.nii.gz', ct())
  save(tmp_path / 'in' / 'tr_mask.nii.gz', classes())
  save(tmp_path / 'in' / 'tr_lungmasks_updated.nii.gz', lung)
  rows, _ = converted(tmp_path, 'medseg')
  assert list(rows) == [f'medseg-slice-{k:03}' for k in range(4)]
  assert {r.patient_id for r in rows.values()} == {'medseg-slices'}
  assert {r.domain for r in rows.values()} == {'single-slices'}
  assert rows['medseg-slice-003'].lung_mask is None
  row = rows['medseg-slice-002']
  scan = source.read_scan(row)
  assert scan.grid.spacing_mm == (1, 1, 5)
  for file, stack in (
    (row.image, ct()),
    (row.infection_mask, np.isin(classes(), (1, 2))),
    (row.lung_mask, lung),
  ):
    planes = np.repeat(stack[:, :, 2:3], 3, axis=2)
    np.testing.assert_array_equal(volume(file), planes)


# Slice folders.


def write_png(folder, kind, number, pixels):
  (folder / kind).mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(folder / kind / f'{number}.png')


def write_slices(folder, count=4, names=str):
  """A row of pixels runs to the left, rows to the back, slices to the head."""
  for number in range(count):
    row, column = np.mgrid[:8, :6]
    write_png(
      folder, 'ct', names(number), (column + 10 * row + number).astype(np.uint8)
    )
    for kind, where in (('infection', (2, 5)), ('lungs', (slice(2, 4), slice(0, 6)))):
      mask = np.zeros((8, 6), np.uint8)
      mask[where] = 255
      write_png(folder, kind, names(number), mask)


@pytest.mark.parametrize('names', [str, '{:04}'.format], ids=['plain', 'padded'])
def test_slices_lie_as_radiologists_look_at_them(tmp_path, names):
  write_slices(tmp_path / 'in' / 'patient01', count=12, names=names)
  rows, notes = converted(tmp_path, 'slices')
  (row,) = rows.values()
  assert (row.patient_id, row.scan_id) == ('patient01', 'patient01')
  assert (row.domain, row.window) == ('equalised-8bit', Window(-424, 1200, 'manifest'))
  assert 'spacing not recorded, assumed 1.4 x 1.4 x 1 mm' in notes['patient01']
  scan = source.read_scan(row)
  x, y, z = np.mgrid[:6, :8, :12]
  np.testing.assert_allclose(scan.hu, -1024 + (x + 10 * y + z) * 1200 / 255, atol=1e-3)
  np.testing.assert_allclose(scan.grid.spacing_mm, (1.4, 1.4, 1.0))
  infected = np.argwhere(volume(row.infection_mask))
  assert {(x, y) for x, y, _ in infected.tolist()} == {(5, 2)} and len(infected) == 12
  assert set(np.unique(volume(row.lung_mask))) == {0, 1}


def test_the_window_of_bytes_is_linear_and_whole():
  values = public.from_bytes(np.array([0.0, 127.5, 255.0]))
  window = public.BYTE_WINDOW
  np.testing.assert_allclose(
    (values - window.level_hu) / window.width_hu, [-0.5, 0, 0.5], atol=1e-6
  )
  assert values[0] == -1024  # Black is air.


def test_spacing_of_slices_may_be_given(tmp_path):
  for patient in 'pq':
    write_slices(tmp_path / 'in' / patient)
  table = tmp_path / 'spacing.csv'
  table.write_text('patient,x_mm,y_mm,z_mm\nq,1.2,1.3,1.5\n')
  rows, notes = converted(tmp_path, 'slices', spacing=str(table))
  known = {k: source.read_scan(row).grid.spacing_mm for k, row in rows.items()}
  np.testing.assert_allclose(known['p'], (1.4, 1.4, 1.0))
  np.testing.assert_allclose(known['q'], (1.2, 1.3, 1.5))
  assert 'assumed' in notes['p'] and 'given as 1.2 x 1.3 x 1.5 mm' in notes['q']


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('patient,x_mm,y_mm,z_mm\nx,1,1,1\n', 'a spacing of x'),
    ('patient,x_mm,y_mm\np,1,1\n', 'no table of spacings'),
    ('patient,x_mm,y_mm,z_mm\np,1,1\n', 'no table of spacings'),
    ('patient,x_mm,y_mm,z_mm\np,1,1,wide\n', 'no table of spacings'),
    ('patient,x_mm,y_mm,z_mm\np,1,1,0\n', 'a size that is none'),
    ('patient,x_mm,y_mm,z_mm\np,1,1,inf\n', 'a size that is none'),
    (None, 'no such file'),
  ],
)
def test_what_are_no_spacings(tmp_path, text, words):
  write_slices(tmp_path / 'in' / 'p')
  table = tmp_path / 'spacing.csv'
  if text:
    table.write_text(text)
  with pytest.raises(InputError, match=words):
    converted(tmp_path, 'slices', spacing=str(table))


def test_slices_without_their_masks_are_named(tmp_path):
  write_slices(tmp_path / 'in' / 'p')
  (tmp_path / 'in' / 'p' / 'lungs' / '3.png').rename(
    tmp_path / 'in' / 'p' / 'lungs' / '4.png'
  )
  with pytest.raises(MaskGridError, match='p: CT, infection and lungs differ'):
    converted(tmp_path, 'slices')


def test_real_slices_lie_as_anatomy_says(real_data, tmp_path):
  (tmp_path / 'in').mkdir()
  folder = real_data / 'covid-seg20-slices' / 'patient03'
  (tmp_path / 'in' / folder.name).symlink_to(folder)
  rows, _ = converted(tmp_path, 'slices')
  row = rows[folder.name]
  scan = source.read_scan(row)
  assert scan.grid.shape == (256, 256, 118)
  mask = nifti.read_mask(row.lung_mask, scan.grid, scan_id='patient03')
  infected = nifti.read_mask(row.infection_mask, scan.grid, scan_id='patient03')
  assert mask[infected > 0].all()
  sides, warnings = take_lungs(mask, scan.grid.spacing_mm)
  assert not warnings
  # The heart lies on the left and leaves that lung less room.
  assert 1.1 < np.count_nonzero(sides == RIGHT) / np.count_nonzero(sides == LEFT) < 1.6
  # In the middle, what is brightest is the spine, behind the lungs' centre.
  centre = np.argwhere(mask).mean(0).round().astype(int)
  bright = np.argwhere(scan.hu[centre[0] - 15 : centre[0] + 15] > 170)
  assert bright[:, 1].mean() > centre[1] + 15
  # The diaphragm comes up from the feet.
  assert np.count_nonzero(mask[:, :, 0]) < np.count_nonzero(mask[:, :, -1]) / 10


# What all share.


def test_bytes_of_an_unknown_window_are_a_domain_of_their_own(tmp_path):
  save(tmp_path / 'in' / 'studies' / 'CT-2' / 'study_0900.nii.gz', byte_values())
  rows, notes = converted(tmp_path, 'mosmed')
  row = rows['study_0900']
  assert (row.domain, row.window) == ('windowed-8bit', Window(-424, 1200, 'manifest'))
  assert 'nobody says how' in notes['study_0900']
  expected = -1024 + byte_values() * (1200 / 255)
  np.testing.assert_allclose(volume(row.image), expected, atol=1e-3)


def test_what_is_neither_hu_nor_bytes_is_refused_and_costs_no_other(tmp_path):
  studies = tmp_path / 'in' / 'studies'
  save(studies / 'CT-2' / 'study_0001.nii.gz', (ct() + 1024).astype(np.float32))
  save(studies / 'CT-2' / 'study_0002.nii.gz', ct())
  with pytest.raises(SomeFailedError, match='1 of 2 scans'):
    converted(tmp_path, 'mosmed')
  failures = json.loads((tmp_path / 'out' / 'failures.json').read_text())
  assert 'nothing below 0' in failures['study_0001']
  rows = read_manifest(tmp_path / 'out' / 'manifest.csv')
  assert [row.scan_id for row in rows] == ['study_0002']


@pytest.mark.parametrize(
  ('form', 'looked_for'),
  [
    ('slices', r'PATIENT/\{ct,infection,lungs\}'),
    ('covid-seg-20', r'Infection_Mask/coronacases_001\.nii\.gz'),
    ('mosmed', r'studies/CT-0/study_0001\.nii\.gz'),
    ('covid-19-20', r'Train/volume-covid19-A-0000_ct\.nii\.gz'),
    ('medseg', r'tr_im\.nii\.gz, .* rp_im/1\.nii\.gz'),
    ('nnunet', r'dataset\.json'),
  ],
)
def test_other_layouts_are_told_what_was_looked_for(tmp_path, form, looked_for):
  with pytest.raises(InputError, match='no such folder'):
    converted(tmp_path, form)
  (tmp_path / 'in' / 'something').mkdir(parents=True)
  with pytest.raises(InputError, match=f'{looked_for}.*something'):
    converted(tmp_path, form)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'form': 'png'}, 'config.format: unknown .*slices, covid-seg-20, mosmed'),
    ({'form': 'mosmed', 'infection_labels': 'a'}, 'config.infection_labels'),
    ({'form': 'mosmed', 'spacing': 'a.csv'}, 'config.spacing: mosmed does not read'),
    ({'form': 'slices', 'input': ''}, 'config.input: not given'),
  ],
)
def test_wrong_use_is_told(tmp_path, options, words):
  with pytest.raises(ConfigError, match=words):
    converted(tmp_path, **options)


def test_a_workdir_holds_one_import(tmp_path):
  save(tmp_path / 'in' / 'studies' / 'CT-0' / 'study_0001.nii.gz', ct())
  first = converted(tmp_path, 'mosmed')
  assert converted(tmp_path, 'mosmed') == first
  write_slices(tmp_path / 'in' / 'p')
  with pytest.raises(ConfigError, match='format differ'):
    converted(tmp_path, 'slices')


# To nnU-Net and back.


def test_there_and_back_by_the_job(tmp_path):
  write_slices(tmp_path / 'in' / 'p')
  rows, _ = converted(tmp_path, 'slices')
  manifest = tmp_path / 'out' / 'manifest.csv'
  dataset = tmp_path / 'Dataset001_P'
  run_job('convert', dataset, input=str(manifest), format='to-nnunet')
  about = json.loads((dataset / 'dataset.json').read_text())
  assert about['channel_names'] == {'0': 'equalised-8bit'}
  (made,) = read_manifest(dataset / 'manifest.csv')
  assert (made.window, made.domain) == (rows['p'].window, rows['p'].domain)
  run_job(
    'convert',
    tmp_path / 'again',
    input=str(dataset),
    format='nnunet',
    infection_labels=' infection',
  )
  (back,) = read_manifest(tmp_path / 'again' / 'manifest.csv')
  assert (back.patient_id, back.domain) == ('p', 'equalised-8bit')
  assert back.window == rows['p'].window
  for field in ('image', 'infection_mask'):
    np.testing.assert_array_equal(
      volume(getattr(back, field)), volume(getattr(rows['p'], field))
    )


def test_a_dataset_mixes_no_domains(tmp_path):
  save(tmp_path / 'a.nii.gz', ct())
  image = tmp_path / 'a.nii.gz'
  rows = [ManifestRow('p', 'a', image), ManifestRow('q', 'b', image, domain='8bit')]
  write_manifest(tmp_path / 'm.csv', rows)
  with pytest.raises(InputError, match='several domains, 8bit, HU'):
    run_job(
      'convert', tmp_path / 'd', input=str(tmp_path / 'm.csv'), format='to-nnunet'
    )


def test_the_domain_goes_on_into_the_store_and_what_is_simulated(tmp_path):
  write_slices(tmp_path / 'in' / 'p')
  converted(tmp_path, 'slices')
  run_job('preprocess', tmp_path, input=str(tmp_path / 'out' / 'manifest.csv'))
  stored = store.open_group(tmp_path / 'store' / 'p.zarr')
  assert stored.attributes['domain'] == 'equalised-8bit'
  assert stored.attributes['window']['level_hu'] == -424
  assert augment._row(stored, tmp_path).domain == 'equalised-8bit'
  earlier = {k: v for k, v in stored.attributes.items() if k != 'domain'}
  earlier = dataclasses.replace(stored, attributes=earlier)
  assert augment._row(earlier, tmp_path).domain == ''
