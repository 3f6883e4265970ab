"""A page of ours in one HTML file: pieces and style sheet. Whatever comes from a run or a model goes through `text`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --dim: #626c76; --page: #fbfbfa; --card: #ffffff; --line: #dfe2e5;
  --thought: #f1f4f8; --bad: #b3261e; --bad-page: #fdecea; --good: #1b7a3d; --good-page: #e5f4ea; --bar: #3f74b5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --dim: #98a2ac; --page: #15181b; --card: #1d2125;
  --line: #343a40; --thought: #262c33; --bad: #ff8a80; --bad-page: #41211f; --good: #7ed69a; --good-page: #1d3526;
  --bar: #6ea0dc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; color: var(--ink); background: var(--page);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .6rem; } nav a { margin-right: 1rem; } a { color: var(--bar); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--dim); font-size: .85rem; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.number, th.number { text-align: right; }
table.facts th, table.facts td { padding-top: .1rem; padding-bottom: .1rem; font-size: .85rem; }
.scroll { overflow-x: auto; } .dim { color: var(--dim); font-size: .85rem; }
.interval { width: 16rem; height: 1.1rem; display: block; } .interval .track { fill: var(--line); }
.interval .rate { fill: var(--bar); } .interval .range { stroke: var(--ink); stroke-width: 1.5; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--dim); }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .8rem .3rem; }
.chart figcaption b { color: var(--ink); font-weight: 600; } .chart svg { width: 100%; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .3rem 0 .8rem; font-size: .85rem; }
.legend i { display: inline-block; width: 1.1rem; height: 3px; margin-right: .4rem; vertical-align: middle; }
details.more { margin-top: 1rem; } summary { cursor: pointer; }
.episode { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0;
  padding: .7rem .9rem; }
.episode summary b { margin-right: .6rem; }
.badge { border-radius: 99px; padding: .08rem .6rem; font-size: .8rem; font-weight: 600; background: var(--thought);
  color: var(--dim); white-space: nowrap; }
.badge.good { color: var(--good); background: var(--good-page); }
.badge.bad { color: var(--bad); background: var(--bad-page); }
.turn { border-top: 1px solid var(--line); margin-top: .8rem; padding-top: .6rem; }
.flow { display: flex; flex-wrap: wrap; gap: .7rem; align-items: flex-start; margin-top: .4rem; }
.picture { width: 11.5rem; } .frame { position: relative; border: 2px solid var(--line); border-radius: 4px;
  overflow: hidden; line-height: 0; }
.frame img { width: 100%; image-rendering: pixelated; } .frame svg { position: absolute; inset: 0; width: 100%;
  height: 100%; } .frame rect.box { fill: none; stroke-width: 2.5; vector-effect: non-scaling-stroke; }
.frame rect.shade { fill: none; stroke: #000; stroke-opacity: .55; stroke-width: 5; vector-effect: non-scaling-stroke; }
.frame text { font: 700 1px system-ui, sans-serif; fill: #000; }
.note { max-width: 17rem; border-radius: 6px; padding: .45rem .7rem; background: var(--thought); white-space: pre-wrap;
  overflow-wrap: anywhere; }
.note .who { display: block; font-size: .75rem; color: var(--dim); } .note.bad { background: var(--bad-page); }
.note.bad .who { color: var(--bad); }
.actions td, .actions th { padding: .1rem .45rem; border: 0; text-align: right; font-size: .78rem; }
.actions td { font-family: ui-monospace, monospace; }
"""


def text(value: object) -> str:
    """Any value as HTML text or attribute; the one way that words of a model get onto the page."""
    return html.escape(str(value), quote=True)


def tag(name: str, content: str = "", **attributes: str) -> str:
    """`<name class="..">content</name>`; content is HTML, attributes are escaped; `class_` stands for class."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return f"<{name}{written}>{content}</{name}>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int], class_: str = "") -> str:
    """A table of HTML cells; the columns in `numeric` are aligned right."""

    def row(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(
            tag(kind, cell, class_="number") if i in numeric else tag(kind, cell) for i, cell in enumerate(cells)
        ) + "</tr>"  # fmt: skip

    body = "".join(row(cells, "td") for cells in rows)
    return tag("div", tag("table", row(header, "th") + body, class_=class_), class_="scroll")


def note(who: str, words: str, *, is_bad: bool = False) -> str:
    """Words of a policy, an annotator or a tool, and whose they are; neither is HTML."""
    return tag("div", tag("span", text(who), class_="who") + text(words), class_="note bad" if is_bad else "note")


def page(title: str, sections: Mapping[str, str], style: str = "") -> str:
    """The whole document; `sections` maps a heading to HTML, `style` comes on top of `STYLE`."""
    links = "".join(f'<a href="#{text(name.lower())}">{text(name)}</a>' for name in sections)
    nav = f"<nav>{links}</nav>\n" if len(sections) > 1 else ""
    bodies = "".join(f'<h2 id="{text(name.lower())}">{text(name)}</h2>\n{body}\n' for name, body in sections.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Belt and braces beside escaping: nothing on this page may run or load.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; """
        """style-src 'unsafe-inline'; img-src data:">\n"""
        f"<title>{text(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n{nav}{bodies}</body>\n</html>\n"
    )
