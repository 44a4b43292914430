"""A table as Markdown, LaTeX and CSV."""

import csv as csv_module
import io
import re
import unicodedata
from collections.abc import Callable
from string import ascii_lowercase

from analysis.statistics import resolution
from analysis.table import HOLE, Cell, Row, Table, head_groups, number

BLOCK = 7  # columns of a LaTeX table side by side


def markdown(table: Table) -> str:
    """Return the table as aligned Markdown under a heading. Bold is best, italic is within its deviation."""
    lines = [["Model", *(f"{_md(group)} {metric}" for group, metric in table.columns)]]
    for section in table.sections:
        if section.title:
            lines.append([f"*{section.title}*", *("" for _ in table.columns)])
        lines += [_row(table, row, _md, "**{}**", "_{}_", "<sup>{}</sup>") for group in section.groups for row in group]
    lines += [[f"*{head}*", *map(_md, texts)] for head, texts in resolution(table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (width - 1) + (":" if k else "-") for k, width in enumerate(widths)]
    padded = [
        [
            text.rjust(width) if k else text.ljust(width)
            for k, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    body = "".join(f"| {' | '.join(line)} |\n" for line in padded)
    under = [f"\n{_md(said)}\n"] if (said := sentence(table)) else []
    under += [f"\n<sup>{mark(k)}</sup> {_md(note)}\n" for k, note in enumerate(table.notes)]
    return f"### {table.title}\n\n{body}{''.join(under)}"


def latex(table: Table) -> str:
    """Return the table as LaTeX; it needs booktabs and graphicx.

    Many columns are split into blocks below each other, and a block that is too wide shrinks to the text's width.
    """
    under = [tex(said)] if (said := sentence(table)) else []
    under += [rf"\textsuperscript{{{mark(k)}}} {tex(note)}." for k, note in enumerate(table.notes)]
    blocks = [_block(table, columns) for columns in _blocks(table)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{tex(table.title)}}}",
            "\n\\par\\medskip\n".join(blocks),
            *([r"\par\smallskip\footnotesize", " ".join(under)] if under else []),
            r"\end{table}",
            "",
        ]
    )


def csv(table: Table) -> str:
    """Return the table in full precision: mean, std, n, p and notes of each column; a hole is an empty field."""

    def harmless(value: object) -> object:
        if not isinstance(value, str):
            return value
        text = " ".join(value.split())  # csv does not quote a lone carriage return
        # A spreadsheet runs what begins so as a formula; after a quote it is text.
        return f"'{text}" if text.startswith(tuple("=+-@")) else text

    stream = io.StringIO()
    writer = csv_module.writer(stream, lineterminator="\n")
    names = [" ".join(column) for column in table.columns]
    heads = [head for name in names for head in (name, f"{name} std", f"{name} seeds", f"{name} p", f"{name} notes")]
    writer.writerow(["profile", "section", "model", "minus", *map(harmless, heads)])
    for section in table.sections:
        for row in (row for group in section.groups for row in group):
            values = [value for cell in row.cells for value in _values(cell)]
            line = [table.profile, section.title, row.model, row.baseline or "", *values]
            writer.writerow(map(harmless, line))
    return stream.getvalue()


def mark(k: int) -> str:
    """Return the mark of note k: a ... z, aa, ab, ...

    >>> [mark(0), mark(25), mark(26)]
    ['a', 'z', 'aa']
    """
    return (mark(k // 26 - 1) if k >= 26 else "") + ascii_lowercase[k % 26]


def marks(table: Table, cell: Cell) -> str:
    """Return the marks of a cell's notes, separated by commas."""
    return ",".join(mark(table.notes.index(note)) for note in cell.notes)


def sentence(table: Table) -> str:
    """Return what explains the table's marks, as one sentence; "" if it has none."""
    text = "; ".join(table.remarks)
    return text and f"{text[0].upper()}{text[1:]}."


def tex(text: str) -> str:
    r"""Escape text for LaTeX; a character that pdfLaTeX cannot print becomes its code point.

    >>> print(tex("50%_é模"))
    50\%\_é\texttt{U+6A21}
    """
    return "".join(_TEX.get(character) or _letter(character) for character in text)


_TEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    HOLE: "---",
}


def _letter(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else " "
    # inputenc builds Latin letters with accents, but not ligatures and the like.
    if character.isalpha() and ord(character) < 0x17F and unicodedata.decomposition(character)[:1].isalnum():
        return character
    return rf"\texttt{{U+{ord(character):04X}}}"


def _blocks(table: Table) -> list[list[int]]:
    """Return the table's columns in blocks of at most BLOCK, keeping a data set's columns together if they fit."""
    blocks: list[list[int]] = [[]]
    first = 0
    for _, width in head_groups(table.columns):
        if blocks[-1] and len(blocks[-1]) + width > BLOCK:
            blocks.append([])
        blocks[-1] += range(first, first + width)
        first += width
    return blocks


def _block(table: Table, columns: list[int]) -> str:
    groups = head_groups([table.columns[k] for k in columns])
    rules, first = [], 2
    for _, width in groups:
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    body = []
    for section in table.sections:
        if section.title:
            body += [r"\midrule", rf"\multicolumn{{{first - 1}}}{{l}}{{\textit{{{tex(section.title)}}}}} \\"]
        for rows in section.groups:
            body.append(r"\midrule")
            for row in rows:
                cells = _row(table, row, tex, r"\textbf{{{}}}", r"\underline{{{}}}", r"\textsuperscript{{{}}}")
                body.append(" & ".join([cells[0], *(cells[1 + k] for k in columns)]) + r" \\")
    for k, (head, texts) in enumerate(resolution(table)):
        body += [] if k else [r"\midrule"]
        body.append(" & ".join([rf"\textit{{{head}}}", *(tex(texts[k]) for k in columns)]) + r" \\")
    return "\n".join(
        [
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            " & ".join(["", *(rf"\multicolumn{{{width}}}{{c}}{{{tex(group)}}}" for group, width in groups)]) + r" \\",
            "".join(rules),
            " & ".join(["Model", *(tex(table.columns[k][1]) for k in columns)]) + r" \\",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
        ]
    )


def _row(table: Table, row: Row, escape: Callable[[str], str], best: str, tied: str, raised: str) -> list[str]:
    texts = [escape(row.label)]
    for k, cell in enumerate(row.cells):
        text = number(table, row, k)
        # In LaTeX's text a minus would be a hyphen.
        text = f"$-${escape(text[1:])}" if escape is tex and text.startswith("-") else escape(text)
        text = best.format(text) if cell.best else tied.format(text) if cell.tied else text
        texts.append(text + (raised.format(marks(table, cell)) if cell.notes else ""))
    return texts


def _values(cell: Cell) -> list[object]:
    shown = (cell.text if cell.mean is None else cell.mean, cell.std, cell.n or None, cell.p)
    return [*("" if value is None else value for value in shown), "; ".join(cell.notes)]


def _md(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))
