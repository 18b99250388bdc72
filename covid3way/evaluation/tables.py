"""A table of a study: full numbers as CSV, shown ones as Markdown, LaTeX and HTML."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Sequence

NOT_RUN = '–'  # Where an experiment was not made.
UNDEFINED = 'n/a'  # Where it was, but a figure cannot be computed: NaN.

# The numbers of a cell; () where the column means nothing for the line, None where the
# experiment was not run.
Cell = tuple[float | str, ...] | None

_KEYS = {'high': lambda v: -v, 'low': lambda v: v, 'near 0': abs}


@dataclasses.dataclass(frozen=True)
class Column:
  """What stands under each other.

  Attributes:
    title: with the unit.
    fields: names of a cell's numbers in the CSV.
    spec: of a number: format specification, or a function that makes its text.
    pattern: of a cell, with a {} per number.
    better: 'high', 'low' or 'near 0': which first number is the best; '': none is.
  """

  title: str
  fields: tuple[str, ...]
  spec: str | Callable[[float], str] = '.3f'
  pattern: str = '{}'
  better: str = ''

  def text(self, cell: Cell) -> str:
    """A cell as shown."""
    if cell is None:
      return NOT_RUN
    return self.pattern.format(*map(self._number, cell)) if cell else ''

  def _number(self, value: float | str) -> str:
    if isinstance(value, str):
      return value
    if math.isnan(value):
      return UNDEFINED
    text = self.spec(value) if callable(self.spec) else format(value, self.spec)
    return text.replace('-', '\N{MINUS SIGN}')

  def best(self, cells: Sequence[Cell]) -> set[int]:
    """Which cells are the best of several, by what is shown of their first number."""
    if not self.better:
      return set()
    shown = {i: c for i, c in enumerate(cells) if c and not math.isnan(c[0])}
    first = min((c[0] for c in shown.values()), key=_KEYS[self.better], default=0.0)
    found = {i for i, c in shown.items() if self._number(c[0]) == self._number(first)}
    # Where none is worse, none is the best.
    return found if len(found) < len(shown) else set()


@dataclasses.dataclass(frozen=True)
class Line:
  """What stands beside each other.

  Attributes:
    label: whose numbers they are.
    cells: one per column.
    block: of the table, a mark like '*'; lines of a block follow each other.
    remark: that the reader must know, as '38 of 40 scans'.
  """

  label: str
  cells: tuple[Cell, ...]
  block: str = ''
  remark: str = ''

  @property
  def name(self) -> str:
    """The label with its mark and remark, as shown."""
    remark = f' ({self.remark})' if self.remark else ''
    return f'{self.label}{self.block}{remark}'


@dataclasses.dataclass(frozen=True)
class Table:
  """A table.

  Attributes:
    name: of its files and of a link to it.
    number: as in the paper, 'II'; '' if it has none there.
    title: what it shows.
    columns: but for the first one, which holds the labels.
    lines: in order.
    notes: below the table.
    stub: title of the first column.
    best_of: 'column': the best of each column (and block) are bold; 'line': the best of
      each line, all of whose columns are alike.
  """

  name: str
  number: str
  title: str
  columns: tuple[Column, ...]
  lines: tuple[Line, ...]
  notes: tuple[str, ...] = ()
  stub: str = 'Method'
  best_of: str = 'column'

  @property
  def caption(self) -> str:
    """Number and title."""
    return f'Table {self.number}. {self.title}' if self.number else self.title

  def blocks(self) -> list[list[tuple[str, list[tuple[str, bool]]]]]:
    """Per block, per line: its name, and text and boldness of each cell."""
    marks = dict.fromkeys(line.block for line in self.lines)
    return [
      self._block([line for line in self.lines if line.block == m]) for m in marks
    ]

  def _block(self, lines: Sequence[Line]) -> list[tuple[str, list[tuple[str, bool]]]]:
    bold = set()
    if self.best_of == 'line':
      for i, line in enumerate(lines):
        bold |= {(i, j) for j in self.columns[0].best(line.cells)}
    else:
      for j, column in enumerate(self.columns):
        bold |= {(i, j) for i in column.best([line.cells[j] for line in lines])}
    return [
      (
        line.name,
        [
          (column.text(cell), (i, j) in bold)
          for j, (column, cell) in enumerate(zip(self.columns, line.cells, strict=True))
        ],
      )
      for i, line in enumerate(lines)
    ]


def to_csv(table: Table) -> str:
  """All digits; empty where nothing was run or nothing is meant."""
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator='\n')
  fields = [field for column in table.columns for field in column.fields]
  writer.writerow(['row', 'block', 'remark', *fields])
  for line in table.lines:
    numbers = []
    for column, cell in zip(table.columns, line.cells, strict=True):
      numbers += cell or [''] * len(column.fields)
    writer.writerow([line.label, line.block, line.remark, *numbers])
  return stream.getvalue()


def to_markdown(table: Table) -> str:
  """With its caption above and its notes below."""
  titles = [table.stub, *(column.title for column in table.columns)]
  rows = [titles]
  for block in table.blocks():
    for name, cells in block:
      texts = [_markdown(name), *(_markdown(text) for text, _ in cells)]
      bold = [False, *(b for _, b in cells)]
      rows.append([f'**{t}**' if b else t for t, b in zip(texts, bold, strict=True)])
  rows[0] = [_markdown(title) for title in titles]
  rows.insert(1, ['---', *['---:'] * len(table.columns)])
  lines = [f'**{_markdown(table.caption)}**', '']
  lines += [f'| {" | ".join(row)} |' for row in rows]
  lines += [text for note in table.notes for text in ('', _markdown(note))]
  return '\n'.join(lines) + '\n'


def to_latex(table: Table) -> str:
  r"""For a document with \usepackage{booktabs}."""
  titles = [table.stub, *(column.title for column in table.columns)]
  lines = [
    r'\begin{table}',
    r'\centering',
    rf'\caption{{{latex(table.title)}}}',
    rf'\label{{tab:{table.name}}}',
    rf'\begin{{tabular}}{{l{"r" * len(table.columns)}}}',
    r'\toprule',
    ' & '.join(map(latex, titles)) + r' \\',
  ]
  for block in table.blocks():
    lines.append(r'\midrule')
    for name, cells in block:
      texts = [rf'\textbf{{{latex(t)}}}' if b else latex(t) for t, b in cells]
      lines.append(' & '.join([latex(name), *texts]) + r' \\')
  lines += [r'\bottomrule', r'\end{tabular}']
  lines += [rf'\par\smallskip\footnotesize {latex(note)}' for note in table.notes]
  return '\n'.join([*lines, r'\end{table}']) + '\n'


_LATEX = {
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  **{c: f'\\{c}' for c in '&%$#_{}'},
  '<': '$<$',
  '>': '$>$',
  '\N{PLUS-MINUS SIGN}': r'$\pm$',
  '\N{MINUS SIGN}': '$-$',
  '\N{MULTIPLICATION SIGN}': r'$\times$',
  '\N{EN DASH}': '--',
  '\N{DAGGER}': r'\dag{}',
}


def latex(text: str) -> str:
  """Text of which LaTeX takes nothing for a command."""
  return ''.join(_LATEX.get(character, character) for character in text)


def _markdown(text: str) -> str:
  return re.sub(r'([\\`*_|<>\[\]])', r'\\\1', text)
