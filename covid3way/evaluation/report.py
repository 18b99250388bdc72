"""One page with all tables and figures: a file that needs nothing but a browser."""

import dataclasses
from collections.abc import Mapping, Sequence

from covid3way.evaluation import pages
from covid3way.evaluation.tables import Table


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure of the page.

  Attributes:
    name: of its file, and of a link to it.
    number: as in the paper, '4'; '' if it has none there.
    title: what it shows.
    caption: what is seen.
    png: its bytes; None if it was not made.
    reason: why it was not made.
  """

  name: str
  number: str
  title: str
  caption: str
  png: bytes | None
  reason: str = ''

  @property
  def label(self) -> str:
    """Its number, or else its title."""
    return f'Fig. {self.number}' if self.number else self.title

  @property
  def heading(self) -> str:
    """Number and title."""
    return f'{self.label}. {self.title}.' if self.number else f'{self.title}.'

  @property
  def source(self) -> str:
    """The picture itself, as an address."""
    return pages.address(self.png)


def page(
  *,
  title: str,
  headline: str,
  facts: Mapping[str, str],
  missing: Table,
  tables: Sequence[Table],
  pictures: Sequence[Picture],
  folds: Sequence[Mapping[str, int]],
  settings: Mapping[str, str],
  versions: Mapping[str, str],
) -> str:
  """The page as HTML: no script, nothing from elsewhere.

  Args:
    title: of the page.
    headline: the outcome in a sentence.
    facts: shown first.
    missing: what was not run.
    tables: in order.
    pictures: in order.
    folds: per fold its `training scans`, `training patients` and so on.
    settings: of the cross-validation.
    versions: of what computed.
  """
  return pages.render(
    'report.html.j2',
    title=title,
    headline=headline,
    facts=facts,
    missing=missing,
    tables=tables,
    pictures=pictures,
    folds=folds,
    settings=settings,
    versions=versions,
  )
