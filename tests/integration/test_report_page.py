"""The report page: one file that loads nothing, readable by everyone, in a real browser."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from matplotlib.image import imread

from headless import a_tab, browser_path

WORKLOAD = """
cluster: {nodes: 1, gpus_per_node: 2, gpu: a100-80gb}
models:
- {name: chat, profile: llama-7b, rate: 1}
- {name: "<b>code</b>", profile: llama-13b, rate: 0.5, slo: {ttft_ms: 500, tpot_ms: 100}}
"""
VOID = {"meta", "br", "hr", "img", "input", "link"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "w.yaml").write_text(WORKLOAD)
    path = folder / "report.html"
    words = ["simulate", "--workload", "w.yaml", "--seconds", "40", "--warmup", "20", "--tail",
             "20", "--seeds", "2", "--sweep", "1", "2", "--report", "report.html"]  # fmt: skip
    ran = subprocess.run([sys.executable, "-m", "mux_cli.main", *words], cwd=folder, text=True,
                         capture_output=True)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return path


class Outline(HTMLParser):
    """Tags as they nest, headings, and the text that is read out."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.svgs, self.links = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag == "svg":
            self.svgs.append(named)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        if tag == "svg":
            self.svgs.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_is_one_file_that_refers_to_nothing(page):
    text = page.read_text()
    outline = Outline(text)
    assert outline.open == []
    assert outline.links == []
    assert "<script" not in text
    assert not re.search(r"https?://|url\(|@import|@font-face", text)
    assert "default-src 'none'" in text


def test_names_from_the_workload_are_text_and_nothing_else(page):
    text = page.read_text()
    assert "&lt;b&gt;code&lt;/b&gt;" in text
    assert "<b>code" not in text


def test_headings_descend_by_one_and_every_chart_says_what_it_shows(page):
    text = page.read_text()
    outline = Outline(text)
    assert outline.headings[0] == 1
    assert set(outline.headings[1:]) == {2}
    assert len(outline.svgs) >= 6
    ids = [label for svg in outline.svgs for label in svg["aria-labelledby"].split()]
    assert len(set(ids)) == len(ids)
    for svg in outline.svgs:
        assert svg["role"] == "img"
        assert all(f'id="{label}"' in text for label in svg["aria-labelledby"].split())


@pytest.mark.parametrize(
    "told",
    ["models on", "requests served", "How much it can take", "What was assumed",
     "muxserve simulate --workload w.yaml", "measurements on A100-80GB",
     "Who shares which GPUs", "Nothing on this page was measured on GPUs"],
)  # fmt: skip
def test_it_tells(page, told):
    assert told in page.read_text()


async def test_a_browser_shows_it_light_and_dark_and_asks_for_nothing_else(page, tmp_path):
    browser_path()
    async with a_tab(tmp_path / "profile") as tab:
        shades = {}
        for dark in (False, True):
            await tab.open(page, width=1100, dark=dark)
            shades[dark] = imread(await tab.picture(tmp_path / f"{dark}.png", height=1200))
        assert shades[False][..., :3].mean() > 0.8
        assert shades[True][..., :3].mean() < 0.3
        assert set(tab.requests) == {page.as_uri()}
        assert tab.complaints == []


async def test_a_narrow_window_scrolls_tables_and_not_the_page(page, tmp_path):
    browser_path()
    async with a_tab(tmp_path / "profile") as tab:
        await tab.open(page, width=390, dark=False)
        root = "document.documentElement"
        assert await tab.evaluate(f"{root}.scrollWidth === {root}.clientWidth")
        assert await tab.evaluate("document.querySelector('.wide table').offsetWidth > innerWidth")


async def test_text_stands_out_from_what_is_behind_it(page, tmp_path):
    """WCAG AA: a contrast of 4.5, worked out from the colours that the browser computed."""
    browser_path()
    async with a_tab(tmp_path / "profile") as tab:
        for dark in (False, True):
            await tab.open(page, width=1100, dark=dark)
            for colour, behind in await tab.evaluate(COLOURS_OF_TEXT):
                assert contrast(colour, behind) >= 4.5, (dark, colour, behind)


COLOURS_OF_TEXT = """
[...document.querySelectorAll('h1,h2,p,li span,th,td,figcaption,footer,li,pre,svg text')].map(e => {
  const style = getComputedStyle(e);
  const inside = e.classList.contains('inside');
  let box = inside ? e.parentElement.querySelector('rect') : e;
  while (!inside && getComputedStyle(box).backgroundColor === 'rgba(0, 0, 0, 0)')
    box = box.parentElement;
  return [e.closest('svg') ? style.fill : style.color,
          inside ? getComputedStyle(box).fill : getComputedStyle(box).backgroundColor];
})
"""


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
