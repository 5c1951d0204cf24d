"""Attribution of answers to tokens and samples, against slow and exact versions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli.evaluation import attribution_measures
from ecgbyte_cli.inference import attribution
from ecgbyte_cli.model import ecg_lm, tiny
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.signal.tokenizer import ECGTokenizer

QUESTION, ANSWER = "What is the rhythm?", "sinus"
TOKENIZER = {
    "format": "ecgbyte-tokenizer",
    "format_version": 1,
    "boundary": "lead",
    "merges": [[12, 12], [26, 26], [13, 12], [27, 27], [28, 13], [5, 20]],
    "signal": {
        "fs": 50.0,
        "leads": ["II", "V1"],
        "samples": 60,
        "segment_seconds": 1.2,
        "profile": "resample",
        "fill_nan": None,
        "quantizer": {"name": "paper", "levels": 26, "lo": -1.0, "hi": 1.0},
    },
}


@pytest.fixture(scope="module", params=["token", "time"])
def explainer(request):
    """A small decoder with random weights, large enough that its answers depend on the ECG."""
    tokenizer = ECGTokenizer.from_dict(TOKENIZER)
    base, text_tokenizer = tiny.build_tiny(seed=1)
    layout = Layout.of(259, tokenizer, request.param)
    lm = ecg_lm.ECGLM(base, tokenizer.vocab_size, 1, layout).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(3) if parameter.dim() > 1 else None
    return attribution.Explainer(lm, Prompt(text_tokenizer, lm.layout), tokenizer, batch=3)


@pytest.fixture(scope="module")
def letters():
    values = np.random.default_rng(0).integers(11, 14, (2, 60)).astype(np.uint8)
    values[0, 20:24], values[1, 40] = [5, 20, 5, 20], 25
    return values


@pytest.fixture(scope="module")
def case(explainer, letters):
    return explainer.case(letters, QUESTION, ANSWER)


def of_answer(explainer, case, embedded=None):
    """Log probability and log-odds of each id of the answer, over all logits."""
    lm, ids = explainer.lm, torch.from_numpy(case.ids)
    embedded = lm.embed(ids[None]) if embedded is None else embedded
    with torch.no_grad():
        p = lm.base(**where(explainer, ids), inputs_embeds=embedded).logits[0].double().softmax(-1)
    p = np.array([p[at - 1, ids[at]].item() for at in case.at])
    return np.log(p), np.log(p / (1 - p))


def where(explainer, ids):
    """Position ids; with a mask, for Transformers takes steps in them for several texts."""
    return {
        "position_ids": torch.from_numpy(explainer.lm.layout.positions(ids.numpy()))[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
    }


def log_odds(explainer, case, embedded=None):
    """Of the id that is explained."""
    return of_answer(explainer, case, embedded)[1][explainer.decided(case)]


def log_probability(explainer, case):
    """Of the whole answer."""
    return of_answer(explainer, case)[0].sum()


def test_a_case_knows_its_places(explainer, letters, case):
    assert explainer.prompt.text(case.ids[case.at]) == ANSWER
    tokens = case.ids[case.ecg] - explainer.lm.layout.first
    assert np.array_equal(explainer.tokenizer.decode(tokens), letters)
    assert QUESTION in explainer.prompt.text_tokenizer.decode(case.ids[explainer.words(case)])
    marks = 2 + explainer.lm.layout.marks
    assert marks == 4 and len(explainer.words(case)) + len(case.ecg) + marks == case.at[0]


def test_probabilities_together_equal_those_alone(explainer, letters, case):
    flat = np.full_like(letters, 12)
    cases = [case, explainer.case(flat, "Why?", "no"), explainer.case(flat, QUESTION, "premature beat")]
    alone = [log_probability(explainer, c) for c in cases]
    assert explainer.log_probabilities([*cases, *cases]) == pytest.approx([*alone, *alone], abs=1e-4)


def test_smaller_batches_where_memory_does_not_suffice(
    explainer, letters, case, monkeypatch, coarse_integral
):
    cases, read = [case, explainer.case(letters, "Why?", "no"), case], []
    wanted, gradient = explainer.log_probabilities(cases), explainer._integrated(case)
    forward = explainer.lm.base.forward

    def small(**given):
        read.append(len(given["inputs_embeds"]))
        if read[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**given)

    monkeypatch.setattr(explainer.lm.base, "forward", small)
    assert explainer.log_probabilities(cases) == pytest.approx(wanted, abs=1e-4)
    torch.testing.assert_close(explainer._integrated(case), gradient, atol=1e-4, rtol=1e-3)
    assert 3 in read and 1 in read


def test_the_id_that_the_signal_decided(explainer, letters, case):
    flat = explainer.case(explainer.tokenizer.letters(np.zeros((2, 60))), QUESTION, ANSWER)
    gains = of_answer(explainer, case)[0] - of_answer(explainer, flat)[0]
    clear = [k for k, gain in enumerate(gains) if np.exp(gain) > 2]
    assert explainer.decided(case) == (clear[0] if clear else 0)
    same = explainer.case(explainer.tokenizer.letters(np.zeros((2, 60))), QUESTION, ANSWER)
    assert explainer.decided(same) == 0  # nothing was decided


def test_the_gradient_is_that_of_scaling_a_token(explainer, case):
    made = explainer._gradient(case)
    embedded = explainer._embedded(case)
    for place in (case.ecg[3], case.ecg[-1], explainer.words(case)[2]):
        values = []
        for step in (-1e-2, 1e-2):
            moved = embedded.clone()
            moved[place] *= 1 + step
            values.append(log_odds(explainer, case, moved[None]))
        slope = (values[1] - values[0]) / 2e-2
        assert made[place].item() == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_integrated_gradients_sum_to_the_difference(explainer, case, monkeypatch):
    monkeypatch.setattr(attribution, "STEPS", 120)
    made = explainer._integrated(case)
    words = np.flatnonzero(case.ids[: case.at[0]] < explainer.lm.offset)
    # the ECG with the question as it is, and the question with the ECG as it is
    for places, rows in ((case.ecg, explainer.lm.ecg_rows.weight[4:]), (words, explainer.lm.text_rows())):
        start = explainer._embedded(case).clone()
        start[places] = rows.mean(0)
        difference = log_odds(explainer, case) - log_odds(explainer, case, start[None])
        assert made[places].sum().item() == pytest.approx(difference, rel=0.03, abs=0.03)
    elsewhere = np.setdiff1d(np.arange(len(case.ids)), [*case.ecg, *words])
    assert made[elsewhere].abs().max() == 0


def test_the_completeness_gap_is_what_the_sum_lacks(explainer, letters, monkeypatch):
    gaps = {}
    for steps in (4, attribution.STEPS):
        monkeypatch.setattr(attribution, "STEPS", steps)
        case = explainer.case(letters, QUESTION, ANSWER)
        made = explainer._integrated(case)
        start = explainer._embedded(case).clone()
        start[case.ecg] = explainer.lm.ecg_rows.weight[4:].mean(0)
        difference = log_odds(explainer, case) - log_odds(explainer, case, start[None])
        lacking = abs(made[case.ecg].sum().item() - difference)
        assert case.gap == pytest.approx(100 * lacking / abs(difference), rel=0.02, abs=0.02)
        gaps[steps] = case.gap
    assert attribution.STEPS >= 32 and gaps[attribution.STEPS] < min(gaps[4], 5)
    other = explainer.case(letters, QUESTION, ANSWER)
    explainer.scores(other, "gradient")
    assert other.gap is None


@pytest.mark.parametrize("ecgs", [1, 3])
@pytest.mark.parametrize("room", [6, 9, 30])
def test_the_tokens_that_a_prompt_had_no_room_for_draw_nothing(explainer, letters, ecgs, room):
    tokens = explainer.tokenizer.encode(letters)
    turns = [("one?", "no"), (QUESTION, ANSWER)]
    whole = explainer.case_of([tokens] * ecgs, turns)
    short = attribution.Explainer(
        *(explainer.lm, explainer.prompt, explainer.tokenizer),
        longest=int(whole.at[0]) - ecgs * len(tokens) + room,
    )
    case = short.case_of([tokens] * ecgs, turns)
    assert short.longest - max(1, short.longest // 64) < case.at[0] <= short.longest
    assert explainer.prompt.text(case.ids[case.at]) == ANSWER
    # each place of the ECG is a stretch of the very token that stands there
    for place, lead, start, stop in case.spans:
        token = case.ids[case.ecg[place]] - explainer.lm.layout.first
        spelled = explainer.tokenizer.lengths[token]
        assert spelled == stop - start
        assert [lead, start, stop] in explainer.tokenizer.spans(tokens)[:, 1:].tolist()
    assert case.spans[:, 0].tolist() == list(range(len(case.ecg)))
    scores = np.zeros(case.at[0])
    scores[case.ecg] = 1.0
    density = short.spread(case, scores)
    covered = np.zeros(letters.shape, bool)
    for _, lead, start, stop in case.spans:
        covered[lead, start:stop] = True
    assert np.array_equal(density > 0, covered) and density.sum() == pytest.approx(1)
    assert short.decided(case) < len(case.at)


def test_a_question_that_leaves_no_room_is_one_line(explainer, letters):
    from ecgbyte_cli.failure import Failure

    long = attribution.Explainer(explainer.lm, explainer.prompt, explainer.tokenizer, longest=32)
    for letters_more, said in ((26, "no room for the ECG"), (60, "text alone")):
        with pytest.raises(Failure, match=said):
            long.case(letters, "x" * letters_more, ANSWER)


def test_attention_is_what_the_eager_model_says_and_the_model_is_left_as_it_was(explainer, case):
    before = explainer.lm.base.config._attn_implementation
    maps = explainer._maps(case)
    assert explainer.lm.base.config._attn_implementation == before
    assert len(maps) == explainer.lm.base.config.num_hidden_layers
    for attention in maps:
        assert torch.allclose(attention.sum(1), torch.ones(len(case.ids)), atol=1e-5)
        assert attention.triu(1).abs().max() == 0
    explainer.lm.base.set_attn_implementation("eager")
    embedded = explainer.lm.embed(torch.from_numpy(case.ids)[None])
    with torch.no_grad():
        asked = where(explainer, torch.from_numpy(case.ids))
        wanted = explainer.lm.base(inputs_embeds=embedded, output_attentions=True, **asked).attentions
    explainer.lm.base.set_attn_implementation(before)
    assert all(torch.allclose(a, w[0].mean(0), atol=1e-6) for a, w in zip(maps, wanted, strict=True))
    rows = maps[-1][case.at[explainer.decided(case)] - 1].numpy()
    assert explainer.scores(case, "attention") == pytest.approx(rows[: case.at[0]], abs=1e-6)


def test_rollout_is_the_product_of_the_layers(explainer, case):
    product = np.eye(len(case.ids))
    for attention in explainer._maps(case):
        product = (0.5 * attention.double().numpy() + 0.5 * np.eye(len(case.ids))) @ product
    wanted = product[case.at[explainer.decided(case)] - 1][: case.at[0]]
    assert explainer.scores(case, "rollout") == pytest.approx(wanted, abs=1e-6)


def test_a_model_without_attention_weights_is_refused(explainer, case, monkeypatch):
    from ecgbyte_cli.failure import Failure

    monkeypatch.setattr(explainer.lm.base, "modules", lambda: [])
    with pytest.raises(Failure, match="--method gradient"):
        explainer.scores(case, "rollout")


def test_scores_are_spread_over_spans(explainer, case):
    scores = np.random.default_rng(0).random(case.at[0])
    density = explainer.spread(case, scores)
    assert density.sum() == pytest.approx(1)
    share = scores[case.ecg] / scores[case.ecg].sum()
    for token, lead, start, stop in explainer.tokenizer.spans(case.ids[case.ecg] - explainer.lm.layout.first):
        assert density[lead, start:stop].sum() == pytest.approx(share[token])
        assert np.ptp(density[lead, start:stop]) == 0
    assert explainer.spread(case, np.zeros(case.at[0])) == pytest.approx(np.full((2, 60), 1 / 120))


def test_occlusion_is_the_loss_of_likelihood_window_by_window(explainer, letters):
    density = explainer.density(letters, QUESTION, ANSWER, "occlusion")
    case = explainer.case(letters, QUESTION, ANSWER)
    whole, decided = log_odds(explainer, case), explainer.decided(case)
    drops = []
    for lead in range(2):
        for start in range(0, 60, 10):  # 0.2 s
            flat = letters.copy()
            flat[lead, start : start + 10] = int(np.median(letters[lead]))
            changed = explainer.case(flat, QUESTION, ANSWER)
            drops.append(max(0, whole - of_answer(explainer, changed)[1][decided]))
    wanted = np.repeat(np.array(drops).reshape(2, 6), 10, axis=1)
    assert density == pytest.approx(wanted / wanted.sum(), abs=1e-4)


@pytest.mark.parametrize("method", attribution.METHODS)
def test_every_method_gives_shares(explainer, letters, method):
    density = explainer.density(letters, QUESTION, ANSWER, method)
    assert density.shape == letters.shape and density.min() >= 0 and density.sum() == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31))
def test_cells_and_pointing(leads, samples, width, seed):
    density = np.random.default_rng(seed).random((leads, samples))
    sums = attribution_measures.sum_windows(density, width)
    for lead in range(leads):
        for k, start in enumerate(range(0, samples, width)):
            assert sums[lead, k] == pytest.approx(density[lead, start : start + width].sum())
    w = min(width, samples)
    best = max(density[lead, i : i + w].sum() for lead in range(leads) for i in range(samples - w + 1))
    lead, middle = attribution_measures.peak_window(density, w)
    start = middle - w // 2
    assert density[lead, start : start + w].sum() == pytest.approx(best)


def test_cells_are_made_flat_or_kept():
    letters = np.array([[1, 2, 3, 2, 9], [7, 7, 7, 0, 7]], np.uint8)
    chosen = np.array([[True, False, False], [False, True, False]])
    assert attribution_measures.flatten_windows(letters, chosen, 2, keep=False).tolist() == [
        [2, 2, 3, 2, 9],
        [7, 7, 7, 7, 7],
    ]
    assert attribution_measures.flatten_windows(letters, chosen, 2, keep=True).tolist() == [
        [1, 2, 2, 2, 2],
        [7, 7, 7, 0, 7],
    ]


def test_curves_meet_at_their_ends(explainer, letters):
    density = explainer.density(letters, QUESTION, ANSWER, "gradient")
    deleted, inserted = attribution_measures.deletion_insertion_curves(
        explainer, letters, QUESTION, ANSWER, density, 5, [0, 0.25, 0.5, 1]
    )
    whole = np.exp(log_probability(explainer, explainer.case(letters, QUESTION, ANSWER)))
    flat = np.repeat(attribution.baseline_letters(letters)[:, None], 60, axis=1)
    nothing = np.exp(log_probability(explainer, explainer.case(flat, QUESTION, ANSWER)))
    assert [deleted[0], inserted[-1]] == pytest.approx([whole, whole], rel=1e-3)
    assert [deleted[-1], inserted[0]] == pytest.approx([nothing, nothing], rel=1e-3)
    assert attribution_measures.area_under_curve([0, 0.5, 1], [1, 0, 0]) == 0.25


def test_a_model_that_reads_one_letter_is_found_out():
    """A decoder is trained to tell one letter apart: integrated gradients and occlusion must point at it."""
    signal = {**TOKENIZER["signal"], "fs": 10.0, "samples": 10, "segment_seconds": 1.0}
    tokenizer = ECGTokenizer.from_dict({**TOKENIZER, "merges": [], "signal": signal})
    base, text_tokenizer = tiny.build_tiny(seed=0)
    lm = ecg_lm.ECGLM(base, tokenizer.vocab_size)
    prompt, random = Prompt(text_tokenizer, lm.layout), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=2e-3)
    for _ in range(100):
        rows = []
        for answer in ("a", "b") * 8:
            ecg = random.integers(10, 15, (2, 10)).astype(np.uint8)
            if answer == "a":
                ecg[random.integers(2), random.integers(10)] = 25
            rows.append([torch.from_numpy(x) for x in prompt.build([ecg.ravel()], [("?", answer)])])
        ids, labels = (torch.stack(x) for x in zip(*rows, strict=True))
        loss = lm(ids, labels)[0] / (labels != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    explainer = attribution.Explainer(lm.eval(), prompt, tokenizer)
    hits = dict.fromkeys(attribution.METHODS, 0)
    for _ in range(8):
        ecg = random.integers(10, 15, (2, 10)).astype(np.uint8)
        lead, sample = random.integers(2), random.integers(10)
        ecg[lead, sample] = 25
        for method in hits:
            density = explainer.density(ecg, "?", "a", method)
            hits[method] += int(density[lead, sample] == density.max())
    assert all(hits[method] >= 7 for method in ("integrated", "occlusion")), hits


def test_plot_attention(small, tmp_path, ecgbyte, coarse_integral):
    import json

    record, work = small / "data" / "synth00001", small / "ecgbyte-work"
    for method in ("gradient", "rollout", "occlusion", "integrated"):
        out = tmp_path / f"{method}.png"
        result = ecgbyte(
            *("plot", "attention", record, "--method", method, "--out", out, "--json"), work=work
        )
        assert result.exit_code == 0, result.stderr
        said = json.loads(result.stdout)
        assert said["method"] == method and "answer" in said
        assert said["on_text"] is None if method == "occlusion" else 0 <= said["on_text"] <= 100
        assert (said["completeness_gap"] is None) == (method != "integrated")
        assert out.read_bytes().startswith(b"\x89PNG")
    result = ecgbyte("plot", "attention", record, "--model", tmp_path, work=work)
    assert result.exit_code == 1 and "ecgbyte finetune" in result.stderr
