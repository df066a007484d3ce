"""An explorer of influence for the built pages: no server, no network, and no number typed in.

`explore` works out, for some test images and some settings of a slider, which training images
helped and hurt most, by how much, and what an estimate says; where there is one, also the leverage
that explains the difference. The slider is λ on the front page and time where the network trains.
`book/explorer.js` shows it.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from IPython.display import HTML
from PIL import Image

from lib.data import Data


def explore(
    d: Data, moments: Iterable[tuple], tests: Iterable[int], *, name: str, unit: str, k: int = 4,
    estimate: str = "the usual estimate", of: str = "ihvp", wrong=(),
) -> HTML:  # fmt: skip
    """Return an explorer of the influences on some test images, along a slider.

    `moments` are (value, influence, h): the slider's value as text, an influence object with
    `exact` and the estimate, and the leverages (n,), or None where there is none. `tests` are
    columns of test images, `name` what the slider changes, `unit` a sentence that says what an
    influence is, and k the number of images on each side. `estimate` says in words what the
    attribute `of` of the influence estimates. `wrong` are the rows of the training images that
    were trained on with the other label than that in `d`.
    """
    tests, wrong = [int(j) for j in tests], {int(i) for i in wrong}
    stops, used = [], set()
    for value, influence, h in moments:
        exact, guess = influence.exact, getattr(influence, of)
        views = []
        for j in tests:
            order = np.argsort(-exact[:, j], kind="stable")
            sides = order[:k].tolist(), order[::-1][:k].tolist()
            used.update(*sides)
            views.append({
                "f": _short(influence.f[j]),
                "sides": [[_bar(i, exact[i, j], guess[i, j], h) for i in side] for side in sides],
            })  # fmt: skip
        stops.append({"value": value, "views": views})
    names = [f"class {d.classes[int(y < 0)]}" for y in d.Y]
    notes = {i: {"note": f"labelled {d.classes[int(d.Y[i] > 0)]}"} for i in wrong}
    names_te = [f"class {d.classes[int(y < 0)]}" for y in d.Y_te]
    state = {
        "name": name, "unit": unit, "estimate": estimate, "stops": stops, "start": len(stops) // 3,
        "plus": d.classes[0], "minus": d.classes[1],
        "tests": [{"image": _png(d.images_te[j]), "name": names_te[j], "number": j} for j in tests],
        "train": {
            i: {"image": _png(d.images[i]), "name": names[i]} | notes.get(i, {})
            for i in sorted(used)
        },
    }  # fmt: skip
    script = Path(__file__).with_name("explorer.js").read_text(encoding="utf-8")
    data = json.dumps(state, ensure_ascii=False).replace("</", "<\\/")
    return HTML(
        f'<div class="explorer"><noscript>{html.escape(unit)} The explorer needs JavaScript.'
        f"</noscript></div><script>(function (root, state) {{\n{script}\n}})"
        f"(document.currentScript.previousElementSibling, {data});</script>"
    )


def _bar(i: int, exact: float, guess: float, h) -> list:
    leverage = [] if h is None else [_short(h[i])]
    return [i, _short(exact), _short(guess), *leverage]


def _short(x) -> float:
    """A number in four digits."""
    return float(f"{float(x):.4g}")


def _png(image: np.ndarray) -> str:
    """An image with values in [0, 1] as a data address; grey is dark on white, as on the pages."""
    grey = image.ndim == 2
    pixels = np.rint(255 * np.clip(1 - image if grey else image, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
