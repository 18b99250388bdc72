"""Tables, figures and one page of a results folder, from its files alone."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, Covid3wayError
from covid3way.evaluation import paper_tables, report, study_tables, tables
from covid3way.evaluation.comparison import VIEW_COLOURS
from covid3way.evaluation.pages import flat
from covid3way.evaluation.report import Picture
from covid3way.evaluation.results import EVALUATIONS
from covid3way.evaluation.scores import Scores, in_order, known, label
from covid3way.evaluation.tables import Table
from covid3way.jobs import pictures, results_folder
from covid3way.jobs.batch import versions
from covid3way.jobs.pictures import Kind, NotMade, Sources
from covid3way.jobs.results_folder import ResultsFolder
from covid3way.scans.files import whole

_WRITERS = {'csv': tables.to_csv, 'md': tables.to_markdown, 'tex': tables.to_latex}


def run(config: ConfigDict, workdir: Path) -> None:
  """Reads a crossval job's workdir; adds `tables/`, `figures/` and `report.html`."""
  options = config.report
  if options.examples < 1:
    raise ConfigError('config.report.examples', f'{options.examples}', 'use 1 or more')
  folder = results_folder.read(workdir)
  scores = _scores(folder, options.evaluation, options.ratio_percent)
  scanners = {about['scanner'] for about in scores.tested.values() if about}
  if options.best_scanner and options.best_scanner not in scanners:
    remedy = f'use one of {", ".join(sorted(scanners))}'
    found = repr(options.best_scanner)
    raise ConfigError('config.report.best_scanner', found, remedy)
  made = _tables(folder, scores, options.best_scanner, options.seed)
  missing = study_tables.missing_table(scores, folder.planned)
  for table in (missing, *made):
    for suffix, write in _WRITERS.items():
      _write(workdir / 'tables' / f'{table.name}.{suffix}', write(table))
  examples = scores.representative(options.examples)
  sources = Sources(folder, scores, examples, options.seed)
  drawn = [_draw(kind, sources) for kind in pictures.KINDS]
  page = report.page(
    title='COVID-19 CT segmentation: cross-validation',
    headline=study_tables.headline(scores, seed=options.seed),
    facts=_facts(folder, scores),
    missing=missing,
    tables=made,
    pictures=drawn,
    folds=[_about_fold(split, folder.patients) for split in folder.splits],
    settings=flat(folder.settings),
    versions=versions(),
  )
  _write(workdir / 'report.html', page)
  progress.say(f'report: {workdir / "report.html"}')


def _write(path: Path, text: str) -> None:
  with whole(path) as aside:
    aside.write_text(text, encoding='utf-8')


def _scores(folder: ResultsFolder, evaluation: str, ratio_percent: float) -> Scores:
  """The scores to show.

  Raises:
    ConfigError: there is no such evaluation, or no run with such a ratio.
  """
  if evaluation not in EVALUATIONS:
    remedy = f'use one of {", ".join(EVALUATIONS)}'
    raise ConfigError('config.report.evaluation', repr(evaluation), remedy)
  scores = Scores(folder.rows, folder.folds, evaluation, ratio_percent)
  if ratio_percent not in scores.ratios:
    ratios = ', '.join(f'{ratio:g}' for ratio in scores.ratios) or 'none'
    raise ConfigError(
      'config.report.ratio_percent', f'{ratio_percent:g}: no run', f'there is: {ratios}'
    )
  return scores


def _tables(
  folder: ResultsFolder, scores: Scores, best_scanner: str, seed: int
) -> list[Table]:
  return [
    paper_tables.table_2(scores, best_scanner=best_scanner),
    study_tables.statistics_table(scores, seed=seed),
    study_tables.further_metrics(scores),
    paper_tables.table_3(scores),
    paper_tables.table_4(scores),
    paper_tables.table_5(scores),
    study_tables.table_6(folder.costs, scores.ratio_percent),
    study_tables.table_7(scores, seed=seed),
    study_tables.table_s1(scores, folder.aggregators),
  ]


def _draw(kind: Kind, sources: Sources) -> Picture:
  """A figure, written and read again; why not, if these results cannot fill it."""
  caption = kind.caption.format(evaluation=sources.scores.evaluation)
  named = kind.name, kind.number, kind.title
  path = sources.folder.path / 'figures' / f'{kind.name}.png'
  try:
    if not sources.examples:
      raise NotMade('no scan has scores')
    with whole(path) as aside:
      kind.draw(aside, sources)
  except (NotMade, Covid3wayError) as error:
    path.unlink(missing_ok=True)  # An earlier report's would be taken for this one's.
    progress.say(f'{kind.name}: not made: {error}')
    return Picture(*named, caption, None, str(error))
  progress.say(f'{kind.name}: {path}')
  return Picture(*named, caption, path.read_bytes())


def _facts(folder: ResultsFolder, scores: Scores) -> dict[str, str]:
  """What the page says first."""
  about = [row for row in scores.tested.values() if row]

  def counted(field: str) -> str:
    return f'{len({row[field] for row in about if row[field]})}'

  # A single view is one of the networks of the whole method, which are counted.
  own = [row for row in folder.costs if row['ablation'] not in VIEW_COLOURS]
  trained_s = sum(known(own, 'training_s'))
  return {
    'Made': datetime.datetime.now().astimezone().isoformat(' ', 'minutes'),
    'Tested': f'{len(scores.tested)} scans in {len(folder.folds)} folds; patients: '
    f'{counted("patient_id")}, scanners: {counted("scanner")}, sites: '
    f'{counted("site")}',
    'Methods': ', '.join(map(label, in_order(scores.methods))),
    'Runs': f'{len(folder.planned)}, whose trainings took '
    f'{study_tables.duration(trained_s)} in all',
    'Shown': f'{scores.said}, unless a title says otherwise',
  }


def _about_fold(
  split: Mapping[str, Sequence[str]], patients: Mapping[str, str]
) -> dict[str, int]:
  """How many scans and patients a fold trains on and tests."""
  told = {}
  for name, part in (('trained on', 'train'), ('tested', 'val')):
    scans = split[part]
    told[f'Scans {name}'] = len(scans)
    told[f'Patients {name}'] = len({patients.get(scan, scan) for scan in scans})
  return told
