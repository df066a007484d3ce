"""The book's Sphinx extension: sections that are closed, and pictures that load when they are seen.

Sections named "How this was checked", and those of modules, are closed until a reader opens them.
The heading stays, so that the table of contents leads to it. A link into such a section opens it,
as browsers do for every `<details>`.
"""

import re
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

TITLE = "How this was checked"
CHECKS, MODULE = "Show the checks, their controls and their code", "Show its functions and classes"


class Fold(SphinxTransform):
    default_priority = 900

    def apply(self) -> None:
        for section in list(self.document.findall(nodes.section)):
            if section[0].astext() == TITLE:
                close(section, CHECKS)
            elif any(isinstance(child, addnodes.desc) for child in section.children):
                close(section, MODULE)


def close(section: nodes.section, summary: str) -> None:
    """Put what follows the heading of a section into `<details>`."""
    start = f'<details class="fold"><summary>{summary}</summary>'
    section.insert(1, nodes.raw("", start, format="html"))
    section.append(nodes.raw("", "</details>", format="html"))


def mend(app, page, template, context, doctree) -> None:
    """Give the pictures of a page files of their own, and the bibliography a role that it may have.

    In a notebook a picture is part of the page. On the site a browser loads it when it comes near
    the screen, so what stays closed costs nothing.
    """

    if "body" not in context:
        return

    def picture(match) -> str:
        png = b64decode(match[1])
        name = f"_images/{sha256(png).hexdigest()[:20]}.png"
        file = Path(app.outdir, name)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png)
        height = int.from_bytes(png[20:24]) * 2 // 3  # so that its place is kept
        address = context["pathto"](name, resource=True)
        return f'loading="lazy" height="{height}" src="{address}"'

    body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
    figure = r'(?<=<figure class="plot")(.*?)</figure>'
    embedded = 'src="data:image/png;base64,([^"]*)"'
    context["body"] = re.sub(
        figure, lambda whole: re.sub(embedded, picture, whole[0]), body, flags=re.DOTALL
    )


def setup(app) -> dict:
    app.add_transform(Fold)
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
