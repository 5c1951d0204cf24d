"""Ids and loss mask, in the plain form and through chat templates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli.model import ecg_lm
from ecgbyte_cli.model.prompt import IGNORED, Prompt, leads_of, trim

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


def prompt_with(template=None):
    _, text_tokenizer = ecg_lm.tiny()
    text_tokenizer.chat_template = template
    return Prompt(text_tokenizer, offset=len(text_tokenizer)), text_tokenizer


def shown(ids, prompt, text_tokenizer):
    return "".join(
        text_tokenizer.decode([i]) if i < prompt.offset else f"[{i - prompt.offset}]"
        for i in np.asarray(ids).tolist()
    )


def test_plain_form():
    prompt, text_tokenizer = prompt_with()
    ids, labels = prompt.build([[0, 7]], [("Rhythm?", "sinus")])
    assert shown(ids, prompt, text_tokenizer) == "<bos>[0][2][9][1]Rhythm?\nsinus<eos>"
    assert shown(labels[labels != IGNORED], prompt, text_tokenizer) == "sinus<eos>"
    assert (ids[labels != IGNORED] == labels[labels != IGNORED]).all()


@pytest.mark.parametrize("template", [None, CHATML, NO_SYSTEM])
def test_labels_are_the_models_words_in_every_turn(template):
    prompt, text_tokenizer = prompt_with(template)
    ids, labels = prompt.build([[1], [2]], [("a?", "yes"), ("b?", "no")])
    assert shown(labels[labels != IGNORED], prompt, text_tokenizer) == "yes<eos>no<eos>"
    assert shown(ids, prompt, text_tokenizer).count("[0]") == 2
    assert prompt.end_ids == {text_tokenizer.eos_token_id}


@pytest.mark.parametrize("template", [None, CHATML, NO_SYSTEM])
def test_an_open_conversation_is_the_start_of_the_closed_one(template):
    prompt, _ = prompt_with(template)
    closed, labels = prompt.build([[5, 6]], [("a?", "yes"), ("b?", "no")])
    open_, _ = prompt.build([[5, 6]], [("a?", "yes"), ("b?", None)])
    assert (closed[: len(open_)] == open_).all()
    assert labels[len(open_)] == closed[len(open_)]


def test_marks_in_a_question_do_not_move_the_ecg():
    prompt, text_tokenizer = prompt_with()
    ids, labels = prompt.build([[3]], [("a\ue000b\ue001?", "yes")])
    assert shown(ids, prompt, text_tokenizer) == "<bos>[0][5][1]ab?\nyes<eos>"
    assert (labels != IGNORED).sum() == 4


def test_no_signal():
    prompt, text_tokenizer = prompt_with()
    ids, _ = prompt.build([[]], [("a?", None)])
    assert shown(ids, prompt, text_tokenizer) == "<bos>[0][1]a?\n"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1, max_size=3), st.integers(0, 60)
)
def test_trim_takes_evenly_from_the_end_of_each_lead(counts, budget):
    """counts: tokens per lead, per ECG."""
    leads = [np.repeat(np.arange(len(c)), c) for c in counts]
    ecgs = [
        100 * lead + np.concatenate([np.arange(n) for n in c]) for lead, c in zip(leads, counts, strict=True)
    ]
    trimmed = trim(ecgs, leads, budget)
    total = sum(map(sum, counts))
    assert sum(map(len, trimmed)) == min(total, budget)
    lost = []
    for ecg, c in zip(trimmed, counts, strict=True):
        for lead, n in enumerate(c):
            kept = ecg[ecg // 100 == lead]
            assert kept.tolist() == [100 * lead + i for i in range(len(kept))]  # the first ones, in order
            lost.append((n - len(kept), len(kept)))
    most = max(lost)[0]
    assert all(n >= most - 1 or kept == 0 for n, kept in lost)


def test_leads_of():
    lengths = np.array([1, 1, 3, 5])
    assert leads_of(np.array([2, 0, 1, 3, 3, 0]), lengths, samples=5).tolist() == [0, 0, 0, 1, 2, 3]
