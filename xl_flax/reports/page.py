"""A report as one HTML page that needs nothing else: tables that sort, figures within."""

import html as html_lib
from collections.abc import Mapping, Sequence
from importlib import resources

import xl_flax
from xl_flax.reports.drawing import Drawing
from xl_flax.reports.formats import parts_of, text_of
from xl_flax.reports.tables import Table, scale

LONG = 160  # characters of a note
_escape = html_lib.escape


def html(
    tables: Sequence[Table],
    figures: Mapping[str, Drawing],
    notes: Sequence[str],
    signatures: Sequence[str],
) -> str:
    """The page, in English; a name in it keeps the direction of its script, whatever is around."""
    parts = resources.files("xl_flax.reports")
    style, script = ((parts / name).read_text("utf-8") for name in ("page.css", "page.js"))
    links = [f'<a href="#t{i}">{_escape(t.title or "Table")}</a>' for i, t in enumerate(tables)]
    links += [f'<a href="#f-{_escape(k)}">{_escape(f.title)}</a>' for k, f in figures.items()]
    body = [_note(note) for note in notes if note]
    body += [_table(table, f"t{i}") for i, table in enumerate(tables)]
    body += [_figure(name, drawing) for name, drawing in figures.items()]
    if signatures:
        listed = "\n".join(map(_escape, signatures))
        body.append(
            f"<details><summary>{len(signatures):,} signatures: how each number was measured"
            f"</summary><pre>{listed}</pre></details>"
        )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Results</title>\n<style>\n{style}</style>\n"
        f"<h1>Results</h1>\n<nav>{' '.join(links)}</nav>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<footer>XL-Flax {xl_flax.__version__}. Mean ± standard deviation over "
        "seeds, in % where a value is a share; bold: the best of the settings; grey: controls. A "
        f"click on a heading sorts.</footer>\n<script>\n{script}</script>\n</html>\n"
    )


def _note(text: str) -> str:
    """What is long is shown when it is asked for."""
    if len(text) <= LONG:
        return f"<p>{_escape(text)}</p>"
    start = _escape(text[:LONG].rpartition(" ")[0])
    return f"<details><summary>{start} …</summary><p>{_escape(text)}</p></details>"


def _table(table: Table, name: str) -> str:
    lines = [f'<section id="{name}"><h2>{_escape(table.title or "Table")}</h2>']
    lines.append('<div class="wide"><table><thead><tr>')
    heads = [", ".join(table.row_fields)]
    heads += [_named(parts_of(table, key, table.column_fields)) for key in table.columns]
    lines += [f"<th><button type=button>{head}</button></th>" for head in heads]
    lines.append("</tr></thead><tbody>")
    for row in table.rows:
        numbers = [table.cells.get((row, column)) for column in table.columns]
        there = [number for number in numbers if number]
        if not there:
            continue
        kind = ' class="control"' if all(number.is_control for number in there) else ""
        title = _named(parts_of(table, row, table.row_fields))
        cells = []
        for column, number in zip(table.columns, numbers, strict=True):
            if number is None:
                cells.append("<td></td>")
                continue
            classes = [
                *(["best"] if table.is_best(row, column) else []),
                *(["control"] if number.is_control else []),
            ]
            own = f' class="{" ".join(classes)}"' if classes else ""
            value = scale(number.metric)[0] * number.mean
            cells.append(f'<td{own} data-value="{value!r}">{_escape(text_of(number))}</td>')
        lines.append(f"<tr{kind}><th scope=row>{title}</th>{''.join(cells)}</tr>")
    lines.append("</tbody></table></div>")
    lines += [f"<p class=note>{_escape(note)}</p>" for note in table.notes]
    return "\n".join(lines) + "</section>"


def _named(parts: Sequence[str]) -> str:
    """Each part in the direction of its own script, one behind the other."""
    return ", ".join(f"<bdi>{_escape(part)}</bdi>" for part in parts)


def _figure(name: str, drawing: Drawing) -> str:
    title = _escape(drawing.title)
    return (
        f'<section id="f-{_escape(name)}"><h2>{title}</h2>'
        f'<div class="figure" role="img" aria-label="{title}">{drawing.svg()}</div></section>'
    )
