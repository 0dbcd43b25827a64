"""The report of a plan: says what the plan says, fetches nothing, and a browser shows it."""

import re
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from plan_by_hand import FLEET, PLAN
from test_report_html import Page
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.core.errors import OutputError
from llmsim.planner.folder import save_plan
from llmsim.planner.page import cost_bars, first_to_give_way, headline, price_room, render_plan
from llmsim.planner.page import savings as saved
from llmsim.report import pdf
from llmsim.report.pdf import QUIET, _sandbox, find_browser, print_pdf

BROWSER = find_browser()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser on PATH")


@pytest.fixture(scope="module")
def text():
    return render_plan(PLAN)


def words(text):
    return " ".join(" ".join(Page(text).words).split())


def test_it_is_well_formed_and_fetches_nothing(text):
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert all(ref.startswith("#") and ref[1:] in page.ids for ref in page.references)
    for outside in ("http://", "https://", "@import", "url(http"):
        assert outside not in text
    assert len(page.svgs) == 3
    assert all(each["aria-label"] for each in page.svgs)


def test_it_says_what_to_buy_and_what_it_saves(text):
    said = words(text)
    assert headline(PLAN) == (
        "Buy 2 x big + 3 x small (7 GPUs, $10.00/h) for 20 requests/s of llama-3.1-8b."
    )
    assert headline(PLAN) in said
    assert "20 requests/s, TTFT ≤ 1 s, TPOT ≤ 50 ms, by 95.0% of the requests" in said
    # 1 - 10/14 and 1 - 10/20
    assert saved(PLAN) == [
        "28.6% less than the best fleet of one card (h100-sxm, $14.00/h).",
        "50.0% less than what runs today ($20.00/h).",
    ]
    for part in (
        "Good enough.",
        "a <list> & more",
        "late for <long> prompts",
        "2 x big + 3 x small",
    ):
        assert part in said


def test_halves_say_what_they_compute_and_how_busy_their_ports_are():
    big, small = PLAN.used
    apart = (
        replace(big, role="prefill", dp=4, port_frac=0.125),
        replace(small, role="decode", port_frac=0.25),
    )
    plan = replace(PLAN, used=apart)
    said = words(render_plan(plan))
    assert "tp 2, dp 4, prompts alone" in said
    assert "outputs alone" in said
    assert "keeps the busiest ports, those of small, at 25.0% of their bandwidth" in said
    assert "ports" not in first_to_give_way(PLAN)


def test_what_gives_way_first_names_the_resource_behind_it():
    big, small = PLAN.used  # small is fullest, and bound by KV
    said = first_to_give_way(PLAN)
    assert "KV memory 75.0% full, 25.0% of its seats taken" in said
    paced = replace(PLAN, used=(replace(big, utilisation_frac=0.9), small))
    said = first_to_give_way(paced)
    assert "the steps of big goes into compute 50.0%, bandwidth 30.0%, link 20.0%." in said
    assert "More FLOP/s" in said
    late = replace(PLAN, used=(replace(big, utilisation_frac=0.9, bound="ttft"), small))
    assert "computing prompts of big goes into compute 90.0%, bandwidth" in first_to_give_way(late)
    unsaid = replace(PLAN, used=tuple(replace(each, spending=None) for each in PLAN.used))
    assert "goes into" not in first_to_give_way(unsaid)
    assert "What a replica's time and memory go into" not in words(render_plan(unsaid))
    assert "launches" in words(render_plan(PLAN))


def test_a_plan_of_one_card_is_not_compared_with_itself():
    alone = replace(PLAN, rivals=(replace(PLAN.rivals[0], usd_per_hour=10.0),), used=PLAN.used[:1])
    assert saved(alone)[0] == "h100-sxm is the cheapest card alone, and the plan is a fleet of it."
    dear = replace(PLAN, usd_per_hour=25.0)
    assert saved(dear)[1] == "25.0% more than what runs today ($20.00/h)."


def test_bars_are_the_way_to_the_plan_its_rivals_and_today():
    bars = cost_bars(PLAN)
    assert [(bar.name, bar.usd_per_hour, bar.kind) for bar in bars] == [
        ("naive", 6.0, "way"),
        ("pooled", 9.0, "way"),
        ("simulated: the plan", 10.0, "plan"),
        ("h100-sxm alone", 14.0, "rival"),
        ("a100-80gb-sxm alone", 16.0, "rival"),
        ("today", 20.0, "today"),
    ]
    # a plan that is none of the stages stands by itself
    other = replace(PLAN, waterfall=PLAN.waterfall[:2])
    assert [bar.name for bar in cost_bars(other) if bar.kind == "plan"] == ["the plan"]


def test_the_fullest_pool_gives_way_first():
    said = first_to_give_way(PLAN)
    assert said.startswith("small gives way first: it is used to 80.0%, 1.25 times its load")
    assert "what keeps a replica from more is KV memory. At capacity" in said


def test_a_price_may_rise_until_another_card_alone_is_cheaper():
    # without H100: 16 USD/h, of which the plan spends 7 on it: (16 - 10) / 7; without L40S: 14
    assert price_room(PLAN) == [
        ("h100-sxm", "+86%", "then a100-80gb-sxm alone is cheaper"),
        ("l40s", "+133%", "then h100-sxm alone is cheaper"),
        # nothing of it is bought: 10 / 16 of its price
        ("a100-80gb-sxm", "-38%", "then a100-80gb-sxm alone is cheaper"),
    ]
    assert price_room(replace(PLAN, rivals=())) == [
        ("h100-sxm", "any", "no other card alone keeps the promise"),
        ("l40s", "any", "no other card alone keeps the promise"),
    ]


def test_evidence_stands_with_its_bounds(text):
    said = words(text)
    assert "confirm 2 x big + 3 x small $10.00 3 98.0% 96.0% to 99.5% kept as measured" in said
    assert "75.0% 60.0% to 85.0% not kept" in said
    bare = render_plan(replace(PLAN, evidence=(), outcome="not simulated"))
    assert "Nothing was simulated" in bare
    assert len(Page(bare).svgs) == 2


def test_ranges_stand_with_their_ends_and_shares(text):
    said = words(text)
    assert "1 to 511 15 20.0% 80.0%" in said
    assert "512 and more 5 100.0%" in said


def test_a_plan_without_rivals_or_today_has_a_page():
    text = render_plan(replace(PLAN, rivals=(), current=None, corrected=(), losers=(), notes=()))
    assert "than what runs today" not in text
    Page(text)


def test_the_folder_has_the_page_and_report_writes_it_anew(tmp_path, text):
    save_plan(PLAN, tmp_path / "p")
    page = tmp_path / "p" / "report.html"
    assert page.read_text() == text
    page.write_text("")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "p")])
    assert done.exit_code == 0
    assert page.read_text() == text
    missing = CliRunner().invoke(app, ["report", str(tmp_path / "q")])
    assert missing.exit_code == 2
    assert "no run and no plan was saved here" in missing.output


def test_without_a_browser_pdf_says_what_it_needs(tmp_path, monkeypatch):
    save_plan(PLAN, tmp_path / "p")
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "p"), "--pdf"])
    assert done.exit_code == 2
    assert "apt install chromium" in done.output
    assert not (tmp_path / "p" / "report.pdf").exists()
    # a plan is not even begun
    begun = CliRunner().invoke(app, ["plan", "chat", "--pdf", "-o", str(tmp_path / "q")])
    assert begun.exit_code == 2
    assert "apt install chromium" in begun.output
    assert not (tmp_path / "q").exists()
    with pytest.raises(OutputError, match="none is on PATH"):
        print_pdf(tmp_path / "p" / "report.html", tmp_path / "x.pdf")


def test_a_browser_that_fails_is_told(tmp_path, monkeypatch):
    fake = tmp_path / "chromium"
    fake.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(pdf.shutil, "which", lambda name: str(fake))
    with pytest.raises(OutputError, match="no display"):
        print_pdf(tmp_path / "page.html", tmp_path / "x.pdf")


@needs_browser
@pytest.mark.slow
def test_a_pdf_is_printed(tmp_path, text):
    page = tmp_path / "page.html"
    page.write_text(text)
    print_pdf(page, tmp_path / "page.pdf")
    made = (tmp_path / "page.pdf").read_bytes()
    assert made.startswith(b"%PDF-")
    assert len(made) > 20_000


class Site:
    """A web server that writes down what it is asked for."""

    def __init__(self, pages):
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                # a browser's own errands, such as asking for the time, come from no page
                if self.path in pages or self.headers["Referer"]:
                    asked.append(self.path)
                known = self.path in pages
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                if known:
                    self.wfile.write(pages[self.path].encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def address(self, path):
        return f"http://127.0.0.1:{self.server.server_port}{path}"


def browse(tmp_path, address, width, dark):
    """Open a page; return its document when it has loaded, and what it wrote to the console.

    Every name but the machine's own leads back to it, so that no request gets away unseen.
    """
    options = [
        f"--window-size={width},1200",
        "--enable-logging=stderr",
        "--virtual-time-budget=2000",
    ]
    options += [f"--user-data-dir={tmp_path / f'profile-{width}-{dark}'}", *_sandbox()]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    options += ["--host-resolver-rules=MAP * 127.0.0.1:" + re.search(r":(\d+)/", address)[1]]
    done = subprocess.run(
        [BROWSER, *QUIET, *options, "--dump-dom", address],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


# the page as it is, and a script of the test's own that measures what is shown
MEASURE = """<script>
const drawn = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect().height);
const bad = drawn.filter(height => height < 60);
document.title = JSON.stringify([document.documentElement.scrollWidth, innerWidth, bad.length,
  getComputedStyle(document.body).backgroundColor]);
</script></body>"""


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1600, False), (1600, True)])
def test_a_browser_shows_it_and_asks_for_nothing_else(tmp_path, text, width, dark):
    with Site({"/page": text.replace("</body>", MEASURE)}) as site:
        document, console = browse(tmp_path, site.address("/page"), width, dark)
    assert set(site.asked) <= {"/page", "/favicon.ico"}
    assert console == [line for line in console if "favicon" in line]
    title = re.search(r"<title>\[(\d+),(\d+),(\d+),\"(.*?)\"\]</title>", document)
    wide, window, flat, paper = int(title[1]), int(title[2]), int(title[3]), title[4]
    assert wide <= window
    assert flat == 0
    assert paper == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")


@needs_browser
@pytest.mark.slow
def test_a_page_that_asks_for_more_is_found_out(tmp_path, text):
    spoiled = text.replace(
        "</body>", '<img src="http://elsewhere.test/x.png"><script>no()</script></body>'
    )
    with Site({"/page": spoiled}) as site:
        _, console = browse(tmp_path, site.address("/page"), 800, False)
    assert "/x.png" in site.asked
    assert any("no is not defined" in line for line in console)


def test_the_fleet_by_hand_is_the_one_that_was_confirmed():
    assert PLAN.replicas == FLEET
    assert PLAN.proof.stage == "confirm"
