"""The experiments on real recordings, on few of them and for seconds: every table and chart comes out."""

import csv
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ecgbyte_cli.questions.sources import ptbxl

TABLES = (
    "headline",
    "time",
    "controls",
    "verdicts",
    "elsewhere",
    "shares",
    "tokenizers",
    "predicts",
    "hospitals",
    "places",
)


@pytest.fixture(scope="module")
def evidence(experiment):
    return experiment("evidence")


@pytest.fixture(scope="module")
def part(real_data, tmp_path_factory):
    """PTB-XL's layout with 32 recordings to train, 24 to validate and 24 to test, half of them normal."""
    root = tmp_path_factory.mktemp("part of ptb-xl")
    with open(real_data / "ptbxl" / "ptbxl_database.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames
    kept = []
    for folds, count in ((range(1, 9), 32), ((9,), 24), ((10,), 24)):
        inside = [row for row in rows if int(row["strat_fold"]) in folds]
        for normal in (True, False):
            kept += [row for row in inside if ("'NORM'" in row["scp_codes"]) == normal][: count // 2]
    for row in kept:
        for end in (".hea", ".dat"):
            name = Path(row["filename_hr"] + end)
            (root / name.parent).mkdir(parents=True, exist_ok=True)
            source = real_data / "ptbxl" / name
            if source.exists():
                shutil.copy(source, root / name)
    with open(root / "ptbxl_database.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(kept)
    return root


@pytest.fixture
def ludb(real_data, tmp_path):
    """Seven recordings of LUDB with left ventricular hypertrophy, and seven without."""
    folder, counts = tmp_path / "ludb", Counter()
    folder.mkdir()
    for header in sorted((real_data / "ludb").rglob("*.hea")):
        kind = "Left ventricular hypertrophy" in header.read_text("utf-8")
        counts[kind] += 1
        if counts[kind] <= 7:
            for end in (".hea", ".dat"):
                shutil.copy(header.with_suffix(end), folder)
    return folder


def test_every_table_and_chart_comes_out_and_goes_on(
    part, ludb, real_data, tmp_path, evidence, monkeypatch, capsys
):
    import evidence_rows
    import places_ptbxl

    page, out, results = tmp_path / "evidence.md", tmp_path / "out", tmp_path / "results"
    results.mkdir()
    page.write_text(
        "".join(f"BEFORE\n<!-- {name} -->\nto be replaced\n<!-- /{name} -->\nAFTER\n" for name in TABLES)
    )
    places = [part, "--ludb", ludb, "--challenge", real_data / "cinc2021", "--out", out]
    budgets = ["--results", results, "--seconds", "1", "--shares", "0.5", "--seeds", "0"]

    def run(script, *more):
        monkeypatch.setattr(sys, "argv", list(map(str, [script.__file__, *places, *budgets, *more])))
        script.main()
        return capsys.readouterr().out

    # two steps for each second, so that only one of the tokenizers is timed
    arms = ("tokens", "contrastive", "patches", "classifier")
    speeds = {arm: {"first": 0.25 if arm == "contrastive" else None, "second": 0.5} for arm in arms}
    (results / "evidence_speed.json").write_text(json.dumps(speeds))
    (results / "tradeoff_speed.json").write_text(json.dumps({"paper 26 2000": 0.5}))
    # attribution with the included model takes long, so that only one finding is left to do
    facts = ptbxl.read_ptbxl(part / "ptbxl_database.csv").facts
    finished = [
        {"finding": name, "record": of.record, "covered": 0.0}
        for name in places_ptbxl.PLACES
        for of in facts
        if name != "sttc"
    ]
    (results / "places.jsonl").write_text("".join(json.dumps(row) + "\n" for row in finished))
    whole = results / "evidence.jsonl"
    assert "0 of 8 rows finished; 0.0 of 0.0 hours" in run(evidence_rows, "--rows", "0")
    assert "the same command resumes" in run(evidence_rows, "--hours", "0")  # after one step
    assert not whole.exists() and list((out / "running").iterdir())
    run(evidence_rows, "--rows", "1")
    [first] = whole.read_text().splitlines()
    assert json.loads(first)["arm"] == "tokens" and not list((out / "running").iterdir())

    run(evidence, *("--page", page, "--records", "1", "--tokenizers", "2", "--tokenizer-seconds", "0.5"))
    assert whole.read_text().startswith(first)  # a finished row is not repeated
    text = page.read_text()
    assert "to be replaced" not in text and text.count("AFTER") == len(TABLES)
    assert (tmp_path / "images" / "evidence.png").stat().st_size > 10_000
    assert (tmp_path / "images" / "evidence-places.png").stat().st_size > 10_000
    made = [json.loads(line) for line in whole.open()]
    assert len(made) == 8
    for row in made:
        assert 0 <= row["test"]["auroc"] <= 1 and set(row["test"]["control"]) >= {"no signal", "noise"}
        # without a signal every recording is alike to it
        assert row["test"]["control"]["no signal"] == pytest.approx(0.5, abs=1e-6)


class Steps:
    """A stage of a training: a layer that learns from what its step determines."""

    def __init__(self, seen):
        torch.manual_seed(0)
        self.net, self.seen = torch.nn.Linear(2, 2), seen
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)

    def update(self, step, share):
        self.seen.append((self, step, share))
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 * share
        self.optimizer.zero_grad()
        self.net(torch.full((1, 2), float(step))).square().sum().backward()
        self.optimizer.step()


def test_a_stopped_training_gives_what_it_would_have_given(evidence, tmp_path):
    from evidence_rows import StoppedError, train_stages

    def stages(seen):
        return [Steps(seen), Steps(seen)]

    undisturbed, seen = stages([]), []
    train_stages(undisturbed, [3, 4], tmp_path / "once", float("inf"))
    for _ in range(7):  # each call makes one step, and a killed one begins at the last checkpoint
        with pytest.raises(StoppedError):
            train_stages(resumed := stages(seen), [3, 4], tmp_path / "often", 0.0)
    assert [step for _, step, _ in seen] == [0, 1, 2, 0, 1, 2, 3]
    train_stages(resumed := stages([]), [3, 4], tmp_path / "often", float("inf"))  # scores were interrupted
    assert torch.equal(resumed[1].net.weight, undisturbed[1].net.weight)


def test_the_learning_rate_fits_the_steps(evidence):
    from two_stage import rate

    shares = [rate(step, 1000) for step in range(1000)]
    assert shares[0] == 1 / 20 and shares[20:800] == [1.0] * 780 and shares[-1] == pytest.approx(1 / 200)
    assert shares[800:] == sorted(shares[800:], reverse=True)


def test_a_verdict_follows_from_the_interval_of_every_seed(evidence):
    assert [
        evidence.verdict(low, high, -0.02) for low, high in ((-0.01, 0.1), (-0.03, 0), (-0.2, -0.03))
    ] == [*("shown", "open", "refuted")]

    def seeds(*draws):
        return {seed: {"test": {"auroc": float(np.mean(d)), "draws": d}} for seed, d in enumerate(draws)}

    # the draws are of the same patients, so what they share cancels
    spread = list(np.linspace(0.6, 0.9, 101))
    middle, low, high = evidence.interval(
        seeds([d + 0.01 for d in spread], [d - 0.01 for d in spread]), seeds(spread, spread)
    )
    assert np.allclose([middle, low, high], [0, -0.01, 0.01])
    gains = {s: {"test": {"gain": g, "gain_interval": [g - 0.1, g + 0.1]}} for s, g in enumerate((0.2, 0.3))}
    assert np.allclose(evidence.interval(gains, "test"), [0.25, 0.1, 0.4])


def test_earlier_rows_stand_until_all_new_ones_are_there(evidence, tmp_path):
    from evidence_rows import wanted

    def write(name, keys):
        lines = [json.dumps(key._asdict()) + "\n" for key in keys]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))

    keys, whole = wanted(), [key for key in wanted() if key.share == 1]
    assert len(keys) == 20 and sum(key.seconds for key in keys) == 4 * (600 + 4 * 2400)
    old = [keys[0]._replace(seconds=80.0), keys[0]._replace(share=0.5, seconds=80.0)]
    write("two_stage", old)
    for new, found in ((whole[:-1], (1, 2)), (whole, (len(whole), 2)), (keys, (len(whole), 16))):
        write("evidence", new)
        assert tuple(map(len, evidence.compared(tmp_path))) == found
    (tmp_path / "two_stage.jsonl").unlink()
    write("evidence", keys[:1])
    assert tuple(map(len, evidence.compared(tmp_path))) == (1, 0)


def test_noise_and_strangers_are_told_from_the_signal(evidence):
    import two_stage

    truth = np.array([True] * 6 + [False] * 6)
    odds = {"signal": np.arange(12)[::-1].astype(float), "noise": np.zeros(12)}
    found = two_stage.figures(truth, np.zeros(12, int), np.arange(12).astype(str), odds)
    assert found["auroc"] == 1 and found["control"] == {"noise": 0.5} and found["gain"] == 0.5
    assert found["gain_interval"] == [0.5, 0.5] and set(found["draws"]) == {1.0}
