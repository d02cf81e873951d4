"""The report in a real browser: opened from disk with the network off, turned, sorted, switched and downloaded."""

import csv
import io
import json
import shutil
import time

import numpy as np
import pytest
from report_cases import HOSTILE, analysis, bowl

from figures.page import grids, joined_report, report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install -e .[dev])")
ActionChains = pytest.importorskip("selenium.webdriver.common.action_chains").ActionChains
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no chromium with chromedriver on the PATH (Debian: apt-get install chromium chromium-driver)",
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",
    "--window-size=1280,900",
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    hostile = analysis(
        HOSTILE,
        surface=bowl(2.0),
        checkpoint=f"{HOSTILE}/ckpt.pt",
        metadata={"model": {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}}, "method": {"name": "<b>sam</b>"}},
    )
    report.write([analysis()], root / "one.html", command="landscape analyze ckpt.pt")
    report.write([analysis("plain"), hostile], root / "two.html", command=f"landscape analyze '{HOSTILE}'")
    many = [analysis(f"n{i}", surface=bowl(1.0 + i), measures={}) for i in range(10)]
    report.write(many, root / "ten.html")
    joined_report.write([*many, hostile], root / "joined.html")
    return root


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)
    driver.tabs = {}
    yield driver
    driver.quit()


def opened(browser, path, theme="light", width=1280):
    """Open a page in a tab of its own, without network, and wait until everything is drawn; a second call goes back."""
    key = (path.name, theme, width)
    if key in browser.tabs:
        browser.switch_to.window(browser.tabs[key])
        return browser
    browser.switch_to.new_window("tab")
    browser.tabs[key] = browser.current_window_handle
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    # Without smooth scrolling a click goes where the element is, not where it was.
    wishes = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    scheme = [{"name": k, "value": v} for k, v in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": scheme})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    settled(browser)
    return browser


def settled(browser):
    """Wait for the drawing that is under way."""
    browser.execute_async_script("report.busy.then(arguments[arguments.length - 1])")


def errors(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def camera(browser, name):
    eye = browser.execute_script(f"return document.getElementById('{name}')._fullLayout.scene.camera.eye")
    return eye["x"], eye["y"], eye["z"]


def until(condition, seconds=60):
    """Wait for something that the browser does in its own time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize(("name", "plots"), [("one.html", 8), ("two.html", 11)])
def test_opens_offline_without_errors_and_draws_everything(browser, pages, name, plots):
    opened(browser, pages / name)
    assert errors(browser) == []
    state = browser.execute_script(
        "return [report.errors, document.querySelectorAll('.canvas').length, "
        "document.querySelectorAll('.canvas[data-drawn=true] .main-svg').length > 0, report.drawn.size, "
        "performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length]"
    )
    assert state == [[], plots, True, plots, 0]
    empty = browser.execute_script(
        "return [...document.querySelectorAll('.canvas')].filter(c => c.getBoundingClientRect().height < 50 "
        "|| !c.querySelector('canvas, .trace, .contour, .bars, .hm')).map(c => c.id)"
    )
    assert empty == []


def test_surface_is_not_blank(browser, pages):
    opened(browser, pages / "one.html")
    colors = browser.execute_async_script(
        """const done = arguments[arguments.length - 1];
        const size = {format: 'png', width: 300, height: 300};
        Plotly.toImage(document.getElementById('surface-3d-0'), size).then((url) => {
          const image = new Image();
          image.onload = () => {
            const canvas = document.createElement('canvas');
            canvas.width = canvas.height = 300;
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            const pixels = context.getImageData(0, 0, 300, 300).data, seen = new Set();
            for (let i = 0; i < pixels.length; i += 4) seen.add([pixels[i], pixels[i + 1], pixels[i + 2]].join());
            done(seen.size);
          };
          image.src = url;
        });"""
    )
    assert colors > 300, "a shaded surface has hundreds of colors"


def test_surfaces_turn_together(browser, pages):
    opened(browser, pages / "two.html")
    element = browser.find_element(By.ID, "surface-3d-0")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    before = camera(browser, "surface-3d-0")
    assert camera(browser, "surface-3d-1") == before
    ActionChains(browser).move_to_element(element).click_and_hold().move_by_offset(60, 20).pause(
        0.3
    ).release().perform()
    until(lambda: camera(browser, "surface-3d-0") != before)
    until(lambda: camera(browser, "surface-3d-1") == camera(browser, "surface-3d-0"))
    assert errors(browser) == []


def test_surface_turns_by_keyboard(browser, pages):
    opened(browser, pages / "two.html")
    start = (1.32, -1.32, 0.95)
    browser.execute_script("document.getElementById('surface-3d-0').focus()")
    ActionChains(browser).send_keys("0").perform()
    until(lambda: camera(browser, "surface-3d-1") == pytest.approx(start))
    ActionChains(browser).send_keys(Keys.ARROW_LEFT).perform()
    until(lambda: camera(browser, "surface-3d-1") != pytest.approx(start))
    x, y, z = camera(browser, "surface-3d-0")
    assert z == pytest.approx(start[2])
    assert x**2 + y**2 == pytest.approx(start[0] ** 2 + start[1] ** 2)


def test_hovering_tells_the_loss(browser, pages):
    opened(browser, pages / "one.html")
    element = browser.find_element(By.CSS_SELECTOR, "#surface-contour-0 .nsewdrag")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    ActionChains(browser).move_to_element_with_offset(element, 30, 30).perform()
    shown = "return document.querySelector('#surface-contour-0 .hoverlayer').textContent"
    until(lambda: "loss" in browser.execute_script(shown))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_theme_follows_the_system_and_the_button(browser, pages, theme):
    opened(browser, pages / "one.html", theme)
    look = (
        "return [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor, "
        "document.getElementById('surface-cuts')._fullLayout.paper_bgcolor]"
    )
    first = browser.execute_script(look)
    assert first[0] == theme
    browser.find_element(By.ID, "theme").click()
    settled(browser)
    second = browser.execute_script(look)
    browser.find_element(By.ID, "theme").click()
    settled(browser)
    browser.execute_script("localStorage.clear()")
    assert second[0] == {"light": "dark", "dark": "light"}[theme]
    assert first[1] != second[1]
    assert first[2] != second[2]
    assert errors(browser) == []


def test_table_sorts_by_mouse_and_keyboard(browser, pages):
    opened(browser, pages / "one.html")

    def values():
        cells = browser.find_elements(By.CSS_SELECTOR, "#summary-table tbody td.n")
        return [float(c.get_attribute("data-value")) for c in cells]

    original = values()
    button = browser.find_elements(By.CSS_SELECTOR, "#summary-table .sort")[1]
    button.click()
    assert values() == sorted(original)
    assert values() != original
    head = browser.find_elements(By.CSS_SELECTOR, "#summary-table thead th")[1]
    assert head.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.ENTER)
    assert values() == sorted(original, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    button.send_keys(Keys.SPACE)
    assert values() == original
    assert head.get_attribute("aria-sort") == "none"


def test_scale_switches_every_surface(browser, pages):
    opened(browser, pages / "two.html")
    corner = "return [0, 1].map(i => document.getElementById(`surface-contour-${i}`).data[0].z[0][0])"
    rise = browser.execute_script(corner)
    assert rise == pytest.approx([1.75, 3.5]), "comparisons open as rises above each one's center"
    pick = "document.querySelector('#surface .head [data-mode={}]').click()"
    browser.execute_script(pick.format("linear"))
    settled(browser)
    assert browser.execute_script(corner) == pytest.approx([0.1 + 1.75, 0.1 + 3.5])
    browser.execute_script(pick.format("log"))
    settled(browser)
    assert browser.execute_script(corner) == pytest.approx([0.2671717, 0.5563025], rel=1e-5)
    pressed = browser.find_element(By.CSS_SELECTOR, "#surface .head [aria-pressed=true]")
    assert pressed.get_attribute("data-mode") == "log"
    browser.execute_script(pick.format("rise"))
    settled(browser)
    assert browser.execute_script(corner) == rise


def test_surfaces_are_smooth_for_the_eye_and_exact_where_they_are_read(browser, pages):
    opened(browser, pages / "two.html")
    trace = "document.getElementById('surface-contour-0').data[0]"
    shown = np.array(browser.execute_script(f"return {trace}.z"))
    rise = bowl(1.0).loss - bowl(1.0).center_loss
    parts = grids.fineness(rise)
    assert parts > 1
    np.testing.assert_allclose(shown, grids.refined(grids.refined(rise, parts).T, parts), rtol=1e-4, atol=1e-5)
    told = browser.execute_script(f"return {trace}.text")
    x, y = bowl().x, bowl().y
    assert told[2 * parts][parts].endswith(f"loss <b>{bowl(1.0).loss[1, 2]:.5g}</b>")
    assert told[2 * parts + parts // 3][parts] == told[2 * parts][parts], (
        "what is read off is the nearest computed point"
    )
    browser.find_element(By.ID, "points").click()
    settled(browser)
    kinds = browser.execute_script(
        "return [document.getElementById('surface-contour-0').data[1].x.length, "
        "document.getElementById('surface-3d-0').data[0].contours.x.show]"
    )
    assert kinds == [len(x) * len(y), True]
    browser.find_element(By.ID, "points").click()
    settled(browser)
    assert errors(browser) == []


def test_hostile_names_are_text(browser, pages):
    opened(browser, pages / "two.html")
    assert browser.execute_script("return window.hacked") is None
    assert HOSTILE in browser.find_element(By.TAG_NAME, "h1").get_attribute("textContent")
    assert browser.find_elements(By.TAG_NAME, "img") == []
    legend = browser.execute_script("return document.querySelector('#training-loss .legend').textContent")
    assert "<script>" in legend
    assert errors(browser) == [], "the content security policy had to stop something"


def downloaded(browser, directory, click, name):
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(directory)})
    element = browser.find_element(By.CSS_SELECTOR, click)
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'}); arguments[0].click()", element
    )
    until(lambda: (directory / name).exists())
    return (directory / name).read_bytes()


def test_downloads_hold_the_numbers(browser, pages, tmp_path):
    opened(browser, pages / "two.html")
    summary = json.loads(downloaded(browser, tmp_path, "#download-json", "summary.json"))
    assert summary["checkpoints"][1]["label"] == HOSTILE
    assert summary["checkpoints"][0]["measures"]["sam_sharpness"]["curve"][1]["rho"] == 0.2
    table = list(csv.reader(io.StringIO(downloaded(browser, tmp_path, "#download-csv", "summary.csv").decode())))
    assert table[0][3] == "plain"
    assert float(next(row for row in table if row[0] == "hessian_top_eigenvalues")[3]) == 8.0


def test_spreadsheet_does_not_run_names(browser, pages):
    opened(browser, pages / "one.html")
    text = browser.execute_script("return report.csv(arguments[0])", [["=1+1", "@x", -2.5, "a,b", 'say "no"', None]])
    assert next(csv.reader(io.StringIO(text))) == ["'=1+1", "'@x", "-2.5", "a,b", 'say "no"', ""]


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<svg"), ("png", b"\x89PNG")])
@pytest.mark.parametrize("plot", ["surface-cuts", "surface-3d-0"])
def test_plots_download(browser, pages, tmp_path, plot, kind, start):
    opened(browser, pages / "one.html")
    content = downloaded(browser, tmp_path, f"[data-image={kind}][data-for={plot}]", f"{plot}.{kind}")
    assert content.lstrip().startswith(start)


def test_every_checkpoint_can_be_seen_in_3d(browser, pages):
    """Eight pictures of ten checkpoints: the page says so, and the box above a picture shows any of them."""
    opened(browser, pages / "ten.html")
    assert "these are the first 8 of 10 checkpoints" in browser.find_element(By.CSS_SELECTOR, "#surface .lead").text
    shown = "return document.getElementById('surface-3d-0').data[0].z[0][0]"
    assert browser.execute_script(shown) == pytest.approx(1.75, rel=1e-5)
    pick = (
        "const box = document.querySelector('[data-choose=surface-3d-0]'); box.value = '9';"
        "box.dispatchEvent(new Event('change'))"
    )
    browser.execute_script(pick)
    settled(browser)
    assert browser.execute_script(shown) == pytest.approx(17.5, rel=1e-5)
    assert browser.find_element(By.ID, "title-surface-3d-0").text == "Surface: n9"
    button = browser.find_element(By.CSS_SELECTOR, "[data-image=svg][data-for=surface-3d-0]")
    assert button.get_attribute("aria-label") == "Download Surface: n9 as SVG"
    assert button.get_attribute("data-name") == "surface-3d-0-checkpoint-10"
    assert errors(browser) == []


@pytest.mark.parametrize("name", ["one.html", "two.html", "ten.html"])
def test_fits_a_phone(browser, pages, name):
    opened(browser, pages / name, width=390)
    wide, outside = browser.execute_script(
        "const all = [...document.querySelectorAll('main *, header *')].filter(e => "
        "e.getBoundingClientRect().right > 391 && !e.closest('.scroll, .sr, svg, .contents, .svg-container'));"
        "return [document.documentElement.scrollWidth, all.map(e => e.tagName + '.' + e.className)]"
    )
    assert outside == []
    assert wide <= 390


def test_prints_in_light_colors_with_everything_open(browser, pages):
    opened(browser, pages / "one.html", "dark")
    browser.execute_script(
        "addEventListener('beforeprint', () => setTimeout(() => window.printed = ["
        "document.documentElement.dataset.theme, [...document.querySelectorAll('details')].every(d => d.open)]));"
        "dispatchEvent(new Event('beforeprint'))"
    )
    until(lambda: browser.execute_script("return window.printed") == ["light", True])
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    settled(browser)
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_surfaces_are_on_the_printed_page(browser, pages, theme):
    """What WebGL drew is lost on paper: a copy of it stands in, and goes afterwards."""
    opened(browser, pages / "one.html", theme)
    copied = browser.execute_script(
        """dispatchEvent(new Event('beforeprint'));
        const copy = document.querySelector('#surface-3d-0 .paper-copy');
        const pixels = copy.getContext('2d').getImageData(0, 0, copy.width, copy.height).data, seen = new Set();
        for (let i = 0; i < pixels.length; i += 4) seen.add([pixels[i], pixels[i + 1], pixels[i + 2]].join());
        dispatchEvent(new Event('afterprint'));
        return [seen.size, [...pixels.slice(0, 4)], document.querySelectorAll('.paper-copy').length]"""
    )
    settled(browser)
    assert copied[0] > 300, "a shaded surface has hundreds of colors"
    assert copied[1][3] == 0 or copied[1][:3] == [255, 255, 255], "paper is white"
    assert copied[2] == 0


def test_every_control_has_a_name(browser, pages):
    opened(browser, pages / "two.html")
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('button, a, [tabindex]')].filter(e => !e.textContent.trim() "
        "&& !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []


def chosen(browser, name, label):
    select = pytest.importorskip("selenium.webdriver.support.select")
    select.Select(browser.find_element(By.ID, name)).select_by_visible_text(label)
    settled(browser)


def dots(browser):
    script = "const p = document.getElementById('scatter-plot'), l = p.layout;"
    traces = "p.data.map(t => [[...t.x], [...t.y]])"
    return browser.execute_script(f"{script} return [{traces}, l.xaxis.title.text, l.yaxis.title.text]")


@pytest.mark.parametrize("width", [1280, 390])
def test_any_measure_is_drawn_against_any_other(browser, pages, width):
    opened(browser, pages / "joined.html", width=width)
    assert errors(browser) == browser.execute_script("return report.errors") == []
    chosen(browser, "scatter-x", "Accuracy")
    chosen(browser, "scatter-y", "Loss")
    traces, *titles = dots(browser)
    assert titles == ["Accuracy in %", "Loss"]
    assert [len(xs) for xs, _ in traces] == [10, 1]
    assert all(set(xs) == {93.75} and set(ys) == {0.1} for xs, ys in traces)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_slider_takes_later_checkpoints_away(browser, tmp_path):
    epochs = [analysis(f"e{n}", loss=float(n), surface=None, metadata={"epoch": n}) for n in (1, 2, 3)]
    joined_report.write(epochs, tmp_path / "epochs.html")
    opened(browser, tmp_path / "epochs.html")
    chosen(browser, "scatter-x", "Loss")
    browser.find_element(By.ID, "scatter-step").send_keys(Keys.ARROW_LEFT)
    settled(browser)
    assert browser.find_element(By.ID, "scatter-at").text == "2"
    assert [trace[0] for trace in dots(browser)[0]] == [[1], [2], [None]]
