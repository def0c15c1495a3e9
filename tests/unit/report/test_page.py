import html.parser
import re
import shutil
import subprocess

import pytest

from tests.support.run_records import write_run
from tinybert_ds.errors import ConfigError
from tinybert_ds.report.__main__ import main
from tinybert_ds.report.markdown import render_markdown
from tinybert_ds.report.page import render_page
from tinybert_ds.report.runs import read_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VOID = {"meta"}


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs" / "a", finished={"eval_accuracy": 0.5}, from_steps=(0, 3))
    write_run(tmp_path / "runs" / "b & <b>", loss=3.0, arguments={"learning_rate": 5e-4})
    return read_runs([tmp_path / "runs"])


class Outline(html.parser.HTMLParser):
    """Headings, and whether every element is closed where it should be."""

    def __init__(self, page):
        super().__init__()
        self.open, self.headings = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def test_the_page_of_one_run_has_health_first_then_time_then_layers(runs):
    page = render_page(runs[:1])
    outline = Outline(page)
    assert outline.open == []
    assert outline.headings[1:] == [
        *("Runs", "Metrics", "Throughput", "Health", "Where the time goes", "Layers", "Arguments"),
    ]
    assert page.count("gone on from step 3") >= 1


def test_the_page_of_several_runs_lays_their_curves_over_one_another(runs):
    page = render_page(runs)
    Outline(page)
    loss = next(figure for figure in re.findall(r"<figure>.*?</figure>", page) if "<figcaption>loss<" in figure)
    assert loss.count("<polyline") == 2
    assert "b &amp; &lt;b&gt;" in loss
    assert "<b>" not in page
    assert "<tr class=differs><th>learning_rate</th><td>0.001</td><td>0.0005</td></tr>" in page


def test_nothing_is_fetched_from_anywhere(runs):
    page = render_page(runs)
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(", page)
    assert "default-src 'none'" in page


def test_a_run_that_has_logged_nothing_has_a_page_without_curves(tmp_path):
    write_run(tmp_path / "new", steps=0)
    page = render_page(read_runs([tmp_path / "new"]))
    assert "nothing logged yet" in page
    assert "<figure>" not in page


def test_the_markdown_has_the_tables_and_curves_at_a_few_steps(runs):
    text = render_markdown(runs)
    assert "| **learning_rate** | 0.001 | 0.0005 |" in text
    assert "| eval_accuracy, final | 0.5000 | 0.5000 |" in text
    curves = text.partition("## Curves of a")[2].partition("##")[0]
    assert "| step | loss | hidden_loss | samples/s |" in curves
    assert "| 6 | 0.3333 | 0.3333 | 60.0 |" in curves
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_the_command_writes_into_the_first_run_or_where_it_is_told(tmp_path, capsys):
    first, second = (write_run(tmp_path / name) for name in ("one", "two"))
    main([str(first), str(second)])
    assert (first / "report.html").is_file()
    assert (first / "report.md").is_file()
    assert not (second / "report.html").exists()
    main([str(second), "--output_dir", str(tmp_path / "there" / "deep")])
    assert (tmp_path / "there" / "deep" / "report.html").is_file()
    assert "report.html and report.md: two" in capsys.readouterr().out
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; give a directory"):
        main([str(second), "--output_dir", str(tmp_path / "file")])


def test_a_browser_draws_the_page_and_shows_values_beside_the_names(runs, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    path = tmp_path / "report.html"
    path.write_text(render_page(runs), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command = [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    dom = drawn.stdout
    charts = dom.count('<svg class="chart"')
    assert charts >= 6
    assert f'data-charts="{charts}"' in dom, "the script has not come to its end"
    assert "<output>0.3333 at 6</output>" in dom
    assert "CONSOLE" not in drawn.stderr, drawn.stderr
