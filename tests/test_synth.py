import json
from collections import Counter

import numpy as np
import pytest
import wfdb

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal.simulate import CONDITIONS, SPLITS, make_record, plan_records
from ecgbyte_cli.stages import synth as synth_stage
from ecgbyte_cli.stages.synth import SynthOptions, ask, synth
from ecgbyte_kernels.vcg import LEADS

FS = 250
QUESTIONS = {
    "rhythm": "What is the rhythm?",
    "rate": "Is the heart rate above 100 beats per minute?",
    "lbbb": "Is there left bundle branch block?",
}


def truth(comments):
    return dict(comment.split(": ", 1) for comment in comments)


def times(text):
    return np.array([] if text == "none" else text.split(), float)


@pytest.fixture(scope="module")
def made():
    """160 records: (signal in mV (12, samples), truth), 20 of each condition."""
    out = []
    for record in plan_records(160, seed=5):
        steps, comments = make_record(record, seconds=10, fs=FS, seed=5)
        out.append((steps.T / 1000, truth(comments)))
    return out


def of(made, *conditions):
    return [(x, t) for x, t in made if t["Condition"] in conditions]


def lead(x, name):
    return x[LEADS.index(name)]


def found_beats(x):
    """Beat times by the depth of V1 alone: a detector that knows nothing of the model."""
    window = np.ones(FS * 4 // 100) / (FS * 4 // 100)
    size = np.convolve(np.median(lead(x, "V1")) - lead(x, "V1"), window, "same")
    beats = []
    for k in np.argsort(-size):
        if size[k] < 0.5 * size.max():
            break
        if all(abs(k - b) > 0.24 * FS for b in beats):
            beats.append(k)
    return np.sort(beats) / FS


def average_beat(x, t, before, after):
    """Mean over the beats that lie inside, from `before` s before the beat to `after` s after it."""
    first, last = round(before * FS), round(after * FS)
    starts = [round(b * FS) for b in times(t["R peaks"])]
    return np.mean(
        [x[:, k - first : k + last] for k in starts if k >= first and k + last <= x.shape[1]], axis=0
    )


# ---- what the records show


def test_the_beats_are_where_the_header_says(made):
    for x, t in made:
        beats = times(t["R peaks"])
        intervals = np.diff(beats)
        assert float(t["Heart rate"]) == pytest.approx(60 / intervals.mean(), abs=0.1)
        assert float(t["RR variation"]) == pytest.approx(intervals.std() / intervals.mean(), abs=0.003)
        if t["Condition"] == "premature ventricular complexes":
            continue  # too different in size for a simple detector
        found = found_beats(x)
        sure = found[(found > 0.2) & (found < 9.8)]
        assert all(np.abs(beats - b).min() < 0.07 for b in sure), t
        inside = beats[(beats > 0.2) & (beats < 9.8)]
        assert all(np.abs(found - b).min() < 0.07 for b in inside), t
        assert 60 / np.diff(sure).mean() == pytest.approx(float(t["Heart rate"]), rel=0.1)


def test_rates_fit_the_conditions(made):
    for _, t in made:
        rate = float(t["Heart rate"])
        slow, fast = CONDITIONS[t["Condition"]]
        assert any(limits and limits[0] - 0.1 <= rate <= limits[1] + 0.1 for limits in (slow, fast))
        assert abs(rate - 100) >= 2.9
    assert max(float(t["Heart rate"]) for _, t in of(made, "sinus bradycardia")) < 55
    assert min(float(t["Heart rate"]) for _, t in of(made, "sinus tachycardia")) > 108
    both_ways = of(made, "atrial fibrillation", "left bundle branch block", "anterior ST elevation")
    assert 0.5 <= np.mean([float(t["Heart rate"]) > 100 for _, t in both_ways]) <= 0.7


def test_fibrillation_is_irregular_and_has_no_p_waves(made):
    regular = set(CONDITIONS) - {"atrial fibrillation", "premature ventricular complexes"}
    variation = [float(t["RR variation"]) for _, t in of(made, "atrial fibrillation")]
    assert min(variation) >= 0.18
    assert max(float(t["RR variation"]) for _, t in of(made, *regular)) < 0.06
    for x, t in of(made, "atrial fibrillation"):
        found = found_beats(x)
        assert np.diff(found).std() / np.diff(found).mean() > 0.15
        assert t["PR interval"] == "none"

    def p_height(x, t):
        beat = average_beat(lead(x, "II")[None], t, 0.24, -0.06)[0]
        return np.ptp(beat)

    with_p = [p_height(x, t) for x, t in of(made, "sinus rhythm")]
    without = [p_height(x, t) for x, t in of(made, "atrial fibrillation") if float(t["Heart rate"]) < 97]
    assert np.median(without) < 0.6 * np.median(with_p)
    # f-waves: V1 between T and QRS is not flat
    for x, t in of(made, "atrial fibrillation"):
        beats = times(t["R peaks"])
        k = int(np.argmax(np.diff(beats)))
        between = lead(x, "V1")[round((beats[k] + 0.4) * FS) : round((beats[k + 1] - 0.05) * FS)]
        if len(between) > 0.2 * FS:
            assert np.ptp(between) > 0.05


def test_pr_interval_is_where_the_header_says(made):
    for x, t in of(made, "sinus rhythm", "sinus bradycardia", "first-degree AV block"):
        pr, rr = float(t["PR interval"]), 60 / float(t["Heart rate"])
        if t["Condition"] == "first-degree AV block":
            assert 0.24 <= pr <= 0.34
        else:
            assert 0.12 <= pr <= 0.19
        if rr < 0.75:
            continue  # P touches T
        beat = average_beat(lead(x, "II")[None], t, 0.42, -0.06)[0]
        peak = (np.argmax(beat) / FS) - 0.42
        # the model's P wave peaks 38 to 72 ms after its start, and its QRS starts 42 ms before its peak
        assert -pr - 0.042 + 0.02 < peak < -pr - 0.042 + 0.09


def test_premature_beats_are_early_wide_and_without_p(made):
    def width(x, at):
        """Seconds for which the heart's vector is above a third of its peak, near the beat."""
        k = round(at * FS)
        part = x[:, max(k - FS * 13 // 100, 0) : k + FS * 13 // 100]
        size = np.linalg.norm(part - np.median(x, axis=1, keepdims=True), axis=0)
        return (size > size.max() / 3).sum() / FS

    total = 0
    for x, t in made:
        early, beats = times(t["Premature beats"]), times(t["R peaks"])
        if t["Condition"] != "premature ventricular complexes":
            assert len(early) == 0
            continue
        assert 1 <= len(early) <= 3
        assert set(early) <= set(beats)
        total += len(early)
        rr = np.median(np.diff(beats))
        others = [b for b in beats if b not in early and 0.2 < b < 9.8]
        usual = np.median([width(x, b) for b in others])
        for at in early:
            k = beats.tolist().index(at)
            assert beats[k] - beats[k - 1] < 0.8 * rr
            assert beats[k + 1] - beats[k] > 1.15 * rr
            # full compensatory pause
            assert beats[k + 1] - beats[k - 1] == pytest.approx(2 * rr, rel=0.12)
            assert width(x, at) > 1.5 * usual
    assert total > 25


def test_bundle_branch_block_is_wide_deep_in_v1_and_discordant(made):
    for x, t in made:
        beat = average_beat(x, t, 0.12, 0.34)
        beat -= beat[:, :3].mean(axis=1, keepdims=True)
        if float(t["Heart rate"]) > 105:
            continue
        v1, v6 = lead(beat, "V1"), lead(beat, "V6")
        qrs = slice(0, round(0.24 * FS))
        deep = (v1[qrs] < 0.5 * v1[qrs].min()).sum() / FS
        if t["Condition"] == "left bundle branch block":
            assert v1[qrs].min() < -0.6 and v1[: round(0.12 * FS)].max() < 0.1
            assert deep > 0.08
            after = slice(round(0.26 * FS), None)
            assert v1[after].max() > 0.1 and v6[after].min() < -0.1 and v6[qrs].max() > 0.4
        elif t["Condition"] != "premature ventricular complexes":
            assert deep < 0.05


def test_raised_leads_are_raised(made):
    for x, t in made:
        named = [] if t["Raised leads"] == "none" else t["Raised leads"].split()
        if t["Condition"] != "anterior ST elevation":
            assert named == []
            if t["Condition"] in ("sinus rhythm", "sinus bradycardia"):
                beat = average_beat(x, t, 0.06, 0.10)
                assert lead(beat, "V1")[-5:].mean() - lead(beat, "V1")[:3].mean() < 0.1
            continue
        assert {"V1", "V2", "V3", "V4"} <= set(named)
        beat = average_beat(x, t, 0.06, 0.12)
        for name in named:
            raised = lead(beat, name)[-5:].mean() - lead(beat, name)[:3].mean()
            assert raised > 0.08
            assert name != "V1" or 0.12 < raised < 0.45


def test_healthy_records_pass_for_ecgs(made):
    for x, t in of(made, "sinus rhythm", "sinus bradycardia"):
        beat = average_beat(x, t, 0.08, 0.06)
        beat -= beat[:, :3].mean(axis=1, keepdims=True)
        r, s = (
            dict(zip(LEADS, beat.max(axis=1), strict=True)),
            dict(zip(LEADS, beat.min(axis=1), strict=True)),
        )
        assert 0.4 < r["II"] < 1.9 and -s["II"] < 0.4
        assert -s["aVR"] > r["aVR"] and r["I"] > 0.15
        assert r["V1"] < r["V3"] < r["V4"] and r["V1"] < r["V5"]
        assert -s["V1"] > r["V1"] and -s["V6"] < r["V6"]
        t_wave = average_beat(x, t, 0.06, 0.30)
        t_wave -= t_wave[:, :3].mean(axis=1, keepdims=True)
        assert all(lead(t_wave, name)[-round(0.1 * FS) :].max() > 0.04 for name in ("II", "V3", "V4", "V5"))
    assert all(np.abs(x).max() < 5 for x, _ in made)


# ---- the plan and the questions


@pytest.mark.parametrize("records", [1, 2, 7, 8, 24, 40, 400, 1003])
def test_plan_is_balanced_and_split_by_patient(records):
    plan = plan_records(records, seed=3)
    assert [r["number"] for r in plan] == list(range(1, records + 1))
    assert [r["name"] for r in plan] == sorted({r["name"] for r in plan})
    counts = Counter(r["condition"] for r in plan)
    assert max(counts.values()) - min(counts[c] for c in CONDITIONS) <= 1
    sides = {}
    for r in plan:
        sides.setdefault(r["patient"], set()).add(r["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert set(Counter(r["patient"] for r in plan).values()) <= {1, 2, 3}
    held_out = min(max(8, round(records / 20)), records // 5)
    for split in SPLITS:
        here = Counter(r["condition"] for r in plan if r["split"] == split)
        assert sum(here.values()) == (records - 2 * held_out if split == "train" else held_out)
        assert max(here.values(), default=0) - min(here[c] for c in CONDITIONS) <= 1
        if records >= 40:
            assert len(here) == len(CONDITIONS)
    if records > 1000:
        assert (plan[999]["path"], plan[1000]["path"]) == ("00000/synth01000", "01000/synth01001")
    else:
        assert plan[0]["path"] == "synth00001"


def test_questions():
    plan = plan_records(400, seed=3)
    by_name = {r["name"]: r for r in plan}
    questions = ask(plan, seed=3)
    assert [q["record"] for q in questions] == sorted(q["record"] for q in questions)
    assert len({(q["record"], q["type"]) for q in questions}) == len(questions)
    for q in questions:
        record = by_name[q["record"]]
        assert list(q) == ["record", "patient", "question", "answer", "type", "split"]
        assert q["question"] == QUESTIONS[q["type"]]
        assert (q["patient"], q["split"]) == (f"P{record['patient']:06d}", record["split"])
        expected = {
            "rhythm": record["condition"],
            "rate": "yes" if record["fast"] else "no",
            "lbbb": "yes" if record["condition"] == "left bundle branch block" else "no",
        }
        assert q["answer"] == expected[q["type"]]
    assert sum(q["type"] == "rhythm" for q in questions) == 400
    for split in SPLITS:
        for kind in ("rate", "lbbb"):
            answers = Counter(q["answer"] for q in questions if (q["split"], q["type"]) == (split, kind))
            assert answers["yes"] == answers["no"] > 0
    assert 0.35 <= np.mean([r["fast"] for r in plan]) <= 0.5


# ---- files


def test_files_read_back_as_made(tmp_path):
    result = synth(tmp_path / "data", SynthOptions(records=16, fs=500, seed=2))
    plan = plan_records(16, seed=2)
    assert sorted(p.name for p in tmp_path.glob("data/*.hea")) == [f"{r['name']}.hea" for r in plan]
    assert not list(tmp_path.glob("data/*.part"))
    for item in plan:
        steps, comments = make_record(item, seconds=10, fs=500, seed=2)
        record = wfdb.rdrecord(str(tmp_path / "data" / item["path"]), physical=False)
        assert (record.d_signal == steps).all()
        assert (record.fs, record.sig_len, tuple(record.sig_name)) == (500, 5000, LEADS)
        assert (record.comments, record.fmt, record.adc_gain) == (comments, ["16"] * 12, [1000.0] * 12)
        assert (record.units, record.baseline) == (["mV"] * 12, [0] * 12)
        # the header holds 16 bits with a sign, wfdb computes them without
        assert [c % 65536 for c in record.checksum] == [int(c) for c in record.calc_checksum()]
        assert max(map(abs, record.checksum)) <= 32768
        assert record.init_value == steps[0].tolist()
        d = record.d_signal.astype(int)
        assert (d[:, 0] + d[:, 2] == d[:, 1]).all()
        said = truth(record.comments)
        assert (said["Split"], said["Condition"]) == (item["split"], item["condition"])
        assert (float(said["Heart rate"]) > 100) == item["fast"]
    lines = (tmp_path / "data" / "qa.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ask(plan, seed=2)
    assert {k: result[k] for k in ("records", "leads", "fs", "questions", "path")} == {
        "records": 16,
        "leads": 12,
        "fs": 500,
        "questions": len(lines),
        "path": str(tmp_path / "data"),
    }


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "synth.json"
    }


def test_same_files_whatever_the_jobs_and_others_with_another_seed(tmp_path):
    for name, jobs, seed in (("one", 1, 4), ("three", 3, 4), ("other", 1, 5)):
        synth(tmp_path / name, SynthOptions(records=12, seconds=5, fs=100, seed=seed, jobs=jobs))
    one, three, other = (contents(tmp_path / name) for name in ("one", "three", "other"))
    assert one == three
    assert one.keys() == other.keys()
    assert all(one[k] != other[k] for k in one)


def test_rerun_resume_and_refusal(tmp_path, monkeypatch, capsys):
    out = tmp_path / "data"
    small = {"seconds": 5, "fs": 100}
    first = synth(out, SynthOptions(records=10, **small))
    before = contents(out)
    assert synth(out, SynthOptions(records=10, **small)) == first
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(Failure, match=r"other settings \(records\).*--overwrite, or name another folder"):
        synth(out, SynthOptions(records=4, **small))
    assert contents(out) == before
    (out / "mine.txt").write_text("kept")
    synth(out, SynthOptions(records=4, overwrite=True, **small))
    assert len(list(out.glob("*.dat"))) == len(list(out.glob("*.hea"))) == 4
    assert (out / "mine.txt").exists()

    # interrupted after three records: the rest follows, and nothing is made twice
    again, calls = tmp_path / "again", []
    real = synth_stage._write_record

    def stops(out, record, *rest):
        calls.append(record["name"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(out, record, *rest)

    monkeypatch.setattr(synth_stage, "_write_record", stops)
    with pytest.raises(KeyboardInterrupt):
        synth(again, SynthOptions(records=10, jobs=1, **small))
    assert not (again / "qa.jsonl").exists()
    there = len(list(again.glob("*.hea")))
    assert 3 <= there < 10
    calls.clear()
    monkeypatch.setattr(synth_stage, "_write_record", lambda *a: (calls.append(a[1]["name"]), real(*a)))
    with pytest.raises(Failure, match="other settings"):
        synth(again, SynthOptions(records=11, **small))
    synth(again, SynthOptions(records=10, jobs=1, **small))
    assert f"{there} of 10 records done before" in capsys.readouterr().err
    assert len(calls) == 10 - there
    assert contents(again) == before


def test_many_records_go_to_subfolders(tmp_path, monkeypatch):
    monkeypatch.setattr(
        synth_stage, "make_record", lambda *_: (np.zeros((10, 12), np.int16), ["Patient: P1"])
    )
    synth(tmp_path / "data", SynthOptions(records=1001, jobs=2))
    assert len(list((tmp_path / "data" / "00000").glob("*.hea"))) == 1000
    assert [p.name for p in (tmp_path / "data" / "01000").glob("*.hea")] == ["synth01001.hea"]
    names = {json.loads(line)["record"] for line in (tmp_path / "data" / "qa.jsonl").open()}
    assert len(names) == 1001 and "synth01001" in names
    synth(tmp_path / "data", SynthOptions(records=2, overwrite=True))
    assert len(list((tmp_path / "data").rglob("*.hea"))) == 2


def test_command(ecgbyte, tmp_path):
    out = tmp_path / "data"
    args = ("synth", out, "--records", 40, "--seconds", 5, "--fs", 100)
    result = ecgbyte(*args, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["records"] == 40 and told["fs"] == 100 and told["path"] == str(out)
    result = ecgbyte(*args)
    assert result.exit_code == 0
    assert "sinus tachycardia" in result.stdout and "40 records" in result.stdout
    assert "nothing to do" in result.stderr
    result = ecgbyte("synth", out, "--records", 41)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    (tmp_path / "file").write_text("")
    result = ecgbyte("synth", tmp_path / "file")
    assert result.exit_code == 1 and "is a file" in result.stderr
    assert ecgbyte("synth", out, "--seconds", 1).exit_code == 2


@pytest.mark.parametrize("seconds", [5, 6, 30])
def test_other_lengths_and_rates(seconds):
    for record in plan_records(24, seed=6):
        steps, comments = make_record(record, seconds, fs=100, seed=6)
        said = truth(comments)
        assert steps.shape == (100 * seconds, 12)
        assert (float(said["Heart rate"]) > 100) == record["fast"]
        if record["condition"] == "premature ventricular complexes":
            assert 1 <= len(times(said["Premature beats"])) <= 3 * max(1, seconds / 10)
