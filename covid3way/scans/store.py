"""The zarr store: one group per scan, in the standard space.

A group `<scan_id>.zarr` (zarr v3) holds `signal` (float16, window units), `lungs`
(uint8: 1 left, 2 right) and, when there is a reference, `infection` (uint8); also
`susceptible` (uint8), when a mask was given of where infection may appear. Chunks are
cubes of 64, because we slice along three axes. The group's attributes hold where the
scan lies in the standard space, its own grid, window, provenance and warnings: all
that the way back needs.

A group of a prediction has the same form: `infection`, and a probability map
`probability_<part>` (uint8, 0 ... 255 for 0 ... 1) per part of the method.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from covid3way.base import Grid, InputError
from covid3way.scans.files import whole

CHUNK_VOXELS = 64
_DTYPES = {
  'signal': 'float16',
  'lungs': 'uint8',
  'infection': 'uint8',
  'susceptible': 'uint8',
}
_MAP = 'probability_'  # Any part's map, uint8.


@dataclasses.dataclass(frozen=True, eq=False)
class StoredScan:
  """A group opened for reading; slices are read on demand.

  Attributes:
    scan_id: its scan.
    volumes: (x, y, z) arrays by name, lazy.
    attributes: the group's attributes.
  """

  scan_id: str
  volumes: Mapping[str, ts.TensorStore]
  attributes: Mapping[str, Any]

  @property
  def grid(self) -> Grid:
    """The scan's own grid."""
    known = self.attributes
    affine = np.array(known['native_affine_lps'])
    return Grid(tuple(known['native_shape']), affine)

  @property
  def shape(self) -> tuple[int, int, int]:
    """Voxels of the standard space."""
    return tuple(next(iter(self.volumes.values())).shape)


def group_path(folder: Path, scan_id: str) -> Path:
  """Where a scan's group lies in a store."""
  return folder / f'{scan_id}.zarr'


def write_group(
  path: Path, volumes: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> None:
  """Writes one scan's group, whole.

  Args:
    path: of the group.
    volumes: (x, y, z) arrays, named as above.
    attributes: JSON values.
  """
  with whole(path) as aside:
    aside.mkdir()
    for name, volume in volumes.items():
      dtype = 'uint8' if name.startswith(_MAP) else _DTYPES[name]
      metadata = {
        'shape': volume.shape,
        'data_type': dtype,
        'chunk_grid': {
          'name': 'regular',
          'configuration': {'chunk_shape': [CHUNK_VOXELS] * 3},
        },
        'codecs': [{'name': 'blosc', 'configuration': {'cname': 'lz4', 'clevel': 5}}],
        'dimension_names': ['x', 'y', 'z'],
      }
      spec = _spec(aside / name) | {'metadata': metadata}
      array = ts.open(spec, create=True).result()
      array.write(np.asarray(volume, dtype=dtype)).result()
    meta = {'zarr_format': 3, 'node_type': 'group', 'attributes': dict(attributes)}
    (aside / 'zarr.json').write_text(json.dumps(meta, indent=2))


def cache(total_bytes: int) -> ts.Context:
  """A place for decoded chunks, shared by all groups that are opened with it."""
  return ts.Context({'cache_pool': {'total_bytes_limit': total_bytes}})


def open_group(path: Path, *, chunks: ts.Context | None = None) -> StoredScan:
  """Opens one scan's group.

  Args:
    path: of the group.
    chunks: `cache` of decoded chunks; without one nothing is kept.

  Raises:
    InputError: the path is no group of this store.
  """
  try:
    attributes = json.loads((path / 'zarr.json').read_text())['attributes']
  except (OSError, ValueError, KeyError) as error:
    raise InputError(
      str(path), 'not a scan of the store', 'run the preprocess job again'
    ) from error
  context = chunks or cache(0)
  names = sorted(each.parent.name for each in path.glob('*/zarr.json'))
  volumes = {n: ts.open(_spec(path / n), context=context).result() for n in names}
  return StoredScan(path.name.removesuffix('.zarr'), volumes, attributes)


def finished_groups(folder: Path) -> list[Path]:
  """The groups of a store, by name; none that a killed process left half-written."""
  return sorted(folder.glob('[!.]*.zarr'))


def list_groups(folder: Path) -> Iterable[Path]:
  """The groups of a store, by name.

  Raises:
    InputError: the folder holds none.
  """
  groups = finished_groups(folder)
  if not groups:
    raise InputError(
      str(folder), 'no scans in standard space here', 'run the preprocess job first'
    )
  return groups


def _spec(path: Path) -> dict[str, Any]:
  return {
    'driver': 'zarr3',
    'kvstore': {'driver': 'file', 'path': str(path)},
    # A group is never changed once it is there: what is cached holds.
    'recheck_cached_data': 'open',
  }
