"""Tables, figures and one page of a cross-validation, from its results folder alone.

  python -m covid3way.main --config=configs/report.py --workdir=RESULTS

RESULTS is the workdir of a crossval job; nothing is computed again. Adds `tables/`
(CSV with all digits, Markdown, LaTeX for booktabs), `figures/` (PNG) and `report.html`,
one file that needs no network. What was not run is a dash in its table and a line under
"What is missing". A minute or so, most of it 3D renderings.
"""

from configs import default


def get_config(variant: str = ''):
  """`configs/report.py:smoke` is the job itself: it has nothing to shorten."""
  return default.pick('report', variant, 'report')
