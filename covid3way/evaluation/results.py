"""The result files of a cross-validation: what the tables and figures are made of.

`results.csv` has a row per run, tested scan and evaluation, `costs.csv` one per run,
`aggregators.csv` one per aggregator and tested scan. Each run writes its own beside its
predictions; gathering puts them one after the other.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covid3way.base import InputError
from covid3way.scans.files import whole

# What a run is; `ratio_percent` is that of simulated scans, `ablation` is '' for the
# method as it is, else what was changed: `padded` (no normalisation), a single view
# (`xy`, `yz`, `xz`), or `offsets_...` (other slices in a stack).
RUN = ('run', 'method', 'ratio_percent', 'ablation', 'fold')
PADDED = 'padded'  # The ablation whose standard space is not that of the others.
SCAN = ('scan_id', 'patient_id', 'stage', 'scanner', 'site')
# `native`: the scan's own grid; `standard`: the standard space; `dilated`: the native
# masks dilated by 3 x 3 x 3 voxels, as the authors' released code compares them.
EVALUATIONS = ('native', 'standard', 'dilated')
# `status` is `ok` or says why there are no figures: those cells are empty then.
METRICS = (
  'dice',
  'recall',
  'precision',
  'dice_2_voxels',
  'recall_2_voxels',
  'dice_2_mm',
  'surface_dice_3_mm',
  'hausdorff_95_mm',
  'lesion_recall',
  'lesion_precision',
  'infection_ml_reference',
  'infection_ml_predicted',
  'lung_ml',
  'infected_percent_reference',
  'infected_percent_predicted',
)
RESULTS = (*RUN, *SCAN, 'evaluation', 'status', *METRICS)
COSTS = (
  *RUN,
  'parameters',  # Of all networks of the method.
  'width',  # Factor of all channels, of all methods alike.
  'training_s',
  'training_steps',
  'prediction_s',  # Median of the tested scans: stored scan to mask on its own grid.
  'peak_gib',  # Of the process's memory, or of the accelerator's.
  'device',
  'threshold',  # Of the sum of probabilities scaled to 3 views, or of the product.
  'aggregator',
)
AGGREGATORS = (*RUN, 'scan_id', 'aggregator', 'dice')  # In the standard space.

Row = dict[str, Any]
_TEXT = {'run', 'method', 'ablation', 'device', 'aggregator', *SCAN}
_TEXT |= {'evaluation', 'status'}


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping]) -> None:
  """Writes a table, whole.

  Raises:
    ValueError: a row has a column that there is not.
    StorageError: the disk refused.
  """
  with whole(path) as aside, aside.open('w', newline='', encoding='utf-8') as stream:
    table = csv.DictWriter(stream, columns, lineterminator='\n')
    table.writeheader()
    table.writerows(rows)


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
  """Reads a table; numbers are floats, NaN where a cell is empty.

  Raises:
    InputError: there is none, or it lacks a column.
  """
  try:
    with path.open(newline='', encoding='utf-8') as stream:
      reader = csv.DictReader(stream)
      missing = sorted(set(columns) - set(reader.fieldnames or ()))
      if missing:
        found, remedy = f'no column {", ".join(missing)}', 'run crossval again'
        raise InputError(str(path), found, remedy)
      return [_typed(cells, columns) for cells in reader]
  except OSError as error:
    found, remedy = 'no such table of results', 'give the --workdir of a crossval job'
    raise InputError(str(path), found, remedy) from error


def _typed(cells: Mapping[str, str], columns: Sequence[str]) -> Row:
  return {
    name: cells[name] if name in _TEXT else float(cells[name] or 'nan')
    for name in columns
  }
