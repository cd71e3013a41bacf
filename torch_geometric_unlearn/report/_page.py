r"""What every section of the report's page is built from: its style, figures, tables
and how values are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

NOTHING = 'not available'

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#16191d;--soft:#4b535d;--line:#cfd5dc;
--box:#f4f6f8;--grid:#e3e7ec;--heat:#3d8fdc;--good:#0b6b45;--bad:#a82a1c;--odd:#75550a;
--c0:#0072b2;--c1:#c44d00;--c2:#00815d;--c3:#a8478a;--c4:#5a5fc7;--c5:#7a6a00}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--ink:#eceff2;--soft:#aeb7c1;
--line:#414953;--box:#1d2127;--grid:#2b3138;--heat:#2c6fb4;--good:#5fd3a0;--bad:#ff9a8a;
--odd:#e8c468;--c0:#6cbcf0;--c1:#f2a04e;--c2:#45cfa0;--c3:#e39ac9;--c4:#a9adff;
--c5:#d8c65a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header,footer{max-width:72rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.7rem;line-height:1.2;margin:1.5rem 0 .3rem}
h2{font-size:1.25rem;margin:2.2rem 0 .4rem;padding-top:.8rem;
border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p,ul,ol,dl{margin:.5rem 0;max-width:46rem}
.soft,figcaption,small{color:var(--soft)}
.verdict{border:2px solid var(--odd);border-radius:.5rem;background:var(--box);
padding:.8rem 1rem;margin:1rem 0}
.verdict h2{border:0;margin:0;padding:0}
.within{border-color:var(--good)}.outside{border-color:var(--bad)}
.within h2{color:var(--good)}.outside h2,.failed{color:var(--bad)}
.unknown h2{color:var(--odd)}
.failed{font-weight:600}
.missing{border-left:4px solid var(--odd);background:var(--box);padding:.5rem .8rem;
max-width:46rem}
.missing::before{content:"Missing. ";font-weight:600}
.scroll{overflow-x:auto;margin:.6rem 0}
.scroll:focus-visible,summary:focus-visible,a:focus-visible{outline:2px solid var(--c0);
outline-offset:2px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:right;
vertical-align:top}
th:first-child,td:first-child{text-align:left}
td.text{text-align:left}td .soft,td small{white-space:nowrap}
thead th{vertical-align:bottom;background:var(--box);max-width:10rem}
th small{display:block;font-weight:400}
tr.chosen{background:var(--box)}tr.chosen th{box-shadow:inset 4px 0 var(--c0)}
caption{text-align:left;color:var(--soft);padding:.2rem 0}
.plots{display:grid;gap:1rem 2rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
figure{margin:.6rem 0;max-width:34rem;min-width:0}figure.wide{max-width:none}
@media(min-width:60rem){figure:not(.wide){display:grid;gap:2rem;max-width:none;
grid-template-columns:minmax(0,34rem) minmax(0,1fr)}}
svg{display:block;width:100%;height:auto;overflow:visible;
font:12px system-ui,sans-serif}
svg.defs{position:absolute;width:0;height:0}
svg text{fill:var(--ink)}svg .strong,svg .head{font-weight:600}svg .head{font-size:11px}
@media(max-width:30rem){svg{font-size:13px}}
.axis{stroke:var(--soft)}.grid{stroke:var(--grid)}
.reference{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:2 3}
.line{fill:none;stroke-width:2}.mark{stroke:var(--bg)}.ring{fill:none;
stroke:var(--ink);stroke-width:2}
.area{fill-opacity:.14;stroke:none}
.heat{fill:var(--heat)}.empty{fill:none;stroke:var(--line)}.hatch{fill:var(--bg);
fill-opacity:.6}
.line.s0{stroke:var(--c0)}.line.s1{stroke:var(--c1);stroke-dasharray:7 3}
.line.s2{stroke:var(--c2);stroke-dasharray:2 3}
.line.s3{stroke:var(--c3);stroke-dasharray:9 3 2 3}
.line.s4{stroke:var(--c4);stroke-dasharray:4 2}.line.s5{stroke:var(--c5)}
.mark.s0,.bar.s0,.area.s0{fill:var(--c0)}.mark.s1,.bar.s1,.area.s1{fill:var(--c1)}
.mark.s2,.bar.s2,.area.s2{fill:var(--c2)}.mark.s3,.bar.s3{fill:var(--c3)}
.mark.s4,.bar.s4{fill:var(--c4)}.mark.s5,.bar.s5{fill:var(--c5)}
code{font-size:.85rem;overflow-wrap:anywhere}td code{display:inline-block;min-width:6ch}
summary{cursor:pointer;padding:.2rem 0}
dt{font-weight:600;margin-top:.4rem}dd{margin:0 0 0 1rem}
footer{border-top:1px solid var(--line);margin-top:2rem;padding:1rem;
color:var(--soft)}
@media print{body{font-size:11pt;background:#fff}h2,h3,dt{break-after:avoid}
figure:not(.wide),.plots>div,tr,.verdict{break-inside:avoid}svg{max-width:24rem}
.plots{grid-template-columns:1fr 1fr}.scroll{overflow:visible}
table{font-size:8pt}th,td{padding:.2rem .35rem}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def part(title: str, section: Mapping[str, Any], body: str) -> str:
    error = f'<p>{failed(section["error"])}</p>' if 'error' in section else ''
    return (
        f'<section><h2>{escape(title)}</h2>{error}{missing(section)}{body}</section>'
    )


def missing(section: Mapping[str, Any]) -> str:
    text = section.get('missing')
    return f'<p class="missing">{escape(text)}</p>' if text else ''


def failed(reason: str) -> str:
    return f'<span class="failed">Failed: {escape(reason)}</span>'


def figure(plot: str, how: str, table: str, wide: bool = False) -> str:
    style = ' class="wide"' if wide else ''
    numbers = ''
    if table:
        numbers = f'<details><summary>The numbers</summary>{table}</details>'
    caption = f'<figcaption><b>How to read it.</b> {escape(how)}</figcaption>'
    return f'<figure{style}>{plot}{caption}</figure>{numbers}'


def grid(
    head: Sequence[tuple[str, str]],
    rows: Sequence[tuple[Sequence[str], bool]],
    caption: str = '',
) -> str:
    r"""Returns a table; the cells of :obj:`rows` are HTML, its heads are not."""
    titles = ''.join(
        f'<th scope="col">{escape(name)}'
        + (f'<small>{escape(unit)}</small>' if unit else '')
        + '</th>'
        for name, unit in head
    )
    lines = []
    for cells, chosen in rows:
        first = f'<th scope="row">{cells[0]}</th>'
        rest = ''.join(f'<td>{cell}</td>' for cell in cells[1:])
        kind = ' class="chosen"' if chosen else ''
        lines.append(f'<tr{kind}>{first}{rest}</tr>')
    caption = f'<caption>{escape(caption)}</caption>' if caption else ''
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table">'
        f'<table>{caption}<thead><tr>{titles}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div>'
    )


def series_table(
    name: str, places: Sequence[Any], series: Mapping[str, Sequence[Any]]
) -> str:
    rows = [
        ([str(place), *(cell(line[i]) for line in series.values())], False)
        for i, place in enumerate(places)
    ]
    return grid([(name, ''), *((key, '') for key in series)], rows)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    rows = ''.join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="text"><code>{escape(value)}</code></td></tr>'
        for name, value in pairs
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def value_of(out: Mapping[str, Any], key: str) -> Any:
    value = out.get(key)
    return value.get('value') if isinstance(value, Mapping) else value


def interval(out: Mapping[str, Any], key: str) -> str:
    value, known = out.get(key), out.get('intervals')
    span = value.get('interval') if isinstance(value, Mapping) else None
    if span is None and isinstance(known, Mapping):
        span = known.get(key)
    if not isinstance(span, (list, tuple)) or len(span) != 2 or None in span:
        return ''
    return f'<br><small>{cell(span[0])} to {cell(span[1])}</small>'


def cell(value: Any, error: str | None = None, form: str = '{:.4f}') -> str:
    r"""Returns a value as HTML: four decimals, or why there is none."""
    if error:
        return f'<span class="failed" title="{escape(error)}">failed</span>'
    if value is None or value != value:
        return f'<span class="soft">{NOTHING}</span>'
    if isinstance(value, float):
        return form.format(value)
    return escape(str(value))


def short(value: float | None, percent: bool = False) -> str:
    if value is None:
        return '–'
    if percent:
        return f'{value:.0%}'
    if value == 0:
        return '0'
    return f'{value:.2f}' if abs(value) >= 0.01 else f'{value:.0e}'.replace('e-0', 'e-')


def percent(value: float | None) -> str:
    return NOTHING if value is None else f'{100 * value:.1f} %'


def minute(text: str) -> str:
    r"""Returns an ISO time in UTC as people write it, to the minute."""
    return f'{text[:10]}, {text[11:16]} UTC'


def plain(value: Any) -> str:
    return NOTHING if value is None else str(value)


def listing(names: Sequence[str]) -> str:
    return ' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)
