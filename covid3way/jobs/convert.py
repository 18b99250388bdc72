"""Public collections and nnU-Net datasets -> a manifest; a manifest -> nnU-Net."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from covid3way import progress
from covid3way.base import ConfigError, InputError
from covid3way.jobs.batch import claim, for_each
from covid3way.jobs.usage import WHOLE_JOB, required
from covid3way.scans import (
  nnunet_raw,
  public_collections,
  public_slices,
  source,
)
from covid3way.scans.files import write_json
from covid3way.scans.manifest import write_manifest
from covid3way.scans.public import Convert, Imported

_COLLECTIONS: dict[str, Callable[[Path], dict[str, Convert]]] = {
  'covid-seg-20': public_collections.find_covid_seg_20,
  'mosmed': public_collections.find_mosmed,
  'covid-19-20': public_collections.find_covid_19_20,
  'medseg': public_slices.find_medseg,
}
_FORMATS = ('slices', *_COLLECTIONS, 'nnunet', 'to-nnunet')
_READ_BY = {'infection_labels': 'nnunet', 'spacing': 'slices'}  # Fields, of one format.


def run(config: ConfigDict, workdir: Path) -> None:
  """Reads `config.input`; writes `manifest.csv`, `notes.json` and converted files.

  The files come under `scans/<scan_id>/`; those of `to-nnunet` are a raw dataset, the
  workdir itself.

  Raises:
    ConfigError: an unknown format, or a field that the format does not read.
    InputError: the input is not laid out as the format is.
    SomeFailedError: some scans could not be converted; the others are in the manifest.
  """
  path = Path(required(config, 'input'))
  _check(config)
  works = _found(path, config)
  settings = {field: config[field] for field in ('format', *_READ_BY)}
  claim(workdir, 'convert', {**settings, 'input': str(path.resolve())})
  folder = workdir if config.format == 'to-nnunet' else workdir / 'scans'
  imported: dict[str, Imported] = {}

  def convert(scan_id: str) -> None:
    imported[scan_id] = works[scan_id](folder)
    for note in imported[scan_id].notes:
      progress.say(f'{scan_id}: {note}')

  try:
    for_each(
      {scan_id: scan_id for scan_id in works},
      convert,
      what='convert',
      workdir=workdir,
      shard=WHOLE_JOB,
    )
  finally:
    if imported:
      _write_tables(workdir, imported, config.format)
  progress.say(f'{len(imported)} scans in {workdir / "manifest.csv"}')


def _check(config: ConfigDict) -> None:
  if config.format not in _FORMATS:
    remedy = f'use one of {", ".join(_FORMATS)}'
    raise ConfigError('config.format', f'unknown {config.format!r}', remedy)
  for field, reader in _READ_BY.items():
    if config[field] and config.format != reader:
      found = f'{config.format} does not read it, but {reader}'
      raise ConfigError(f'config.{field}', found, 'leave it out')


def _found(path: Path, config: ConfigDict) -> dict[str, Convert]:
  if config.format == 'nnunet':
    names = [name.strip() for name in config.infection_labels.split(',')]
    return nnunet_raw.find_dataset(path, [name for name in names if name])
  if config.format == 'to-nnunet':
    return _of_any_input(path)
  if config.format == 'slices':
    table = config.spacing
    known = public_slices.read_spacing(Path(table)) if table else None
    return public_slices.find_png_folders(path, known)
  return _COLLECTIONS[config.format](path)


def _of_any_input(path: Path) -> dict[str, Convert]:
  rows = source.resolve(path)
  domains = sorted({row.domain or 'HU' for row in rows})
  if len(domains) > 1:
    found = f'signals of several domains, {", ".join(domains)}'
    raise InputError(str(path), found, 'make a dataset of each')
  return {
    row.scan_id: functools.partial(nnunet_raw.write_case, row=row) for row in rows
  }


def _write_tables(workdir: Path, imported: Mapping[str, Imported], name: str) -> None:
  rows = [scan.row for scan in imported.values()]
  if name == 'to-nnunet':
    nnunet_raw.write_description(workdir, rows)
  write_manifest(workdir / 'manifest.csv', rows)
  notes = {scan_id: list(scan.notes) for scan_id, scan in imported.items()}
  write_json(workdir / 'notes.json', {k: v for k, v in notes.items() if v})
