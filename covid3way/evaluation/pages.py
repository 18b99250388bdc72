"""What pages share: templates, pictures inside the file, nested values as lines."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

_TEMPLATES = jinja2.Environment(
  loader=jinja2.FileSystemLoader(Path(__file__).parent),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
  """A page as HTML: no script, nothing from elsewhere; text in it is no markup."""
  return _TEMPLATES.get_template(template).render(values)


def address(png: bytes) -> str:
  """A picture itself, as an address."""
  return f'data:image/png;base64,{base64.b64encode(png).decode()}'


def flat(settings: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
  """Nested settings as dotted names and texts."""
  result = {}
  for name, value in settings.items():
    if isinstance(value, Mapping) and value:
      result |= flat(value, f'{prefix}{name}.')
    else:
      result[f'{prefix}{name}'] = value if isinstance(value, str) else json.dumps(value)
  return result
