"""One reading of an ECG for several questions: the same loss, gradients and answers as one reading for each."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from test_ecg_lm import SHAPES
from test_prompt import CHATML, prompt_with
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

from ecgbyte_cli.inference.conversation import fit_prompt
from ecgbyte_cli.model import ecg_lm, model_folder
from ecgbyte_cli.model.kv_cache import GrowingState
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import IGNORED, Prompt
from ecgbyte_cli.questions import Question
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.training import calibration
from ecgbyte_cli.training.dataset import ReadingPlan, SampleBuilder
from ecgbyte_cli.training.plans import can_share_reading

SIGNAL = {
    **{"fs": 100.0, "leads": ["II", "V1"], "segment_seconds": 1.0, "samples": 100, "profile": "resample"},
    **{"fill_nan": None, "quantizer": {"name": "paper", "levels": 8, "lo": -1.0, "hi": 1.0}},
}
MERGES = [[3, 4], [4, 3], [3, 3], [4, 4], [10, 10]]
TOKENIZER = ECGTokenizer.from_dict(
    {
        "format": "ecgbyte-tokenizer",
        "format_version": 1,
        "signal": SIGNAL,
        "boundary": "lead",
        "merges": MERGES,
    }
)


def signals(count, seed=0):
    random = np.random.default_rng(seed)
    return [np.cumsum(random.normal(0, 0.12, (2, 100)), -1).astype(np.float32) for _ in range(count)]


class InMemory(SampleBuilder):
    """Samples over letters that no work folder holds."""

    def __init__(self, prompt, letters, max_length=4096, augment=0.0, segments=1):
        self.prompt, self.tokenizer, self.max_length, self.long = prompt, TOKENIZER, max_length, "trim"
        self.longest, self.augment, self.together, self.draw = max_length - 20, augment, None, None
        self.signals, self.question_count, self.vary_leads, self.lines = None, None, 0.0, None
        self.segmenter, self.shape = "longest", (2, 100)
        self.letters = np.concatenate([part.ravel() for part in letters])
        count = len(letters)
        tokens = [TOKENIZER.encode(part) for part in letters]
        lengths = np.array([len(part) for part in tokens])
        self.tokens = np.concatenate(tokens)
        self.segments = {"offset": np.cumsum(lengths) - lengths, "length": lengths}
        self.recorded = {
            "offset": np.arange(count) * 200,
            "start": np.arange(count) % segments * 1.0,
            "lo": np.zeros(count),
            "hi": np.ones(count),
        }
        self.first_of = np.arange(count) // segments * segments
        self.count_of = np.full(count, segments)


def asked(*segments, turns):
    *earlier, (question, answer) = turns
    return Question(*("r", question, answer, "t", "train"), segments=segments, earlier=tuple(earlier))


@pytest.fixture(params=[*SHAPES, "smollm"])
def base(request):
    torch.manual_seed(0)
    if request.param == "smollm":  # attention with a mask that is added
        made = SHAPES["llama"]()
        made.set_attn_implementation("eager")
        return made
    return SHAPES[request.param]()


@pytest.mark.parametrize(
    ("template", "positions", "ecgs"),  # every pair of values, not every triple
    [(None, "token", 1), (CHATML, "time", 1), (None, "time", 2), (CHATML, "token", 2)],
)
def test_loss_and_gradients_are_those_of_separate_samples(base, template, positions, ecgs):
    text, _ = prompt_with(template)
    offset = len(text.text_tokenizer)
    base.resize_token_embeddings(offset)
    lm = ecg_lm.ECGLM(base, TOKENIZER.vocab_size, 0, Layout.of(offset, TOKENIZER, positions)).eval()
    prompt = Prompt(text.text_tokenizer, lm.layout)
    samples = InMemory(prompt, [TOKENIZER.letters(s) for s in signals(4)])
    one, other = tuple(range(ecgs)), tuple(range(2, 2 + ecgs))
    questions = [
        asked(*one, turns=[("What is the rhythm?", "sinus")]),
        asked(*one, turns=[("Paced?", "no"), ("And why do you say so?", "no spikes")]),
        asked(*one, turns=[("LVH?", "yes")]),
        asked(*other, turns=[("Rate?", "80")]),
        asked(*other, turns=[("a?", "b"), ("c?", "d"), ("e?", "f")]),
    ]
    together, trimmed, left_out = samples.plans(questions)
    assert [len(plan.questions) for plan in together] == [3, 2] and (trimmed, left_out) == (0, 0)
    samples.together = 1
    alone, _, _ = samples.plans(questions)
    assert len(alone) == 5
    assert max(len(samples.reading(plan).ids) for plan in together) == max(plan.length for plan in together)
    batch = samples.batch([samples.reading(plan) for plan in together])
    separate = samples.batch([samples.reading(plan) for plan in alone])
    assert batch.owner is not None and separate.owner is None
    found = []
    for made in (batch, separate):
        lm.zero_grad()
        loss, ecg = lm(*made)
        loss = loss / (made.labels != IGNORED).sum()
        loss.backward()
        assert ecg == 0
        found.append(
            (loss.item(), {n: p.grad.clone() for n, p in lm.named_parameters() if p.grad is not None})
        )
    (a, here), (b, there) = found
    assert a == pytest.approx(b, rel=1e-5)
    assert here.keys() == there.keys() and "ecg_rows.weight" in here
    for name, gradient in here.items():
        scale = there[name].abs().max()
        assert (gradient - there[name]).abs().max() <= 1e-4 * scale + 1e-9, name
    # and of the whole logits, one question at a time
    total = 0
    for plan in alone:
        reading = samples.reading(plan)
        ids, labels = torch.from_numpy(reading.ids)[None], torch.from_numpy(reading.labels)
        logits = lm.base(**lm.inputs(ids)).logits[0, :-1]
        total += functional.cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum").item()
    assert total / (separate.labels != IGNORED).sum().item() == pytest.approx(b, rel=1e-5)
    assert can_share_reading(lm, samples, together)


def test_a_model_that_takes_no_such_mask_is_found_out():
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        **{"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 24},
    )
    text, _ = prompt_with(None)
    base = transformers.MistralForCausalLM(config)
    lm = ecg_lm.ECGLM(base, TOKENIZER.vocab_size, 0, Layout.of(259, TOKENIZER)).eval()
    samples = InMemory(Prompt(text.text_tokenizer, lm.layout), [TOKENIZER.letters(s) for s in signals(1)])
    plans, _, _ = samples.plans([asked(0, turns=[(f"{i}?", "yes")]) for i in range(4)])
    assert not can_share_reading(lm, samples, plans)
    lm.base.config._attn_implementation = "flash_attention_2"
    assert not can_share_reading(lm, samples, plans)
    assert can_share_reading(
        lm, samples, samples.plans([asked(0, turns=[("?", "yes")])])[0]
    )  # nothing to share


def test_calibration_reads_fewer_at_a_time_where_memory_does_not_suffice(monkeypatch):
    text, _ = prompt_with(None)
    lm = ecg_lm.ECGLM(SHAPES["llama"](), TOKENIZER.vocab_size, 0, Layout.of(259, TOKENIZER)).eval()
    samples = InMemory(Prompt(text.text_tokenizer, lm.layout), [TOKENIZER.letters(s) for s in signals(3)])
    questions = [(asked(i, turns=[(f"{k}?", "yes")]), ["yes", "no"]) for i in range(3) for k in range(3)]
    wanted, weigh, read = calibration.answer_log_probabilities(lm, samples, questions, 2), lm.weigh, []

    def small(prompts, answers):
        read.append(len(prompts))
        return torch.empty(2**50) if len(prompts) > most else weigh(prompts, answers)

    most = 3
    monkeypatch.setattr(lm, "weigh", small)
    found = calibration.answer_log_probabilities(lm, samples, questions, 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert max(read) > most
    # and where not one fits, the model is kept without
    most, told, nothing = 0, [], np.zeros(0, np.int64)
    samples.recorded["split"] = ["train"] * 3
    monkeypatch.setattr(calibration, "count_pairs", lambda *_: [nothing] * 3)
    validation = [question for question, _ in questions]
    made = calibration.calibrate_model(lm, samples, validation * 3, validation, tell=told.append)
    assert told == ["its probabilities are not calibrated: out of memory"] and not made.temperature


def test_memory_and_devices_say_nothing_about_what_can_be_shared(monkeypatch):
    text, _ = prompt_with(None)
    lm = ecg_lm.ECGLM(SHAPES["llama"](), TOKENIZER.vocab_size, 0, Layout.of(259, TOKENIZER)).eval()
    samples = InMemory(Prompt(text.text_tokenizer, lm.layout), [TOKENIZER.letters(s) for s in signals(1)])
    plans, _, _ = samples.plans([asked(0, turns=[(f"{i}?", "yes")]) for i in range(4)])
    with torch.autocast("cpu", torch.bfloat16):
        assert can_share_reading(lm, samples, plans)
    for broken in (lambda: torch.empty(2**50), lambda: torch.ones(2) + torch.ones(2, device="meta")):
        monkeypatch.setattr(lm, "forward", lambda *_, broken=broken: broken())
        with pytest.raises(RuntimeError):
            can_share_reading(lm, samples, plans)
    monkeypatch.setattr(lm, "forward", lambda *_: torch.ones(2) + torch.ones(3))
    assert not can_share_reading(lm, samples, plans)


@pytest.mark.parametrize("positions", ["token", "time"])
def test_answers_from_one_reading_are_those_of_prompts_read_alone(base, positions, monkeypatch):
    text, _ = prompt_with(None)
    lm = ecg_lm.ECGLM(base, TOKENIZER.vocab_size, 0, Layout.of(259, TOKENIZER, positions)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(2) if parameter.dim() > 1 else None
    prompt, ecgs = Prompt(text.text_tokenizer, lm.layout), [TOKENIZER.encode(s) for s in signals(3)]
    questions = ["What is the rhythm?", "Rate?", "Is this ECG within normal limits or not?"]
    prompts = [prompt.build([ecg], [(q, None)])[0] for ecg in ecgs for q in questions]
    prompts.append(prompt.build([ecgs[0], ecgs[1]], [("Both?", None)])[0])
    alone = [lm.answer([ids], {7, 8}, 10)[0] for ids in prompts]
    assert lm.beside
    read, inputs = [], lm.embed
    monkeypatch.setattr(lm, "embed", lambda ids: read.append(tuple(ids.shape)) or inputs(ids))
    assert lm.answer(prompts, {7, 8}, 10) == alone
    rest = sum(len(ids) - lm.layout.prefix(ids) for ids in prompts[:3])
    assert read[0][0] == 4 and read[1] == (4, rest) and read[2] == (4, 3)  # four beginnings, then text alone
    # Gemma's norms make one answer of all
    assert len({tuple(answer) for answer in alone}) > 1 or lm.base.config.model_type == "gemma"


def test_positions_follow_time_in_every_lead():
    layout = Layout.of(259, TOKENIZER, "time")
    assert (layout.marks, layout.unit, layout.first) == (2, 2, 263)
    ecg = TOKENIZER.encode(signals(1)[0])
    ids = np.concatenate([[1], layout.block(ecg), [5, 6], layout.block(ecg), [7]])
    places = layout.positions(ids)
    assert places[:3].tolist() == [0, 1, 2]  # text, <sig_start>, the first lead's mark
    spans = TOKENIZER.spans(ecg)
    inside = np.flatnonzero(ids >= layout.first)[: len(ecg)]
    assert places[inside].tolist() == [3 + start // 2 for start in spans[:, 2]]
    marks = np.flatnonzero((ids == 261) | (ids == 262))
    assert places[marks[:2]].tolist() == [2, 2]
    behind = inside[-1] + 1
    assert places[behind] == places[inside].max() + 1
    assert places[behind : behind + 4].tolist() == [places[behind] + i for i in range(4)]
    second = np.flatnonzero(ids >= layout.first)[len(ecg) :]
    assert (places[second] - places[second][0] == places[inside] - places[inside][0]).all()
    assert layout.prefix(ids) == len(ids) - 1
    plain = Layout.of(259, TOKENIZER)
    assert plain.positions(ids).tolist() == list(range(len(ids)))


def test_leads_have_marks_where_no_token_lies_on_two(tmp_path):
    ecg = TOKENIZER.encode(signals(1)[0])
    leads = TOKENIZER.spans(ecg)[:, 1]
    block = Layout.of(259, TOKENIZER).block(ecg)
    assert block[[0, 1, -1]].tolist() == [259, 261, 260]
    assert block[1 + (leads == 0).sum() + 1] == 262
    assert (block[block >= 263] - 263 == ecg).all() and len(block) == len(ecg) + 4
    assert Layout.of(259, TOKENIZER).block(ecg[:0]).tolist() == [259, 260]
    # a lead that lost all its tokens keeps its mark
    first = leads == 0
    assert Layout.of(259, TOKENIZER).block(ecg[~first], leads[~first])[1:3].tolist() == [261, 262]
    crossing = ECGTokenizer.from_dict(
        {
            "format": "ecgbyte-tokenizer",
            "format_version": 1,
            "signal": SIGNAL,
            "boundary": "none",
            "merges": [],
        }
    )
    assert Layout.of(259, crossing).marks == 0


def test_the_ecg_is_learned_by_its_own_rows():
    torch.manual_seed(0)
    text, _ = prompt_with(None)
    lm = ecg_lm.ECGLM(SHAPES["llama"](), TOKENIZER.vocab_size, 0, Layout.of(259, TOKENIZER)).eval()
    samples = InMemory(Prompt(text.text_tokenizer, lm.layout), [TOKENIZER.letters(s) for s in signals(2)])
    plans, _, _ = samples.plans([asked(0, turns=[("?", "yes")]), asked(0, turns=[("Why?", "so")])])
    reading = samples.reading(plans[0], learn_ecg=True)
    loss = lm(*samples.batch([reading]))
    ids = torch.from_numpy(reading.ids)
    hidden = lm.base.model(**lm.inputs(ids[None, : lm.layout.prefix(reading.ids)])).last_hidden_state[0]
    wanted = 0.0
    for at in np.flatnonzero(reading.ids >= lm.layout.first):
        scores = hidden[at - 1] @ lm.ecg_rows.weight[4:].T
        wanted -= scores.log_softmax(-1)[reading.ids[at] - lm.layout.first].item()
    assert loss[1].item() == pytest.approx(wanted, rel=1e-5)
    assert samples.letters_labelled(samples.batch([reading]).labels) == 200
    # neither what stands in its place is learned, nor a mark
    assert lm(*samples.batch([samples.reading(plans[0], "flat line", learn_ecg=True)]))[1] == 0
    (alone,) = samples.alone([1])
    made = samples.batch([samples.reading(alone, learn_ecg=True)])
    text_loss, ecg_loss = lm(*made)
    assert text_loss == 0 and ecg_loss > 0 and made.ids.shape[1] == alone.length
    ecg_loss.backward()
    assert lm.ecg_rows.weight.grad[4:].abs().max() > 0


def test_letters_are_varied_by_random_numbers_alone():
    text, _ = prompt_with(None)
    letters = [TOKENIZER.letters(s) for s in signals(6)]
    samples = InMemory(
        Prompt(text.text_tokenizer, Layout.of(259, TOKENIZER)), letters, augment=1.0, segments=3
    )
    plan = ReadingPlan((0,), (asked(0, turns=[("?", "yes")]),), 0)
    read = [samples.reading(plan, None, np.random.default_rng([1, 2, k])).ids for k in (0, 0, 1)]
    assert np.array_equal(read[0], read[1]) and not np.array_equal(read[0], read[2])
    assert np.array_equal(samples.reading(plan).ids, InMemory.reading(samples, plan).ids)
    # without variation, stretches of the recording's own three segments, from anywhere in them
    whole, starts = np.concatenate(letters[:3], axis=1), set()
    for seed in range(60):
        window, _ = samples._window(0, 3, np.random.default_rng(seed))
        places = [i for i in range(201) if np.array_equal(whole[:, i : i + 100], window)]
        assert places
        starts.add(places[0])
    assert len(starts) > 30
    samples.recorded["hi"][1] = 2.0  # in other letters: no stretch goes across
    for seed in range(30):
        window, _ = samples._window(0, 3, np.random.default_rng(seed))
        assert any(np.array_equal(part, window) for part in letters[:3])
    turned, _ = samples._window(0, 1, np.random.default_rng(3))
    assert any(np.array_equal(np.roll(letters[0], -k, axis=1), turned) for k in range(100))


def test_every_segment_of_a_recording_takes_part():
    text, _ = prompt_with(None)
    letters = [TOKENIZER.letters(s) for s in signals(6)]
    samples = InMemory(Prompt(text.text_tokenizer, Layout.of(259, TOKENIZER)), letters, segments=3)
    plan = ReadingPlan((3,), (asked(3, turns=[("?", "yes")]),), 0)
    read = {samples.reading(plan, None, np.random.default_rng(k)).ids.tobytes() for k in range(40)}
    wanted = {samples.reading(plan._replace(segments=(k,))).ids.tobytes() for k in (3, 4, 5)}
    assert read == wanted
    assert samples.reading(plan).ids.tobytes() in wanted


@pytest.mark.parametrize("longest", [60, 90, 4096])
def test_questions_behind_one_reading_read_what_they_would_alone(longest):
    text, _ = prompt_with(None)
    prompt = Prompt(text.text_tokenizer, Layout.of(259, TOKENIZER))
    samples = InMemory(prompt, [TOKENIZER.letters(s) for s in signals(1)], longest + 20)
    questions = [asked(0, turns=[("x" * n + "?", "yes")]) for n in (1, 5, 9, 20, 21)]
    plans, trimmed, _ = samples.plans(questions)
    assert (trimmed > 0) == (longest < 4096)
    assert sorted(q.question for plan in plans for q in plan.questions) == sorted(
        q.question for q in questions
    )
    for plan in plans:
        reading = samples.reading(plan)
        assert len(reading.ids) == plan.length
        for k, question in enumerate(plan.questions, 1):
            ids, labels, _ = samples(question)
            mine = (reading.owner == 0) | (reading.owner == k)
            assert np.array_equal(reading.ids[mine], ids) and np.array_equal(reading.labels[mine], labels)
            assert np.array_equal(reading.positions[mine], np.arange(len(ids)))


def test_a_model_of_prompt_version_1_answers_as_before():
    folder = Path(__file__).parent / "model_v1"
    lm, text_tokenizer, tokenizer, about = model_folder.load_model(folder, "cpu")
    assert about["prompt_version"] == 1 and lm.layout.marks == lm.layout.unit == 0
    prompt = Prompt(text_tokenizer, lm.layout, about["date"])
    cases = json.loads((folder / "answers.json").read_text())
    prompts = []
    for case in cases:
        ecgs = [tokenizer.encode(np.array(letters, np.uint8)) for letters in case["letters"]]
        ids, _, lost = fit_prompt(prompt, tokenizer, ecgs, [(case["question"], None)], about["prompt_tokens"])
        assert (ids.tolist(), lost) == (case["ids"], case["lost"])
        prompts.append(ids)
    assert len({case["lost"] > 0 for case in cases}) == 2
    assert lm.answer(prompts, prompt.end_ids, 10) == [case["answer"] for case in cases]


def test_kept_keys_and_values_are_those_given():
    """Against Transformers' own layer: new ids, rows taken out, last ids taken back, and new ids again."""
    random, ours, theirs = np.random.default_rng(0), GrowingState(), DynamicLayer()
    for step in range(60):
        rows = 5 if step < 20 else 3
        new = [torch.from_numpy(random.normal(size=(rows, 2, 1 + step % 9, 4))) for _ in range(2)]
        got, wanted = ours.update(*new), theirs.update(*new)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        if step == 19:
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor([4, 0, 2]))
        if step % 13 == 12:
            kept = int(random.integers(1, ours.get_seq_length() + 1))
            for layer in (ours, theirs):
                layer.keys, layer.values = layer.keys[..., :kept, :], layer.values[..., :kept, :]
        assert ours.get_seq_length() == theirs.get_seq_length()
