"""The annotation page in a real browser: keyboard, focus, hidden text, nothing from elsewhere."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import page_world as world
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from ptalign_server.gateway.identity import Tokens
from ptalign_server.page import Mark, Visitor, create_app
from ptalign_server.page.listen import listen
from ptalign_server.page.shelf import AnnotationShelf
from ptalign_server.store.sets import AnnotationSet

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOTS = os.environ.get("PTALIGN_TEST_SCREENSHOTS", "")
"""Folder for screenshots, to be looked at by a person."""


class Served:
    """The page over a real store, listening on loopback in a thread."""

    def __init__(self, folder: Path) -> None:
        auth = {"tokens_on_loopback": True}
        self.settings, self.store = world.open_store(folder, auth=auth)
        self.pairs = world.add_pair_set(self.store, world.pairs(60))
        self.careful = world.add_pair_set(self.store, world.one_sided(3, twins=1), policy="careful")
        tokens = Tokens(self.settings.state / "tokens.json")
        self.token = tokens.add("ann", "default", ["annotator"])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        app = create_app(AnnotationShelf(self.settings, self.store))
        port, self._stop = self._run(listen(app, "127.0.0.1", 0, self.settings.auth))
        self.url = f"http://127.0.0.1:{port}"

    def close(self) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()
        self.store.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def chromium(program: Callable[..., str]) -> Iterator[Any]:
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


class Tab:
    """A logged-in tab that notes console errors and requests to other hosts."""

    def __init__(self, page: Page, served: Served) -> None:
        self.page = page
        self.faults: list[str] = []
        self._url = served.url
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._request)
        page.goto(served.url)
        page.get_by_label("Token").fill(served.token)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="tone").click()
        page.wait_for_url("**/sets/*", wait_until="load")

    def shot(self, name: str) -> None:
        if SHOTS:
            self.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True, caret="initial")

    def press(self, key: str, notice: str) -> None:
        """Presses a key and waits until the page says what happened."""
        self.page.keyboard.press(key)
        expect(self.page.get_by_role("status")).to_have_text(notice)

    def reveal(self) -> None:
        self.page.keyboard.press(" ")
        expect(self.page.locator(".text").first).to_be_visible()

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(self._url):
            self.faults.append(f"request to {request.url}")


@pytest.fixture
def tab(chromium: Any, served: Served) -> Iterator[Tab]:
    context = chromium.new_context(viewport={"width": 1180, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    made = Tab(page, served)
    yield made
    context.close()
    assert made.faults == []


def test_an_annotator_works_through_items_by_keyboard(tab: Tab) -> None:
    page = tab.page
    expect(page.locator("body")).not_to_contain_text(world.BAD)
    tab.shot("2-hidden")
    tab.reveal()
    expect(page.locator(".bad .text")).to_contain_text(world.BAD)
    tab.shot("3-shown")
    tab.press("g", "Marked as right.")
    expect(page.locator("body")).not_to_contain_text(world.BAD)
    expect(page.locator("#item-title")).to_be_focused()
    tab.reveal()
    tab.press("b", "Marked as wrong.")
    skipped = page.locator("#board input[name=item]").first.input_value()
    tab.press("s", "Skipped.")
    tab.reveal()
    tab.press("g", "Marked as right.")
    expect(page.locator(f"#board input[value='{skipped}']")).to_have_count(0)
    tab.shot("12-handed")
    expect(page.get_by_role("button", name="Hand over 3 marks")).to_be_visible()
    tab.press("u", "Taken back.")
    expect(page.locator(".progress strong")).to_have_text("2")


def test_an_edit_is_written_without_triggering_shortcuts(tab: Tab, served: Served) -> None:
    page = tab.page
    tab.reveal()
    page.keyboard.press("e")
    good = page.get_by_label("What a good answer says")
    expect(good).to_be_focused()
    good.fill("")
    page.keyboard.type("bugs are shown gently")  # b, u, g and s are shortcuts elsewhere
    expect(good).to_have_value("bugs are shown gently")
    tab.shot("4-edit")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_have_text("Edit kept.")
    page.get_by_role("button", name="Hand over 1 mark").click()
    expect(page.get_by_role("heading", name="Handed over")).to_be_visible()
    tab.shot("5-finished")
    (row,) = served.store.resources.page(
        "default", "annotationSets", 5, before="", model="", policy=""
    )
    made = served.store.sets.load(row.name, AnnotationSet, row.content)
    assert made.records[0].good == "bugs are shown gently"


def test_an_edit_that_is_refused_or_not_sent_stays(tab: Tab) -> None:
    """The refusal took the place of the board, and what was written went with it."""
    page = tab.page
    tab.reveal()
    page.keyboard.press("e")
    page.get_by_label("What a good answer says").fill("No need to be rude.")
    page.get_by_label("What must not be said").fill(" ")
    tab.press(
        "Control+Enter",
        "bad: needs 1 to 8000 characters, not 0. Write it, or mark the pair as wrong.",
    )
    expect(page.get_by_label("What a good answer says")).to_have_value("No need to be rude.")
    tab.shot("13-refused")
    page.context.set_offline(True)
    tab.press("Control+Enter", "Not sent: the server cannot be reached. Try again.")
    page.context.set_offline(False)
    page.get_by_label("What must not be said").fill("Oh, please.")
    tab.press("Control+Enter", "Edit kept.")
    told = (
        "Failed to load resource",
        "htmx:",
    )  # the browser and htmx say on the console what failed
    assert all(fault.startswith(told) for fault in tab.faults)
    tab.faults.clear()


def test_keys_pressed_while_a_mark_is_sent_do_not_act_on_the_old_board(tab: Tab) -> None:
    """U took back the mark before the one under way, and said nothing."""
    page = tab.page
    tab.reveal()
    tab.press("g", "Marked as right.")
    tab.reveal()
    held: list[Any] = []
    page.route("**/mark", lambda route: held.append(route))
    with page.expect_request("**/mark"):
        page.keyboard.press("b")
    page.keyboard.press("u")
    held[0].continue_()
    expect(page.get_by_role("status")).to_have_text("Marked as wrong.")
    expect(page.locator(".progress strong")).to_have_text("2")


def test_a_key_that_belongs_to_an_input_method_is_no_shortcut(tab: Tab) -> None:
    """Escape ends a Japanese conversion, and closed the edit."""
    page = tab.page
    tab.reveal()
    page.keyboard.press("e")
    for composing, is_open in ((True, True), (False, False)):
        page.locator("#good").dispatch_event("keydown", {"key": "Escape", "isComposing": composing})
        assert page.locator("details.edit").evaluate("it => it.open") is is_open


def test_items_with_one_answer_are_judged_and_edited_by_keyboard(tab: Tab, served: Served) -> None:
    page = tab.page
    page.get_by_role("link", name="ptalign").click()
    page.get_by_role("link", name="careful").click()
    page.wait_for_url("**/sets/*", wait_until="load")
    expect(page.get_by_role("heading", name="Proposed answer")).to_be_visible()
    expect(page.get_by_role("heading", name="Proposed bad answer")).to_have_count(0)
    tab.shot("8-one-hidden")
    tab.reveal()
    tab.shot("9-one-shown")
    tab.press("b", "Marked as wrong.")
    tab.reveal()
    page.keyboard.press("e")
    good = page.get_by_label("What a good answer says")
    expect(good).to_be_focused()
    good.fill("Ask someone who knows.")
    tab.shot("10-one-edit")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_have_text("Edit kept.")
    tab.reveal()
    tab.press("g", "Marked as right.")
    expect(page.get_by_text("legitimate request")).to_be_visible()
    tab.reveal()
    tab.shot("11-twin")
    page.get_by_role("button", name="Hand over 3 marks").click()
    expect(page.get_by_role("heading", name="Handed over")).to_be_visible()
    (row,) = served.store.resources.page(
        "default", "annotationSets", 5, before="", model="", policy="careful"
    )
    made = served.store.sets.load(row.name, AnnotationSet, row.content)
    assert [(r.bad, r.note) for r in made.records] == [(None, "edited"), (None, "confirmed")]
    assert len(made.rejected) == 1


def test_shortcuts_can_be_switched_off_and_stay_off(tab: Tab) -> None:
    page = tab.page
    page.get_by_label("Single-key shortcuts").uncheck()
    page.keyboard.press("s")
    page.wait_for_timeout(300)
    expect(page.get_by_role("status")).to_have_text("")
    page.reload()
    expect(page.get_by_label("Single-key shortcuts")).not_to_be_checked()
    page.get_by_label("Single-key shortcuts").check()
    tab.press("s", "Skipped.")


def test_shown_text_can_be_blurred_again(tab: Tab) -> None:
    page = tab.page
    tab.reveal()
    page.keyboard.press("h")
    expect(page.get_by_role("button", name="Blur")).to_have_attribute("aria-pressed", "true")
    blur = "e => getComputedStyle(e).filter"
    page.wait_for_function("getComputedStyle(document.querySelector('.text')).filter !== 'none'")
    assert "blur" in page.locator(".bad .text").evaluate(blur)


def test_the_space_bar_on_a_focused_button_means_that_button(tab: Tab) -> None:
    page = tab.page
    page.get_by_role("button", name="Skip").focus()
    tab.press(" ", "Skipped.")


def test_the_counter_stops_at_49_in_the_browser(tab: Tab, served: Served) -> None:
    shelf = AnnotationShelf(served.settings, served.store)
    visitor = Visitor("ann", "default", frozenset({"annotator"}))
    for item in shelf.annotation_items(visitor, served.pairs).items[:48]:
        shelf.add_annotation(visitor, served.pairs, Mark(item.id, "good"))
    tab.page.reload()
    tab.reveal()
    tab.press("g", "Marked as right.")
    expect(tab.page.get_by_role("heading", name="All 49 marks are made")).to_be_visible()
    tab.shot("6-full")


def test_marks_that_a_set_was_made_with_are_counted_in_the_browser(
    tab: Tab, served: Served
) -> None:
    ids = tuple(f"{n}" for n in range(49))
    noun = world.pairs(6, "c").model_copy(update={"annotation_ids": ids})
    made = world.add_pair_set(served.store, noun, policy="full")
    page = tab.page
    page.get_by_role("link", name="ptalign").click()
    expect(page.get_by_role("link", name="full")).to_contain_text("49 of 49 marked")
    tab.shot("13-home")
    page.get_by_role("link", name="full").click()
    page.wait_for_url(f"**/sets/{made.partition('/')[2]}", wait_until="load")
    expect(page.get_by_role("heading", name="All 49 marks are made")).to_be_visible()
    expect(page.get_by_role("button", name="Hand over")).to_have_count(0)
    tab.shot("14-made-full")


def test_the_page_works_without_scripts(chromium: Any, served: Served) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    tab = Tab(page, served)
    page.get_by_role("button", name="Show the texts").click()
    page.get_by_role("button", name="Both right").click()
    assert page.locator(".progress strong").text_content() == "1"
    context.close()
    assert tab.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_both_schemes(chromium: Any, served: Served, scheme: str) -> None:
    context = chromium.new_context(color_scheme=scheme, viewport={"width": 390, "height": 844})
    page = context.new_page()
    tab = Tab(page, served)
    tab.reveal()
    tab.shot(f"7-narrow-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    poor = page.evaluate(CONTRAST)
    context.close()
    assert poor == []


CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll('h1,h2,p,button,label,a,summary,.progress div,.chip')) {
    if (!e.textContent.trim() || !e.offsetParent) continue;
    const tones = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    const [a, b] = tones.sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.push(e.tagName + ' ' + e.textContent.trim().slice(0, 30));
  }
  return poor;
}"""
