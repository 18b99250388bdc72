"""How jobs are asked for: what they need, and in which shards.

Imports nothing heavy: a mistake of the command line is told before anything of a job
is loaded.
"""

import dataclasses
import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from covid3way.base import ConfigError


@dataclasses.dataclass(frozen=True)
class Usage:
  """What the command line of a job has to hold, and may.

  Attributes:
    needs: fields of the config that the user has to give.
    in_shards: whether it works scan by scan, or run by run: takes --shard.
  """

  needs: tuple[str, ...] = ()
  in_shards: bool = False


_INPUT = ('input',)
JOBS: Mapping[str, Usage] = {
  'augment': Usage(_INPUT, in_shards=True),
  'benchmark': Usage(),
  'check': Usage(_INPUT, in_shards=True),
  'convert': Usage(_INPUT),
  'crossval': Usage(_INPUT, in_shards=True),
  'evaluate': Usage(('input', 'predictions')),
  'export': Usage(),
  'fit': Usage(_INPUT, in_shards=True),
  'phantom': Usage(),
  'predict': Usage(('model', 'input'), in_shards=True),
  'preprocess': Usage(_INPUT, in_shards=True),
  'quantify': Usage(_INPUT, in_shards=True),
  'quickstart': Usage(),
  'report': Usage(),
  'simulate': Usage(_INPUT),
  'train': Usage(_INPUT, in_shards=True),
}


def check(config: ConfigDict, shard: str | None) -> None:
  """Refuses a job that lacks what it needs, or cannot be done in shards.

  Args:
    config: of the job.
    shard: as given on the command line.

  Raises:
    ConfigError: says what is missing or wrong.
  """
  if config.job not in JOBS:
    raise ConfigError('config.job', f'{config.job!r}', f'use one of {", ".join(JOBS)}')
  usage = JOBS[config.job]
  if shard is not None:
    Shard.parse(shard)
    if not usage.in_shards:
      found = f'{config.job} does not work scan by scan'
      raise ConfigError('--shard', found, 'leave it out')
  for field in usage.needs:
    required(config, field)


def required(config: ConfigDict, field: str) -> str:
  """A config field that the user has to give.

  Raises:
    ConfigError: it is empty.
  """
  if not config[field]:
    raise ConfigError(f'config.{field}', 'not given', f'add --config.{field}=...')
  return config[field]


def part(text: str, field: str) -> tuple[int, int]:
  """'2/8' -> (2, 8), the third of eight.

  Args:
    text: to read.
    field: of the config, or flag, that holds it.

  Raises:
    ConfigError: it is no such thing.
  """
  found = re.fullmatch(r'(\d+)/(\d+)', text)
  if not found or not int(found[1]) < int(found[2]):
    raise ConfigError(field, repr(text), 'use i/n with i from 0 to n - 1')
  return int(found[1]), int(found[2])


@dataclasses.dataclass(frozen=True)
class Shard:
  """Which of a job's scans or patients a process does: every `of`-th, from `index` on.

  Shards may run at the same time on machines that share the workdir: none writes what
  another one writes. What belongs to all of them (tables, the extended manifest) is
  left to a run of the whole job, which finds their work done.
  """

  index: int = 0
  of: int = 1

  @classmethod
  def parse(cls, text: str) -> 'Shard':
    """'2/8' -> the third of eight.

    Raises:
      ConfigError: it is no such thing.
    """
    return cls(*part(text, '--shard'))

  @property
  def is_whole(self) -> bool:
    """Whether there is no other."""
    return self.of == 1

  def report(self, what: str) -> str:
    """Name of the file that tells what failed of what was done."""
    part = '' if self.is_whole else f'-{what}-{self.index}of{self.of}'
    return f'failures{part}.json'


WHOLE_JOB = Shard()
