"""Reports in a browser, from disk, with the network cut off."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

import whence
from whence.demo.run import run

pytestmark = pytest.mark.slow

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
for module in ("keras", "tensorflow", "sklearn", "jinja2", "PIL"):
    pytest.importorskip(module)

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
THEMES = ["light", "dark"]
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
EVIL = "</script><script>window.ran = true</script><img src=x onerror='window.ran = true'>"
#: Rules of axe that must have found something to check.
CHECKED = {"color-contrast", "document-title", "label", "select-name"}


@pytest.fixture(scope="module")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=found, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def demo_report(tmp_path_factory):
    file = tmp_path_factory.mktemp("demo") / "report.html"
    run(file, epochs=3, progress=False)
    return file


@pytest.fixture(scope="module")
def large_report(tmp_path_factory):
    """30 predictions and 1,000 suspects, with what would be markup, script and formulas among the texts."""
    rng = np.random.default_rng(0)
    n, t, k = 1000, 30, 4
    values = np.sort(rng.random((t, k)))[:, ::-1]
    neighbours = rng.integers(0, n, (2, t, k))
    explanation = whence.Explanation(
        ids=neighbours[0],
        values=values,
        opponent_ids=neighbours[1],
        opponent_values=-values,
        sample_ids=np.asarray([f"{EVIL} {i}" for i in range(t)]),
        outputs=np.zeros(t, dtype=int),
        signs=np.ones(t),
        predictions=rng.integers(0, 3, t),
        labels=rng.integers(0, 3, t),
        pre_activations=values.sum(axis=1),
        totals=values.sum(axis=1),
        training_labels=neighbours[0] % 3,
        opponent_labels=neighbours[1] % 3,
        about={"method": "RepresenterPointLJE", "model": EVIL, "decomposes_prediction": True},
    )
    ids = rng.permutation(n)
    scores = np.sort(rng.normal(size=n))[::-1]
    suspects = whence.Suspects(ids, scores, "loss", ids % 3, rng.integers(0, 3, n), {"n_samples": n})
    texts = [f"text number {i} {EVIL if i % 7 == 0 else ''}" for i in range(n)]
    return explanation.save_html(
        tmp_path_factory.mktemp("large") / "report.html",
        samples=texts[:t],
        training_samples=texts,
        suspects=suspects,
        class_names=["cat", "=dog", EVIL],
        title=EVIL,
    )


class Opened:
    """A page from disk without a network, and what went wrong on it."""

    def __init__(self, chromium, file, size="desktop", theme="light", **options):
        self.context = chromium.new_context(
            viewport=SIZES[size], color_scheme=theme, offline=True, accept_downloads=True, **options
        )
        self.page = self.context.new_page()
        self.messages, self.requests = [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self):
        return self.page

    def __exit__(self, *failure):
        self.context.close()
        if failure[0] is None:
            assert self.messages == []
            assert {url.split(":")[0] for url in self.requests} <= {"file", "data", "blob"}


def column(page, head):
    """Return the texts of a column of the list of suspects, as it is shown."""
    heads = page.locator(".list thead th").all_text_contents()
    return page.locator(f".list tbody tr > :nth-child({heads.index(head) + 1})").all_text_contents()


def numbers(page, head):
    return [float(text.replace("−", "-")) for text in column(page, head)]


def status(page):
    return page.locator(".list [role=status]").inner_text()


def show_all(page):
    page.locator(".list button", has_text="Show all").click()


def is_seen(page, selector):
    """Whether the upper middle of the first match stands in the window, with nothing over it."""
    return page.evaluate(
        """selector => {
            const element = document.querySelector(selector), box = element.getBoundingClientRect();
            const y = box.y + Math.min(box.height / 2, 20);
            const there = document.elementFromPoint(box.x + box.width / 2, y);
            return there !== null && element.contains(there);
        }""",
        selector,
    )


# ---- the demo's report --------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", THEMES)
def test_it_opens_without_a_network(chromium, demo_report, size, theme):
    with Opened(chromium, demo_report, size, theme) as page:
        show_all(page)
        images = page.locator("img").count()
        assert images == 8 * 11 + 144
        decoded = page.evaluate(
            """async () => {
                const images = [...document.images];
                await Promise.all(images.map((image) => image.decode()));
                return images.filter((image) => image.complete && image.naturalWidth === 8).length;
            }"""
        )
        assert decoded == images
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades = [int(shade) for shade in paper.removeprefix("rgb(").removesuffix(")").split(",")]
        assert (max(shades) < 64) == (theme == "dark")


def test_it_is_sorted_by_every_column(chromium, demo_report):
    with Opened(chromium, demo_report) as page:
        show_all(page)
        ranked = column(page, "Id")
        scores = numbers(page, "Score")
        assert scores == sorted(scores, reverse=True)
        for head in ("Score", "Id", "Given label", "Model says", "Rank"):
            button = page.locator(".list th button", has_text=head)
            for direction in ("ascending", "descending"):
                button.click()
                assert page.locator(".list th[aria-sort]").all_text_contents() == [head]
                assert page.locator(f".list th[aria-sort={direction}]").count() == 1
                show_all(page)
                shown = numbers(page, head)
                assert len(shown) == 144
                assert shown == sorted(shown, reverse=direction == "descending")
        assert column(page, "Id") == ranked[::-1]


def test_it_is_filtered_by_text_and_by_label(chromium, demo_report):
    with Opened(chromium, demo_report) as page:
        assert status(page) == "100 of 144 rows shown"
        assert len(column(page, "Id")) == 100
        page.get_by_label("Given label").select_option("4")
        given = column(page, "Given label")
        assert given == ["4"] * len(given)
        assert 0 < len(given) < 100
        assert status(page) == f"{len(given)} of {len(given)} rows shown, of 144"
        said = column(page, "Model says")[0]
        page.get_by_label("Model says").select_option(said)
        assert set(column(page, "Given label")) == {"4"}
        assert set(column(page, "Model says")) == {said}
        page.get_by_label("Given label").select_option("all")
        page.get_by_label("Model says").select_option("all")
        page.get_by_label("Filter").fill("WAS 7")
        assert set(column(page, "Note")) == {"was 7"}
        page.get_by_label("Filter").fill("nothing has this")
        assert status(page) == "No row matches, of 144"
        page.get_by_label("Filter").fill("")
        assert status(page) == "100 of 144 rows shown"
        page.locator(".list button", has_text="Show 100 more").click()
        assert status(page) == "144 of 144 rows shown"
        assert not page.locator(".list button", has_text="Show all").is_visible()


@pytest.mark.parametrize("has_script", [True, False])
def test_it_exports_what_is_shown(chromium, demo_report, tmp_path, has_script):
    with Opened(chromium, demo_report, java_script_enabled=has_script) as page:
        assert page.locator(".list tbody tr").count() == (100 if has_script else 144)
        assert page.locator(".list tbody tr").last.is_visible()
        wanted = [str(rank) for rank in range(1, 145)]
        if has_script:
            page.locator(".list th button", has_text="Id").click()
            page.get_by_label("Given label").select_option("4")
            wanted = column(page, "Rank")
        with page.expect_download() as download:
            page.get_by_text("Export as CSV").click()
        assert download.value.suggested_filename == "suspects.csv"
        download.value.save_as(tmp_path / "suspects.csv")
    assert (tmp_path / "suspects.csv").read_bytes().startswith("\ufeff".encode())
    with (tmp_path / "suspects.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == wanted
    heads = ["rank", "id", "given label", "model says", "leave-one-out score", "Note"]
    assert list(rows[0]) == heads


def test_it_is_used_by_keyboard_alone(chromium, demo_report):
    with Opened(chromium, demo_report) as page:
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            name, has_ring = page.evaluate(
                """() => {
                    const at = document.activeElement, style = getComputedStyle(at);
                    const label = at.labels && at.labels.length ? at.labels[0].firstChild.textContent : "";
                    const name = label || at.getAttribute("aria-label") || at.textContent;
                    return [name.trim(), style.outlineStyle !== "none" && style.outlineWidth !== "0px"];
                }"""
            )
            reached.append(name)
            assert has_ring, f"nothing shows that {name} is reached"
            if name == "Filter":
                page.keyboard.type("was 3")
                assert set(column(page, "Note")) == {"was 3"}
                page.keyboard.press("Control+A")
                page.keyboard.press("Delete")
            if name == "Given label" and "Export as CSV" not in reached:
                page.keyboard.press("ArrowDown")
                rows = page.locator(".list tbody tr")
                playwright.expect(rows).not_to_have_count(100)  # a moment later
                assert set(column(page, "Given label")) == {"0"}
                page.keyboard.press("ArrowUp")
                playwright.expect(rows).to_have_count(100)
            if name == "Export as CSV":
                with page.expect_download() as download:
                    page.keyboard.press("Enter")
                assert Path(download.value.path()).read_bytes().count(b"\r\n") == 145
            if name == "Id":
                page.keyboard.press("Enter")
                ids = numbers(page, "Id")
                assert ids == sorted(ids)
                page.keyboard.press("Space")
                assert page.locator(".list th[aria-sort=descending]").all_text_contents() == ["Id"]
            if name == "Show all":
                page.keyboard.press("Enter")
                assert len(column(page, "Id")) == 144
            if name == "How it was computed, in full":
                page.keyboard.press("Enter")
                assert page.get_by_text("step size").is_visible()
                break
        controls = ["Filter", "Given label", "Model says", "Export as CSV"]
        heads = ["Rank", "Id", "Given label", "Model says", "Score", "Note"]
        in_order = [*controls, *heads, "Show 100 more", "Show all"]
        until = reached[: reached.index("Show all") + 1]
        assert [name for name in until if name in in_order] == in_order


@pytest.mark.parametrize(
    ("report", "size", "theme"),
    [
        ("demo_report", "desktop", "light"),
        ("demo_report", "desktop", "dark"),
        ("demo_report", "phone", "dark"),
        ("large_report", "phone", "light"),
    ],
)
def test_it_has_no_serious_fault_of_access(chromium, request, report, size, theme):
    file = request.getfixturevalue(report)
    # axe brings a script of its own, which the page's policy rightly refuses.
    with Opened(chromium, file, size, theme, bypass_csp=True) as page:
        found = axe.Axe().run(page)
    serious = [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, found.generate_report()
    checked = {rule["id"] for rule in found.response["passes"]}
    assert checked >= CHECKED | ({"image-alt"} if report == "demo_report" else set())


# ---- a large one, with texts that mean harm -----------------------------------------------------


def test_what_would_be_markup_is_text(chromium, large_report, tmp_path):
    with Opened(chromium, large_report) as page:
        assert page.locator("img").count() == 0
        assert page.locator("h1").inner_text() == page.title() == EVIL
        page.get_by_label("Given label").select_option(EVIL)
        assert set(column(page, "Given label")) == {EVIL}
        with page.expect_download() as download:
            page.get_by_text("Export as CSV").click()
        download.value.save_as(tmp_path / "suspects.csv")
        assert page.evaluate("window.ran === undefined")
    with (tmp_path / "suspects.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["given label"] for row in rows} == {EVIL}
    assert {row["model says"] for row in rows} == {"cat", "'=dog", EVIL}
    assert len(rows) == 333


@pytest.mark.parametrize("size", SIZES)
def test_what_is_far_down_is_found(chromium, large_report, size):
    with Opened(chromium, large_report, size) as page:
        page.get_by_text("List of all 30 predictions").click()
        page.locator(".contents a").nth(24).click()
        page.wait_for_timeout(200)
        assert is_seen(page, "article:target h3")
        page.get_by_label("Filter").focus()
        page.wait_for_timeout(200)
        assert is_seen(page, ".list input")
        page.get_by_label("Filter").fill("number 77")
        assert {int(one) for one in column(page, "Id")} == {77, *range(770, 780)}
