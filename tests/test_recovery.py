"""Recovery on serial phantoms, from their DICOM files on: minutes, so marked slow."""

import csv
import importlib

import pytest

from covid3way.jobs import fit, phantom

SPACE = (128, 128, 192)


@pytest.mark.slow
def test_what_two_scans_foretell_of_the_third(tmp_path):
  """In 8 of 10 patients better than the second scan as it is and than it scaled."""
  config = importlib.import_module('configs.phantom').get_config()
  config.phantom.update(
    patients=10, time_points=(3, 4), matrix=192, anatomy_spacing_mm=2.0
  )
  phantom.run(config, tmp_path / 'cohort')
  config = importlib.import_module('configs.fit').get_config()
  config.space.shape = SPACE
  config.input = str(tmp_path / 'cohort' / 'manifest.csv')
  fit.run(config, tmp_path / 'fit')
  with (tmp_path / 'fit' / 'fit_report.csv').open() as table:
    rows = list(csv.DictReader(table))
  first = {}
  for row in rows:
    if row['fitted_from'] != 'invented start':
      first.setdefault(row['patient_id'], row)
  assert len(first) == 10
  losses = [[float(row[n]) for n in ('law', 'copy_last', 'scaled')] for row in rows]
  for row, (law, *trivial) in zip(rows, losses, strict=True):
    assert row['better'] == str(law < min(trivial))
  assert sum(row['better'] == 'True' for row in first.values()) >= 8
