"""The page of pictures that vis.py and predict.py write.

One HTML file, relative links, no network, no library. The page is complete without JavaScript
(worst first, a click leads to the file); a few lines of it sort, filter and enlarge.
"""

import dataclasses
import html
import json
import os
import urllib.parse
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of the page.

    Attributes:
      image_id: id in the records.
      pictures: relative path by column ('image', 'truth', 'prediction', 'overlay'), in the order
        in which they are shown.
      iou: mean IoU of the image, 0 to 1; None without ground truth.
      class_iou: IoU by class id, for the classes in truth or prediction.
      classes: ids of the classes in truth or prediction.
    """

    image_id: str
    pictures: Mapping[str, str]
    iou: float | None
    class_iou: Mapping[int, float]
    classes: tuple[int, ...]


def sorted_worst_first(entries: Sequence[Entry]) -> list[Entry]:
    """Returns entries by rising IoU, then by id; those without IoU come last."""
    return sorted(entries, key=lambda e: (e.iou is None, e.iou or 0.0, e.image_id))


def run_name(prefix: str) -> str:
    """Returns the name of the run that wrote a checkpoint: that of its folder.

    Args:
      prefix: of the checkpoint's files; a run also writes some into a folder of its own folder.
    """
    folder = os.path.dirname(os.path.abspath(prefix))
    name = os.path.basename(folder)
    if name == "reestimated":
        name = os.path.join(os.path.basename(os.path.dirname(folder)), name)
    return name


def page(
    entries: Sequence[Entry],
    *,
    title: str,
    class_names: Sequence[str],
    colors: np.ndarray,
    facts: Mapping[str, str],
    class_iou: Mapping[str, float | None] | None,
    ignore_label: int,
    turn_images: bool = False,
) -> str:
    """Returns the page.

    Args:
      entries: images, in any order.
      title: heading, and title of the window.
      class_names: by class id.
      colors: [at least C, 3] uint8.
      facts: overall figures, shown as they are.
      class_iou: IoU of each class over all images by name, None where undefined; None as a whole
        without ground truth.
      ignore_label: of pixels that count nowhere; explained where it is no class id.
      turn_images: show photographs as a camera's rotation mark says; predictions of records are
        of the pixels as they are stored, those of plain images are upright.
    """
    has_truth = any(entry.iou is not None for entry in entries)
    cards = "\n".join(_card(entry, class_names) for entry in sorted_worst_first(entries))
    orders = [("worst", "worst first"), ("best", "best first")] if has_truth else []
    orders += [("name", "by name")]
    options = "".join(f'<option value="{key}">{text}</option>' for key, text in orders)
    used = sorted({c for entry in entries for c in entry.classes})
    classes = "".join(f'<option value="{c}">{html.escape(class_names[c])}</option>' for c in used)
    facts_row = "".join(
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items()
    )
    legend = _legend(class_names, colors, class_iou)
    if has_truth and ignore_label >= len(class_names):
        legend += _legend(["not counted"], colors[ignore_label:], None)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}{_TURNED if turn_images else ""}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
<dl>{facts_row}</dl>
<ul class="legend">{legend}</ul>
<form onsubmit="return false">
<label>Sort <select id="order">{options}</select></label>
<label>With class <select id="class"><option value="">any</option>{classes}</select></label>
<label>Name contains <input id="name" type="search"></label>
<output id="count">{len(entries)} images</output>
</form>
</header>
<main id="cards">
{cards}
</main>
<dialog id="large"><img alt=""><p></p></dialog>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _per_cent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _legend(
    class_names: Sequence[str],
    colors: np.ndarray,
    class_iou: Mapping[str, float | None] | None,
) -> str:
    items = []
    for name, color in zip(class_names, colors):
        red, green, blue = (int(x) for x in color)
        iou = "" if class_iou is None else f" <b>{_per_cent(class_iou.get(name))}</b>"
        swatch = f'<i style="background:rgb({red},{green},{blue})"></i>'
        items.append(f"<li>{swatch}{html.escape(name)}{iou}</li>")
    return "".join(items)


def _card(entry: Entry, class_names: Sequence[str]) -> str:
    figures = []
    for kind, path in entry.pictures.items():
        link = html.escape(urllib.parse.quote(os.fsencode(path)), quote=True)
        figures.append(
            f'<figure><a href="{link}"><img loading="lazy" class="{kind}" src="{link}" '
            f'alt="{kind}"></a><figcaption>{kind}</figcaption></figure>'
        )
    details = ", ".join(
        f"{html.escape(class_names[c])} {_per_cent(iou)}" for c, iou in entry.class_iou.items()
    )
    shown = "" if entry.iou is None else f'<span class="iou">mIoU {_per_cent(entry.iou)}</span>'
    data = {
        "name": entry.image_id,
        "iou": "" if entry.iou is None else f"{entry.iou:.6f}",
        "classes": json.dumps(entry.classes),
    }
    attributes = " ".join(f'data-{k}="{html.escape(v, quote=True)}"' for k, v in data.items())
    return (
        f"<article {attributes}><h2>{html.escape(entry.image_id)} {shown}</h2>"
        f'<div class="row">{"".join(figures)}</div><p>{details}</p></article>'
    )


_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: .5rem 0; }
dt { font-size: .8rem; opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .35em;
  border: 1px solid var(--line); vertical-align: -.1em; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: baseline;
  padding: .5rem 0 1rem; border-bottom: 1px solid var(--line); }
article { padding: .6rem 0; border-bottom: 1px solid var(--line); }
article[hidden] { display: none; }
h2 { font-size: 1rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
.iou { font-weight: normal; margin-left: 1em; }
.row { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .6rem; }
figure { margin: 0; } figcaption, p { font-size: .8rem; opacity: .7; margin: .2rem 0; }
/* The network sees pixels as stored; a camera's rotation mark must not turn one picture. */
img { width: 100%; height: auto; display: block; image-orientation: none; }
img.truth, img.prediction { image-rendering: pixelated; }
.row a { cursor: zoom-in; }
dialog { border: 0; padding: .5rem; max-width: none; max-height: none; background: #111;
  color: #eee; cursor: zoom-out; }
dialog::backdrop { background: #000c; }
dialog img { width: 92vw; height: 86vh; object-fit: contain; }
dialog p { text-align: center; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .row { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""

_TURNED = "img { image-orientation: from-image; }\n"

_SCRIPT = """
const main = document.getElementById('cards'), cards = [...main.children];
const order = document.getElementById('order'), ofClass = document.getElementById('class');
const name_ = document.getElementById('name'), count = document.getElementById('count');
const byName = (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, {numeric: true});
const byIou = sign => (a, b) => {
  const x = a.dataset.iou, y = b.dataset.iou;
  if (x === '' || y === '') return (x === '') - (y === '') || byName(a, b);
  return sign * (x - y) || byName(a, b);
};
const orders = {worst: byIou(1), best: byIou(-1), name: byName};
function update() {
  cards.sort(orders[order.value]);
  main.append(...cards);
  let shown = 0;
  for (const card of cards) {
    const fits = card.dataset.name.toLowerCase().includes(name_.value.toLowerCase())
      && (ofClass.value === '' || JSON.parse(card.dataset.classes).includes(+ofClass.value));
    card.hidden = !fits;
    shown += fits;
  }
  count.value = shown + ' of ' + cards.length + ' images';
}
for (const control of [order, ofClass, name_]) control.addEventListener('input', update);
update();

const large = document.getElementById('large'), [picture, about] = large.children;
let current = null;
function enlarge(link) {
  const card = link.closest('article'), kind = link.firstElementChild.alt;
  current = link;
  picture.className = kind;
  picture.src = link.href;
  about.textContent = card.dataset.name + ', ' + kind
    + ' (arrow keys: other pictures; Esc or a click: back)';
  if (!large.open) large.showModal();
}
// Left and right: the pictures of an image, and on to the next image. Up and down: the same picture
// of the next image.
function neighbour(key) {
  const shown = cards.filter(card => !card.hidden);
  const links = shown.flatMap(card => [...card.querySelectorAll('.row a')]);
  const step = {ArrowLeft: -1, ArrowRight: 1}[key];
  if (step) return links[links.indexOf(current) + step];
  const next = shown[shown.indexOf(current.closest('article')) + {ArrowUp: -1, ArrowDown: 1}[key]];
  const image = next && next.querySelector('img.' + picture.className);
  return image && image.parentElement;
}
main.addEventListener('click', event => {
  const link = event.target.closest('.row a');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || !large.showModal) return;
  event.preventDefault();
  enlarge(link);
});
large.addEventListener('click', () => large.close());
large.addEventListener('keydown', event => {
  if (!event.key.startsWith('Arrow')) return;
  event.preventDefault();
  const link = neighbour(event.key);
  if (link) enlarge(link);
});
"""
