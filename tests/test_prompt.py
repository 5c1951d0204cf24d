"""Ids and loss mask, in the plain form and through chat templates."""

import functools
import string
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import tiny
from ecgbyte_cli.model.chat_template import DATE, ChatTemplate, TemplateError
from ecgbyte_cli.model.layout import Layout, lead_ranges
from ecgbyte_cli.model.prompt import IGNORED, Prompt, trim_ecgs

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


def prompt_with(template=None):
    _, text_tokenizer = tiny.build_tiny()
    text_tokenizer.chat_template = template
    return Prompt(text_tokenizer, Layout(len(text_tokenizer))), text_tokenizer


shared_prompt = functools.cache(lambda template: prompt_with(template)[0])


def shown(ids, prompt, text_tokenizer):
    return "".join(
        text_tokenizer.decode([i]) if i < prompt.layout.offset else f"[{i - prompt.layout.offset}]"
        for i in np.asarray(ids).tolist()
    )


@pytest.mark.parametrize("layout", [259, np.int64(259), None])
def test_a_prompt_takes_a_layout_and_nothing_else(layout):
    _, text_tokenizer = tiny.build_tiny()
    with pytest.raises(TypeError, match="takes the layout of a model, such as lm.layout"):
        Prompt(text_tokenizer, layout)


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
    trimmed, left = trim_ecgs(ecgs, leads, budget)
    total = sum(map(sum, counts))
    assert sum(map(len, trimmed)) == min(total, budget)
    lost = []
    assert all((ecg // 100 == lead).all() for ecg, lead in zip(trimmed, left, strict=True))
    for ecg, c in zip(trimmed, counts, strict=True):
        for lead, n in enumerate(c):
            kept = ecg[ecg // 100 == lead]
            assert kept.tolist() == [100 * lead + i for i in range(len(kept))]  # the first ones, in order
            lost.append((n - len(kept), len(kept)))
    most = max(lost)[0]
    assert all(n >= most - 1 or kept == 0 for n, kept in lost)


def test_leads_of():
    lengths = np.array([1, 1, 3, 5])
    assert lead_ranges(np.array([2, 0, 1, 3, 3, 0]), lengths, samples=5).tolist() == [0, 0, 0, 1, 2, 3]


PIECES = st.lists(st.text("ab ?,.é\n", max_size=12), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
    PIECES,
    st.lists(st.text("abc é", max_size=40), min_size=2, max_size=4),
    st.integers(30, 200),
)
@pytest.mark.parametrize("template", [None, CHATML])
def test_a_fitted_prompt_is_the_same_before_every_answer(template, counts, questions, answers, longest):
    """Earlier turns belong to the prompt; the last answer, whatever it is, does not."""
    prompt = shared_prompt(template)
    ecgs, leads = [np.arange(n) for n in counts], [np.sort(np.arange(n) % 2) for n in counts]
    earlier = [(question, "so") for question in questions[:-1]]
    try:
        asked, _, lost = prompt.fitted(ecgs, leads, [*earlier, (questions[-1], None)], longest)
    except Failure as error:
        assert "text alone" in error.message
        with pytest.raises(Failure):
            prompt.fitted(ecgs, leads, [*earlier, (questions[-1], answers[0])], longest)
        return
    step = max(1, longest // 64)  # questions of about the same length lose as much
    assert len(asked) <= longest and (not lost or len(asked) > longest - step)
    for answer in answers:
        turns = [*earlier, (questions[-1], answer)]
        ids, labels, also_lost = prompt.fitted(ecgs, leads, turns, longest)
        assert (ids[: len(asked)] == asked).all() and also_lost == lost
        assert len(ids) == len(asked) + prompt.answer_length(turns) and labels[len(asked)] == ids[len(asked)]


NO_END = "{% for m in messages %}\n{{ m.role }}: {{ m.content }}{% endfor %}"
LINE_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NEXT_ROLE = (
    "{% for m in messages %}{{ bos_token if m.role == 'user' }}{{ m.content }}{% endfor %}"  # as GLM's
)


@pytest.mark.parametrize("template", [None, CHATML, NO_SYSTEM, NO_END, LINE_END, NEXT_ROLE])
@pytest.mark.parametrize("answer", ["yes", "", "two\nlines\n"])
def test_every_answer_ends_with_a_token_that_the_model_can_stop_on(template, answer):
    prompt, text_tokenizer = prompt_with(template)
    ids, labels = prompt.build([[1]], [("a?", answer), ("b?", answer)])
    written = list(text_tokenizer.encode(answer))
    counted, ends = labels[labels != IGNORED].tolist(), []
    while counted:
        assert counted[: len(written)] == written and not prompt.end_ids & {*written}
        ends.append(counted[len(written)])
        counted = counted[len(written) + 1 :]
    assert len(ends) == 2 and {*ends} <= prompt.end_ids and {*ends} <= {*text_tokenizer.all_special_ids}


@pytest.mark.parametrize(
    ("template", "works"), [(None, False), (NO_END, False), (NEXT_ROLE, False), (CHATML, True)]
)
def test_a_text_tokenizer_without_an_end_is_refused_unless_the_template_has_one(template, works):
    _, text_tokenizer = tiny.build_tiny()
    text_tokenizer.eos_token = None
    text_tokenizer.name_or_path = "some/model"
    text_tokenizer.chat_template = template
    if works:
        assert Prompt(text_tokenizer, Layout(259)).end_ids == {text_tokenizer.convert_tokens_to_ids("<eos>")}
        return
    with pytest.raises(Failure, match="some/model.*no end-of-text token"):
        Prompt(text_tokenizer, Layout(259))


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("text", ["<eos>", "a<bos><pad>b", "<e<eos>os>", "<eos", "<eos><eos>"])
def test_special_words_in_a_question_or_an_answer_are_text(template, text):
    prompt, text_tokenizer = prompt_with(template)
    plain, _ = prompt.build([[1]], [("?", "a")])
    ids, labels = prompt.build([[1]], [(f"?{text}", f"a{text}")])
    special = np.isin(ids, text_tokenizer.all_special_ids)
    assert special.sum() == np.isin(plain, text_tokenizer.all_special_ids).sum()
    assert prompt.text(labels[labels != IGNORED]) == f"a{text}"
    asked = text_tokenizer.decode(ids[ids < prompt.layout.offset])
    assert f"?{text}" in asked


def sentencepiece_like(scheme):
    """A text tokenizer that begins texts with a space, as those of Llama 2, Mistral and Phi 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_letters + string.punctuation
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *letters]
    words += [f"▁{letter}" for letter in letters]
    text = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=[("▁", letter) for letter in letters],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    text.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    text.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=text, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("template", [None, "{% for m in messages %}</s>{{ m.content }}{% endfor %}"])
def test_ids_are_those_of_the_whole_text_with_the_ecg_as_special_tokens(scheme, template):
    text_tokenizer = sentencepiece_like(scheme)
    text_tokenizer.chat_template = template
    prompt = Prompt(text_tokenizer, Layout(len(text_tokenizer)))
    ids, _ = prompt.build([[0, 1]], [("What is the rhythm?", None)])
    head = "<s>" if template is None else text_tokenizer.decode(ids[: list(ids).index(prompt.layout.offset)])
    tail = "What is the rhythm?" + ("\n" if template is None else "</s>")
    text_tokenizer.add_tokens(["<sig_start>", "<sig_end>", "<ecg_0>", "<ecg_1>"], special_tokens=True)
    whole = f"{head}<sig_start><ecg_0><ecg_1><sig_end>{tail}"
    assert ids.tolist() == text_tokenizer.encode(whole, add_special_tokens=False)


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_sample_is_shown_with_its_spaces(scheme):
    text_tokenizer = sentencepiece_like(scheme)
    prompt = Prompt(text_tokenizer, Layout(len(text_tokenizer)))
    line, counted = prompt.shown(*prompt.build([[4]], [("What is it ?", "an ECG")]))
    assert "What is it ?" in line and "[1 ECG tokens]" in line
    assert counted.strip() == "an ECG</s>"


def test_a_prompt_has_the_date_of_its_training_and_never_the_clocks(monkeypatch):
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML
    prompts = []
    for zone in ("Etc/GMT+12", "Pacific/Kiritimati"):  # 26 hours apart
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        prompts.append(prompt_with(dated))
    monkeypatch.undo()
    time.tzset()
    texts = [shown(p.build([[1]], [("a?", None)])[0], p, t) for p, t in prompts]
    assert texts[0] == texts[1] and texts[0].startswith("26 Jul 2024") and prompts[0][0].date == DATE
    _, text_tokenizer = prompts[0]
    at = Prompt(text_tokenizer, Layout(259), "2026-01-02")
    assert shown(at.build([[1]], [("a?", None)])[0], at, text_tokenizer).startswith("02 Jan 2026")
    assert prompt_with(CHATML)[0].date is None


TEMPLATES = [
    CHATML,
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}\n{% endfor %}",
    "{%- for m in messages %}\n  {%- if m.role == 'user' %}\n    {{ m.content }}\n  {%- else %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{%- endif %}\n{%- endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m | tojson }}"
    "{% endfor %}",
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    "{% if tools is not none %}T{% endif %}{{ dict(a=1) }}{% if add_generation_prompt %}G{% endif %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_are_rendered_as_transformers_renders_them(template):
    _, text_tokenizer = tiny.build_tiny()
    text_tokenizer.chat_template = template
    messages = [
        {"role": "user", "content": "<é> \"'&\n"},
        {"role": "assistant", "content": " b "},
        {"role": "user", "content": "c"},
    ]
    ours = ChatTemplate(template, text_tokenizer.special_tokens_map, DATE, "x").render(messages)
    assert ours == text_tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
        "{{ 'x'.ljust(9000000) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages.__class__.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ raise_exception('no') }}",
        "{{ unknown.thing }}",
        "{% if %}",
        "no message at all",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_cannot_be_used_is_refused_in_time_by_any_thread(template, monkeypatch):
    monkeypatch.setattr("ecgbyte_cli.model.chat_template.SECONDS", 1)
    _, text_tokenizer = tiny.build_tiny()
    text_tokenizer.chat_template, text_tokenizer.name_or_path = template, "some/model"
    caught = []

    def make():
        try:
            Prompt(text_tokenizer, Layout(259))
        except Failure as error:
            caught.append(error.message)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join(120)  # a template that is never ended would take far longer
    assert not thread.is_alive()
    assert len(caught) == 1 and "chat template of some/model" in caught[0] and "\n" not in caught[0]


def test_a_template_that_fails_once_still_renders_the_next_conversation(monkeypatch):
    monkeypatch.setattr("ecgbyte_cli.model.chat_template.SECONDS", 1)
    template = ChatTemplate(
        "{% if messages | length > 1 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        "{% endif %}{{ messages[0].content or raise_exception('empty') }}",
        {},
        DATE,
        "x",
    )
    assert template.render([{"content": "a"}]) == "a"
    with pytest.raises(TemplateError, match="empty"):
        template.render([{"content": ""}])
    with pytest.raises(Failure, match="more than 1 s"):
        template.render([{"content": "a"}] * 2)
    assert template.render([{"content": "b"}]) == "b"


def test_the_process_of_a_template_ends_with_it():
    template = ChatTemplate("{{ messages }}", {}, DATE, "x")
    template.render([])
    process = template.process
    assert process.poll() is None
    del template
    assert process.wait(120) is not None
