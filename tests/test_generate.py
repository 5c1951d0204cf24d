"""Answers and scores over a split."""

import json
import shutil

import numpy as np

from ecgbyte_cli.stages import generate


def test_shuffled_signals_come_from_other_patients():
    patients = ["a", "a", "b", "c", "c"]
    drawn = generate.others(patients, [0, 1, 2, 3, 4], seed=0)
    assert all(patients[i] != patients[d] for i, d in enumerate(drawn))
    assert drawn == generate.others(patients, [0, 1, 2, 3, 4], seed=0)
    assert generate.others(["a"], [7], 0) == [7]


def test_answers_are_written_with_their_controls(small):
    folder = small / "ecgbyte-work" / "answers"
    result = json.loads((folder / "metrics.json").read_text())["result"]
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == result["questions"] == 6
    right = [line["answer"].strip().casefold() == line["truth"].casefold() for line in lines]
    assert result["exact_match"] == 100 * np.mean(right)
    assert set(result["control"]) == set(lines[0]["control"]) == {"no signal", "shuffled"}


def test_the_json_keys_and_the_table(small, ecgbyte):
    result = ecgbyte("generate", "--limit", 6, "--max-new", 8, "--json", work=small / "ecgbyte-work")
    assert {"questions", "exact_match", "by_type", "control", "bleu", "rouge_l"} <= set(
        json.loads(result.stdout)
    )
    text = ecgbyte("generate", "--limit", 6, "--max-new", 8, work=small / "ecgbyte-work").stdout
    assert "no signal" in text and "shuffled" in text and "all" in text


def test_an_empty_split_and_a_missing_model_are_one_line(small, tmp_path, ecgbyte):
    work = tmp_path / "work"
    shutil.copytree(small / "ecgbyte-work", work)
    (tmp_path / "qa.jsonl").write_text('{"record": "nobody", "question": "q", "answer": "a"}')
    result = ecgbyte("generate", "--qa", tmp_path / "qa.jsonl", "--overwrite", work=work)
    assert result.exit_code == 1 and "no question of split test" in result.stderr
    shutil.rmtree(work / "model")
    result = ecgbyte("generate", work=work)
    assert result.exit_code == 1 and "ecgbyte finetune" in result.stderr


def test_tokens_of_another_tokenizer_are_refused(small, tmp_path, ecgbyte):
    work = tmp_path / "work"
    shutil.copytree(small / "ecgbyte-work", work)
    assert ecgbyte("learn", "--vocab", 100, "--overwrite", "encode", "--overwrite", work=work).exit_code == 0
    result = ecgbyte("generate", "--overwrite", work=work)
    assert result.exit_code == 1 and "another tokenizer" in result.stderr
