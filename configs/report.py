"""Tables, figures and one page of a cross-validation, from its results folder alone.

  python -m covid3way.main --config=configs/report.py --workdir=RESULTS

RESULTS is the workdir of a crossval job; nothing is computed again. Adds `tables/`
(CSV with all digits, Markdown, LaTeX for booktabs), `figures/` (PNG) and `report.html`,
one file that needs no network. What was not run is a dash in its table and a line under
"What is missing". A minute or so, most of it 3D renderings.
"""

from ml_collections import ConfigDict


def get_config(variant: str = ''):
  """`configs/report.py:smoke` is the same."""
  if variant not in ('', 'smoke'):
    raise ValueError(f"there is no variant {variant!r} of this config, only 'smoke'")
  config = ConfigDict({'job': 'report'})
  config.report = ConfigDict()
  config.report.evaluation = 'native'  # Or 'standard' or 'dilated'.
  config.report.ratio_percent = 200.0  # Of simulated scans, where a table shows one.
  config.report.best_scanner = ''  # Of Table II's block #; '': that of most scans.
  config.report.examples = 3  # Scans in each of Figs. 4, 5 and 6.
  config.report.seed = 0  # Of the bootstrap over patients.
  return config
