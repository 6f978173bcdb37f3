"""A table as Markdown, CSV or LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence

from xl_flax.reports.tables import GAPS, Key, Number, Table, scale
from xl_flax.text_table import wrapped


def text_of(number: Number | None) -> str:
    """As people read it: in % with one digit, with the spread over seeds; losses as they are."""
    if number is None:
        return ""
    factor, digits = scale(number.metric)
    signed = "+" if number.p is not None else ""
    text = f"{factor * number.mean:{signed}.{digits}f}"
    if number.p is not None:
        return f"{text} (p {number.p:.4f})"
    return text + (f" ± {factor * number.spread:.{digits}f}" if number.spread is not None else "")


def parts_of(table: Table, key: Key, fields: Sequence[str]) -> list[str]:
    """What a row or column is called, field by field; marks stand with the last one."""
    shown = []
    for field, value in zip(fields, key, strict=False):
        if value is None or value == "":
            continue
        number = isinstance(value, int) and field in ("layer", "step")
        shown.append(f"{field} {value:,}" if number else str(value))
    if key in table.marks:
        shown[-1] += f" {table.marks[key]}"
    return shown


def name_of(table: Table, key: Key, fields: Sequence[str]) -> str:
    """The same in one line."""
    return ", ".join(parts_of(table, key, fields))


def lines_of(
    table: Table, bold: Callable[[str], str], escape: Callable[[str], str]
) -> list[list[str]]:
    """A heading and a line of cells for each row."""
    heads = [escape(name_of(table, key, table.column_fields)) for key in table.columns]
    lines = [[escape(", ".join(table.row_fields)), *heads]]
    for row in table.rows:
        cells = []
        for column in table.columns:
            text = escape(text_of(table.cells.get((row, column))))
            cells.append(bold(text) if text and table.is_best(row, column) else text)
        if any(cells):
            lines.append([escape(name_of(table, row, table.row_fields)), *cells])
    return lines


def markdown(tables: Sequence[Table]) -> str:
    """All of them, with their titles and notes."""
    texts = []
    for table in tables:
        escape = lambda text: text.replace("|", "\\|")  # noqa: E731
        head, *rows = lines_of(table, lambda text: f"**{text}**", escape)
        widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]

        def joined(cells: Sequence[str], widths: Sequence[int] = widths) -> str:
            first, *others = cells
            padded = [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
            return f"| {' | '.join([first.ljust(widths[0]), *padded])} |"

        rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
        lines = [f"## {table.title}", ""] if table.title else []
        lines += [joined(head), f"{rule}|", *map(joined, rows)]
        for note in table.notes:
            lines += ["", wrapped(note)]
        texts.append("\n".join(lines))
    return "\n\n".join(texts) + "\n"


def comma_separated(tables: Sequence[Table]) -> str:
    """A line for each number, with all digits: title, fields, value, spread, seeds, unknown."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = list(dict.fromkeys(f for t in tables for f in (*t.row_fields, *t.column_fields)))
    writer.writerow(["table", *fields, "metric", "mean", "spread", "seeds", "control", "best"])
    for table in tables:
        for row in table.rows:
            for column in table.columns:
                number = table.cells.get((row, column))
                if number is None:
                    continue
                own = dict(zip(table.column_fields, column, strict=True))
                if len(row) == 1 and row[0] in GAPS:
                    own |= dict.fromkeys(table.row_fields, row[0])
                else:
                    own |= dict(zip(table.row_fields, row, strict=True))
                writer.writerow(
                    [
                        table.title,
                        *("" if own.get(f) is None else own[f] for f in fields),
                        number.metric,
                        repr(number.mean),
                        "" if number.spread is None else repr(number.spread),
                        len(number.values),
                        int(number.is_control),
                        int(table.is_best(row, column)),
                    ]
                )
    return file.getvalue()


_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "±": r"$\pm$", "→": r"$\to$", "—": "---", "−": "$-$",
}  # fmt: skip


def latex(tables: Sequence[Table]) -> str:
    """For the package booktabs, one `table` each."""
    escape = lambda text: "".join(_LATEX.get(c, c) for c in text)  # noqa: E731
    texts = []
    for table in tables:
        head, *rows = lines_of(table, lambda text: f"\\textbf{{{text}}}", escape)
        caption = " ".join(filter(None, [table.title, *table.notes]))
        lines = [
            r"\begin{table}",
            r"\centering",
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            f"\\caption{{{escape(caption)}}}",
            r"\end{table}",
        ]
        texts.append("\n".join(lines))
    text = "\n\n".join(texts) + "\n"
    needs = r"\usepackage{booktabs}"
    if not text.isascii():  # pdflatex has few letters more, and which ones depends on its fonts
        needs += ", and LuaLaTeX or XeLaTeX with fonts of the letters beyond ASCII"
    return f"% Needs {needs}.\n{text}"
