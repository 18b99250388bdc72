"""Config sections -> the simulator's law, its morphology, and how W is searched."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from covid3way.base import ConfigError, ParameterError
from covid3way.jobs.batch import named
from covid3way.simulator import parameters
from covid3way.simulator.fit import FitSettings
from covid3way.simulator.law import Law
from covid3way.simulator.parameters import BOUNDS, Parameters
from covid3way.simulator.prior import Location
from covid3way.simulator.state import Settings

_FIELD = 'config.simulator.law'
_ABOVE_0 = ('posterior', 'basal')  # Factors; other knobs may be 0.
# Beyond these, single precision has nothing left of the small weights.
_MOST = {'clustering': 10.0, 'consolidation_clustering': 10.0, 'seeding': 1.0}


def load_law(dotted: str) -> Law:
  """The law that a dotted name stands for, `package.module.NAME`.

  Raises:
    ConfigError: it cannot be imported, is no `Law`, or a parameter has no bound, no
      default within it, or is a noise that the population law cannot resolve.
  """
  law = named(dotted, _FIELD)
  if not isinstance(law, Law):
    found = f'{dotted!r} is a {type(law).__name__}'
    raise ConfigError(_FIELD, found, 'give the name of a covid3way.simulator.law.Law')
  missing = [f.name for f in _fields(law.parameters) if f.name not in law.bounds]
  if missing:
    found = f'{dotted!r} has no bound for {", ".join(missing)}'
    raise ConfigError(_FIELD, found, 'add it to its table of bounds')
  for field in _fields(law.parameters):
    bound = law.bounds[field.name]
    if not bound.low < field.default < bound.high or (bound.log and bound.low <= 0):
      found = f'{field.name} = {field.default} with {bound}'
      remedy = 'a fit starts strictly between the bounds; low > 0 when log'
      raise ConfigError(_FIELD, found, remedy)
  if law.bounds['noise'].low < BOUNDS['noise'].low:
    found, remedy = (
      f'noise with {law.bounds["noise"]}',
      f'use low >= {BOUNDS["noise"].low}',
    )
    raise ConfigError(_FIELD, found, remedy)
  return law


def simulator_settings(section: ConfigDict) -> Settings:
  """`config.simulator` -> law and morphology.

  Raises:
    ConfigError: a value is out of range.
  """
  return Settings(law=load_law(section.law), **_knobs(section, Settings))


def location_of(section: ConfigDict) -> Location:
  """`config.simulator` -> where births are likelier.

  Raises:
    ConfigError: a value is out of range.
  """
  return Location(**_knobs(section, Location))


def _knobs(section: ConfigDict, kind: type) -> dict[str, float]:
  """The numbers of `config.simulator` that a class has fields for, checked."""
  knobs = {f.name: section[f.name] for f in _fields(kind) if f.name != 'law'}
  for name, value in knobs.items():
    least = '> 0' if name in _ABOVE_0 else '>= 0'
    most = _MOST.get(name, 1000.0)
    if not 0 <= value <= most or (value == 0 and name in _ABOVE_0):
      remedy = f'use a finite number {least} and <= {most:g}'
      raise ConfigError(f'config.simulator.{name}', f'{value:g}', remedy)
  return knobs


def fit_settings(section: ConfigDict) -> FitSettings:
  """`config.fit` -> how W is searched for.

  Raises:
    ConfigError: a value is out of range.
  """
  for name, least in (('iterations', 1), ('patience', 1), ('restarts', 0)):
    if section[name] < least:
      found, remedy = f'{section[name]}', f'use {least} or more'
      raise ConfigError(f'config.fit.{name}', found, remedy)
  if not 0 <= section.tolerance < 1:
    found = f'{section.tolerance}'
    raise ConfigError('config.fit.tolerance', found, 'use a number >= 0 and < 1')
  return FitSettings(**{f.name: section[f.name] for f in _fields(FitSettings)})


def parameters_of(values: Mapping[str, Any], law: Law, *, subject: str) -> Parameters:
  """W as JSON holds it -> W.

  Args:
    values: by name.
    law: whose parameters they are.
    subject: patient and pair, for the message.

  Raises:
    ParameterError: a name is missing or unknown, a value is no number, not finite or
      out of its bounds.
  """
  names = [f.name for f in _fields(law.parameters)]
  differ = sorted(set(values) ^ set(names))
  if differ:
    found = f'W with {", ".join(sorted(values))}'
    raise ParameterError(subject, found, f'W holds {", ".join(names)}: run fit again')
  wrong = [n for n in names if type(values[n]) not in (int, float)]
  if wrong:
    found = f'{wrong[0]} = {values[wrong[0]]!r}'
    raise ParameterError(subject, found, 'use numbers')
  return parameters.check(law.parameters(**values), subject=subject, bounds=law.bounds)


def _fields(kind: type) -> tuple[dataclasses.Field, ...]:
  return dataclasses.fields(kind)
