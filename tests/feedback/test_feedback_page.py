"""The page in a real headless browser: a person at the keyboard, and what the store then holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safeguard.feedback import FeedbackStore
from safeguard.feedback.server import FeedbackServer
from tests.support.browsing import Page, browser
from tests.support.feedback_samples import MODEL, picture

Serve = Callable[..., FeedbackServer]

ANSWERS = "[...document.querySelectorAll('#grid .tile')].map((tile) => tile.dataset.answer ?? '')"
FOCUSED = "[...document.querySelectorAll('#grid .tile')].indexOf(document.activeElement)"
COUNT = "document.querySelector('#count').textContent"
ERROR = "document.querySelector('#error').hidden ? '' : document.querySelector('#error').innerText"
BLURRED = "[...document.querySelectorAll('#grid img')].map((one) => getComputedStyle(one).filter !== 'none')"
LOADED = "[...document.querySelectorAll('#grid img')].every((one) => one.complete && one.naturalWidth === 8)"
CHOSEN = "[...document.querySelectorAll('#order .tile')].map((tile) => tile.dataset.image)"
GROUP = "[...document.querySelectorAll('#group .tile')].map((tile) => tile.dataset.image)"
READY = "'ready' in document.body.dataset"


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(one_browser: Page, serve: Serve) -> Iterator[Page]:
    """A page that has to leave no error in its console, and to have asked nobody but its server, which outlives it."""
    one_browser.console.clear()
    one_browser.asked.clear()
    one_browser.look(1000, 800)
    yield one_browser
    one_browser.run("sessionStorage.clear()")
    one_browser.open("about:blank")
    assert one_browser.console == []
    assert not [
        address
        for address in one_browser.asked
        if not re.match(r"http://127\.0\.0\.1:|blob:http://127\.0\.0\.1:|data:|about:", address)
    ]


@pytest.fixture
def opened(page: Page, store: FeedbackStore, serve: Serve) -> FeedbackServer:
    """The page of a server, loaded."""
    server = serve(store)
    page.open(server.address)
    page.until(READY)
    return server


def shown(store: FeedbackStore) -> list[str]:
    """The pictures in the order of the page."""
    return sorted(item.image for item in store.items("blood"))


def said(store: FeedbackStore) -> list[str]:
    """What ana said of each picture, in the order of the page."""
    labels = store.labels("blood")
    return [labels.get(image, {}).get("ana", "") for image in shown(store)]


def test_keys_label_one_picture_after_the_other(page: Page, opened: FeedbackServer, store: FeedbackStore) -> None:
    page.until(LOADED)
    assert page.run("document.querySelector('h1').textContent") == "Does the picture show blood?"
    page.press("y", "n", "U")
    page.until(f"{COUNT} === '3 of 6 labelled, 3 left'")
    assert page.run(ANSWERS) == said(store) == ["yes", "no", "unsure", "", "", ""]
    assert page.run(FOCUSED) == 3
    page.press("ArrowLeft", "h", "y", "l", "j")  # back to the second, then from the fourth on
    page.until(f"{ANSWERS}[1] === 'yes'")
    assert said(store)[:3] == ["yes", "yes", "unsure"]
    assert page.run("document.querySelector('#bar').value") == 3


def test_arrows_move_in_the_grid_and_stop_at_its_ends(page: Page, opened: FeedbackServer) -> None:
    page.look(400, 800)  # three pictures a row
    places = []
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowUp", "k", "h", "h"):
        page.press(key)
        places.append(page.run(FOCUSED))
    assert places == [1, 4, 4, 3, 0, 0, 0, 0]
    assert page.run("document.querySelectorAll('#grid .tile[tabindex=\"0\"]').length") == 1


def test_undo_takes_back_step_by_step(page: Page, opened: FeedbackServer, store: FeedbackStore) -> None:
    page.press("y", "y", "ArrowLeft", "n")
    page.until(f"{ANSWERS}.join() === 'yes,no,,,,'")
    page.press("z")
    page.until(f"{ANSWERS}.join() === 'yes,yes,,,,'")
    assert page.run(FOCUSED) == 1
    page.press("z", "z")
    page.until(f"{ANSWERS}.join() === ',,,,,'")
    assert said(store) == [""] * 6
    page.press("z")
    page.until("document.querySelector('#said').textContent === 'There is nothing to take back'")
    assert len(store.judgements(replaced=True)) == 0


def test_the_buttons_do_what_the_keys_do(page: Page, opened: FeedbackServer, store: FeedbackStore) -> None:
    page.click("#grid li:nth-child(4) .tile")
    page.click("[data-answer=no]")
    page.until(f"{ANSWERS}[3] === 'no'")
    assert said(store)[3] == "no"
    page.click("#label .undo")
    page.until(f"{ANSWERS}[3] === ''")
    assert said(store) == [""] * 6


def test_pictures_are_blurred_until_they_are_asked_for(page: Page, opened: FeedbackServer) -> None:
    page.until(LOADED)
    assert page.run(BLURRED) == [True] * 6
    page.press(" ")
    page.until(f"{BLURRED}.join() === 'false,true,true,true,true,true'")
    page.press("ArrowRight")
    page.until(f"{BLURRED}[0]")
    page.press("b")
    page.until(f"!{BLURRED}.some(Boolean)")
    assert page.run("document.querySelector('#blur').getAttribute('aria-pressed')") == "false"
    page.reload()
    page.until(READY)
    assert page.run("document.body.className") == ""
    page.press("b")
    assert page.run("document.body.className") == "blurred"


def test_a_reload_finds_answers_place_and_view(page: Page, opened: FeedbackServer, store: FeedbackStore) -> None:
    page.press("y", "n", "ArrowRight")
    page.until(f"{COUNT} === '2 of 6 labelled, 4 left'")
    assert page.run("location.href") == f"http://127.0.0.1:{opened.server_port}/"  # without the token
    page.reload()
    page.until(READY)
    assert page.run(ANSWERS) == ["yes", "no", "", "", "", ""]
    assert page.run(FOCUSED) == 3
    page.press("z")
    page.until(f"{ANSWERS}.join() === 'yes,,,,,'")
    page.click("#tab-rank")
    page.reload()
    page.until(READY)
    assert page.run("document.querySelector('#label').hidden && !document.querySelector('#rank').hidden")


def test_number_keys_rank_from_most_to_least(page: Page, opened: FeedbackServer, store: FeedbackStore) -> None:
    page.click("#tab-rank")
    group = page.run(GROUP)
    assert len(group) == 4
    page.press("Enter")
    page.press("3", "1", "1", "4", "Backspace", "4", "2")
    page.until(f"{CHOSEN}.length === 4")
    assert page.run(CHOSEN) == [group[2], group[3], group[1], group[0]]  # the last one is chosen by itself
    assert store.rankings("blood") == []
    page.press("Enter")
    page.until(f"{COUNT} === '4 of 6 ranked, 2 left, 1 ranking'")
    (kept,) = store.rankings("blood")
    assert kept.images == (group[0], group[1], group[3], group[2])  # from least to most
    assert (kept.who, kept.by) == ("ana", "person")
    assert page.run(CHOSEN) == []
    assert page.run(GROUP) != group
    page.press("z")
    page.until(f"{COUNT} === '0 of 6 ranked, 6 left, 0 rankings'")
    assert page.run(GROUP) == group
    assert store.rankings("blood") == []


def test_pictures_are_dragged_into_an_order(page: Page, opened: FeedbackServer, store: FeedbackStore) -> None:
    page.click("#tab-rank")
    group = page.run(GROUP)
    for number in (1, 2, 3, 4):
        page.drag(f"#group li:nth-child({number}) .tile", f"#order li:nth-child({number})")
        page.until(f"{CHOSEN}.length === {number}")
    assert page.run(CHOSEN) == group
    page.drag("#order li:nth-child(4) .tile", "#order li:nth-child(1)")
    page.until(f"{CHOSEN}[0] === '{group[3]}'")
    assert page.run(CHOSEN) == [group[3], *group[:3]]
    page.click("#save")
    page.until(f"{COUNT}.includes('1 ranking')")
    assert store.rankings("blood")[0].images == (group[2], group[1], group[0], group[3])


def test_an_answer_that_the_store_could_not_keep_never_looks_kept(
    page: Page, opened: FeedbackServer, store: FeedbackStore
) -> None:
    page.press("y")
    page.until(f"{ANSWERS}[0] === 'yes'")
    file = store.folder / "feedback.jsonl"
    file.rename(file.with_name("away"))
    page.press("n")
    page.until(f"{ERROR}.includes('1 answer was not saved. Picture 2:')")
    assert "cannot be read" in page.run(ERROR)
    assert page.run(ANSWERS) == ["yes", "", "", "", "", ""]
    assert page.run("document.querySelectorAll('.tile')[1].getAttribute('aria-label')") == "Picture 2 of 6, not saved"
    assert page.run(COUNT) == "1 of 6 labelled, 5 left"
    file.with_name("away").rename(file)
    page.click("#goto")
    assert page.run(FOCUSED) == 1
    page.press("n")
    page.until(f"{ANSWERS}[1] === 'no'")
    assert page.run(ERROR) == ""
    assert said(store)[:2] == ["yes", "no"]
    assert len(page.console) == 1  # Chromium itself notes the reply 409
    page.console.clear()


def test_when_the_server_has_stopped_nothing_looks_saved(page: Page, opened: FeedbackServer, store: FeedbackStore) -> None:
    page.until(LOADED)
    opened.shutdown()
    opened.server_close()
    page.press("y", "n")
    page.until(f"{ERROR}.includes('2 answers were not saved')")
    assert "is safeguard feedback serve still running?" in page.run(ERROR)
    assert page.run(ANSWERS) == [""] * 6
    page.click("#tab-rank")
    page.press("1", "2", "3", "Enter")
    page.until(f"{ERROR}.includes('This ranking was not saved')")
    assert len(page.run(CHOSEN)) == 4  # to try again
    assert store.judgements(replaced=True) == []
    page.console.clear()  # the browser notes each connection that was refused


def test_without_the_key_at_its_end_the_address_shows_nothing(page: Page, store: FeedbackStore, serve: Serve) -> None:
    page.open(f"http://127.0.0.1:{serve(store).server_port}/")
    page.until(f"{ERROR}.includes('open the address that safeguard feedback serve printed')")
    assert page.run("document.querySelectorAll('#grid img').length") == 0
    page.console.clear()  # Chromium itself notes the reply 401


def test_a_concept_is_chosen_where_there_are_more(page: Page, store: FeedbackStore, serve: Serve) -> None:
    store.add(picture(9), "weapon", model=MODEL)
    page.open(serve(store).address)
    page.until(READY)
    page.run("(() => { const s = document.querySelector('#concept'); s.value = 'weapon'; s.onchange({ target: s }); })()")
    page.until("document.querySelector('h1').textContent === 'Does the picture show weapon?'")
    page.press("y")
    page.until(f"{COUNT} === '1 of 1 labelled, 0 left'")
    assert store.labels("weapon")


def test_it_can_be_used_with_the_keyboard_alone_and_says_what_things_are(page: Page, opened: FeedbackServer) -> None:
    page.click("h1")
    roles = []
    for _ in range(8):
        page.press("Tab")
        roles.append(page.run("document.activeElement.textContent.trim() || document.activeElement.getAttribute('aria-label')"))
    assert roles == ["Label", "B Blur", "Picture 1 of 6, not answered", "Y Yes", "N No", "U Unsure", "Z Undo", roles[-1]]
    page.run("document.querySelector('#tab-label').focus()")
    page.press("ArrowRight")
    assert page.run("document.activeElement.id") == "tab-rank"
    unnamed = page.run(
        "[...document.querySelectorAll('button, select, ul, ol, progress')].filter((one) =>"
        " !one.textContent.trim() && !one.getAttribute('aria-label')).length"
    )
    assert unnamed == 0
    assert page.run("getComputedStyle(document.querySelector('#tab-rank')).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_the_window_and_can_be_read(page: Page, opened: FeedbackServer, width: int, scheme: str) -> None:
    page.look(width, 800, scheme)
    for tab in ("#tab-label", "#tab-rank"):
        page.click(tab)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run(CONTRAST) >= 4.5


CONTRAST = """(() => {
  const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number).map((one) => one / 255)
    .map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? ground(one.parentElement) : colour;
  };
  const ratio = (one) => {
    const [more, less] = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => b - a);
    return (more + 0.05) / (less + 0.05);
  };
  const texts = [...document.querySelectorAll("h1, h1 em, p, button:not(:disabled), .hint, #count")];
  return Math.min(...texts.filter((one) => one.offsetParent).map(ratio));
})()"""  # of WCAG 2, the least of all texts that are seen


def test_the_pages_files_are_what_is_shipped(page: Page, opened: FeedbackServer) -> None:
    names = {Path(address.split("?")[0]).name for address in page.asked if "/api/" not in address and ".png" not in address}
    assert {"page.css", "page.js", "rank.js"} <= names
