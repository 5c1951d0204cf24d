"""Calibration on one's own labels: probabilities, thresholds with a promise, and the file of a site."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from ecgbyte_cli.evaluation import promises, site_calibration
from ecgbyte_cli.evaluation.finding_truth import LabelledFinding
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.operating_points import OperatingPoint, log_odds
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.inference.site import read_site, write_site
from ecgbyte_cli.model.folder_checks import SHIPPED, model_sha256
from ecgbyte_cli.storage.manifest import add_checksum

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location(
        "promises_experiment", ROOT / "examples/experiments/promises.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("limit", "fewest"), [(0.1, 29), (0.05, 59), (0.2, 14)])
def test_the_fewest_answers_without_an_error(limit, fewest):
    assert promises.fewest_answers(limit) == fewest
    assert promises.upper_bound(0, fewest) <= limit < promises.upper_bound(0, fewest - 1)


@pytest.mark.parametrize(("errors", "answered"), [(0, 40), (3, 100), (17, 200), (40, 40)])
def test_the_bound_is_the_share_at_which_so_few_errors_are_rare(errors, answered):
    bound = promises.upper_bound(errors, answered)
    if errors == answered:
        assert bound == 1
    else:
        assert binom.cdf(errors, answered, bound) == pytest.approx(0.05)


def test_thresholds_are_tested_from_the_strictest_down():
    scores = np.repeat([3.0, 1.0, -1.0], 40)
    wrong = np.zeros(120, bool)
    found = promises.promised_threshold(scores, wrong, 0.1, -20)
    assert (found.threshold, found.answered, found.errors) == (-12.0, 120, 0)
    assert promises.promised_threshold(scores, wrong, 0.1, 0.0).threshold == 0.0
    wrong[40:60] = True  # half of the second group
    found = promises.promised_threshold(scores, wrong, 0.1, -20)
    assert (found.threshold, found.answered) == (1.5, 40)
    assert found.bound == promises.upper_bound(0, 40) <= 0.1
    wrong[:40] = True  # what is stricter fails, so that what is looser is not tested
    wrong[40:] = False
    assert promises.promised_threshold(scores, wrong, 0.1, -20) is None
    assert promises.promised_threshold(scores[:28], np.zeros(28, bool), 0.1, -20) is None


@pytest.mark.parametrize(
    ("prevalence", "auroc", "off", "patients"),
    [(0.1, 0.95, (0.5, 1.0), 200), (0.5, 0.8, (2.0, -1.0), 200), (0.5, 0.95, (1.0, 0.0), 1000)],
)
def test_the_promise_holds_in_populations_that_are_known(experiment, prevalence, auroc, off, patients):
    """The full sizes are in examples/experiments/promises.py."""
    found = experiment.try_promises(experiment.Population(prevalence, auroc, *off), patients, 60)
    # a promise that is broken in one sample of twenty is broken in nine or more of sixty once in a thousand times
    assert max(found["exceeded_yes"], found["exceeded_no"]) <= 8 / 60
    if patients == 1000:
        assert found["answered"] >= 0.5


def test_a_threshold_chosen_without_a_test_would_break_the_promise(experiment):
    """The simulation sees it where errors exceed the limit: thresholds where the sample's own errors are 10 %."""
    population, random, over = experiment.Population(0.5, 0.8), np.random.default_rng(0), 0
    for _ in range(40):
        one = population.sample(200, random)
        order = np.argsort(-one.probability)
        shares = np.cumsum(~one.truth[order]) / np.arange(1, 201)
        last = np.flatnonzero(shares <= 0.1)[-1]
        over += population.errors(OperatingPoint(None, one.probability[order][last]))[0] > 0.1
    assert over >= 10


def test_the_errors_of_a_population_are_what_many_patients_show(experiment):
    population, random = experiment.Population(0.3, 0.9, 0.7, 0.5), np.random.default_rng(1)
    one = population.sample(400_000, random)
    yes, no = one.probability >= 0.8, one.probability <= 0.3
    shown = (~one.truth[yes]).mean(), one.truth[no].mean(), (yes | no).mean()
    assert population.errors(OperatingPoint(0.3, 0.8)) == pytest.approx(shown, abs=0.005)


def test_probabilities_are_recalibrated_and_drawn_to_the_shipped_ones(experiment):
    random = np.random.default_rng(2)
    many = experiment.Population(0.3, 0.9, 0.5, 1.0).sample(20_000, random)
    slope, intercept = site_calibration.fit_probabilities(
        log_odds(many.probability), many.truth, np.ones(20_000)
    )
    assert (slope, intercept) == (pytest.approx(2.0, abs=0.1), pytest.approx(-2.0, abs=0.15))
    few = many.probability[:3], many.truth[:3]
    slope, intercept = site_calibration.fit_probabilities(log_odds(few[0]), few[1], np.ones(3))
    assert abs(np.log(slope)) < 0.5 and abs(intercept) < 1.5
    assert site_calibration.fit_probabilities(np.empty(0), np.empty(0, bool), np.empty(0)) == (1.0, 0.0)


def test_patients_are_the_unit(experiment):
    """Twenty copies of a patient's recording are worth one."""
    one = experiment.Population(0.5, 0.95).sample(30, np.random.default_rng(3))
    copies = LabelledFinding(*one[:2], *(np.repeat(part, 20) for part in one[2:]))
    point, details = site_calibration.calibrate_finding(one, 0.1)
    again, repeated = site_calibration.calibrate_finding(copies, 0.1)
    assert repeated["patients"] == details["patients"] == 30
    assert (again.yes, again.no) == (point.yes, point.no) and again.slope == pytest.approx(
        point.slope, rel=1e-3
    )


def test_no_answer_is_promised_against_the_more_probable_one():
    """Where a finding is rare, "no" is right for everyone; but not for those whom the model is sure of."""
    random = np.random.default_rng(4)
    truth = random.random(500) < 0.04
    chances = np.where(truth, 0.99, 0.02)
    one = LabelledFinding("afib", "", chances, np.full(500, "no"), truth, np.arange(500).astype(str))
    point, details = site_calibration.calibrate_finding(one, 0.1)
    assert point.answer(0.02) == "no" and point.answer(0.99) == "unsure"
    assert details["no"]["errors"] == 0 and details["yes"] is None and details["answered"] == 1 - truth.mean()


POINTS = {"afib": OperatingPoint(0.2, None, 0.5, -1.0)}


def test_the_file_of_a_site_is_of_one_model(tmp_path):
    path = tmp_path / "site.json"
    write_site(path, "abc", POINTS, {"afib": {"patients": 30}}, {"max_error": 0.1})
    contents = json.loads(path.read_text())
    assert (
        contents["findings"]["afib"]["patients"] == 30 and contents["date"] and contents["max_error"] == 0.1
    )
    assert read_site(path, "abc") == POINTS
    with pytest.raises(Failure, match="another model"):
        read_site(path, "abd")
    write_site(path, "abd", POINTS, {"afib": {}}, {})  # a site's own file is replaced
    (tmp_path / "other.json").write_text('{"mine": 1}')
    with pytest.raises(Failure, match="another file"):
        write_site(tmp_path / "other.json", "abc", POINTS, {"afib": {}}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not a site file"),
        ({"model": "other"}, "changed or is damaged"),
        ({"findings": {"afib": {"point": [0.1, 0.2, 1.0]}}}, "damaged"),
        ({"findings": {"afib": {"point": ["0.1", None, 1.0, 0.0]}}}, "damaged"),
        ({"findings": {"afib": {"point": [0.1, None, -1.0, 0.0]}}}, "damaged"),
        ({"findings": [1]}, "damaged"),
    ],
)
def test_damaged_files_of_a_site_are_refused(tmp_path, change, message):
    path = tmp_path / "site.json"
    write_site(path, "abc", POINTS, {"afib": {}}, {})
    contents = json.loads(path.read_text()) | change
    if "findings" in change:  # by someone who knows how to write a checksum
        contents.pop("sha256")
        contents = add_checksum(contents)
    path.write_text(json.dumps(contents))
    with pytest.raises(Failure, match=message):
        read_site(path, "abc")


def test_a_session_answers_by_its_site(tmp_path, small):
    """The same in every wording, in lists and in tables; other questions stay as they were."""
    path = tmp_path / "site.json"
    plain = Session.open(SHIPPED)
    ecg = plain.read(small / "data" / "synth00001.hea")
    yes = plain.weigh(ecg, "Is there atrial fibrillation?", ["no", "yes"])[1]
    point = OperatingPoint(0.0, yes / 2, 1.0, 3.0)
    write_site(path, model_sha256(SHIPPED), {"afib": point}, {"afib": {}}, {})
    session = Session.open(SHIPPED, site=path)
    session.loaded = plain.loaded
    for question in ("Is there atrial fibrillation?", "is there a-fib?"):
        turn = session.ask(ecg, question)
        said = {turn.answer: turn.probability, turn.other[0]: turn.other[1]}
        assert said["yes"] == pytest.approx(point.recalibrated(yes), rel=1e-4) and turn.sure
    listed = session.ask(ecg, "What are the findings?").findings
    before = plain.ask(ecg, "What are the findings?").findings
    assert listed.pop("atrial fibrillation") == pytest.approx(point.recalibrated(yes), rel=1e-4)
    before.pop("atrial fibrillation")
    assert listed == pytest.approx(before)
    unsure = OperatingPoint(None, None, 1.0, 0.0)
    write_site(path, model_sha256(SHIPPED), {"afib": unsure}, {"afib": {}}, {})
    session = Session.open(SHIPPED, site=path)
    session.loaded = plain.loaded
    assert session.ask(ecg, "Is there atrial fibrillation?").sure is False


def test_findings_are_calibrated_and_used(small, tmp_path, ecgbyte):
    """From the labels in the headers of synthetic recordings, to a table by the site's thresholds."""
    data, site, out = small / "data", tmp_path / "site.json", tmp_path / "f.csv"
    program = (
        "findings",
        data,
        "--model",
        "ptbxl",
        "--jobs",
        1,
        "--questions",
        "afib",
        "--questions",
        "sbrad",
    )
    result = ecgbyte(*program, "--out", out, "--truth", data, "--calibrate", site, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    people = {row["patient"] for row in _rows(out)}
    assert told["site"]["labels"]["patients"] == len(people) < 64
    assert set(told["site"]["findings"]) == {"afib", "sbrad"}
    again = ecgbyte(*program, "--out", tmp_path / "g.jsonl", "--site", site, "--json")
    assert again.exit_code == 0, again.stderr
    points = read_site(site, model_sha256(SHIPPED))
    before = {row["record"]: row for row in map(dict, _rows(out))}
    for line in (tmp_path / "g.jsonl").read_text().splitlines():
        row = json.loads(line)
        yes = float(before[row["record"]]["p_afib"])
        assert row["afib"] == points["afib"].answer(yes)
        assert row["p_afib"] == pytest.approx(points["afib"].recalibrated(yes), rel=1e-3)
    shown = ecgbyte(*program, "--out", out, "--truth", data, "--calibrate", site)
    assert "confidence for each" in shown.stdout
    assert ecgbyte(*program, "--out", out, "--calibrate", site).exit_code == 2
    assert (
        ecgbyte(*program, "--out", out, "--truth", data, "--calibrate", site, "--site", site).exit_code == 2
    )


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
