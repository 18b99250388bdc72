"""The zarr store: one group per scan, in the standard space, which viewers open, too.

A group `<scan_id>.zarr` is an image of OME-Zarr 0.5 (zarr v3) with its labels:

  signal                 float16, window units: the image
  labels/lungs/0         uint8: 1 left, 2 right
  labels/infection/0     uint8, when there is a reference
  labels/susceptible/0   uint8, when a mask was given of where infection may appear

A group of a prediction has the same form: `labels/infection/0`, and for image
`probability` (uint8, 0 ... 255 for 0 ... 1), a channel `probability_<part>` per part of
the method. Places are mm from the middle of the standard space, of voxel centres.

OME-Zarr wants z, y, x: a viewer then begins with axial slices. So are the arrays
declared, and the `transpose` codec lays their bytes out as ours are, x first; here they
are read back as [x, y, z], by name, at no cost.

Chunks are cubes of 64, because we slice along three axes; all of an array are one file,
a shard. Every chunk and the table of them end with their CRC-32C, so a flipped byte or
a lost end is told when it is read, and a lost file when the group is opened. The
arrays' own metadata is there for others: what is read here follows from the group's
attributes alone, which have a checksum. They hold, under `covid3way`, where the scan
lies in the standard space, its own grid, window, provenance and warnings: all that the
way back needs.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from covid3way.base import DamagedFileError, Grid, InputError
from covid3way.scans.files import checksum, whole

CHUNK_VOXELS = 64
FORMAT = 'covid3way-store-2'
TIMEOUT_S = 600.0  # A disk that has not answered by then will not.
_OME = '0.5'
_SIGNAL, _MAPS = 'signal', 'probability'
_LABELS = {
  'lungs': {1: 'left lung', 2: 'right lung'},
  'infection': {1: 'infection'},
  'susceptible': {1: 'susceptible'},
}
_COLOURS = ((86, 180, 233, 255), (0, 158, 115, 255))
_WINDOW = {'min': -2.0, 'max': 2.0, 'start': -0.5, 'end': 0.5}  # The lung window.
_BYTES = {'min': 0, 'max': 255, 'start': 0, 'end': 255}
_REMEDY = 'remove its group and run the job that wrote it again'


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
  """A lazy (x, y, z) array; whatever goes wrong in reading it names its scan.

  Attributes:
    scan_id: its scan.
    name: of the volume.
    array: where it is read from.
  """

  scan_id: str
  name: str
  array: ts.TensorStore

  @property
  def shape(self) -> tuple[int, ...]:
    """Voxels per axis."""
    return tuple(self.array.shape)

  @property
  def dtype(self) -> np.dtype:
    """Of what is read."""
    return self.array.dtype.numpy_dtype

  def __getitem__(self, where: Any) -> 'Volume':
    """A part of it, as lazy."""
    return dataclasses.replace(self, array=self.array[where])

  def read(self) -> 'Reading':
    """Begins to read."""
    return Reading(self, self.array.read())


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
  """A volume, or a part of it, on its way.

  Attributes:
    volume: what is read.
    future: of its voxels.
  """

  volume: Volume
  future: ts.Future

  def result(self, timeout_s: float = TIMEOUT_S) -> np.ndarray:
    """Waits for it.

    Raises:
      DamagedFileError: it is not what was written.
      InputError: the storage does not answer.
    """
    with _naming(self.volume.scan_id, self.volume.name):
      return self.future.result(timeout_s)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredScan:
  """A group opened for reading; slices are read on demand.

  Attributes:
    scan_id: its scan.
    volumes: (x, y, z) arrays by name, lazy.
    attributes: what is told of the scan.
  """

  scan_id: str
  volumes: Mapping[str, Volume]
  attributes: Mapping[str, Any]

  @property
  def grid(self) -> Grid:
    """The scan's own grid."""
    return Grid.from_json(self.attributes)

  @property
  def shape(self) -> tuple[int, int, int]:
    """Voxels of the standard space."""
    return tuple(next(iter(self.volumes.values())).shape)


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where a volume lies in its group.

  Attributes:
    array: path of the array.
    channel: of it, if it has channels.
  """

  array: str
  channel: int | None = None

  def in_group(self, group: Path) -> Path:
    """Path of the array."""
    return group / self.array

  def shard(self, group: Path) -> Path:
    """The file that holds all voxels."""
    index = [] if self.channel is None else [self.channel]
    return self.in_group(group).joinpath('c', *map(str, [*index, 0, 0, 0]))

  def of(self, array: ts.TensorStore) -> ts.TensorStore:
    """The volume, [x, y, z]."""
    return (array if self.channel is None else array[self.channel]).T


def group_path(folder: Path, scan_id: str) -> Path:
  """Where a scan's group lies in a store."""
  return folder / f'{scan_id}.zarr'


def write_group(
  path: Path, volumes: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> None:
  """Writes one scan's group, whole.

  Args:
    path: of the group.
    volumes: (x, y, z) arrays of one shape, named as above.
    attributes: JSON values; `spacing_mm` is that of the voxels, for viewers.

  Raises:
    StorageError: the disk refused a write.
  """
  places = _places(list(volumes))
  shape = np.shape(next(iter(volumes.values())))
  channels = sum(place.channel is not None for place in places.values())
  with whole(path) as aside:
    for name, place in places.items():
      metadata = _metadata(shape, place, channels)
      spec = _spec(aside, place, metadata) | {'store_data_equal_to_fill_value': True}
      array = ts.open(spec, open=True, create=True).result()
      data = np.asarray(volumes[name], dtype=metadata['data_type'])
      place.of(array).write(data).result()
    content = {
      'format': FORMAT,
      'shape': list(shape),
      'volumes': list(places),
      'about': dict(attributes),
    }
    own = content | {'checksum': checksum(content)}
    spacing_mm = attributes.get('spacing_mm')
    image = _image(path, [n for n in places if n not in _LABELS], shape, spacing_mm)
    _write_node(aside, {'ome': image, 'covid3way': own})
    labels = [name for name in places if name in _LABELS]
    if labels:
      _write_node(aside / 'labels', {'ome': {'version': _OME, 'labels': labels}})
    for name in labels:
      _write_node(
        aside / 'labels' / name, {'ome': _label(name, labels, shape, spacing_mm)}
      )


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
    DamagedFileError: it is, but not as it was written.
  """
  scan_id, content = path.name.removesuffix('.zarr'), _content(path)
  context, shape = chunks or cache(0), tuple(content['shape'])
  places, volumes = _places(content['volumes']), {}
  channels = sum(place.channel is not None for place in places.values())
  for name, place in sorted(places.items()):
    if not place.shard(path).is_file():
      raise DamagedFileError(scan_id, f'its {name} is not in the store', _REMEDY)
    # What its own metadata says is not asked for: a damaged one changes nothing.
    spec = _spec(path, place, _metadata(shape, place, channels))
    with _naming(scan_id, name):
      array = ts.open(spec, open=True, assume_metadata=True, context=context)
      array = array.result(TIMEOUT_S)
    volumes[name] = Volume(scan_id, name, place.of(array))
  return StoredScan(scan_id, volumes, content['about'])


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


@contextlib.contextmanager
def _naming(scan_id: str, name: str) -> Iterator[None]:
  """Says which scan it was that could not be read."""
  try:
    yield
  except (OSError, TimeoutError) as error:
    raise InputError(
      scan_id,
      f'its storage does not answer ({type(error).__name__}: {error})',
      'run the same command again',
    ) from error
  except Exception as error:
    raise DamagedFileError(
      scan_id, f'cannot be read from the store: its {name} is damaged', _REMEDY
    ) from error


def _content(path: Path) -> dict[str, Any]:
  """What the group's attributes say, checked."""
  again = 'run the preprocess job again'
  try:
    known = json.loads((path / 'zarr.json').read_bytes())['attributes']
    content = dict(known['covid3way']) if 'covid3way' in known else {}
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise InputError(str(path), 'not a scan of the store', again) from error
  if content.get('format') != FORMAT:
    raise InputError(
      str(path), 'stored by another version, or damaged', f'remove it and {again}'
    )
  told = content.pop('checksum', None)
  if told != checksum(content):
    scan_id = path.name.removesuffix('.zarr')
    raise DamagedFileError(scan_id, f'{path.name}/zarr.json is damaged', _REMEDY)
  return content


def _places(names: Sequence[str]) -> dict[str, _Place]:
  """Where volumes of these names lie.

  Raises:
    KeyError: there is no volume of such a name.
  """
  maps = [name for name in names if name.startswith(f'{_MAPS}_')]
  places = {_SIGNAL: _Place(_SIGNAL)}
  places |= {name: _Place(f'labels/{name}/0') for name in _LABELS}
  places |= {name: _Place(_MAPS, number) for number, name in enumerate(maps)}
  return {name: places[name] for name in names}


def _metadata(shape: Sequence[int], place: _Place, channels: int) -> dict[str, Any]:
  """Of an array: of one shard, or one per channel."""
  chunk = [CHUNK_VOXELS] * 3
  shard = [-(-n // CHUNK_VOXELS) * CHUNK_VOXELS for n in shape]
  names, order = ['x', 'y', 'z'], [2, 1, 0]
  shape, prefix = list(shape), []
  if place.channel is not None:
    prefix, names, order = [1], [*names, 'c'], [0, 3, 2, 1]
    shape = [*shape, channels]
  little = {'name': 'bytes', 'configuration': {'endian': 'little'}}
  blosc = {'name': 'blosc', 'configuration': {'cname': 'lz4', 'clevel': 5}}
  sums = {'name': 'crc32c'}
  sharding = {
    'chunk_shape': prefix + chunk,
    'codecs': [
      {'name': 'transpose', 'configuration': {'order': order}},
      little,
      blosc,
      sums,
    ],
    'index_codecs': [little, sums],
    'index_location': 'end',
  }
  return {
    'shape': shape[::-1],
    'data_type': 'float16' if place.array == _SIGNAL else 'uint8',
    'chunk_grid': {
      'name': 'regular',
      'configuration': {'chunk_shape': prefix + shard[::-1]},
    },
    'chunk_key_encoding': {'name': 'default'},
    'fill_value': 0,
    'codecs': [{'name': 'sharding_indexed', 'configuration': sharding}],
    'dimension_names': names[::-1],
  }


def _spec(group: Path, place: _Place, metadata: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'driver': 'zarr3',
    'kvstore': {'driver': 'file', 'path': str(place.in_group(group))},
    'metadata': metadata,
    # A group is never changed once it is there: what is cached holds.
    'recheck_cached_data': 'open',
  }


def _write_node(folder: Path, attributes: Mapping[str, Any]) -> None:
  """Makes a folder a zarr group."""
  meta = {'zarr_format': 3, 'node_type': 'group', 'attributes': attributes}
  (folder / 'zarr.json').write_text(json.dumps(meta, indent=2))


def _image(
  path: Path, names: Sequence[str], shape: Sequence[int], spacing_mm: Any
) -> dict[str, Any]:
  """OME metadata of the group: its signal or maps for image, if it has any."""
  if not names:
    return {'version': _OME}
  maps = names[0] != _SIGNAL
  image = _MAPS if maps else _SIGNAL
  channels = [
    {
      'label': name,
      'color': 'FFFFFF',
      'active': number == 0,
      'window': _BYTES if maps else _WINDOW,
    }
    for number, name in enumerate(names)
  ]
  scales = _multiscales(path.stem, image, shape, spacing_mm, with_channels=maps)
  return {
    'version': _OME,
    'multiscales': scales,
    'omero': {'channels': channels, 'rdefs': {'model': 'greyscale'}},
  }


def _label(
  name: str, labels: Sequence[str], shape: Sequence[int], spacing_mm: Any
) -> dict[str, Any]:
  """OME metadata of a mask."""
  values = _LABELS[name]
  colours = zip(values, _COLOURS[labels.index(name) % 2 :] + _COLOURS, strict=False)
  return {
    'version': _OME,
    'multiscales': _multiscales(name, '0', shape, spacing_mm, with_channels=False),
    'image-label': {
      'colors': [{'label-value': v, 'rgba': list(rgba)} for v, rgba in colours],
      'properties': [{'label-value': v, 'name': text} for v, text in values.items()],
      'source': {'image': '../../'},
    },
  }


def _multiscales(
  name: str, path: str, shape: Sequence[int], spacing_mm: Any, *, with_channels: bool
) -> list[dict[str, Any]]:
  """One level: where an array lies, in mm; in voxels if their size is not known."""
  unit = {} if spacing_mm is None else {'unit': 'millimeter'}
  axes = [{'name': n, 'type': 'space', **unit} for n in 'zyx']
  scale = [float(mm) for mm in spacing_mm or (1, 1, 1)][::-1]
  first = [-mm * (n - 1) / 2 for mm, n in zip(scale, shape[::-1], strict=True)]
  if with_channels:
    axes = [{'name': 'c', 'type': 'channel'}, *axes]
    scale, first = [1.0, *scale], [0.0, *first]
  moved = [
    {'type': 'scale', 'scale': scale},
    {'type': 'translation', 'translation': first},
  ]
  datasets = [{'path': path, 'coordinateTransformations': moved}]
  return [{'name': name, 'axes': axes, 'datasets': datasets}]
