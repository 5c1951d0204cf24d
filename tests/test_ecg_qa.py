"""The script for ECG-QA: each question keeps or gets its side of the split, and no patient is on two."""

import csv
import json

import pytest


@pytest.fixture
def ecg_qa(experiment):
    return experiment("ecg_qa")


def write(folder, name, *kinds):
    """Write items: (type, kind of attribute, ECGs)."""
    keys = ("question_type", "attribute_type", "ecg_id")
    items = [dict(zip(keys, kind, strict=True)) | {"question": "?", "answer": ["no"]} for kind in kinds]
    (folder / f"template-{name}.json").write_text(json.dumps(items))


def test_noise_is_held_out_by_fold_where_ecg_qa_has_no_test_items(ecg_qa, tmp_path):
    with open(tmp_path / "ptbxl_database.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ecg_id", "patient_id", "strat_fold"])
        rows.writerows([number, f"p{number}", fold] for number, fold in enumerate([1, 9, 10, 10, 1, 10]))
    noise, numbers = ("single-verify", "noise"), ("comparison_irrelevant-query", "numeric_feature")
    write(
        *(tmp_path, "train", *((*noise, [number]) for number in range(4)), (*numbers, [0, 3])),
        ("single-verify", "scp_code", [0]),
    )
    write(tmp_path, "valid", (*numbers, [4, 4]))
    write(tmp_path, "test", (*numbers, [5, 5]))
    out = tmp_path / "asked.jsonl"
    counts = ecg_qa.convert(tmp_path, tmp_path, out)
    sides = {(line["question_type"], *line["ecg_id"]): line["split"] for line in map(json.loads, out.open())}
    # the patient of ECG 3 is in a comparison of training, so the question about its noise is left out
    assert sides == {
        **{(noise[0], 0): "train", (noise[0], 1): "val", (noise[0], 2): "test"},
        **{(numbers[0], 0, 3): "train", (numbers[0], 4, 4): "val", (numbers[0], 5, 5): "test"},
    }
    assert sum(counts.values()) == 6

    write(tmp_path, "test", (*noise, [5]))  # then its own split stands
    ecg_qa.convert(tmp_path, tmp_path, out)
    assert {line["split"] for line in map(json.loads, out.open()) if line["question_type"] == noise[0]} == {
        *("train", "test")
    }


def test_another_folder_is_named(ecg_qa, tmp_path):
    with pytest.raises(SystemExit, match="holds neither template-train.json nor"):
        ecg_qa.items(tmp_path)
