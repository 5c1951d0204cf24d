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
    assert "bits a token" in said
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
    with pytest.raises(Failure, match="not of this model"):
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
        with pytest.raises(Failure, match="damaged|not of this model"):
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
