"""The check of a cohort: each finding is provoked once, a clean cohort has none."""

import csv
import dataclasses
import functools
import json
import os

import nibabel
import numpy as np
import pytest
import series
from conftest import run_job, start_program

from covid3way.base import ConfigError, Window
from covid3way.evaluation.checking.text import shortened
from covid3way.jobs.batch import Shard, SomeFailedError
from covid3way.scans import source
from covid3way.scans.manifest import ManifestRow, write_manifest

N, MM = 48, (6.0, 6.0, 5.0)
WINDOW = Window(-600.0, 1200.0, 'manifest')


@functools.cache
def chest(seed=0, *, lung_hu=-850.0, tissue_hu=40.0, right=1.0):
  """(x, y, z) HU, lungs and infection of a chest as nobody else has it."""
  rng = np.random.default_rng(seed)
  x, y, z = np.meshgrid(*[np.arange(N) - (N - 1) / 2] * 3, indexing='ij')
  body = (x / 23) ** 2 + (y / 17) ** 2 < 1
  lungs = np.zeros(body.shape, np.uint8)
  for side, label, size in ((1, 1, 1.0), (-1, 2, right)):
    wide, deep, long = rng.uniform((6, 8, 13), (9, 13, 19))
    front, low = rng.uniform(-2, 2, 2)
    parts = (x - side * 11) / wide, (y - front) / deep, (z - low) / long
    lungs[(sum(part**2 for part in parts) < size**2) & body & (side * x > 1)] = label
  hu = np.where(body, rng.normal(tissue_hu, 12, body.shape), -1000.0)
  bone = (x**2 + (y - 12) ** 2 < 8) & (lungs == 0)
  hu[bone] = rng.normal(600, 60, bone.sum())
  aerated = lungs > 0
  hu[aerated] = (lung_hu + rng.normal(0, 20, body.shape))[aerated]
  infection = np.zeros_like(lungs)
  for _ in range(6):
    at = rng.choice(np.argwhere(lungs == 1))
    near = sum((g - c + (N - 1) / 2) ** 2 for g, c in zip((x, y, z), at, strict=True))
    infection[(near < 9) & (lungs == 1)] = 1
  hu[infection > 0] = rng.normal(-450, 40, np.count_nonzero(infection))
  return np.rint(hu), lungs, infection


def save(path, volume, mm=MM, affine=None):
  """Writes a volume given in [x, y, z] LPS; nibabel's affine is RAS."""
  affine = np.diag([-mm[0], -mm[1], mm[2], 1.0]) if affine is None else affine
  nibabel.Nifti1Image(volume.astype(np.int16), affine).to_filename(path)
  return path


def scan(folder, name, seed=0, *, mm=MM, edit=None, row=None, **changes):
  """Writes one scan with its infection mask; its row of the manifest.

  Args:
    folder: to write into.
    name: of scan and patient.
    seed: of its anatomy.
    mm: size of its voxels.
    edit: changes HU, lungs and infection before they are written.
    row: further fields of the row; `lung_mask=True` gives the lungs.
    **changes: of `chest`.
  """
  hu, lungs, infection = chest(seed, **changes)
  if edit:
    hu, lungs, infection = edit(hu, lungs, infection)
  row = dict(row or {})
  if row.get('lung_mask') is True:
    row['lung_mask'] = save(folder / f'{name}-lungs.nii', lungs, mm)
  paths = {
    'image': save(folder / f'{name}.nii', hu, mm),
    'infection_mask': save(folder / f'{name}-infection.nii', infection, mm),
  }
  known = {'patient_id': name, 'scan_id': name, 'window': WINDOW} | paths | row
  return ManifestRow(**known)


def check(folder, *rows, **inputs):
  """Runs the job; its report, its findings as (severity, code, scans), who failed."""
  manifest, out = folder / 'manifest.csv', folder / 'out'
  write_manifest(manifest, rows)
  failed = {}
  try:
    run_job('check', out, input=str(manifest), **inputs)
  except SomeFailedError:
    failed = json.loads((out / 'failures.json').read_text())
  report = json.loads((out / 'check.json').read_text())
  found = {(f['severity'], f['code'], tuple(f['scans'])) for f in report['findings']}
  return report, found, failed


def test_a_clean_cohort_has_no_finding(tmp_path):
  rows = [
    scan(tmp_path, f's{n}', n, row={'lung_mask': True, 'day': 1.0, 'site': ''})
    for n in range(4)
  ]
  rows[1] = dataclasses.replace(rows[1], lung_mask=None)
  report, found, failed = check(tmp_path, *rows)
  assert not found and not failed
  assert not (tmp_path / 'out' / 'failures.json').exists()
  assert report['summary'] == (
    '4 scans of 4 patients: 4 fine, 0 with warnings, 0 with errors'
  )


def test_figures_are_those_of_the_files(tmp_path):
  hu, lungs, infection = (a.copy() for a in chest(5))
  hu[0, 0, :20] = -3000
  mm, row = (6.0, 5.5, 4.5), {'lung_mask': True}
  one = scan(tmp_path, 'a', 5, mm=mm, edit=lambda *_: (hu, lungs, infection), row=row)
  report, _, _ = check(tmp_path, one)
  (told,) = report['scans']
  assert told['geometry'] == {
    'shape': [N, N, N],
    'spacing_mm': list(mm),
    'field_of_view_mm': [N * s for s in mm],
    'orientation': 'axial',
    'slices': N,
    'slice_distance_mm': 4.5,
  }
  signal, values = told['signal'], np.maximum(hu, -1024)
  assert signal['padding_percent'] == pytest.approx(100 * 20 / N**3, abs=1e-3)
  assert signal['lowest_hu'] == -1024 and signal['highest_hu'] == values.max()
  for percent, value in signal['percentiles_hu'].items():
    assert value == np.percentile(values, int(percent), method='inverted_cdf')
  ml = np.prod(mm) / 1000
  assert told['lungs']['left_ml'] == pytest.approx((lungs == 1).sum() * ml, abs=0.1)
  assert told['lungs']['right_ml'] == pytest.approx((lungs == 2).sum() * ml, abs=0.1)
  assert told['lungs']['median_hu'] == np.median(values[lungs > 0])
  assert told['lungs']['parenchyma_hu'] == pytest.approx(-850, abs=12)
  assert told['lungs']['soft_tissue_hu'] == pytest.approx(40, abs=3)
  share = 100 * infection.sum() / (lungs > 0).sum()
  assert told['infection']['infected_percent'] == pytest.approx(share, abs=1e-3)
  assert told['infection']['median_hu'] == np.median(values[infection > 0])
  assert told['window'] == dataclasses.asdict(WINDOW)
  with (tmp_path / 'out' / 'check.csv').open() as table:
    (line,) = csv.DictReader(table)
  assert float(line['infected_percent']) == told['infection']['infected_percent']
  assert (line['x_voxels'], line['y_mm'], line['format']) == ('48', '5.5', 'NIfTI')
  assert (line['infection_mask'], line['lobe_mask']) == ('True', 'False')
  assert float(line['median_hu']) == np.median(values)


def crop(*arrays):
  return tuple(a[:, :, 20:-4] for a in arrays)


def infected(where):
  """Another infection mask in place of the right one."""

  def edit(hu, lungs, infection):
    mask = where(hu, lungs, infection)
    return hu, lungs, np.asarray(mask, np.uint8)

  return edit


def partly_outside(share):
  """That share of the infection mask in soft tissue."""

  def where(hu, lungs, infection):
    mask, more = infection.copy(), round(share / (1 - share) * infection.sum())
    outside = np.flatnonzero((lungs == 0) & (hu > 0) & (hu < 80))
    mask.flat[outside[:more]] = 1
    return mask

  return infected(where)


def with_lungs(other):
  def edit(hu, lungs, infection):
    return hu, np.asarray(other(hu, lungs), np.uint8), infection

  return edit


GIVEN = {'lung_mask': True}
FOUND_IN_ONE_SCAN = [
  # Severity and code, and what provokes it.
  ('error', 'no_lungs', {'edit': lambda h, m, i: (np.where(m, 40, h), m, i)}),
  ('warning', 'thick_slices', {'mm': (6, 6, 5.5)}),
  ('warning', 'values_cut', {'edit': lambda h, *m: (np.minimum(h, 300), *m)}),
  ('warning', 'lung_hu', {'lung_hu': -560.0}),
  ('warning', 'soft_tissue_hu', {'tissue_hu': 130.0}),
  ('warning', 'lung_volume', {'mm': (3, 3, 4), 'row': GIVEN}),
  ('warning', 'lungs_uneven', {'right': 0.5, 'mm': (7, 7, 5), 'row': GIVEN}),
  ('warning', 'lungs_cut', {'edit': crop}),
  ('warning', 'lung_outside_box', {'mm': (10, 5, 4)}),
  (
    'error',
    'mask_unfit',
    {'edit': with_lungs(lambda _, m: np.array([0, 2, 1])[m]), 'row': GIVEN},
  ),
  (
    'warning',
    'lung_mask_dense',
    {'edit': with_lungs(lambda _, m: np.roll(m, 8, 0)), 'row': GIVEN},
  ),
  ('note', 'infection_empty', {'edit': infected(lambda h, m, i: 0 * i)}),
  ('note', 'infection_labels', {'edit': infected(lambda h, m, i: 3 * i)}),
  (
    'warning',
    'infection_hu',
    {'edit': infected(lambda h, m, i: (m == 2) & (h < -840))},
  ),
  ('error', 'infection_outside_lungs', {'edit': partly_outside(0.4)}),
  ('warning', 'infection_outside_lungs', {'edit': partly_outside(0.1)}),
  ('warning', 'window_assumed', {'row': {'window': None}}),
]
ALSO = {  # Follows from what was done, and is right.
  'lung_outside_box': {'lung_volume'},
  'lung_mask_dense': {'infection_outside_lungs', 'infection_hu', 'lungs_cut'},
}


@pytest.mark.parametrize(
  ('severity', 'code', 'how'),
  FOUND_IN_ONE_SCAN,
  ids=[f'{severity}-{code}' for severity, code, _ in FOUND_IN_ONE_SCAN],
)
def test_a_finding_in_one_scan(severity, code, how, tmp_path):
  """That one and, beside a scan that is fine, no other."""
  rows = scan(tmp_path, 'fine', 1), scan(tmp_path, 'odd', 2, **how)
  report, found, failed = check(tmp_path, *rows)
  others = {f for f in found if f[1] not in ALSO.get(code, ())}
  assert others == {(severity, code, ('odd',))}
  assert report['scans'][0]['verdict'] == 'fine'
  worst = {s for s, _, _ in found} - {'note'}
  verdict = 'error' if 'error' in worst else 'warning' if worst else 'fine'
  assert report['scans'][1]['verdict'] == verdict
  assert set(failed) == ({'odd'} if 'error' in worst else set())
  (finding,) = [f for f in report['findings'] if f['code'] == code]
  assert finding['found'] and finding['remedy']


def test_files_that_cannot_be_read_or_do_not_fit(tmp_path):
  rows = [scan(tmp_path, name, n) for n, name in enumerate('abcd')]
  rows[0].image.write_bytes(rows[0].image.read_bytes()[:3000])
  save(rows[1].infection_mask, np.zeros((N, N, N - 1)))
  lungs = save(tmp_path / 'lungs.nii', chest(2)[1], affine=np.diag([6, 6, 5, 1]))
  rows[2] = dataclasses.replace(rows[2], lung_mask=lungs)
  lobes = save(tmp_path / 'lobes.nii', chest(3)[1])
  rows[3] = dataclasses.replace(rows[3], lobe_mask=lobes)
  report, found, failed = check(tmp_path, *rows)
  assert found == {
    ('error', 'unreadable', ('a',)),
    ('error', 'mask_unfit', ('b',)),
    ('error', 'mask_unfit', ('c',)),
    ('error', 'mask_unfit', ('d',)),
  }
  told = {f['scans'][0]: f['found'] for f in report['findings']}
  assert told['a'].startswith('DamagedFileError: ')
  assert told['b'].startswith('MaskGridError: ') and told['c'].startswith('MaskGrid')
  assert set(failed) == set('abcd')
  # What does not depend on it is told all the same.
  assert 'lungs' in report['scans'][1] and 'geometry' in report['scans'][2]


def test_a_scan_that_lies_otherwise(tmp_path):
  """Coronal slices, and a file that does not say how it lies."""
  row, other = scan(tmp_path, 'a', 0), scan(tmp_path, 'b', 1)
  hu, _, infection = chest(0)
  # Its third axis runs to the back.
  affine = np.array([[-6.0, 0, 0, 0], [0, 0, -5, 0], [0, 5, 0, 0], [0, 0, 0, 1]])
  for path, volume in ((row.image, hu), (row.infection_mask, infection)):
    save(path, volume.transpose(0, 2, 1), affine=affine)
  image = nibabel.load(other.image)
  image.header['sform_code'] = image.header['qform_code'] = 0
  image.header['pixdim'][1:4] = MM
  nibabel.Nifti1Image(chest(1)[0][::-1, ::-1], None, image.header).to_filename(
    other.image
  )
  os.remove(other.infection_mask)
  other = dataclasses.replace(other, infection_mask=None)
  report, found, _ = check(tmp_path, row, other)
  assert {(s, code) for s, code, _ in found} >= {
    ('note', 'not_axial'),
    ('warning', 'orientation_assumed'),
    ('note', 'without_infection_mask'),
  }
  coronal = report['scans'][0]
  assert coronal['geometry']['orientation'] == 'coronal'
  assert coronal['infection']['outside_lungs_percent'] < 2


def dicom_scan(folder, name, seed=0, *, uid, **tags):
  datasets = series.slices(
    shape=(N, N, N), pixel_spacing=MM[:2], step_mm=MM[2], SeriesInstanceUID=uid, **tags
  )
  hu, _, _ = chest(seed)
  for k, dataset in enumerate(datasets):
    dataset.PixelData = (hu[:, :, k].T + 1024).astype('<u2').tobytes()
  return ManifestRow(name, name, series.write(folder / name, datasets), window=WINDOW)


def test_duplicates_of_two_patients_are_errors_of_one_patient_warnings(tmp_path):
  rows = [scan(tmp_path, 'a', 0), scan(tmp_path, 'b', 0), scan(tmp_path, 'c', 1)]
  rows.append(dataclasses.replace(rows[2], scan_id='c-again', day=2.0))
  rows[2] = dataclasses.replace(rows[2], day=1.0)
  report, found, failed = check(tmp_path, *rows)
  assert found == {
    ('error', 'same_voxels', ('a', 'b')),
    ('warning', 'same_voxels', ('c', 'c-again')),
  }
  assert set(failed) == {'a', 'b'} and 'patients a, b' in failed['a']
  assert report['summary'].endswith('0 fine, 2 with warnings, 2 with errors')


def test_reconstructions_of_one_acquisition_are_nearly_the_same(tmp_path):
  """And other patients are not; of one patient it is no matter."""
  rng = np.random.default_rng(0)

  def noisy(hu, *masks):
    return np.maximum(hu + rng.normal(0, 25, hu.shape), -1024), *masks

  rows = [scan(tmp_path, name, 0) for name in 'ac'] + [scan(tmp_path, 'd', 3)]
  rows[1] = scan(tmp_path, 'c', 0, edit=noisy)
  _, found, failed = check(tmp_path, *rows)
  assert found == {('warning', 'nearly_same', ('a', 'c'))} and not failed
  rows[1] = dataclasses.replace(rows[1], patient_id='a', day=2.0)
  rows[0] = dataclasses.replace(rows[0], day=1.0)
  assert not check(tmp_path, *rows)[1]


def test_whose_scan_a_file_says_it_is(tmp_path):
  """Compared, and never told."""
  jane = {'PatientName': 'Planted^Jane', 'PatientID': 'PLANTED-1'}
  john = {'PatientName': 'Planted^John', 'PatientID': 'PLANTED-2'}
  rows = [
    dicom_scan(tmp_path, 'a', 0, uid='1.2.77.1', **jane),
    dicom_scan(tmp_path, 'b', 1, uid='1.2.77.2', **jane),
    dicom_scan(tmp_path, 'c', 2, uid='1.2.77.3', **john),
    dicom_scan(tmp_path, 'd', 3, uid='1.2.77.3', PatientIdentityRemoved='YES', **john),
    dicom_scan(tmp_path, 'e', 4, uid='1.2.77.4', PatientIdentityRemoved='YES', **jane),
  ]
  rows[2] = dataclasses.replace(rows[2], patient_id='b', day=2.0)
  rows[1] = dataclasses.replace(rows[1], day=1.0)
  report, found, failed = check(tmp_path, *rows)
  assert found == {
    ('warning', 'same_person', ('a', 'b')),
    ('warning', 'other_person', ('b', 'c')),
    ('error', 'same_series', ('c', 'd')),
  }
  assert set(failed) == {'c', 'd'}
  assert report['scans'][1]['days_since_previous'] is None
  assert report['scans'][2]['days_since_previous'] == 1.0
  for path in (tmp_path / 'out').rglob('*'):
    told = path.name + (path.read_text() if path.is_file() else '')
    assert not any(word in told.lower() for word in ('planted', 'jane', '1.2.77'))


def test_columns_of_the_manifest(tmp_path):
  """Days, domains, scanners and sites; the scans themselves are fine."""
  rows = [scan(tmp_path, f's{n}', n) for n in range(6)]
  known = {'patient_id': 'p', 'site': 'A'}
  changes = [
    {**known, 'day': 3.0},
    {**known, 'day': 1.0},
    {'site': 'B', 'patient_id': 'q', 'day': 0.0},
    {'site': 'B', 'patient_id': 'q'},
    {'site': 'B', 'window': None, 'scanner': 'unheard-of'},
    {'site': '', 'domain': 'windowed', 'scanner': 'unheard-of'},
  ]
  rows = [dataclasses.replace(r, **c) for r, c in zip(rows, changes, strict=True)]
  report, found, failed = check(tmp_path, *rows)
  everyone = tuple(f's{n}' for n in range(6))
  assert found == {
    ('warning', 'days', ('s0', 's1')),
    ('warning', 'days', ('s2', 's3')),
    ('warning', 'domains_mixed', everyone),
    ('warning', 'scanner_unknown', ('s4',)),
    ('warning', 'window_assumed', ('s4',)),
    ('note', 'site_of_one', ('s0', 's1')),
  }
  assert not failed
  told = {f['scans'][0]: f['found'] for f in report['findings'] if f['code'] == 'days'}
  assert 'out of order' in told['s0'] and 's3 has no day' in told['s2']


def counting(monkeypatch):
  """Names of scans that are read from here on."""
  names, read = [], source.read_scan
  monkeypatch.setattr(source, 'read_scan', lambda r: names.append(r.scan_id) or read(r))
  return names


def test_only_what_changed_is_measured_again(tmp_path, monkeypatch):
  rows = [scan(tmp_path, name, n) for n, name in enumerate('abc')]
  names = counting(monkeypatch)
  first, _, _ = check(tmp_path, *rows)
  assert names == ['a', 'b', 'c']
  renamed = [dataclasses.replace(row, patient_id=f'p{row.scan_id}') for row in rows]
  again, _, _ = check(tmp_path, *renamed)
  assert names == ['a', 'b', 'c']  # The patient is no matter of the scan.
  assert [s['patient_id'] for s in again['scans']] == ['pa', 'pb', 'pc']
  assert [s['lungs'] for s in again['scans']] == [s['lungs'] for s in first['scans']]
  names.clear()
  save(rows[0].image, chest(0)[0] + 1)
  os.utime(rows[0].image, ns=(1, 1))
  rows[1] = dataclasses.replace(rows[1], window=None)
  kept = tmp_path / 'out' / 'check' / 'c.json'
  kept.write_text(kept.read_text().replace('"left_ml": ', '"left_ml": 1'))
  report, found, _ = check(tmp_path, *rows)
  assert names == ['a', 'b', 'c']
  assert found == {('warning', 'window_assumed', ('b',))}
  assert report['scans'][2] == first['scans'][2]
  names.clear()
  report, _, _ = check(tmp_path, *rows, window={'choice': 'auto'})
  assert names == ['a', 'b', 'c']
  assert [s['window']['source'] for s in report['scans']] == [
    'manifest', 'auto', 'manifest'
  ]  # fmt: skip


def test_shards_and_a_whole_run_after_them_find_the_same(tmp_path, monkeypatch, capsys):
  rows = [scan(tmp_path, name, n) for n, name in enumerate('abc')]
  rows.append(dataclasses.replace(rows[1], scan_id='d', patient_id='d'))
  rows[0].image.write_bytes(b'nothing')
  one, found, failed = check(tmp_path, *rows)
  assert set(failed) == {'a', 'b', 'd'} and len(found) == 2
  out, manifest = tmp_path / 'shards', str(tmp_path / 'manifest.csv')
  names = counting(monkeypatch)
  with pytest.raises(SomeFailedError, match='1 of 2 scans failed'):
    run_job('check', out, shard=Shard(0, 2), input=manifest)
  assert set(json.loads((out / 'failures-check-0of2.json').read_text())) == {'a'}
  capsys.readouterr()
  run_job(
    'check', out, shard=Shard(1, 2), input=manifest
  )  # A leak is told by the whole.
  assert names == ['a', 'c', 'b', 'd'] and not capsys.readouterr().out
  assert not (out / 'check.json').exists()
  with pytest.raises(SomeFailedError, match='3 of 4 scans failed'):
    run_job('check', out, input=manifest)
  assert names[4:] == ['a']  # What failed is tried again.
  assert json.loads((out / 'check.json').read_text()) == one
  assert [p.name for p in out.glob('failures*')] == ['failures.json']


def test_the_program_prints_a_table_and_ends_with_1(tmp_path):
  """As a user sees it: within 100 columns, every column under its title."""
  name = 'a-very-long-name-of-a-scan-from-the-second-hospital-2'
  rows = [scan(tmp_path, 'a', 0), scan(tmp_path, name, 0), scan(tmp_path, 'c', 1)]
  rows[2].image.write_bytes(b'nothing')
  write_manifest(tmp_path / 'manifest.csv', rows)
  program = start_program(
    '--config=configs/check.py',
    f'--workdir={tmp_path / "out"}',
    f'--config.input={tmp_path / "manifest.csv"}',
    stdout=-1,
  )
  out, err = program.communicate(timeout=300)
  assert program.returncode == 1
  assert err.splitlines()[-1].startswith('covid3way: 3 of 3 scans failed, see')
  lines = out.splitlines()
  assert max(map(len, lines)) <= 100
  header, rule, *table = lines[:5]
  assert set(rule) == {'-'} and len(rule) >= max(map(len, table))
  assert [line.split()[1] for line in table] == ['error'] * 3
  at = header.index('window HU')
  assert table[0][at:].startswith('-600/1200 manifest')
  assert shortened(name) in table[1] and name in out
  assert lines[-1] == '3 scans of 3 patients: 0 fine, 0 with warnings, 3 with errors'


def test_wrong_use_is_told_before_any_scan_is_read(tmp_path, monkeypatch):
  names = counting(monkeypatch)
  row = scan(tmp_path, 'a', 0)
  with pytest.raises(ConfigError, match=r"window\.choice: 'guess'"):
    check(tmp_path, row, window={'choice': 'guess'})
  with pytest.raises(ConfigError, match=r'config\.input: not given'):
    run_job('check', tmp_path)
  assert not names


def test_a_single_scan_is_checked_as_a_cohort_is(tmp_path):
  """Its error is in the table and ends the job with 1, not as wrong use."""
  row = scan(tmp_path, 'a', 0)
  row.image.write_bytes(b'nothing')
  with pytest.raises(SomeFailedError, match='1 of 1 scans failed'):
    run_job('check', tmp_path / 'out', input=str(row.image))
  report = json.loads((tmp_path / 'out' / 'check.json').read_text())
  assert report['scans'][0]['verdict'] == 'error'


def test_real_scans_pass(tmp_path):
  """But for what is so: no window tag, and slices of 8 mm."""
  lungs = series.real('lung1-003/lungs.nii.gz')
  rows = [
    ManifestRow('p', 'p', series.real('lung1-003/ct'), lung_mask=lungs),
    ManifestRow('q', 'q', series.real('lung-dx-A0002')),
  ]
  report, found, failed = check(tmp_path, *rows)
  assert found == {
    ('warning', 'window_assumed', ('p',)),
    ('warning', 'thick_slices', ('q',)),
  }
  assert not failed
  for told in report['scans']:
    assert 2000 < told['lungs']['left_ml'] + told['lungs']['right_ml'] < 4500
    assert 20 < told['lungs']['soft_tissue_hu'] < 70
