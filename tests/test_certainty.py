"""What a model was trained to answer, its calibrated probabilities, and recordings that are unlike those trained on."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_sharing import TOKENIZER, signals

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference import certainty
from ecgbyte_cli.inference.certainty import Certainty, MatchedQuestion, normalize_question, question_keywords
from ecgbyte_cli.inference.witness import percent
from ecgbyte_cli.questions import Question
from ecgbyte_cli.training.calibration import answer_groups, count_pairs, fit_temperature


def asked(question, answer, kind="t", topic=None, closed=False):
    return Question("r", question, answer, kind, "train", topic=topic, closed=closed, segments=(0,))


def certain(groups=(), ecgs=(), **more):
    samples = Stored(ecgs)
    keys, counts, single = count_pairs(samples, TOKENIZER.vocab_size)
    given = {"temperature": {}, "sure": {}, "bits": None, "amplitude": None} | more
    return Certainty(list(groups), **given, keys=keys, counts=counts, single=single)


class Stored:
    """What `count_pairs` asks of Samples."""

    def __init__(self, ecgs):
        self.ecgs, self.tokenizer, self.shape = ecgs, TOKENIZER, (2, 100)
        self.recorded = {"split": ["train"] * len(ecgs)}

    def own(self, segment):
        return self.ecgs[segment]


QUESTIONS = [
    *[
        asked(f"Is there {what}?", answer, "v", "afib", True)
        for what in ("AF", "an a-fib")
        for answer in ("yes", "no")
    ],
    *[asked("What is the rhythm?", "sinus rhythm", "q") for _ in range(6)],
    *[asked("What is the rhythm?", "atrial fibrillation", "q") for _ in range(3)],
    *[asked("Describe this ECG.", f"Text {i}.", "d") for i in range(20)],
    asked("Is the axis normal?", "yes", "v", "axis", True),
    asked("Is this ECG normal?", "no", "v", "normal", True),
]


def test_questions_are_put_together_by_what_they_ask():
    groups = {group["texts"][0]: group for group in answer_groups(QUESTIONS)}
    assert groups["Is there AF?"] == {
        "texts": ["Is there AF?", "Is there an a-fib?"],
        "answers": ["yes", "no"],
    }
    assert groups["What is the rhythm?"]["answers"] == ["sinus rhythm", "atrial fibrillation"]
    assert groups["Describe this ECG."]["answers"] is None  # twenty texts, each once
    # who saw no "no" yet can say it, and one answer is no choice
    assert groups["Is the axis normal?"]["answers"] == ["yes", "no"]
    assert answer_groups([asked("Name?", "cannot", "c", "name", True)] * 5)[0]["answers"] is None
    # a topic alone does not say that answers are the same
    loose = [
        asked("What is the rhythm?", "sinus", "q", "rhythm"),
        asked("Is it regular?", "yes", "q", "rhythm"),
    ]
    assert len(answer_groups(loose)) == 2
    later = Question("r", "And why?", "so", "t", "train", earlier=(("a", "b"),), segments=(0,))
    two = Question("r", "Which?", "both", "t", "train", other_records=("s",), segments=(0, 1))
    assert answer_groups([later, two]) == []


@pytest.mark.parametrize(
    "question, found",
    [
        ("what is the RHYTHM", "What is the rhythm?"),
        ("  What’s the rhythm ?!", "What is the rhythm?"),
        ("Please tell me the rhythm", None),  # "what" is a word that says something
        ("What is the rhythm of this ECG?", "What is the rhythm?"),
        ("Is there any AF in this ECG?", "Is there AF?"),
        ("Is there no AF?", None),
        ("Is this recording normal?", "Is this ECG normal?"),
        ("Is the axis of this ECG normal?", "Is the axis normal?"),
        ("How old is the patient's dog?", None),
        ("", None),
        ("???", None),
    ],
)
def test_a_question_is_known_up_to_case_punctuation_and_empty_words(question, found):
    known = certain(answer_groups(QUESTIONS)).match(question)
    assert (known and known.text) == found


def test_words_can_stand_for_what_the_model_is_asked():
    groups = [{"asked": "S", "texts": ["What is the rhythm?", "Name the rhythm."], "answers": ["a", "b"]}]
    known = certain(groups)
    assert known.match("what IS the rhythm") == MatchedQuestion("S", ["a", "b"], "What is the rhythm?")
    assert known.match("Name the rhythm.") == MatchedQuestion("S", ["a", "b"], "Name the rhythm.")
    assert known.match("S") is None


def test_words_that_fit_two_questions_fit_none():
    made = certain(
        [{"texts": ["Is it paced?"], "answers": None}, {"texts": ["Paced, is it?"], "answers": None}]
    )
    assert made.match("paced is") is None and made.match("is it paced").text == "Is it paced?"
    signs = [{"texts": [f"Is QTc {sign} 450 ms?"], "answers": None} for sign in "<>"]
    assert certain(signs).match("is QTC > 450 ms").text == "Is QTc > 450 ms?"
    assert (
        normalize_question("0.5 mV") != normalize_question("5 mV")
        and certain([{"texts": ["Is it?"], "answers": None}]).match("??") is None
    )
    assert normalize_question("It’s AF, isn't it?") == "it is af isnt it" and question_keywords(
        "Show me the P-wave!"
    ) == ("p", "wave")


def test_the_likeliest_answer_is_chosen_with_its_calibrated_probability():
    made = certain(temperature={"two": 2.0}, sure={"two": 0.8, "more": 0.5})
    chosen = made.choose(["no", "yes"], made.weights(["no", "yes"], np.log([0.9, 0.1])))
    assert chosen.answer == "no" and chosen.other == "yes"
    assert chosen.probability == pytest.approx(3 / 4) and chosen.yes == pytest.approx(1 / 4)
    assert not chosen.sure  # 0.75
    three = ["a", "b", "c"]
    chosen = made.choose(three, made.weights(three, np.log([0.3, 0.6, 0.1]) - 7))
    assert (chosen.answer, chosen.other, chosen.sure, chosen.yes) == ("b", "a", True, None)
    assert chosen.probability == pytest.approx(0.6)
    assert certain().choose(three, np.array([0.3, 0.6, 0.1])).sure is None


def test_calibration_finds_the_temperature_that_made_the_answers():
    random, given = np.random.default_rng(0), []
    for _ in range(4000):
        true = random.normal(0, 1.5, 2)
        weights = np.exp(true) / np.exp(true).sum()
        answer = ["yes", "no"][int(random.random() > weights[0])]
        given.append((3 * true, ["yes", "no"], asked("?", answer)))  # three times too sure
    temperature, sure = fit_temperature(given)
    assert temperature == pytest.approx(3, rel=0.1)
    # what is kept is right nine times in ten, or else seven tenths of all are kept
    best = [max(np.exp(logs / temperature) / np.exp(logs / temperature).sum()) for logs, *_ in given]
    kept = [i for i, p in enumerate(best) if p >= sure - 1e-9]
    right = np.mean([given[i][2].answer == given[i][1][int(np.argmax(given[i][0]))] for i in kept])
    assert len(kept) >= 0.7 * len(given) and (right >= 0.9 or len(kept) == math.ceil(0.7 * len(given)))
    easy = [(np.log([0.99, 0.01]), ["yes", "no"], asked("?", "yes"))] * 10
    assert fit_temperature(easy)[1] <= 1.0


def test_bits_are_those_of_pairs_counted_one_by_one():
    ecgs = [TOKENIZER.encode(signal) for signal in signals(8)]
    made, counts, single = certain(ecgs=ecgs), {}, {}
    begin = TOKENIZER.vocab_size
    for ecg in ecgs:
        before, at = begin, 0
        for token in ecg.tolist():
            before = begin if at % 100 == 0 else before
            counts[before, token] = counts.get((before, token), 0) + 1
            single[token] = single.get(token, 0) + 1
            before, at = token, at + int(TOKENIZER.lengths[token])
    kept = {pair: n for pair, n in counts.items() if n > 1}
    assert {divmod(int(k), begin): int(n) for k, n in zip(made.keys, made.counts, strict=True)} == kept
    of_first = {}
    for (first, _), n in kept.items():
        of_first[first] = of_first.get(first, 0) + n
    other, total, everything = TOKENIZER.encode(signals(1, seed=9)[0]), 0.0, sum(single.values())
    before, at = begin, 0
    for token in other.tolist():
        before = begin if at % 100 == 0 else before
        alone = (single.get(token, 0) + 0.5) / (everything + 0.5 * begin)
        share = (kept.get((before, token), 0) + 20 * alone) / (of_first.get(before, 0) + 20)
        total -= math.log2(share)
        before, at = token, at + int(TOKENIZER.lengths[token])
    assert made.bits_of(other, TOKENIZER.lengths, 100) == pytest.approx(total / len(other))


def test_a_recording_that_is_unlike_says_in_what():
    ecgs = [TOKENIZER.encode(signal) for signal in signals(30)]
    made = certain(ecgs=ecgs)
    usual = [made.bits_of(ecg, TOKENIZER.lengths, 100) for ecg in ecgs]
    made.bits, made.amplitude = [float(np.median(usual)), max(usual) + 0.1], [0.3, 50.0]
    same = signals(1)[0]
    assert made.unlike(ecgs[0], same, TOKENIZER) == []
    noise = np.random.default_rng(1).normal(0, 0.6, (2, 100)).astype(np.float32)
    (said,) = made.unlike(TOKENIZER.encode(noise), noise, TOKENIZER)
    assert "bits per token" in said
    flat = same.copy()
    flat[1] = 0.3
    assert made.unlike(ecgs[0], flat, TOKENIZER) == ["lead V1 flat"]
    (said,) = made.unlike(ecgs[0], same * 0.1, TOKENIZER)
    assert "mV" in said
    assert certain(ecgs=ecgs).unlike(TOKENIZER.encode(noise), noise, TOKENIZER) == []


def test_it_is_read_as_it_was_written_and_damage_is_said(tmp_path):
    ecgs = [TOKENIZER.encode(signal) for signal in signals(8)]
    made = certain(
        answer_groups(QUESTIONS), ecgs, bits=[5.0, 7.0], temperature={"two": 1.5}, sure={"two": 0.7}
    )
    made.write(tmp_path)
    again = certainty.read_certainty(tmp_path, TOKENIZER.vocab_size)
    assert again.groups == made.groups and again.bits == [5.0, 7.0] and again.sure == {"two": 0.7}
    assert np.array_equal(again.keys, made.keys) and np.array_equal(again.counts, made.counts)
    assert certainty.read_certainty(tmp_path / "none", 7) is None
    with pytest.raises(Failure, match="does not belong to this model"):
        certainty.read_certainty(tmp_path, TOKENIZER.vocab_size + 1)
    said = json.loads((tmp_path / certainty.FILE).read_text())
    for wrong in (
        {"groups": 5},
        {"groups": [{"texts": [], "answers": None}]},
        {"groups": [{"texts": ["a"], "answers": [5]}]},
        {"temperature": {"two": 0}},
        {"temperature": {"two": "1"}},
        {"sure": []},
        {"groups": [{"texts": ["a"], "answers": ["only"]}]},
        {"groups": [{"texts": ["a"], "answers": ["b", "\ud800"]}]},
        {"groups": [{"texts": ["a"], "answers": ["b", "b"]}]},
        {"groups": [{"texts": ["a"], "answers": list(map(str, range(41)))}]},
        {"groups": [{"texts": ["a"], "answers": ["a", "b" * 2000]}]},
        {"temperature": {"two": 5e-324}},
        {"temperature": {"two": float("nan")}},
        {"bits": [10**400, 1]},
        {"bits": [1]},
        {"amplitude": ["a", "b"]},
    ):
        (tmp_path / certainty.FILE).write_text(json.dumps(said | wrong))
        with pytest.raises(Failure, match="damaged"):
            certainty.read_certainty(tmp_path, TOKENIZER.vocab_size)
    (tmp_path / certainty.FILE).write_text(json.dumps(said))
    good = {name: getattr(made, name).astype(np.uint32) for name in ("keys", "counts", "single")}
    for wrong in (
        {"keys": good["keys"][::-1].copy()},
        {"keys": good["keys"].astype(np.int64)},
        {"counts": good["counts"].astype(np.float32)},
        {"keys": good["keys"][None], "counts": good["counts"][None]},
        {"counts": good["counts"][1:]},
        {"keys": np.append(good["keys"][1:], np.uint32(2**31))},
    ):
        save_file(good | wrong, tmp_path / certainty.PAIRS)
        with pytest.raises(Failure, match="damaged|does not belong to this model"):
            certainty.read_certainty(tmp_path, TOKENIZER.vocab_size)


def test_pairs_of_a_large_vocabulary_are_kept(tmp_path):
    single = np.zeros(70_000, np.int64)
    keys = np.array([5, 70_000 * 65_540 + 7, 70_000 * 70_000 + 1])
    Certainty([], {}, {}, None, None, keys, np.array([2, 3, 4]), single).write(tmp_path)
    assert np.array_equal(certainty.read_certainty(tmp_path, 70_000).keys, keys)


def test_no_answer_is_certain():
    assert [percent(p) for p in (0, 0.0099, 0.01, 0.5, 0.987, 0.99, 0.9901, 1)] == [
        *("under 1 %", "under 1 %", "1 %", "50 %", "99 %", "99 %", "over 99 %", "over 99 %")
    ]


def test_a_question_with_a_point_of_its_own_is_answered_by_it():
    made = certain()
    made.points = {"lvh": [2.0, -1.0, 0.2]}
    weights = made.weights(["no", "yes"], np.log([0.6, 0.4]), "lvh")
    odds = 2 * np.log(0.4 / 0.6) - 1
    assert weights.tolist() == pytest.approx([1 - 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(-odds))])
    for yes, answer, sure in (
        (0.1, "no", True),
        (0.18, "no", False),
        (0.2, "yes", False),
        (0.4, "yes", True),
    ):
        chosen = made.choose(["no", "yes"], np.array([1 - yes, yes]), "lvh")
        assert (chosen.answer, chosen.sure, chosen.yes, chosen.point) == (answer, sure, yes, 0.2)
        assert chosen.probability == pytest.approx(yes if answer == "yes" else 1 - yes)
    assert made.choose(["no", "yes"], np.array([0.8, 0.2]), "another").answer == "no"


def test_unsure_answers_have_odds_near_the_point():
    low, high = certainty.unsure_range(0.2)
    assert low < 0.2 < high
    assert 0.25 / (low / (1 - low)) == pytest.approx(certainty.UNSURE_ODDS)
    assert high / (1 - high) / 0.25 == pytest.approx(certainty.UNSURE_ODDS)


def test_a_point_is_fitted_where_the_odds_are_known():
    """Truths drawn from known odds: the fit finds slope and intercept, and yes begins near half the best F1."""
    from ecgbyte_cli.training.calibration import fit_point

    rng = np.random.default_rng(0)
    real = rng.normal(-2, 2, 20_000)
    truth = rng.random(len(real)) < 1 / (1 + np.exp(-real))
    slope, intercept, point = fit_point((real - 1) / 2, truth)
    assert slope == pytest.approx(2, abs=0.1) and intercept == pytest.approx(1, abs=0.1)
    chance = 1 / (1 + np.exp(-real))
    f1 = [
        2 * (truth & (chance >= p)).sum() / ((chance >= p).sum() + truth.sum())
        for p in np.arange(0.05, 0.9, 0.01)
    ]
    best = max(f1)
    assert 2 * (truth & (chance >= point)).sum() / ((chance >= point).sum() + truth.sum()) > best - 0.01
    assert point == pytest.approx(
        best / 2, abs=0.06
    )  # Lipton et al., ECML 2014: the optimum is half of the best F1


def test_few_truths_hardly_move_the_odds():
    from ecgbyte_cli.training.calibration import fit_point

    slope, intercept, _ = fit_point(np.array([1.0, -1.0]), np.array([False, True]))
    assert 0.5 < slope < 1 and abs(intercept) < 0.2
    slope, _, _ = fit_point(np.linspace(-5, 5, 40), np.linspace(-5, 5, 40) > 0)  # separable: still finite
    assert 1 < slope < 5


def test_points_are_kept_and_checked(tmp_path):
    made = certain()
    made.points, made.calibrated_on = {"lvh": [1.0, 0.0, 0.3]}, "PTB-XL, fold 9"
    made.write(tmp_path)
    read = certainty.read_certainty(tmp_path, len(made.single))
    assert read.points == made.points and read.calibrated_on == "PTB-XL, fold 9"
    contents = json.loads((tmp_path / "certainty.json").read_text())
    for bad in ({"lvh": [1.0, 0.0]}, {"lvh": [1.0, 0.0, 1.5]}, {"lvh": ["1", 0, 0.5]}, [1]):
        (tmp_path / "certainty.json").write_text(json.dumps(contents | {"points": bad}))
        with pytest.raises(Failure, match="damaged \\(points\\)"):
            certainty.read_certainty(tmp_path, len(made.single))


def test_a_rare_answer_is_chosen_by_its_adjustment():
    made = certain()
    answers, weights = ["sinus rhythm", "atrial flutter", "pacing"], np.array([0.6, 0.3, 0.1])
    assert made.choose(answers, weights, "rhythm").answer == "sinus rhythm"
    made.adjustments = {"rhythm": {"atrial flutter": 1.0}}
    chosen = made.choose(answers, weights, "rhythm")
    assert (chosen.answer, chosen.probability) == ("atrial flutter", 0.3)
    assert (chosen.other, chosen.other_probability) == ("sinus rhythm", 0.6)
    assert made.choose(answers[::-1], weights[::-1], "rhythm").answer == "atrial flutter"
    assert made.choose(answers, weights, "another").answer == "sinus rhythm"


def test_adjustments_raise_the_recall_of_rare_answers():
    """A rare answer whose probability never passes one half is found, without losing most of the frequent one."""
    from ecgbyte_cli.training.calibration import fit_adjustments

    rng = np.random.default_rng(0)
    answers = ["sinus rhythm", "sinus arrhythmia", "atrial flutter"]
    weighed, logs = [], []
    for i in range(2000):
        rare = i % 20 == 0
        chance = np.clip(rng.normal(0.3 if rare else 0.04, 0.03), 0.001, 0.45)
        weighed.append((Question("a", "rhythm", answers[rare], "t", "val", segments=(0,)), answers))
        logs.append(np.log([0.999 - chance, chance, 0.001]))
    made = certain()
    made.adjustments = fit_adjustments(made, weighed, logs)
    chosen = [made.choose(answers, np.exp(one), "rhythm").answer for one in logs]
    right = np.array([one.answer == answer for (one, _), answer in zip(weighed, chosen, strict=True)])
    rare = np.arange(2000) % 20 == 0
    assert right[rare].mean() > 0.9 and right[~rare].mean() > 0.9
    assert fit_adjustments(made, weighed[:40], logs[:40]) == {}  # too few
    assert fit_adjustments(made, weighed[1:20] * 100, logs[1:20] * 100) == {}  # always the same


def test_an_answer_is_adjusted_by_itself():
    """Two rare answers are equally frequent, and one of them cannot be told from the frequent one."""
    from ecgbyte_cli.training.calibration import fit_adjustments

    rng = np.random.default_rng(0)
    answers = ["sinus rhythm", "sinus arrhythmia", "atrial flutter"]
    truths = np.where(np.arange(2000) % 20 == 0, 1, np.where(np.arange(2000) % 20 == 1, 2, 0))
    weighed = [(Question("a", "rhythm", answers[t], "t", "val", segments=(0,)), answers) for t in truths]
    flutter = np.clip(rng.normal(np.where(truths == 2, 0.3, 0.04), 0.02), 0.001, 0.45)
    arrhythmia = np.clip(rng.normal(0.3, 0.05, 2000), 0.001, 0.45)
    logs = list(np.log(np.stack([1 - flutter - arrhythmia, arrhythmia, flutter], axis=1)))
    added = fit_adjustments(certain(), weighed, logs)["rhythm"]
    chosen = (np.array(logs) + [added[answer] for answer in answers]).argmax(1)
    assert (chosen[truths == 0] == 0).mean() > 0.9 and (chosen[truths == 2] == 2).mean() > 0.9


def test_answers_are_not_moved_by_chance():
    """Where a model's probabilities are right, one strength for all answers is mostly kept."""
    from ecgbyte_cli.training import calibration

    shares, kept = np.array([0.6, *[0.05] * 8]), 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        truths = rng.choice(9, 300, p=shares)
        seen = 2 * np.eye(9)[truths] + rng.normal(size=(300, 9))
        logs = np.log(shares) - ((seen[:, None] - 2 * np.eye(9)) ** 2).sum(2) / 2
        frequent = np.flatnonzero(np.bincount(truths, minlength=9) >= 10)
        one_strength = calibration._fitted_adjustment(logs, truths, frequent, one_by_one=False)
        kept += np.allclose(calibration._best_adjustment(logs, truths, frequent), one_strength)
    assert kept > 6


def test_adjustments_are_kept_and_checked(tmp_path):
    made = certain()
    made.adjustments = {"rhythm": {"sinus rhythm": 0.1, "pacing": 2.5}}
    made.write(tmp_path)
    assert certainty.read_certainty(tmp_path, len(made.single)).adjustments == made.adjustments
    contents = json.loads((tmp_path / "certainty.json").read_text())
    for bad in ([1], {"rhythm": [1.0]}, {"rhythm": {"pacing": "1"}}, {"rhythm": {"pacing": 1e7}}):
        (tmp_path / "certainty.json").write_text(json.dumps(contents | {"adjustments": bad}))
        with pytest.raises(Failure, match="damaged \\(adjustments\\)"):
            certainty.read_certainty(tmp_path, len(made.single))


def test_an_answer_at_a_point_of_its_own_says_where_yes_begins():
    from ecgbyte_cli.inference.turn import Turn

    turn = Turn("LVH?", "yes", probability=0.3, other=("no", 0.7), sure=True, point=0.2)
    assert (
        turn.certainty() == "probability of yes: 30 %; threshold for yes: 20 %"
        and turn.about()["yes_from"] == 0.2
    )
    turn = Turn("LVH?", "no", probability=0.85, other=("yes", 0.15), sure=False, point=0.2)
    assert turn.certainty() == "not sure: probability of yes: 15 %; threshold for yes: 20 %"
    listed = Turn("Findings?", "lvh", findings={"lvh": 0.3, "mi": 0.4}, present=["lvh"])
    assert listed.certainty() == "lvh 30 %; next mi 40 %"
    assert "yes_from" not in listed.about()
