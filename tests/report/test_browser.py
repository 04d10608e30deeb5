"""The page in a real browser: sort, filter, an expert's page, night, zoom and keyboard, with checks that can fail."""

from __future__ import annotations

import re

import pytest

from moecli.report.page import gather, html

from .payloads import PAYLOADS
from .test_page import hostile

OVERLAPS = """(() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")];
    const boxes = texts.map((text) => text.getBoundingClientRect());
    if (!boxes.length || !boxes[0].width) continue;
    const frame = svg.getBoundingClientRect();
    boxes.forEach((a, i) => {
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
        found.push(`${texts[i].textContent} leaves its drawing`);
      boxes.slice(i + 1).forEach((b, j) => {
        if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
          found.push(`${texts[i].textContent} on ${texts[i + 1 + j].textContent}`);
      });
    });
  }
  return found;
})()"""
CONTRAST = """(() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const own = getComputedStyle(element).backgroundColor;
    return own === "rgba(0, 0, 0, 0)" ? (element.parentElement ? ground(element.parentElement) : "rgb(255,255,255)") : own;
  };
  const cell = (text) => {  // a number stands on its cell, which lets the ground through
    const box = text.previousElementSibling;
    if (!box || box.tagName !== "rect") return ground(text);
    const over = Number(box.getAttribute("fill-opacity"));
    const [a, b] = [getComputedStyle(box).fill, ground(text)].map((c) => c.match(/[0-9.]+/g).slice(0, 3).map(Number));
    return `rgb(${a.map((value, n) => over * value + (1 - over) * b[n])})`;
  };
  const names = "p,th,td,summary,button,figcaption,small,li,dt,dd,pre,caption,a,svg text";
  const shown = [...document.querySelectorAll(names)].filter((e) => e.getBoundingClientRect().width && !e.matches("svg a"));
  return shown.map((element) => {
    const style = getComputedStyle(element), drawn = element.closest("svg");
    const [a, b] = [light(drawn ? style.fill : style.color), light(drawn ? cell(element) : ground(element))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.tagName, element.textContent.slice(0, 30)];
  }).sort((a, b) => a[0] - b[0])[0];
})()"""
FIRST = (
    "[...document.querySelectorAll('.filtered tbody tr')].filter((r) => !r.hidden).map((r) => r.cells[{}].textContent)"
)


@pytest.fixture(scope="module")
def address(study, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html.page(gather.gather([study])), encoding="utf-8")
    return f"file://{file}"


@pytest.fixture
def page(browser, address):
    browser.window(1280)
    browser.media("light")
    browser.go("about:blank")
    browser.go(address)
    return browser


def head(name: str) -> str:
    return f"[...document.querySelectorAll('.filtered thead button')].find((b) => b.textContent === '{name}')"


def test_it_loads_in_silence_and_asks_for_nothing(page, address):
    assert page.complaints() == []
    assert [url for url in page.asked() if not url.startswith("data:image/")] == [address]
    page.run("fetch('https://evil.example').catch(() => 0)")
    page.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.fired=1'}))")
    assert page.run("window.fired") is None
    refused = " ".join(page.complaints())
    assert "evil.example" in refused and "inline" in refused  # the policy refuses both, and so says the check


def test_a_click_on_a_head_sorts_by_number(page):
    page.run(f"{head('test accuracy')}.click()")
    up = [float(value) for value in page.run(FIRST.format(4))]
    assert up == sorted(up) and len(set(up)) == 5
    page.run(f"{head('test accuracy')}.click()")
    assert [float(value) for value in page.run(FIRST.format(4))] == up[::-1]
    assert page.run(f"{head('test accuracy')}.closest('th').getAttribute('aria-sort')") == "descending"
    page.run(f"{head('row')}.click()")
    assert page.run(FIRST.format(1)) == ["dense twin of top_k", "other", "other", "top_k", "top_k"]


def test_what_is_no_number_stands_last_both_ways(page):
    name = "[...document.querySelectorAll('table')].find((t) => t.caption.textContent.startsWith('Rows by'))"
    column = f"{name}.tHead.rows[0].cells[1].querySelector('button')"
    for _ in range(2):
        page.run(f"{column}.click()")
        assert page.run(f"[...{name}.tBodies[0].rows].at(-1).cells[0].textContent") == "chance"


def test_the_filter_keeps_rows_that_have_every_word(page):
    page.run("document.querySelector('.find input').focus()")
    page.type("other 1")
    assert page.run(FIRST.format(1)) == ["other", "other"]
    page.type(" 0.500")
    assert page.run(FIRST.format(4)) == ["0.500"]
    assert page.run("document.querySelector('.find output').textContent") == "1 of 5 rows"


def test_an_expert_opens_by_its_link_and_its_fragment(page, address):
    shown = "[...document.querySelectorAll('.expert')].filter((e) => e.offsetHeight).map((e) => e.querySelector('h2').textContent)"
    assert page.run(shown) == [] and page.run("document.getElementById('overview').offsetHeight") > 500
    page.run("[...document.querySelectorAll('#run-1 table a')].find((a) => a.textContent === 'e2').click()")
    assert page.run(shown) == ["Expert e2 of layer0"]
    assert page.run("document.getElementById('overview').offsetHeight") == 0
    assert page.run("document.activeElement.id") == "run-1-0-e2"
    assert page.run("document.querySelectorAll('#run-1-0-e2 .examples img').length") == 8
    page.press("Escape")
    assert page.run(shown) == [] and page.run("document.getElementById('run-1').open")
    page.go("about:blank")
    page.go(f"{address}#run-2-0-e1")
    assert page.run(shown) == ["Expert e1 of layer0"] and page.run("scrollY") == 0
    assert page.run(OVERLAPS) == []


def test_the_keyboard_reaches_sorting_links_and_points(page):
    order = []
    for _ in range(60):
        page.press("Tab")
        order.append(page.run("document.activeElement.tagName + ' ' + document.activeElement.textContent.slice(0, 14)"))
        outline = page.run(
            "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
        )
        assert outline == "solid3px", order[-1]
    assert order[0] == "A To the results" and "BUTTON test accuracy" in order and "SUMMARY How to repeat " in order
    page.run(f"{head('seed')}.focus()")
    page.press("Enter")
    assert page.run(FIRST.format(2)) == ["0", "0", "0", "1", "1"]
    page.run("document.querySelector('svg.chart').focus()")
    page.press("ArrowRight")
    first = page.run("document.getElementById('tip').textContent")
    page.press("ArrowRight")
    assert re.fullmatch(r"top_k, seed 0: 0\.\d+ at step 4", first), first
    assert page.run("document.getElementById('tip').textContent").endswith("at step 8")
    page.run("document.activeElement.blur()")
    assert page.run("document.getElementById('tip').hidden")


def test_pointing_at_a_curve_says_its_number(page):
    page.run("document.querySelector('svg.chart').scrollIntoView()")
    box = page.run(
        "Object.values(document.querySelector('svg.chart').getBoundingClientRect().toJSON())"
    )  # x, y, width, height
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + 0.9 * box[2], y=box[1] + 0.3 * box[3])
    said = page.run("document.getElementById('tip').textContent")
    value, step = re.search(r": ([\d.]+) at step (\d+)$", said).groups()
    assert f"{step}:{value}" in page.run("document.querySelector('svg.chart').innerHTML")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_day_and_night_are_both_legible(page, scheme):
    page.media(scheme)
    page.run("for (const d of document.querySelectorAll('details')) d.open = true")
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}[scheme]
    ratio, *where = page.run(CONTRAST)
    assert ratio >= 4.5, where
    page.run("document.querySelector('h1').insertAdjacentHTML('afterend', '<p id=faint>faint</p>')")
    page.run(f"document.getElementById('faint').style.color = '{ {'light': '#999', 'dark': '#666'}[scheme] }'")
    assert page.run(CONTRAST)[0] < 4.5  # the check can fail


@pytest.mark.parametrize(("width", "zoom"), [(1280, 1.0), (1280, 2.0), (400, 1.0), (1280, 4.0)])
def test_nothing_overlaps_or_is_cut_at_any_width_and_zoom(page, width, zoom):
    page.window(width, zoom=zoom)
    page.run("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run(OVERLAPS) == []
    heights = page.run("[...document.querySelectorAll('svg text')].map((t) => t.getBoundingClientRect().height)")
    assert min(filter(None, heights)) >= 11


def test_the_overlap_check_sees_labels_that_touch_or_leave(page):
    page.run("document.querySelector('svg.chart').append(document.querySelector('svg.chart text').cloneNode(true))")
    (found,) = page.run(OVERLAPS)
    assert " on " in found
    page.run("document.querySelector('svg.chart').lastElementChild.setAttribute('x', -30)")
    assert page.run(OVERLAPS)[0].endswith("leaves its drawing")


def test_every_chart_has_a_legend_for_its_colours(page):
    found = page.run("""[...document.querySelectorAll('figure:has(svg.chart)')].map((f) => [
      new Set([...f.querySelectorAll('.line')].map((l) => getComputedStyle(l).color)).size,
      new Set([...f.querySelectorAll('.key:not(.even)')].map((k) => getComputedStyle(k).color)).size,
      f.querySelectorAll('.level').length, f.querySelectorAll('.key.even').length])""")
    assert len(found) >= 2 + 5 * 4 - 4
    assert found[0][:2] == [3, 3]
    for lines, colours, levels, marks in found:
        assert colours == (lines if lines > 1 else 0) and levels == marks


def test_hostile_names_run_nothing(browser, trained, tmp_path):
    browser.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.fired = 1 }")
    for first in range(0, 60, 10):
        folder = hostile(trained, tmp_path / str(first), PAYLOADS[first : first + 10])
        file = tmp_path / f"{first}.html"
        file.write_text(html.page(gather.gather([folder])), encoding="utf-8")
        browser.go(f"file://{file}")
        browser.run("for (const d of document.querySelectorAll('details')) d.open = true")
        browser.run(
            "for (const e of document.querySelectorAll('input,button,svg')) { e.focus(); e.dispatchEvent(new Event('mouseover')) }"
        )
        assert browser.run("window.fired") is None and browser.complaints() == []
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert browser.run(OVERLAPS) == []
