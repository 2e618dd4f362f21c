"""Pages: everything asked for is on them, in well-formed HTML that loads nothing and escapes everything."""

import base64
import csv
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from whence import Explanation, Suspects, WhenceError, __version__
from whence.report.export import Export
from whence.report.html import prediction_cards, summary_of
from whence.report.labels import label_text
from whence.report.numbers import number, percentage
from whence.report.page import Column, Fact, Page, Section, Table
from whence.report.suspects import suspects_table

pytest.importorskip("jinja2")
pytest.importorskip("PIL.Image")

VOID = {"meta", "img", "br"}


class Checked(HTMLParser):
    """Follows the nesting of elements, and keeps what tests ask for."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.images, self.elements, self.texts, self.addresses = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.elements.append((tag, named))
        self.addresses += [
            named[key] for key in ("src", "href", "srcset", "action", "data") if key in named
        ]
        if tag == "img":
            self.images.append(named)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def explanation():
    return Explanation(
        ids=np.asarray([[4, 0], [1, 2]]),
        values=np.asarray([[0.5, 0.25], [2.0, 1.0]]),
        opponent_ids=np.asarray([[3, 1], [0, 4]]),
        opponent_values=np.asarray([[-1.0, -0.125], [-0.5, 0.75]]),
        sample_ids=np.asarray([0, 1]),
        outputs=np.asarray([1, 0]),
        signs=np.ones(2),
        predictions=np.asarray([1, 0]),
        labels=np.asarray([1, 1]),
        pre_activations=np.asarray([3.0, 4.0]),
        totals=np.asarray([3.25, 3.5]),
        training_labels=np.asarray([[1, 1], [0, 0]]),
        opponent_labels=np.asarray([[0, 0], [1, 1]]),
        about={
            "method": "RepresenterPointLJE",
            "n_samples": 5,
            "damping": 1e-3,
            "decomposes_prediction": True,
        },
    )


@pytest.fixture
def suspects():
    return Suspects(
        ids=np.asarray([3, 1, 4]),
        scores=np.asarray([2.5, 0.5, -1.0]),
        score="leave_one_out",
        labels=np.asarray([0, 1, 1]),
        predictions=np.asarray([1, 0, 1]),
        about={"n_samples": 5},
    )


def test_explanation_with_images(explanation, tmp_path, rng):
    file = explanation.save_html(
        tmp_path / "page.html", samples=rng.random((2, 8, 8)), training_samples=rng.random((5, 8, 8, 1))
    )
    assert file == tmp_path / "page.html"
    text = file.read_text(encoding="utf-8")
    page = Checked(text)
    assert len(page.images) == 2 + 8
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    alts = [image["alt"] for image in page.images]
    assert alts[:2] == ["sample 0, predicted 1, labelled 1", "training sample 4, labelled 1"]
    for expected in ("+0.500", "−1.000", "+0.750", "3.25", "id 4", "0.375 apart on average", "5 training"):
        assert expected in page.text, expected
    assert "damping : 0.001" in page.text or "damping 0.001" in page.text
    assert __version__ in page.text


def test_pages_load_nothing(explanation, suspects, tmp_path):
    for answer, n_scripts in ((explanation, 0), (suspects, 1)):
        text = answer.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
        page = Checked(text)
        assert all(address.startswith("data:text/csv;base64,") for address in page.addresses)
        assert len(page.addresses) == n_scripts
        assert [tag for tag, _ in page.elements].count("script") == n_scripts
        assert not re.search(r"https?:|@import|url\(", text)
        policy = next(e["content"] for tag, e in page.elements if e.get("http-equiv"))
        allowed = "'none'"
        if n_scripts:
            script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            allowed = f"'sha256-{digest}'"
        assert policy == (
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
        )


def test_theme_and_phone(explanation, tmp_path):
    text = explanation.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert '<html lang="en">' in text


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b"])
def test_what_users_write_is_escaped(explanation, suspects, tmp_path, evil):
    names = [evil, "other"]
    first = explanation.save_html(
        tmp_path / "1.html", samples=[evil] * 2, training_samples=[evil] * 5, class_names=names, title=evil
    )
    row = {evil: evil}
    second = suspects.save_html(tmp_path / "2.html", training_samples=[row] * 5, class_names=names)
    for file in (first, second):
        page = Checked(file.read_text(encoding="utf-8"))
        tags = [tag for tag, _ in page.elements]
        assert "img" not in tags
        assert tags.count("script") == (file == second)  # its own
        assert evil in page.text
    (address,) = page.addresses
    assert evil in base64.b64decode(address.split(",")[1]).decode("utf-8").replace('""', '"')


def test_table_parts_are_escaped():
    evil = "<b>&</b>"
    table = Table(evil, [Column(evil)], [[evil]])
    page = Page(
        evil, [evil], [Fact(evil, evil, evil)], [Section(evil, [evil], (), [table], [evil])], {evil: evil}
    )
    checked = Checked(page.render())
    assert "b" not in {tag for tag, _ in checked.elements}
    # Title twice, lead, a fact thrice, section, paragraph, caption, column, cell, note, about twice.
    assert checked.text.count(evil) == 14


def test_tables_have_captions_and_headings(suspects, tmp_path):
    file = suspects.save_html(tmp_path / "page.html", training_samples=["a", "b", "c", "d", "e"])
    page = Checked(file.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") == 1
    assert [e["scope"] for tag, e in page.elements if tag == "th"] == ["col"] * 6 + ["row"] * 3
    assert "The 3 of 5 labels most likely wrong, ranked by leave-one-out score" in page.text
    assert "−1.00" in page.text


def test_notes_mark_samples(explanation, suspects):
    cards = prediction_cards(explanation, notes={4: "was 9"})
    assert [c.note for c in cards[0].sides[0].contributions] == ["was 9", ""]
    table = suspects_table(suspects, notes={4: "was 9"}, k=2)
    assert [row[-1].text for row in table.cells] == ["–", "–"]
    table = suspects_table(suspects, notes={4: "was 9"})
    assert [(row[-1].text, row[-1].mark) for row in table.cells] == [("–", False)] * 2 + [("was 9", True)]


def test_a_wrong_prediction_is_marked(explanation):
    right, wrong = prediction_cards(explanation, class_names=["cat", "dog"])
    assert (right.title, right.name, right.mark) == ("Predicted dog", "Sample 0, labelled dog", "")
    assert (wrong.title, wrong.name, wrong.mark) == ("Predicted cat", "Sample 1", "labelled dog")


def test_bars_are_relative_to_the_strongest(explanation):
    supporters, opponents = prediction_cards(explanation)[0].sides
    assert [c.width for c in supporters.contributions] == [0.5, 0.25]
    assert [c.width for c in opponents.contributions] == [1.0, 0.125]


def test_numbers():
    assert number(0) == "0.000"
    assert number(-0.5, sign=True) == "−0.500"
    assert number(1234.5) == "1,234.500"
    assert number(-2.34e-11, sign=True) == "−2.3 × 10⁻¹¹"
    assert number(4e-5, sign=True) == "+4.0 × 10⁻⁵"
    assert number(float("inf")) == "inf"


def test_labels_without_a_name():
    assert label_text(np.float32(0.5), None) == "0.500"
    with pytest.raises(WhenceError, match="class_names"):
        label_text(2, ["cat", "dog"])


def test_shares_tell_some_from_none_and_from_all():
    assert [percentage(share) for share in (0.0375, -1.2, 4e-7)] == ["+3.8%", "−120%", "+4.0 × 10⁻⁵%"]
    wholes = {0: "0%", 0.5: "50%", 0.0004: "0.04%", 0.9996: "99.96%", 1: "100%"}
    for share, text in wholes.items():
        assert percentage(share, sign=False) == text
    assert number(3e20) == "3.0 × 10²⁰"
    assert number(float("nan")) == "nan"
    assert number(-0.0) == "0.000"


def test_a_regression_raises_and_lowers(explanation, tmp_path):
    numbers = {
        name: getattr(explanation, name).astype(float)
        for name in ("predictions", "labels", "training_labels", "opponent_labels")
    }
    about = explanation.about | {"n_outputs": 1}
    values = dataclasses.replace(explanation, outputs=np.zeros(2, int), about=about, **numbers)
    page = Checked(values.save_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    for expected in ("Raises it", "Lowers it", "Predicted 1.000", "target 0.000", "Plus raises the output"):
        assert expected in page.text, expected
    assert "Speaks" not in page.text
    assert "labelled" not in page.text
    of_loss = dataclasses.replace(
        values, about=about | {"effect_on": "loss", "decomposes_prediction": False}
    )
    page = Checked(of_loss.save_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Lowers its loss" in page.text
    assert "plus lowers the loss" in page.text


def test_another_output_than_the_predicted_class_is_named(explanation):
    asked = dataclasses.replace(explanation, outputs=np.asarray([0, 0]))
    one, other = prediction_cards(asked, class_names=["cat", "dog"])
    assert [side.title for side in one.sides] == ["Speaks for cat", "Speaks against cat"]
    assert ("Explained", "cat") in one.facts
    # One of its opponents speaks for it, though least of all.
    assert [side.title for side in other.sides] == ["Speaks for it", "Speaks against it, or least for it"]
    turned = dataclasses.replace(asked, values=-asked.values)
    assert prediction_cards(turned)[1].sides[0].title == "Speaks for it, or least against it"


def test_positions_are_named(explanation, tmp_path):
    one = dataclasses.replace(explanation, positions=np.asarray([7, 0]))
    assert "Sample 0, position 7" in Checked(one.save_html(tmp_path / "p.html").read_text("utf-8")).text
    assert one[1].positions.tolist() == [0]


def test_no_prediction_is_a_page_too(explanation, suspects, tmp_path):
    page = Checked(explanation[:0].save_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Predictions explained 0" in page.text
    assert len(Checked(suspects[:0].save_html(tmp_path / "s.html").read_text("utf-8")).elements) > 5


def test_bad_input(explanation, tmp_path):
    with pytest.raises(WhenceError, match=r"path: expected a file, got the folder"):
        explanation.save_html(tmp_path)
    with pytest.raises(WhenceError, match=r"in a folder that exists"):
        explanation.save_html(tmp_path / "missing" / "page.html")
    with pytest.raises(WhenceError, match=r"samples: expected the 2 explained samples"):
        explanation.save_html(tmp_path / "page.html", samples=["only one"])
    with pytest.raises(WhenceError, match=r"training_samples: expected a sample of id 4"):
        explanation.save_html(tmp_path / "page.html", training_samples=["a", "b"])
    assert list(tmp_path.iterdir()) == []


# ---- summary, shares ----------------------------------------------------------------------------


def test_the_summary_names_model_layer_solver_and_n():
    about = {
        "method": "RepresenterPointLJE",
        "model": "digits (Sequential)",
        "layer": "logits",
        "loss": "softmax cross-entropy",
        "n_samples": 1437,
        "n_features": 65,
        "n_outputs": 10,
        "solver": "ExactIHVP",
        "damping": 0.001,
        "relative_residual": 2e-15,
    }
    assert summary_of(about) == [
        ("Model", "digits (Sequential)"),
        ("Layer", "logits, 65 × 10 weights"),
        ("Method", "RepresenterPointLJE"),
        ("Loss", "softmax cross-entropy"),
        ("Solver", "ExactIHVP, damping 0.001, relative residual 2.0 × 10⁻¹⁵"),
        ("Training samples", "1,437"),
    ]
    page = Checked(Page("x", summary=summary_of(about), about=about).render())
    for _, value in summary_of(about):
        assert value in page.text
    assert summary_of({}) == []


def test_values_stand_with_their_share(explanation, tmp_path):
    supporters, opponents = prediction_cards(explanation)[0].sides
    assert [c.share for c in supporters.contributions] == ["+15.4%", "+7.7%"]
    assert [c.share for c in opponents.contributions] == ["−30.8%", "−3.8%"]
    page = Checked(explanation.save_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    # (0.75 + 3) / (3.25 + 3.5) and (-1.125 + 0.25) / 6.75; gaps of 0.25 and 0.5.
    for expected in ("+55.6% −13.0%", "0.38", "50%", "1 of 2", "Newton step"):
        assert expected in page.text, expected


def test_scores_that_sum_to_nothing_have_no_share(explanation, tmp_path):
    influences = dataclasses.replace(explanation, about={"method": "InfluenceFunctions"})
    (card, _) = prediction_cards(influences)
    assert {c.share for side in card.sides for c in side.contributions} == {""}
    assert card.facts == [("Model's own", "3.00")]
    page = Checked(influences.save_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "%" not in page.text.rsplit("Predictions", 1)[1]
    for absent in ("Newton", "Sum", "add up"):
        assert absent not in page.text


# ---- the list of suspects -----------------------------------------------------------------------


def records_of(text):
    (address,) = [a for a in Checked(text).addresses if a.startswith("data:")]
    decoded = base64.b64decode(address.split(",")[1]).decode("utf-8-sig")
    return list(csv.reader(io.StringIO(decoded, newline="")))


def test_suspects_are_exported_in_full(suspects, tmp_path):
    text = suspects.save_html(tmp_path / "page.html", class_names=["cat", "dög"]).read_text(
        encoding="utf-8"
    )
    assert records_of(text) == [
        ["rank", "id", "given label", "model says", "leave-one-out score"],
        ["1", "3", "cat", "dög", "2.5"],
        ["2", "1", "dög", "cat", "0.5"],
        ["3", "4", "dög", "dög", "-1.0"],
    ]
    table = suspects_table(suspects, notes={4: "was 9"}, notes_title="Changed", k=2)
    assert table.export.heads[-1] == "Changed"
    assert [record[-1] for record in table.export.records] == ["", ""]


def test_scores_are_sorted_by_their_number(suspects, tmp_path):
    page = Checked(suspects.save_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [e["data-key"] for _, e in page.elements if "data-key" in e] == ["2.5", "0.5", "-1.0"]
    heads = [e for tag, e in page.elements if tag == "th" and e["scope"] == "col"]
    assert ["data-sort" in head for head in heads] == [True] * 5
    assert ["data-choices" in head for head in heads] == [False, False, True, True, False]


def test_one_page_may_hold_both(explanation, suspects, tmp_path):
    file = explanation.save_html(tmp_path / "page.html", suspects=suspects, class_names=["cat", "dog"])
    page = Checked(file.read_text(encoding="utf-8"))
    assert "Labels to look at first" in page.text
    assert "Predicted dog" in page.text
    assert len(records_of(file.read_text(encoding="utf-8"))) == 4


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+1", "'+1+1"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("-1.5", "-1.5"),
        ("a=1", "a=1"),
        ("\tx", "'\tx"),
        ("a;=1", "a;'=1"),
        ("a; -cmd", "a;' -cmd"),
        ("a,@b", "a,'@b"),
        ('a;"=1"', 'a;\'"=1"'),
        ("a\n=1", "a\n'=1"),
        ("a\t+1", "a\t'+1"),
        ("a|=1;;+2", "a|'=1;;'+2"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("semi-final; x - y", "semi-final; x - y"),
        ("1e5", "1e5"),
        ("007", "007"),
        ('say "x", then\r\nlf', 'say "x", then\nlf'),
        ("</script>", "</script>"),
    ],
)
def test_spreadsheets_get_no_formula(text, cell):
    export = Export("x.csv", [text], [[text, 7], [text, -0.5]])
    body = export.csv.removeprefix("\ufeff")
    assert list(csv.reader(io.StringIO(body, newline=""))) == [[cell], [cell, "7"], [cell, "-0.5"]]
    assert body.count("\r\n") == body.count("\r") == 3  # only records end so
    assert "<" not in export.address


def test_many_predictions_have_a_list_to_jump_from(explanation, tmp_path):
    many = explanation[[0, 1] * 13]
    images = np.zeros((26, 8, 8))
    file = many.save_html(tmp_path / "page.html", samples=images, training_samples=images)
    page = Checked(file.read_text(encoding="utf-8"))
    targets = {e["id"] for tag, e in page.elements if tag == "article"}
    links = [address for address in page.addresses if not address.startswith("data:")]
    assert {link.removeprefix("#") for link in links} == targets
    assert len(targets) == 26
    assert [e["class"] for tag, e in page.elements if tag == "article"] == ["card lazy"] * 26


def test_suspects_in_a_frame_are_shown_with_its_columns(suspects):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [31, 40, 52, 28, 66], "town": ["Ulm", "Bonn", "Kiel", "Köln", "Jena"]})
    table = suspects_table(suspects, training_samples=frame)
    assert [row[1].picture.values for row in table.cells] == [
        (("age", "28"), ("town", "Köln")),
        (("age", "40"), ("town", "Bonn")),
        (("age", "66"), ("town", "Jena")),
    ]


def test_notes_stand_beside_training_samples(explanation, suspects, tmp_path):
    notes = {4: "was 9 <b>"}
    page = Checked(
        explanation.save_html(tmp_path / "a.html", suspects=suspects, notes=notes).read_text("utf-8")
    )
    assert page.text.count("was 9 <b>") == 3  # on both predictions, and in the table
    assert "was 9" in Checked(suspects.save_html(tmp_path / "b.html", notes=notes).read_text("utf-8")).text
    for answer in (explanation, suspects):
        with pytest.raises(WhenceError, match="notes: expected a few words"):
            answer.save_html(tmp_path / "c.html", notes=["was 9"])
