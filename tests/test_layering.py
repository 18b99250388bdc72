"""Imports go one way: a room knows only the rooms above it."""

import ast

import pytest
from conftest import ROOT

ORDER = (
  'base',
  'progress',
  'scans',
  'standard',
  'simulator',
  'phantom',
  'networks',
  'training',
  'segmentation',
  'evaluation',
  'jobs',
  'main',
)
# Pure rooms: no disk, no clock, so nothing of the rooms that have them.
PURE = ('standard', 'simulator', 'phantom', 'networks')
WORLD = ('scans', 'progress', 'training')
WORLD_MODULES = {'pathlib', 'os', 'time', 'datetime', 'shutil', 'tempfile', 'random'}

FILES = sorted((ROOT / 'covid3way').rglob('*.py'))


def room(path):
  return path.relative_to(ROOT / 'covid3way').with_suffix('').parts[0]


def imports(path):
  """Dotted names of all modules that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def rooms_known(path):
  names = [name.split('.') for name in imports(path)]
  return {n[1] for n in names if n[0] == 'covid3way' and len(n) > 1}


def test_every_file_has_a_room():
  assert {room(p) for p in FILES} - {'__init__'} == set(ORDER)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
  if room(path) == '__init__':
    return
  allowed = set(ORDER[: ORDER.index(room(path)) + 1])
  if room(path) in PURE:
    allowed -= set(WORLD)
    touching = {n.split('.')[0] for n in imports(path)} & WORLD_MODULES
    assert not touching, f'a pure room touches the world through {touching}'
  assert rooms_known(path) <= allowed


def test_rooms_have_no_circle_inside():
  knows = {}
  for path in FILES:
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    modules = {'.'.join(p.relative_to(ROOT).with_suffix('').parts) for p in FILES}
    knows[module] = {name for name in imports(path) if name in modules}
  done = set()
  while ready := {m for m in knows if m not in done and knows[m] <= done}:
    done |= ready
  assert set(knows) == done, f'a circle among {sorted(set(knows) - done)}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_one_file_knows_pmap(path):
  if path.name != 'devices.py':
    text = path.read_text()
    assert not any(word in text for word in ('pmap', 'pmean', 'psum', 'axis_index'))
