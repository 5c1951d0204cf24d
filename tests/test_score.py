"""ecgbyte score: answers of any model in every form, matched to questions and scored."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ecgbyte_cli.__main__ import main
from ecgbyte_cli.evaluation import answer_matching, reasoning_benchmark
from ecgbyte_cli.evaluation.answer_files import read_answers
from ecgbyte_cli.evaluation.answer_scores import token_f1_elm
from ecgbyte_cli.evaluation.twins import CONTROLS
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.question_file import Question, read_questions

COUNT = 120
NOISE = np.random.default_rng(0).random((len(CONTROLS), COUNT))


def write(path, *items):
    """A file of items, in the form that its ending says."""
    if path.suffix == ".csv":
        names = list(dict.fromkeys(name for item in items for name in item))
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(items)
    elif path.suffix == ".json":
        path.write_text(
            json.dumps(items[0] if len(items) == 1 and isinstance(items[0], dict) else list(items))
        )
    else:
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def question(number):
    """A question about a recording; two recordings a patient."""
    answer = "yes" if number % 3 == 0 else "no"
    about = {"record": f"r{number}", "patient": f"p{number // 2}", "split": "test", "type": "finding-verify"}
    return {
        **about,
        "question": f"Is there {'AF' if number % 2 else 'MI'}?",
        "answer": answer,
        "finding": "x",
    }


def twin(number, control):
    """The same question about a twin, as `ecgbyte controls` writes it."""
    base = question(number)
    about = {"id": f"{control}-{number}", "control": control, "original": base["record"]}
    return {**base, **about, "record": f"{control}/{base['record']}"}


def said(number, control, share=0.9):
    """The answer of a model that is right about the signal in nine of ten cases, and guesses elsewhere."""
    true = question(number)["answer"]
    reads = control in ("signal", "stretch-flat")
    right = NOISE[CONTROLS.index(control), number] < (share if reads else 0.5)
    return true if right else {"yes": "no", "no": "yes"}[true]


@pytest.fixture
def asked(tmp_path):
    """A question file of `ecgbyte controls`, and the original one."""
    twins = write(tmp_path / "twins.jsonl", *(twin(i, c) for c in CONTROLS for i in range(COUNT)))
    return twins, write(tmp_path / "qa.jsonl", *map(question, range(COUNT)))


def told(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def lines(controls=CONTROLS, **more):
    return [
        {"record": f"{c}/r{i}", "question": question(i)["question"], "answer": said(i, c), **more}
        for c in controls
        for i in range(COUNT)
    ]


def test_a_model_that_reads_gains_and_one_that_guesses_does_not(tmp_path, asked, ecgbyte):
    result = told(ecgbyte("score", write(tmp_path / "a.jsonl", *lines()), "--qa", asked[0], "--json"))
    right = [said(i, "signal") == question(i)["answer"] for i in range(COUNT)]
    assert result["exact_match"] == pytest.approx(100 * np.mean(right))
    assert (result["questions"], result["patients"], result["unanswered"], result["unknown"]) == (
        COUNT,
        60,
        0,
        0,
    )
    assert set(result["gain"]) == {*CONTROLS, "majority"} - {"signal"}
    assert set(result["control"]) == {"flat-line", "noise", "other-patient", "majority"}
    assert set(result["partial"]) == {"leads-shuffled", "stretch-flat"}
    assert all(
        result["gain"][c]["interval"][0] > 0 for c in ("flat-line", "noise", "other-patient", "majority")
    )
    low, high = result["gain"]["stretch-flat"]["interval"]
    assert low < 0 < high  # the model reads a recording with a flat stretch as well
    for control, gain in result["gain"].items():
        there = result["control"].get(control) or result["partial"][control]
        assert gain["difference"] == pytest.approx(result["exact_match"] - there["exact_match"])
    guessing = [
        line | {"answer": said(i % COUNT, CONTROLS[i // COUNT], 0.5)} for i, line in enumerate(lines())
    ]
    other = told(ecgbyte("score", write(tmp_path / "b.jsonl", *guessing), "--qa", asked[0], "--json"))
    for control in ("flat-line", "noise", "other-patient"):
        low, high = other["gain"][control]["interval"]
        assert low < 0 < high


def test_the_same_answers_in_every_way_to_name_a_question(tmp_path, asked, ecgbyte):
    """By the twin's record, by record and control, by id, and by a file for each control."""
    twins, qa = asked
    by_record = write(tmp_path / "record.jsonl", *lines())
    by_control = write(
        tmp_path / "control.csv",
        *(
            {"record": f"r{i}", "control": c, "question": question(i)["question"], "answer": said(i, c)}
            for c in CONTROLS
            for i in range(COUNT)
        ),
    )
    by_path = write(tmp_path / "path.jsonl", *(x | {"record": f"out/wfdb/{x['record']}"} for x in lines()))
    ids = [{"id": f"{c}-{i}", "answer": said(i, c)} for c in CONTROLS for i in range(COUNT)]
    by_id = write(tmp_path / "id.jsonl", *ids)
    pulse = [{"question_id": x["id"], "prompt": "?", "text": x["answer"], "model_id": "m"} for x in ids]
    files = []
    for c in CONTROLS:
        own = [
            {"record": f"r{i}", "question": question(i)["question"], "answer": said(i, c)}
            for i in range(COUNT)
        ]
        files.append(("" if c == "signal" else f"{c}=") + str(write(tmp_path / f"{c}.jsonl", *own)))
    ways = [
        ((by_record,), twins),
        ((by_record,), qa),
        ((by_control,), twins),
        ((by_control,), qa),
        ((by_path,), qa),
        ((by_id,), twins),
        ((write(tmp_path / "pulse.jsonl", *pulse),), twins),
        (files, qa),
    ]
    results = [told(ecgbyte("score", *given, "--qa", questions, "--json")) for given, questions in ways]
    for result in results[1:]:
        for key in ("exact_match", "gain", "by_type", "set_f1", "token_f1_elm"):
            assert result[key] == results[0][key], key
    assert results[6]["forms"] == ["PULSE"]


@pytest.mark.parametrize("newer", [True, False])
def test_elms_files_name_no_recording_so_their_order_does(tmp_path, asked, ecgbyte, newer):
    twins, _ = asked
    pairs = [(said(i, c), question(i)["answer"]) for c in CONTROLS for i in range(COUNT)]
    if newer:
        content = {
            "predictions": [{"prompt": "p", "reference": t, "hypothesis": a} for a, t in pairs],
            "fold": 1,
        }
        path = write(tmp_path / "fold_1_seed_0.json", content)
    else:
        path = write(
            tmp_path / "x_examples.json",
            *({"prompt": "p", "predicted": a, "ground_truth": t} for a, t in pairs),
        )
    result = told(ecgbyte("score", path, "--qa", twins, "--json"))
    same = told(ecgbyte("score", write(tmp_path / "a.jsonl", *lines()), "--qa", twins, "--json"))
    assert result["forms"] == ["ELM"] and result["gain"] == same["gain"]
    short = write(
        tmp_path / "s.json", *({"prompt": "p", "predicted": a, "ground_truth": t} for a, t in pairs[1:])
    )
    failed = ecgbyte("score", short, "--qa", twins)
    assert failed.exit_code == 1 and "order" in failed.stderr
    pairs[0] = (pairs[0][0], "no" if pairs[0][1] == "yes" else "yes")
    other = write(
        tmp_path / "o.json", *({"prompt": "p", "predicted": a, "ground_truth": t} for a, t in pairs)
    )
    failed = ecgbyte("score", other, "--qa", twins)
    assert failed.exit_code == 1 and "item 1 has the true answer" in failed.stderr


def test_a_folder_of_ecg_qas_texts(tmp_path, ecgbyte):
    items = [
        {
            "ecg_id": [12],
            "question": "Which noise?",
            "answer": ["burst noise", "drift"],
            "question_type": "single-query",
        },
        {
            "ecg_id": [12, 13],
            "question": "Is it longer?",
            "answer": ["yes"],
            "question_type": "comparison-verify",
        },
    ]
    qa = write(tmp_path / "q.json", *items)
    folder = tmp_path / "test"
    folder.mkdir()
    for number, (ids, question_text, answer) in enumerate(
        (("12, None", "Which noise?", "{'drift', 'burst noise'}"), ("12, 13", "Is it longer?", "set()"))
    ):
        (folder / f"{number}.txt").write_text(
            f"ECG IDs: {ids}\n\nInterpretation of the ECG:\nx: 0.9\n\n\nQuestion: {question_text}\nOptions: a, b\n\n"
            "Only answer based on the given Options without any explanation.\n"
            f"Answer: {answer}\n\nGT: {{'a'}}\n\nScore: 0\n"
        )
    result = told(ecgbyte("score", folder, "--qa", qa, "--json"))
    assert result["by_type"] == {"comparison-verify": 0.0, "single-query": 100.0}
    (folder / "0.txt").write_text("ECG IDs: 12, None\nQuestion: Q?\nOptions: a\nAnswer: [1]\n\nGT: x\n")
    failed = ecgbyte("score", folder, "--qa", qa)
    assert failed.exit_code == 1 and "0.txt is no answer of ECG-QA" in failed.stderr


def test_probabilities_become_p_yes_and_give_an_auroc(tmp_path, asked, ecgbyte):
    given = [
        x | {"probability": 0.5 + 0.4 * float(n)} for x, n in zip(lines(), NOISE.reshape(-1), strict=True)
    ]
    result = told(ecgbyte("score", write(tmp_path / "a.jsonl", *given), "--qa", asked[0], "--json"))
    own = given[:COUNT]
    yes = np.array([x["probability"] if x["answer"] == "yes" else 1 - x["probability"] for x in own])
    truth = np.array([question(i)["answer"] == "yes" for i in range(COUNT)])
    pairs = yes[truth][:, None] - yes[~truth]
    assert result["mean_auroc"] == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
    gain = result["gain"]["noise"]
    assert gain["auroc_interval"][0] < gain["auroc"] < gain["auroc_interval"][1] and gain["auroc"] > 0
    assert "auroc" not in result["gain"]["majority"]


def test_the_answers_of_generate_are_scored_as_generate_scores_them(tmp_path, asked, ecgbyte):
    own = [
        {
            **{
                "record": f"r{i}",
                "question": question(i)["question"],
                "answer": said(i, "signal"),
                "p_yes": 0.5,
            },
            "control": {"flat line": said(i, "flat-line"), "noise": said(i, "noise"), "majority": "no"},
        }
        for i in range(COUNT)
    ]
    result = told(ecgbyte("score", write(tmp_path / "a.jsonl", *own), "--qa", asked[1], "--json"))
    assert (
        set(result["control"]) == {"flat-line", "noise", "majority"} and result["majority_by"] == "the file"
    )
    whole = told(ecgbyte("score", write(tmp_path / "b.jsonl", *lines()), "--qa", asked[1], "--json"))
    assert result["gain"]["noise"] == whole["gain"]["noise"]


def test_what_is_missing_is_counted_and_what_is_wrong_is_refused(tmp_path, asked, ecgbyte):
    twins, _ = asked
    some = [x for i, x in enumerate(lines()) if i not in (0, COUNT + 5)]
    stranger = {"record": "signal/r9999", "question": "Is there AF?", "answer": "yes"}
    result = ecgbyte("score", write(tmp_path / "a.jsonl", *some, stranger), "--qa", twins, "--json")
    values = told(result)
    assert (values["unanswered"], values["incomplete"], values["unknown"]) == (1, 1, 1)
    assert values["questions"] == COUNT - 2 and "r9999" not in result.stdout
    assert "a.jsonl, line" in result.stderr and "ignored" in result.stderr
    wrong = {
        "twice": [*lines(("signal",)), lines(("signal",))[0]],
        "chance": [lines(("signal",), p_yes=1.5)[0]],
        "form": [{"hello": 1}],
        "none": [stranger],
        "only": lines(("noise",)),
    }
    says = {
        "twice": "second answer",
        "chance": "is no probability",
        "form": "line 1 is no answer in a known form",
        "none": "no answer is about a question",
        "only": "only about twins (noise)",
    }
    for name, items in wrong.items():
        failed = ecgbyte("score", write(tmp_path / f"{name}.jsonl", *items), "--qa", twins)
        assert failed.exit_code == 1 and says[name] in failed.stderr, failed.stderr
    for name, text in (("deep", "[" * 100_000), ("bad", "{"), ("binary", "\0")):
        (tmp_path / f"{name}.json").write_text(text)
        failed = ecgbyte("score", tmp_path / f"{name}.json", "--qa", twins)
        assert failed.exit_code == 1 and f"{name}.json is not valid JSON" in failed.stderr
    assert ecgbyte("score", tmp_path / "missing.jsonl", "--qa", twins).exit_code == 1


def test_answers_that_cannot_be_read_are_named(tmp_path, asked, ecgbyte):
    twins, _ = asked
    (tmp_path / "mark.jsonl").write_text("\ufeff" + "".join(json.dumps(x) + "\n" for x in lines()))
    plain = told(ecgbyte("score", write(tmp_path / "a.jsonl", *lines()), "--qa", twins, "--json"))
    marked = told(ecgbyte("score", tmp_path / "mark.jsonl", "--qa", twins, "--json"))
    assert plain["exact_match"] == marked["exact_match"] and plain["unclear"] == 0
    own, *others = lines()
    for name, changed, says in (
        ("null", {"answer": None}, "null is not text"),
        ("true", {"answer": True}, "true is not text"),
        ("percent", {"p_yes": "95%"}, "95% is no probability from 0 to 1"),
        ("bool", {"p_yes": True}, "True is no probability"),
    ):
        failed = ecgbyte("score", write(tmp_path / f"{name}.jsonl", own | changed, *others), "--qa", twins)
        assert failed.exit_code == 1 and says in failed.stderr, failed.stderr
    wordy = [x | {"answer": f"The answer is {x['answer']}."} for x in lines()]
    result = ecgbyte("score", write(tmp_path / "wordy.jsonl", *wordy), "--qa", twins, "--json")
    assert told(result)["unclear"] == len(wordy) and told(result)["exact_match"] == 0
    assert f"{len(wordy)} answers to yes/no questions begin with neither yes nor no" in result.stderr


def test_not_sure_is_a_true_answer_of_ecg_qa(tmp_path, ecgbyte):
    about = {"record": "r", "patient": "p", "split": "test", "type": "single-verify"}
    some = [{**about, "question": q, "answer": a} for q, a in (("Is it A?", "not sure"), ("Is it B?", "yes"))]
    qa = write(tmp_path / "qa.jsonl", *some)
    values = told(ecgbyte("score", write(tmp_path / "a.jsonl", *some), "--qa", qa, "--json"))
    assert values["unclear"] == 0 and values["exact_match"] == 100


def test_a_misspelt_twin_is_named(tmp_path, asked, ecgbyte):
    own = write(tmp_path / "own.jsonl", *({**question(i), "control": ""} for i in range(COUNT)))
    for name, known in (("noise", True), ("nois", False)):
        result = ecgbyte("score", own, f"{name}={own}", "--qa", asked[0])
        assert result.exit_code == 0, result.stderr
        assert ("not a twin from `ecgbyte controls`" in result.stderr) != known


def test_the_table_names_each_gain(tmp_path, asked, ecgbyte):
    result = ecgbyte("score", write(tmp_path / "a.jsonl", *lines()), "--qa", asked[0])
    assert "gain over other-patient" in result.stdout and "as ELM counts it" in result.stdout
    alone = ecgbyte("score", write(tmp_path / "b.jsonl", *lines(("signal",))), "--qa", asked[0])
    assert "ecgbyte controls" in alone.stdout


def test_answers_in_free_words():
    verify = Question("r", "Is there AF?", "yes", "q", None)
    letter = Question("r", "Which?\nA. x\nB. y", "B", "q", None)
    query = Question("r", "Which?", "atrial fibrillation", "q", None)
    read = answer_matching.read_answer
    assert [read(a, verify) for a in ("Yes, there is.", "**No**", "<think>yes</think>no", "Perhaps")] == [
        *("yes", "no", "no", "Perhaps")
    ]
    assert [read(a, letter) for a in ("B. y", "The correct option is B.", "Answer: B", "By and by")] == [
        *("B", "B", "B", "By and by")
    ]
    assert read("<think>a</think><answer> Yes, AF </answer>", query) == "Yes, AF"


def test_elms_f1_counts_words():
    assert token_f1_elm(["no atrial fibrillation"], ["Atrial fibrillation."]) == pytest.approx(80)
    assert token_f1_elm(["a a b", "", ""], ["a b b", "", "x"]) == pytest.approx((200 / 3 + 100) / 3)


def step(kind, answer, response, question_text="Q?"):
    return {
        "question": question_text,
        "options": [],
        "answer": answer,
        "question_type": kind,
        "model_response": response,
    }


def sample(number, wrong=(), loops=2, dx="anterior_ischemia", question_text="Q?"):
    """A sample of two loops, with the responses to the steps of these numbers wrong."""
    counter = iter(range(100))

    def one(kind, answer, bad="x"):
        right = answer if isinstance(answer, str) else ", ".join(answer)
        return step(kind, answer, bad if next(counter) in wrong else right, question_text)

    initial = one("initial_diagnostic_question", "Yes", "No")
    reasoning = []
    for loop in range(loops):
        last = loop == loops - 1
        steps = {
            "criterion_selection": one("criterion_selection", "Absence of left bundle branch block"),
            "finding_identification": one("finding_identification", "Yes", "No"),
            "ecg_grounding": [],
        }
        if last:
            steps["ecg_grounding"] = [
                one("lead_grounding", ["Lead V1", "Lead V2"]),
                one("wave_grounding", ["[1.0s - 1.2s]"]),
            ]
        decision = "Yes" if last else "Further findings are required to confirm the diagnosis"
        reasoning.append(steps | {"diagnostic_decision": one("diagnostic_decision", decision, "No")})
    about = {
        "id": number,
        "data_source": "ptbxl",
        "ecg_id": str(number),
        "target_dx": dx,
        "dx_label": True,
        "path_idx": 0,
    }
    return {"metadata": about, "data": {"initial_diagnostic_question": initial, "reasoning": reasoning}}


def test_completion_and_depth_of_samples():
    judge = reasoning_benchmark.judge
    # steps: 0 first diagnosis; 1 to 3 first loop; 4, 5 criterion and finding, 6, 7 grounding, 8 decision
    assert judge(sample(0))[2:] == (True, True, [4.0], True)
    assert judge(sample(0, (0,)))[0] is False and judge(sample(0, (0,))).hard  # no step of the reasoning
    assert judge(sample(0, (3,)))[2:] == (False, True, [4.0], True)  # a decision that comes too early
    assert judge(sample(0, (7,)))[2:] == (False, False, [2.5], True)
    assert judge(sample(0, (6,))).depths == [2.0] and judge(sample(0, (4,))).depths == [0.0]
    assert judge(sample(0, (8,)))[2:] == (False, False, [3.0], False)
    assert judge(sample(0, (2, 8)))[2:4] == (False, False)


@pytest.mark.parametrize(
    ("kind", "true", "said", "right"),
    [
        ("finding_identification", ["Yes"], "**Yes**, it does", True),
        ("finding_identification", ["No"], "The answer is no.", True),
        (
            "diagnostic_decision",
            [reasoning_benchmark.FURTHER],
            "Further findings are required to confirm the diagnosis.",
            True,
        ),
        ("criterion_selection", ["A rule"], "- a rule", True),
        ("criterion_selection", ["A rule"], "the rule", False),
        ("lead_grounding", ["Lead V1", "Lead aVL"], "Leads V1 and aVL show it", True),
        ("lead_grounding", ["Lead V1", "Lead II"], "II; V1", True),
        ("lead_grounding", ["Lead V1"], "Lead V1, Lead V2", False),
        ("measurement_grounding", ["[230ms - 240ms]"], "230ms - 240ms", True),
        ("measurement_grounding", ["[230ms - 240ms]"], "[240ms - 250ms]", False),
        ("measurement_grounding", ["Above 240ms"], "above 240ms", True),
        ("wave_grounding", ["[1.0s - 1.2s]"], " [1.0S - 1.2s]", True),
    ],
)
def test_responses_are_judged_like_the_heuristic_evaluator(kind, true, said, right):
    assert reasoning_benchmark.RIGHT[kind](true, said) is right


def test_results_of_ecg_reasoning_benchmark(tmp_path, ecgbyte):
    """A folder of files for the recordings, and one for a twin, against the samples of a release."""
    bare = [sample(i) for i in range(8)]
    data = write(tmp_path / "ptbxl.jsonl", *bare)
    for folder, wrong in (("signal", lambda i: (3,) if i % 2 else ()), ("noise", lambda i: (5,))):
        place = tmp_path / folder / "anterior_ischemia"
        place.mkdir(parents=True)
        for i in range(8):
            write(place / f"{i}.json", sample(i, wrong(i)))
    result = ecgbyte("score", tmp_path / "signal", f"noise={tmp_path / 'noise'}", "--qa", data, "--json")
    values = told(result)
    assert (values["completion_hard"], values["completion_soft"], values["depth"]) == (50.0, 100.0, 4.0)
    assert values["control"]["noise"]["completion_soft"] == 0 and values["control"]["noise"]["depth"] == 1.0
    assert values["gain"]["noise"]["depth"] == {"difference": 3.0, "interval": [3.0, 3.0]}
    assert values["gain"]["noise"]["completion_soft"]["interval"] == [100.0, 100.0]
    assert values["by_step"]["diagnostic_decision"] == 75 and values["release"] == "unknown"
    shown = ecgbyte("score", tmp_path / "signal", "--qa", data).stdout
    assert "release unknown" in shown and "depth" in shown
    another = write(tmp_path / "other.jsonl", *(sample(i, question_text="Other?") for i in range(8)))
    failed = ecgbyte("score", tmp_path / "signal", "--qa", another)
    assert failed.exit_code == 1 and "another release" in failed.stderr
    forced = sample(0)
    del forced["data"]["reasoning"][0]["criterion_selection"]["model_response"]
    failed = ecgbyte("score", write(tmp_path / "f.jsonl", forced), "--qa", data)
    assert failed.exit_code == 1 and "forced-commit" in failed.stderr
    mixed = ecgbyte("score", data, write(tmp_path / "m.jsonl", *lines()), "--qa", data)
    assert mixed.exit_code == 1 and "scored separately" in mixed.stderr


def test_the_release_shows_in_the_questions():
    old = sample(0, dx="left_anterior_fascicular_block", question_text="which of the following criteria?")
    new = sample(
        0, dx="left_anterior_fascicular_block", question_text="which … must be ruled out before diagnosis?"
    )
    assert [reasoning_benchmark.release_of([x]) for x in (old, new, sample(0))] == [
        "0.0.1",
        "0.0.2",
        "unknown",
    ]


def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    """In a folder with the files that a model would have written."""
    page = (Path(__file__).parents[1] / "docs" / "controls.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ {4}ecgbyte (.*)$", page, re.MULTILINE)
    assert len(commands) == 5 and len(page.split()) < 900
    monkeypatch.chdir(tmp_path)
    for command in commands:
        if command.startswith("score"):
            asked = [json.loads(line) for line in open("controls/questions-wfdb.jsonl", encoding="utf-8")]
            write(Path("answers.jsonl"), *({"id": q["id"], "answer": "no"} for q in asked))
            own = [q for q in asked if q["control"] == "signal"]
            for name in ("signal", "noise", "flat"):
                rows = ({"record": q["original"], "question": q["question"], "answer": "no"} for q in own)
                write(Path(f"{name}.csv"), *rows)
            write(Path("ptbxl.jsonl"), sample(0), sample(1))
            for folder in ("results", "results-noise"):
                Path(folder).mkdir(exist_ok=True)
                for number in range(2):
                    write(Path(folder, f"{number}.json"), sample(number))
        result = CliRunner().invoke(main, [*shlex.split(command), "--json"])
        assert result.exit_code == 0, (command, result.stderr)
        assert json.loads(result.stdout)


def test_the_check_of_the_page_is_what_was_measured():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "controls.md").read_text(encoding="utf-8")
    results = json.loads((root / "examples" / "experiments" / "results" / "controls.json").read_text())
    for of in results.values():
        low, high = of["difference_interval"]
        row = f"| {of['exact_match']:.1f} | {of['difference']:+.1f} ({low:+.1f} to {high:+.1f}) |"
        assert row in page
    gains = {name: of["difference_interval"] for name, of in results.items()}
    assert gains["cnn"][0] > 0
    assert all(gains[name][0] <= 0 <= gains[name][1] for name in ("shuffled", "majority"))


def test_a_file_without_answers_is_refused(tmp_path):
    with pytest.raises(Failure, match="no answers"):
        read_answers(write(tmp_path / "a.jsonl"))
    assert read_questions(write(tmp_path / "q.jsonl", question(0)))[0].patient == "p0"
