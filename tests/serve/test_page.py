"""The page in a real browser: what people do with it, and whether everybody can."""

import os
import shutil
import time
from importlib.resources import files
from pathlib import Path

import pytest

from mezzotint.serve.lane import Lane

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, shared):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    page.goto(shared.url)
    page.wait_for_selector("body[data-ready]")
    page.set_default_timeout(60_000)
    yield page
    assert page.complaints == []
    page.close()


@pytest.fixture
def slowly(monkeypatch):
    """Every evaluation of the tiny model takes as long as one of a model that people use."""
    ask = Lane.ask

    def asked(lane, call):
        time.sleep(0.05)
        return ask(lane, call)

    monkeypatch.setattr(Lane, "ask", asked)


def draw(page, prompt, **knobs):
    page.fill("#prompt", prompt)
    if knobs:
        page.evaluate("document.getElementById('more').open = true")
    for name, value in knobs.items():
        page.fill(f"#knob-{name}", str(value))
    page.press("#prompt", "Enter")


def test_type_a_prompt_see_previews_arrive_see_the_picture_and_find_it_after_a_reload(page, shared, slowly):
    draw(page, "a red apple", num_inference_steps=60, seed=3)
    page.wait_for_selector("img[data-preview]")
    page.wait_for_selector(".job svg.curve circle", state="attached")
    page.wait_for_selector("img[data-done]")
    newest = page.locator("#gallery li").first
    newest.locator("p", has_text="a red apple").wait_for()
    page.reload()
    page.wait_for_selector("#gallery li")
    assert page.input_value("#prompt") == "a red apple"
    newest.locator(".open").click()
    assert page.locator("#viewer-recipe").inner_text().replace("\n", " ").count("Seed 3") == 1
    with page.expect_download() as download:
        page.click("#viewer-actions a")
    assert download.value.suggested_filename == "a-red-apple-3.png"


@pytest.mark.slow
def test_make_again_is_the_same_and_vary_is_not(page, shared):
    draw(page, "two green cats", seed=11, num_inference_steps=5)
    page.locator("#gallery li", has_text="two green cats").wait_for()

    def newest():
        made = shared.client.get("/api/pictures?limit=1").json()[0]
        return made["job"], shared.client.get(made["url"]).content, made["recipe"]

    job, png, _ = newest()
    for action, same in (("Make again", True), ("Vary", False)):
        count = page.locator("#gallery li").count()
        page.locator("#gallery li", has_text="two green cats").last.get_by_role("button", name=action).click()
        page.wait_for_function("n => document.querySelectorAll('#gallery li').length > n", arg=count)
        other, again, _ = newest()
        assert other != job
        assert (again == png) == same


def test_cancel(page, shared, slowly):
    draw(page, "a long one", num_inference_steps=250)
    page.locator(".job", has_text="a long one").get_by_role("button", name="Cancel").click()
    page.locator(".job .state", has_text="Cancelled.").wait_for()
    assert shared.client.get("/api/jobs?limit=1").json()[0]["state"] == "cancelled"


@pytest.mark.slow
def test_a_failure_says_why(page, shared):
    draw(page, "cats", num_inference_steps=251)
    page.locator("#trouble", has_text="at most 250").wait_for()
    page.complaints.clear()  # the browser's own line about the 400


@pytest.mark.slow
def test_a_picture_of_ones_own_is_worked_on_and_compared(page, shared, tmp_path):
    from PIL import Image

    path = tmp_path / "mine.png"
    Image.new("RGB", (16, 16), "teal").save(path)
    page.select_option("#task", "img2img")
    page.set_input_files("#given-file", path)
    page.fill("#knob-strength", "0.5")
    draw(page, "a teal apple")
    page.locator("#gallery li", has_text="a teal apple").locator(".open").click()
    page.wait_for_selector("#viewer .compare input")
    page.locator("#viewer .compare input").fill("80")
    assert "20%" in page.locator("#viewer .before").get_attribute("style")


def test_paint_a_mask_and_see_the_edit(page, shared, tmp_path):
    import io

    import numpy as np
    from PIL import Image

    path = tmp_path / "mine.png"
    Image.new("RGB", (16, 16), "teal").save(path)
    page.select_option("#task", "inpaint")
    page.set_input_files("#given-file", path)
    page.click("#paint")
    box = page.locator("#canvas").bounding_box()
    page.locator("#brush").fill("4")
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.8, steps=5)
    page.mouse.up()
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{os.environ['SCREENSHOTS']}/paint.png")
    page.click("#painted")
    page.locator("#mask-told", has_text="% of the picture").wait_for()
    draw(page, "two painted cats")
    page.locator("#gallery li", has_text="two painted cats").wait_for()
    made = shared.client.get("/api/pictures?limit=1").json()[0]
    pixels = np.asarray(Image.open(io.BytesIO(shared.client.get(made["url"]).content)))
    assert (pixels[:, :8] == (0, 128, 128)).all()
    assert (pixels[:, 11:14] != (0, 128, 128)).any()


@pytest.mark.slow
def test_in_another_pictures_manner_and_made_again(page, shared, tmp_path):
    from PIL import Image

    for name in ("teal", "orange"):
        Image.new("RGB", (16, 16), name).save(tmp_path / f"{name}.png")
    page.select_option("#task", "stylize")
    page.set_input_files("#given-file", tmp_path / "teal.png")
    page.set_input_files("#manner-file", tmp_path / "orange.png")
    draw(page, "a styled apple", seed=5, num_inference_steps=4)
    page.locator("#gallery li", has_text="a styled apple").wait_for()
    page.get_by_role("button", name="Make again: a styled apple").first.click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#gallery li')].filter(one => one.innerText.includes('styled')).length > 1"
    )
    first, again = shared.client.get("/api/pictures?limit=2").json()
    assert first["job"] != again["job"]
    assert shared.client.get(first["url"]).content == shared.client.get(again["url"]).content


@pytest.mark.slow
def test_a_dropped_picture_tells_its_recipe(page, shared):
    done = shared.wait(shared.post(prompt="a dropped apple", seed=77).json()["id"])
    png = list(shared.client.get(done["pictures"][0]["url"]).content)
    page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "found.png", {type: "image/png"}));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }""",
        png,
    )
    page.locator("#viewer-recipe", has_text="a dropped apple").wait_for()
    page.locator("#viewer-origin", has_text="mezzotint made it").wait_for()
    page.get_by_role("button", name="Use its knobs").click()
    assert page.input_value("#prompt") == "a dropped apple"
    assert page.input_value("#knob-seed") == "77"


@pytest.mark.slow
def test_how_it_works(page, tmp_path):
    from PIL import Image

    path = tmp_path / "mine.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    page.click("#tab-works")
    page.set_input_files("#forward-file", path)
    page.wait_for_selector("#forward-film img")
    page.fill("#reverse-prompt", "two green cats")
    page.click("#reverse-form button")
    page.wait_for_selector("#reverse-film img")
    assert page.locator("#words figcaption").all_inner_texts() == ["two", "green", "cats"]
    page.locator("#reverse-film input").fill("2")
    page.locator("#reverse-film .help", has_text="2 of 3").wait_for()


@pytest.mark.slow
def test_the_keyboard_alone(page):
    page.locator("#tab-draw").focus()
    page.keyboard.press("/")
    page.keyboard.type("cats by keyboard")
    page.keyboard.press("Enter")
    page.locator("#gallery li", has_text="cats by keyboard").locator(".open").focus()
    page.keyboard.press("Enter")
    assert page.locator("#viewer").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


@pytest.mark.slow
def test_the_server_goes_away_and_comes_back(browser, start):
    first = start()
    page = browser.new_page()
    page.goto(first.url)
    page.wait_for_selector("body[data-ready]")
    first.stop()
    page.fill("#prompt", "cats")
    page.press("#prompt", "Enter")
    page.locator("#trouble", has_text="does not answer").wait_for()
    page.close()


@pytest.mark.slow
def test_a_key_is_asked_for_and_used(browser, start):
    running = start()
    key = running.service.keys.add("ann")
    page = browser.new_page()
    page.goto(running.url)
    page.fill("#key", key)
    page.click("#key-form button")
    page.wait_for_selector("body[data-ready]")
    draw(page, "cats with a key")
    page.locator("#gallery li", has_text="cats with a key").locator("img").wait_for()
    assert page.locator("#gallery img").first.get_attribute("src").startswith("blob:")
    assert page.evaluate("document.querySelector('#gallery img').naturalWidth") == 16
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_fits_a_phone_and_a_desk(browser, shared, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(shared.url)
    page.wait_for_selector("body[data-ready]")
    for view in ("draw", "works"):
        page.click(f"#tab-{view}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if os.environ.get("SCREENSHOTS"):
            page.screenshot(path=f"{os.environ['SCREENSHOTS']}/{view}-{width}-{scheme}.png", full_page=True)
    page.close()


@pytest.fixture(scope="session")
def axe():
    """The accessibility engine axe, a script."""
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_nothing_serious_to_say(browser, shared, axe, scheme):
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(shared.url)
    page.wait_for_selector("body[data-ready]")
    page.evaluate(axe)
    shared.wait(shared.post(prompt="an apple for axe").json()["id"])
    page.reload()
    page.wait_for_selector("#gallery li")

    def findings():
        page.evaluate(axe)
        found = page.evaluate("axe.run()")["violations"]
        return [
            (one["id"], [node["target"] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    assert findings() == []
    page.evaluate("document.getElementById('more').open = true")
    assert findings() == []
    page.click("#gallery .open >> nth=0")
    page.wait_for_selector("#viewer[open]")
    assert findings() == []
    page.keyboard.press("Escape")
    page.click("#tab-works")
    assert findings() == []
    context.close()
