"""The one template environment that page, brief and card share, and what keeps their text from being markup."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from letgo.core.errors import not_writable
from letgo.core.files import written_whole
from letgo.core.fingerprints import source_hash
from letgo.core.sizes import size
from letgo.core.statistics import LEAST_SEEDS
from letgo.core.terminal import visible
from letgo.report import numbers
from letgo.report.answers import cut, marked, stage_title
from letgo.report.assets import asset as asset
from letgo.report.comparison import MARGIN
from letgo.report.settings import commands, plain


@cache
def template(name: str) -> Template:
    """A template of the folder `templates`. In HTML whatever is shown is escaped; in Markdown the filter `markdown`
    escapes what comes from outside."""
    environment = Environment(
        loader=PackageLoader("letgo.report", "templates"),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=numbers.number,
        packed=_packed,
        interval=numbers.interval,
        percent=numbers.percent,
        duration=numbers.duration,
        size=size,
        plain=plain,
        commands=commands,
        shown=lambda text: visible(cut(text)),
        stage_title=stage_title,
        markdown=markdown,
        table=markdown_table,
    )
    environment.globals.update(missing=numbers.MISSING, marked=marked, least_seeds=LEAST_SEEDS, margin=MARGIN)
    return environment.get_template(name)


def write_page(path: Path, text: str) -> None:
    """Write a page whole, of visible text alone; a `UserError` where that can't be."""
    try:
        with written_whole(path) as temporary:
            temporary.write_text(visible(text), encoding="utf-8")
    except OSError as error:
        raise not_writable(path, error) from error


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy: nothing from anywhere but the two inline blocks, named by their digests."""
    return (
        f"default-src 'none'; style-src '{source_hash(style)}'; script-src '{source_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _packed(text: str) -> str:
    """Text as gzip in base64, the same for the same text; `report.js` unpacks it."""
    return base64.b64encode(gzip.compress(visible(text).encode("utf-8", "replace"), mtime=0)).decode()


def without_folders(text: str) -> str:
    """Text in which a file's path is its name: what is handed on says nothing of this machine's folders."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/\"',|]+/)+([^\s/\"',|]+)", r"…/\1", text)


def markdown(text: object) -> str:
    """Text that Markdown shows as it is, on one line: no markup, no HTML, no path of this machine."""
    shown = without_folders(" ".join(visible(str(text)).split()))
    shown = shown.replace("&", "&amp;").replace("<", "&lt;")
    shown = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", shown)
    # GitHub makes links of bare addresses; a line that begins so would be a list, a quotation or an underline.
    shown = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp|www)([:.])", r"\1\\\2", shown)
    return re.sub(r"^(\d+(?=[.)](?:\s|$))|(?=[-+=>]))", r"\1\\", shown)


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = ([markdown(cell) for cell in row] for row in table)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))
