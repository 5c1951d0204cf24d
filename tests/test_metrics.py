"""Scores against values computed by hand, and against the libraries' own examples."""

import json
import re

import numpy as np
import pytest

from ecgbyte_cli.evaluation import metrics, report, text_scores
from ecgbyte_cli.questions import Question


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("yes", "Yes", True),
        (" sinus  rhythm. ", "sinus rhythm", True),
        ("sinus", "sinus rhythm", False),
        ("", "no", False),
        ("", "", True),
        # ECG-QA's lists have no order
        ("lead V1, lead I", "lead I, lead V1", True),
        ("lead I; lead V1.", "lead V1, lead I", True),
        ("lead I", "lead I, lead V1", False),
        ("lead I, lead V1, lead V2", "lead I, lead V1", False),
    ],
)
def test_exact(answer, truth, same):
    assert metrics.exact_match(answer, truth) is same


@pytest.mark.parametrize(
    ("answer", "truth", "f1"),
    [
        ("a, b", "b, a", 1),
        ("a, b", "b, c", 1 / 2),  # precision 1/2, recall 1/2
        ("a", "a, b, c", 1 / 2),  # precision 1, recall 1/3
        ("a, b, c, d", "a", 2 / 5),  # precision 1/4, recall 1
        ("d", "a", 0),
        ("", "a", 0),
    ],
)
def test_f1_of_sets(answer, truth, f1):
    assert metrics.set_f1(answer, truth) == pytest.approx(f1)


def test_answer_sets():
    assert metrics.candidate_answers("single-verify", "not sure") == "verify"
    assert metrics.candidate_answers("comparison_consecutive-query", "none") == "query"
    assert metrics.candidate_answers("single-choose", "both") == "choose"
    assert metrics.candidate_answers("rate", "No") == "verify"
    assert metrics.candidate_answers("rhythm", "sinus rhythm") == "query"


def test_the_majority_answer_is_the_most_frequent_of_its_type():
    truths = ["yes", "no", "NO", "b, a", "a, b", "c"]
    types = ["v", "v", "v", "q", "q", "q"]
    assert metrics.majority_answers(truths, types) == {"v": "no", "q": "b, a"}


COMMA = "bigeminal pattern (unknown origin, supraventricular, or ventricular)"


@pytest.mark.parametrize(
    ("answer", "f1", "exact"),
    [
        (f"{COMMA}; atrial flutter", 1, True),
        (f"Atrial flutter,  {COMMA}.", 1, True),
        (COMMA, 2 / 3, False),
        ("atrial flutter", 2 / 3, False),
        (f"{COMMA}; atrial flutter; none", 4 / 5, False),
        ("bigeminal pattern; atrial flutter", 1 / 2, False),
    ],
)
def test_a_label_with_commas_is_one_label(answer, f1, exact):
    truth = (COMMA, "atrial flutter")
    result = metrics.score({"signal": [answer]}, [truth], ["t"], ["p"])
    assert result["set_f1"] == pytest.approx(100 * f1) and result["exact_match"] == 100 * exact
    assert COMMA in result["labels"].get("t", {"f1": {COMMA: 0}})["f1"]


def test_scores_by_attribute():
    given = {"signal": ["yes", "no", "x", "y"], "majority": ["no"] * 4}
    attributes = ["noise", "noise", "scp_code", None]
    result = metrics.score(given, ["yes", "yes", "x", "y"], ["t"] * 4, list("abcd"), 0, attributes)
    assert result["by_attribute"] == {"noise": 50, "scp_code": 100}
    assert result["control"]["majority"]["by_attribute"] == {"noise": 0, "scp_code": 0}
    assert "noise 50.0, scp_code 100.0" in report.metrics_markdown(result, "Scores")
    assert metrics.score(given, ["yes", "yes", "x", "y"], ["t"] * 4, list("abcd"))["by_attribute"] == {}


def asked(question, answer, kind="question"):
    return Question("r", question, answer, kind, None)


def test_the_guess_is_by_type_or_by_words_whichever_is_better():
    training = [asked("Rate?", "slow"), asked("Rate?", "slow"), asked("Rhythm?", "sinus")]
    # without types, each question's words have a guess of their own
    given, by = metrics.baseline_guesses(training, [asked("Rate?", "slow"), asked("Rhythm?", "sinus")])
    assert (given, by) == (["slow", "sinus"], "question")
    # words that training does not have are guessed by their type, not by what is asked
    given, by = metrics.baseline_guesses(training, [asked("New?", "never seen"), asked("Rhythm?", "sinus")])
    assert (given, by) == (["slow", "sinus"], "question")
    training = [asked(f"{k}?", "no", "v") for k in range(3)] + [asked("4?", "yes", "v")]
    given, by = metrics.baseline_guesses(training, [asked("4?", "no", "v"), asked("5?", "no", "v")])
    assert (given, by) == (["no", "no"], "type")
    # a type that training does not have
    assert metrics.baseline_guesses([], [asked("a?", "x", "new"), asked("b?", "x", "new")])[0] == ["x", "x"]


# two patients with the signal right on 3 of 4 questions, and two controls right on 1 and on 2
TRUTHS, TYPES, PATIENTS = ["a", "x", "c", "d"], ["t", "t", "t", "u"], ["p", "p", "q", "q"]
ANSWERS = {
    "signal": ["a", "b", "c", "d"],
    "no signal": ["a", "b", "b", "b"],
    "shuffled": ["a", "x", "b", "b"],
}


def test_scores_and_differences_by_hand():
    result = metrics.score(ANSWERS, TRUTHS, TYPES, PATIENTS)
    assert result["questions"] == 4 and result["patients"] == 2
    assert result["exact_match"] == 75
    assert result["by_type"] == {"t": pytest.approx(200 / 3), "u": 100}
    assert result["control"]["no signal"]["exact_match"] == 25
    assert result["control"]["shuffled"]["by_type"] == {"t": pytest.approx(200 / 3), "u": 0}
    assert (result["best_control"], result["difference"]) == ("shuffled", 25)
    assert result["difference_by_type"] == {"t": pytest.approx(0), "u": 100}
    # drawn: p twice (50 against 100), p and q (75 against 50), q twice (100 against 0)
    assert result["interval"] == [50, 100] and result["difference_interval"] == [-50, 100]
    json.dumps(result)


def test_the_interval_is_that_of_patients_drawn_one_by_one():
    random = np.random.default_rng(1)
    patients = [f"p{i}" for i in random.integers(0, 30, 200)]
    right = (random.random(200) < 0.7).astype(float)
    drawn = metrics.bootstrap({"signal": right}, patients, seed=2)["signal"]
    names, slow = sorted(set(patients)), []
    at = {name: np.flatnonzero(np.array(patients) == name) for name in names}
    for _ in range(2000):
        slow.append(100 * right[np.concatenate([at[n] for n in random.choice(names, len(names))])].mean())
    assert np.mean(drawn) == pytest.approx(np.mean(slow), abs=0.4)
    assert np.std(drawn) == pytest.approx(np.std(slow), rel=0.1)
    assert np.percentile(drawn, [2.5, 97.5]) == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=1.2)


def test_equal_patients_leave_no_doubt_and_fewer_patients_leave_more():
    same = metrics.bootstrap({"a": np.ones(6)}, list("aabbcc"))["a"]
    assert np.all(same == 100)
    right = np.arange(400) % 2 == 0
    many = metrics.bootstrap({"a": right}, [str(i) for i in range(400)])["a"]
    few = metrics.bootstrap({"a": right}, [str(i % 2) + str(i // 40) for i in range(400)])["a"]
    assert few.std() > 2 * many.std()


def test_f1_per_label_by_hand():
    truths = ["a", "a", "b", "b, a", "c", "c"]
    answers = ["a", "b", "b", "b", "d", "c"]
    scores = metrics.label_scores(answers, truths, ["t"] * 6)["t"]
    only_a = {"f1": 50, "precision": 100, "recall": 100 / 3, "support": 3}
    assert scores["f1"]["a"] == pytest.approx(only_a)
    # b: 3 given, 2 of them right, of 2
    assert scores["f1"]["b"]["f1"] == pytest.approx(80) and scores["f1"]["c"]["f1"] == pytest.approx(200 / 3)
    assert scores["macro_f1"] == pytest.approx((50 + 80 + 200 / 3) / 3)


def test_free_text_has_no_scores_per_label():
    truths = [f"report number {i}" for i in range(20)]
    assert metrics.label_scores(truths, truths, ["report"] * 20) == {}


def test_overlap():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    same = text_scores.text_scores(["the heart beats in sinus rhythm"], ["the heart beats in sinus rhythm"])
    assert same["bleu"] == pytest.approx(100) and same["rouge_l"] == pytest.approx(100)
    # "a b" and "a c": longest common subsequence 1 of 2 words each, F1 one half
    assert text_scores.text_scores(["a b"], ["a c"])["rouge_l"] == pytest.approx(50)
    # five words of six: precisions 5/6, 3/5, 1/4 and 0 of 3 (smoothed: 1/2 of it), no brevity penalty
    bleu = text_scores.text_scores(["the cat sat on the mat"], ["the cat is on the mat"])["bleu"]
    assert bleu == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)


def test_bleu_as_the_reference_has_it():
    pytest.importorskip("nltk")
    # one word of one, and no longer pieces, which count 0.1 each: (1 * 0.1^3) ^ (1/4)
    assert text_scores.bleu_nltk(["yes"], ["yes"]) == pytest.approx(100 * 0.001**0.25)
    # words are what white space parts; empty answers are left out, as there
    same = "the heart beats, in sinus-rhythm"
    assert text_scores.bleu_nltk([same, "", "x"], [same, "lost", ""]) == pytest.approx(100)
    assert text_scores.bleu_nltk(["a, b"], ["a , b"]) < 20 and text_scores.bleu_nltk([""], ["a"]) == 0
    # of the corpus: pieces matched of all answers over pieces of all answers, the words in 3 of 4 places
    mixed = text_scores.bleu_nltk(["a b", "c d"], ["a b", "c e"])
    assert mixed == pytest.approx(100 * (3 / 4 * 1 / 2 * 0.1 / 2 * 0.1 / 2) ** 0.25)
    both = text_scores.text_scores([same], [same])
    if both["bleu"] is not None:
        text = report.text_score_line({"labels": {}, "set_f1": 100, **both})
        assert "BLEU-4 (sacrebleu) 100.0" in text and "BLEU-4 (nltk) 100.0" in text


def test_overlap_agrees_with_the_libraries_own_examples():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    # rouge-score's README: precision 1/2... of "the quick brown dog jumps on the log."
    scores = text_scores.text_scores(
        ["the quick brown dog jumps on the log."], ["The quick brown fox jumps over the lazy dog"]
    )
    lcs, given, true = 5, 8, 9  # the quick brown jumps the
    assert scores["rouge_l"] == pytest.approx(100 * 2 * lcs / (given + true))
    # sacrebleu's README, with its first reference alone
    system = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    truths = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    import sacrebleu

    assert text_scores.text_scores(system, truths)["bleu"] == pytest.approx(
        sacrebleu.BLEU().corpus_score(system, [truths]).score
    )


class NoSynonyms:
    """A stand-in for nltk's wordnet data, which is not installed everywhere."""

    def ensure_loaded(self):
        pass

    def synsets(self, word):
        return []


def test_meteor_by_hand(monkeypatch):
    pytest.importorskip("nltk")
    import nltk.corpus
    from nltk.translate import meteor_score

    score = meteor_score.single_meteor_score
    stand_in = NoSynonyms()
    monkeypatch.setattr(nltk.corpus, "wordnet", stand_in)
    monkeypatch.setattr(meteor_score, "single_meteor_score", lambda *args: score(*args, wordnet=stand_in))
    # "the cat sat" in "the cat sat here": precision 1, recall 3/4, one chunk of three matches
    mean = 10 * 1 * 0.75 / (0.75 + 9 * 1)
    value = text_scores.text_scores(["the cat sat"], ["the cat sat here"])["meteor"]
    assert value == pytest.approx(100 * mean * (1 - 0.5 * (1 / 3) ** 3))


def test_meteor_is_left_out_without_its_data(monkeypatch):
    pytest.importorskip("nltk")
    import nltk.corpus

    class Absent:
        def ensure_loaded(self):
            raise LookupError("wordnet")

    monkeypatch.setattr(nltk.corpus, "wordnet", Absent())
    scores = text_scores.text_scores(["a"], ["a"])
    assert scores["meteor"] is None and "nltk.downloader wordnet" in scores["meteor_missing"]
    assert "no METEOR (nltk has no wordnet" in report.text_score_line({"labels": {}, "set_f1": 100, **scores})


def test_bertscore_of_a_local_model(tmp_path):
    pytest.importorskip("bert_score")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "sinus", "rhythm"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(tmp_path)
    truths = ["yes", "sinus rhythm"]
    assert text_scores.text_scores(truths, truths, str(tmp_path))["bertscore"] == pytest.approx(100, abs=1e-3)
    other = text_scores.text_scores(["no", "sinus"], truths, str(tmp_path))["bertscore"]
    assert other < 99.9
    # an empty answer counts as nothing, and does not break the others
    assert text_scores.text_scores(["yes", ""], truths, str(tmp_path))["bertscore"] == pytest.approx(
        50, abs=1e-3
    )


def test_the_table_fits_and_says_what_the_signal_adds():
    controls = ("no signal", "shuffled", "flat line", "noise", "majority")
    answers = {"signal": ANSWERS["signal"], **{name: ANSWERS["no signal"] for name in controls}}
    result = metrics.score(answers, TRUTHS, TYPES, PATIENTS)
    header, lines = report.score_rows(result)
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80
    assert [line[0] for line in lines] == ["t", "u", "all", "95 % interval"]
    assert "50.0 points" in report.headline(result)
    text = report.metrics_markdown(result | {"bleu": 1.0}, "Scores")
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert len(grid) == 6 and {line.count("|") for line in grid} == {len(header) + 1}
    assert re.search(r"\| all \| 75\.0 \|", text)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no answers"):
        metrics.score({"signal": []}, [], [], [])
