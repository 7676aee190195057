"""The whole page: one file with its style and pictures inside, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence

from nt_pretrain.diversity.markup import STEPS, element, text

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1f23;--soft:#5b6470;--line:#d9dee4;--card:#f5f7f9;--link:#0b5cad}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e6e9ec;--soft:#a3adb8;--line:#363d45;--card:#1d2126;
--link:#7db8f0}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:76rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.3rem 0}
h2{font-size:1.25rem;margin:2.4rem 0 .4rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
p{margin:.4rem 0}
a{color:var(--link)}
nav a{margin-right:1rem;white-space:nowrap}
.hint,.note,.sub,.legend,figcaption{color:var(--soft);font-size:.9rem}
.hint{max-width:60rem}
.note{border-left:3px solid #d55e00;padding-left:.6rem}
.wide{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.9rem;overflow-wrap:normal}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom}
tbody th{font-weight:500;white-space:nowrap}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr:has(.first){font-weight:600}
figure{margin:.8rem 1.6rem .8rem 0;display:inline-block;max-width:100%;vertical-align:top}
figcaption{max-width:30rem}
img{max-width:100%;height:auto}
img.plot{background:#fff;border-radius:6px;padding:6px;width:auto}
figure img.plot{max-height:21rem}
img.small{width:112px;display:block;border-radius:3px;image-rendering:pixelated}
img.large{width:168px;display:block;border-radius:3px}
.grid td,.grid th{border:0;padding:.25rem .35rem}
.grid small{display:block;color:var(--soft);font-size:.75rem;line-height:1.3;max-width:11rem}
.text{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.7rem .9rem;line-height:2;
white-space:pre-wrap;font-size:1rem;margin:.7rem 0}
.text span{padding:.12em 0;border-bottom:.22em solid transparent}
.text .split{outline:1px dashed var(--soft);outline-offset:-1px}
.window{display:block;overflow-wrap:anywhere;white-space:pre-wrap;line-height:1.5;margin-bottom:.3rem}
.window b{text-decoration:underline}
.box{display:inline-block;width:1.1em;border-bottom:.22em solid transparent}
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str, str]], *, language: str = "en") -> str:
    """The document.

    Args:
        lead: HTML below the title.
        sections: anchor, words of the table of contents and HTML of each.
    """
    links = "".join(f'<a href="#{text(anchor)}">{text(words)}</a> ' for anchor, words, _ in sections)
    body = element("h1", text(title)) + lead + element("nav", links) + "".join(part for _, _, part in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="{language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}{_shades()}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _shades() -> str:
    """Scales of colour over whatever the page's own is: a and d as grounds (blue, orange), e as a line below (blue)."""
    rules = []
    for step in range(STEPS + 1):
        weight = f"{0.62 * step / STEPS:.3f}"
        rules.append(f".a{step}{{background:rgba(0,114,178,{weight})}}")
        rules.append(f".d{step}{{background:rgba(230,97,1,{weight})}}")
        rules.append(f".text .e{step},.box.e{step}{{border-bottom-color:rgba(30,120,210,{step / STEPS:.2f})}}")
    return "".join(rules)
