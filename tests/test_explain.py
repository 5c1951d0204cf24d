"""The places of known causes, and the measures of each method."""

import json
import shutil

import numpy as np
import pytest

from ecgbyte_cli.inference.attribution import METHODS
from ecgbyte_cli.stages import explain

SIGNAL = {"leads": ["II", "V1"], "fs": 100.0, "samples": 1000}
COMMENTS = {
    "Premature beats": "3.000",
    "R peaks": "0.100 2.000 9.900",
    "Raised leads": "V1 V2",
}


def stretches(row):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return edges.reshape(-1, 2).tolist()


def test_true_places():
    beat = explain.true_place("premature ventricular complexes", COMMENTS, SIGNAL, 0.0)
    assert [stretches(row) for row in beat] == [[[288, 340]], [[288, 340]]]
    raised = explain.true_place("anterior ST elevation", COMMENTS, SIGNAL, 0.0)
    assert [stretches(row) for row in raised] == [[], [[15, 40], [205, 230], [995, 1000]]]
    # before the first R peak there is only half of the place; the third segment of a long record
    none = explain.true_place("atrial fibrillation", COMMENTS, SIGNAL, 0.0)
    assert stretches(none[0]) == [[0, 5], [178, 195], [968, 985]]
    later = explain.true_place("premature ventricular complexes", {"Premature beats": "23.5"}, SIGNAL, 20.0)
    assert stretches(later[1]) == [[338, 390]]
    assert not explain.true_place("premature ventricular complexes", COMMENTS, SIGNAL, 20.0).any()


def measures(share, covered, hit, cause="a"):
    curves = [np.linspace(1, 0, len(explain.FRACTIONS))] * 2
    return {
        "share": share,
        "covered": covered,
        "hit": hit,
        "curves": curves,
        "gap": None,
        "seconds": 1.0,
        "cause": cause,
    }


def test_summary_by_hand():
    made = explain.summary([measures(30, 10, 100.0), measures(10, 10, 0.0, "b")], seed=0)
    assert (made["share"], made["times"], made["pointing"]) == (20, 2, 50)
    assert made["interval"] == pytest.approx([1, 3])
    assert made["by_cause"]["a"]["times"] == 3 and made["by_cause"]["b"]["pointing"] == 0
    fractions, values = explain.FRACTIONS, np.linspace(1, 0, len(explain.FRACTIONS))
    assert made["deletion"] == pytest.approx(np.trapezoid(values, fractions))


@pytest.fixture(scope="module")
def measured(small):
    """A work folder in which explain was run on three records, and what it returned."""
    from ecgbyte_cli.inference import attribution
    from ecgbyte_cli.storage.workdir import WorkDir

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attribution, "STEPS", 8)
        return explain.explain(WorkDir(small / "ecgbyte-work"), explain.ExplainOptions(count=3))


def test_every_method_is_measured(measured):
    assert set(measured["methods"]) == {*METHODS, "random"} and measured["records"] == 3
    for method in measured["methods"].values():
        assert 0 <= method["share"] <= 100 and 0 <= method["pointing"] <= 100
        assert 0 <= method["deletion"] <= 1 and 0 <= method["insertion"] <= 1
        # both curves begin and end with the same two signals: whole, and flat
        deleted, inserted = method["curves"]["deletion"], method["curves"]["insertion"]
        assert deleted[0] == pytest.approx(inserted[-1], rel=1e-3)
        assert deleted[-1] == pytest.approx(inserted[0], rel=1e-3)
        assert {cause["records"] for cause in method["by_cause"].values()} == {1}
        assert set(method["by_cause"]) == {"early beat", "ST", "no P"}
    gaps = {name: method.get("gap") for name, method in measured["methods"].items()}
    assert gaps["integrated"]["median"] <= gaps["integrated"]["largest"]
    assert [name for name, gap in gaps.items() if gap] == ["integrated"]
    # chance spreads over what is there: about once the share of the signal
    assert 0.3 < measured["methods"]["random"]["times"] < 2.5
    json.dumps(measured)


def test_the_table_fits_and_a_second_run_reads_it(measured, small, ecgbyte):
    work = small / "ecgbyte-work"
    result = ecgbyte("explain", "--records", 3, work=work)
    assert result.exit_code == 0 and "nothing to do" in result.stderr
    assert all(name in result.stdout for name in [*METHODS, "random", "early beat", "true location"])
    assert max(map(len, result.stdout.splitlines())) <= 110
    text = (work / "explained" / "explain.md").read_text()
    assert text.count("| rollout |") == 1
    assert ecgbyte("explain", "--records", 2, work=work).exit_code == 1
    said = json.loads(ecgbyte("explain", "--records", 3, "--json", work=work).stdout)
    assert said["methods"]["random"]["share"] == measured["methods"]["random"]["share"]


def test_tokens_of_another_segmenter_are_refused(small, tmp_path, ecgbyte):
    work = tmp_path / "work"
    shutil.copytree(small / "ecgbyte-work", work, ignore=shutil.ignore_patterns("explained"))
    assert ecgbyte("encode", "--segmenter", "bpe", "--overwrite", work=work).exit_code == 0
    result = ecgbyte("explain", "--records", 3, work=work)
    assert result.exit_code == 1 and "--segmenter longest" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_real_records_are_refused_in_one_line(small, tmp_path, ecgbyte):
    from ecgbyte_cli.storage.files import read_table, write_table

    work = tmp_path / "work"
    shutil.copytree(small / "ecgbyte-work", work, ignore=shutil.ignore_patterns("explained"))
    shutil.copytree(small / "data", tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.hea"):
        path.write_text("\n".join(line for line in path.read_text().split("\n") if "Source" not in line))
    columns = read_table(work / "symbols" / "segments.parquet")
    columns["path"] = [path.replace(str(small), str(tmp_path)) for path in columns["path"]]
    write_table(work / "symbols" / "segments.parquet", columns)
    result = ecgbyte("explain", "--records", 5, work=work)
    assert result.exit_code == 1 and "ecgbyte synth" in result.stderr
    shutil.rmtree(tmp_path / "data")
    result = ecgbyte("explain", "--records", 5, work=work)
    assert (
        result.exit_code == 1 and "file missing" in result.stderr and str(tmp_path / "data") in result.stderr
    )
    shutil.rmtree(work / "model")
    assert "ecgbyte finetune" in ecgbyte("explain", work=work).stderr
