"""How likely answers are behind prompts, from one reading: the same as read alone, one at a time."""

import numpy as np
import pytest
import torch
import transformers
from test_ecg_lm import SHAPES
from test_memory import mixed, on_cuda, shapes, too_much
from test_prompt import prompt_with
from test_sharing import TOKENIZER, base, signals  # noqa: F401  (a fixture)

from ecgbyte_cli.model import ecg_lm, folder_checks, model_folder, weighing
from ecgbyte_cli.model.kv_cache import PromptCache
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import Prompt

ANSWERS = [np.array(ids) for ids in ([40, 2], [41, 42, 43, 44, 2], [2], [40, 50, 2])]


def alone(lm, prompt, answer):
    """The logarithm of an answer's probability, by the whole logits of one text."""
    with torch.no_grad():
        ids = torch.from_numpy(np.concatenate([prompt, answer]))[None]
        logits = lm.base(**lm.inputs(ids)).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


def made(base, positions="token"):  # noqa: F811
    text, _ = prompt_with(None)
    lm = ecg_lm.ECGLM(base, TOKENIZER.vocab_size, 0, Layout.of(259, TOKENIZER, positions)).eval()
    prompt, ecgs = Prompt(text.text_tokenizer, lm.layout), [TOKENIZER.encode(s) for s in signals(3)]
    questions = ["What is the rhythm?", "Rate?"]
    prompts = [prompt.build([ecg], [(q, None)])[0] for ecg in ecgs for q in questions]
    prompts.append(prompt.build([ecgs[0], ecgs[1]], [("Both?", None)])[0])
    prompts.append(prompt.build([ecgs[0][:0]], [("None?", None)])[0])
    return lm, prompts


def test_autocast_does_not_decide_what_is_shared():
    """It did for the model that ships, so that `reinforce` on a GPU read every ECG again for each answer."""
    lm, *_ = model_folder.load_model(folder_checks.SHIPPED, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert lm.beside


@pytest.mark.parametrize("broken", [too_much, on_cuda, mixed])
def test_what_is_shared_is_not_decided_by_memory_or_devices(monkeypatch, broken):
    lm, prompts = made(SHAPES["llama"]())
    with monkeypatch.context() as patched:
        patched.setattr(weighing, "weigh_shared", lambda *_: broken())
        for _ in range(2):
            with pytest.raises(RuntimeError):
                lm.weigh(prompts, [ANSWERS] * len(prompts))
    assert lm.beside  # nothing was remembered
    other, _ = made(SHAPES["llama"]())
    monkeypatch.setattr(weighing, "weigh_shared", lambda *_: shapes())
    assert not other.beside


@pytest.mark.parametrize("positions", ["token", "time"])
def test_answers_are_weighed_as_if_each_were_read_alone(base, positions, monkeypatch):  # noqa: F811
    lm, prompts = made(base, positions)
    some = [ANSWERS[: 1 + i % 4] for i in range(len(prompts))]
    wanted = [[alone(lm, ids, answer) for answer in of] for ids, of in zip(prompts, some, strict=True)]
    assert lm.beside
    read, look_up = [], lm.embed
    monkeypatch.setattr(lm, "embed", lambda ids: read.append(tuple(ids.shape)) or look_up(ids))
    found = lm.weigh(prompts, some)
    assert len(read) == 2 and read[0][0] == 5  # beginnings, each once
    for here, there in zip(found, wanted, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(weighing, "MOST_BESIDE", 30)  # in several passes
    read.clear()
    for here, there in zip(lm.weigh(prompts, some), wanted, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)
    assert len(read) > 2
    cache = PromptCache()
    for ids, of, there in zip(prompts, some, wanted, strict=True):
        (here,) = lm.weigh([ids], [of], cache)
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)
        # what was weighed has left nothing in the cache that an answer could see
        written = [i for (i,) in lm.stream([ids], {7}, 4, cache)]
        assert written == lm.answer([ids], {7}, 4)[0]


SIZES = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WITHOUT = {  # no texts side by side: windows, and attention whose bias takes no mask of four dimensions
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, sliding_window=24)
    ),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=2)
    ),
    "gpt_neo": lambda: transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            **{"vocab_size": 259, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "window_size": 24},
            attention_types=[[["global", "local"], 1]],
        )
    ),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_model_without_texts_side_by_side_weighs_answers_each_by_itself(kind):
    torch.manual_seed(0)
    lm, prompts = made(WITHOUT[kind]())
    assert not lm.beside
    found = lm.weigh(prompts[:2], [ANSWERS, ANSWERS[:1]])
    for ids, of, here in zip(prompts, (ANSWERS, ANSWERS[:1]), found, strict=False):
        np.testing.assert_allclose(here, [alone(lm, ids, answer) for answer in of], rtol=1e-4, atol=1e-4)
    # nor does it answer so
    together = lm.answer(prompts[:3], {7}, 5)
    assert together == [lm.answer([ids], {7}, 5)[0] for ids in prompts[:3]]
