"""Attention over shared ECGs without a mask: the same logits and gradients as with a mask for every id."""

import numpy as np
import pytest
import torch
import transformers
from test_sharing import TOKENIZER
from torch.nn import functional

from ecgbyte_cli.model import attention, base_model, ecg_lm
from ecgbyte_cli.model.kv_cache import new_cache
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.training.batch import Reading, collate

SMALL = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
NEOX = {key: SMALL[key] for key in SMALL if key not in ("num_key_value_heads", "head_dim")}
SHAPES = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL)),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SMALL, sliding_window=None)
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**SMALL, layer_types=["full_attention"] * 2)
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**NEOX)),
}
WINDOWS = {
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SMALL, sliding_window=16)
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **SMALL, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SMALL)),
    "bloom": lambda: transformers.BloomForCausalLM(  # its bias of distances is added to a mask for all ids
        transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    ),
}


def make_lm(make):
    torch.manual_seed(0)
    lm = ecg_lm.ECGLM(make(), TOKENIZER.vocab_size, 0, Layout(300))
    with torch.no_grad():  # far from uniform attention
        for parameter in lm.parameters():
            parameter.mul_(3) if parameter.dim() > 1 else None
    return lm


def batch_of(lm, ecgs, questions=5, seed=0, weights=False):
    """A batch with ECGs of these lengths, and questions of several lengths behind each."""
    random, readings = np.random.default_rng(seed), []
    for length in ecgs:
        lengths = [length, *random.integers(2, 9, questions)]
        owner = np.repeat(np.arange(questions + 1), lengths)
        ids = np.where(owner == 0, lm.layout.first + random.integers(0, TOKENIZER.vocab_size, len(owner)), 0)
        ids[owner > 0] = random.integers(3, 300, (owner > 0).sum())
        own = np.concatenate([np.arange(n) for n in lengths])
        positions = np.where(owner == 0, own, length + own)
        labels = np.where(random.random(len(owner)) < 0.6, ids, -100)
        weight = np.where(owner == 2, 3.0, 1.0).astype(np.float32) if weights else None
        readings.append(Reading(ids, labels, positions, owner, weight))
    return collate(readings, lm.layout)


def dense(lm):
    """Make a model take a mask for every id."""
    lm.base.set_attn_implementation("sdpa")
    lm.takes_last_rows = False
    return lm


def outcome(lm, batch):
    """The logits and losses of a batch, and all gradients."""
    lm.zero_grad()
    logits = lm.base(**lm.inputs(batch.ids, batch.positions, batch.owner)).logits
    losses = lm(*batch)
    losses.sum().backward()
    gradients = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), "losses": losses.detach(), **gradients}


def assert_equal(found, wanted, tolerance=1e-5):
    assert found.keys() == wanted.keys() and "ecg_rows.weight" in found
    for name, value in found.items():
        assert (value - wanted[name]).norm() <= tolerance * wanted[name].norm(), name


def test_cuda_can_copy_a_batch_by_itself():
    batch = batch_of(make_lm(SHAPES["llama"]), (9, 12), weights=True)
    assert len(batch.owner) > 1 and batch.owner.shape[1] < batch.ids.shape[1]
    assert all(part.is_contiguous() for part in batch)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ecgs", [(40, 40), (37, 52, 1)])
def test_logits_and_gradients_are_those_of_a_mask_for_every_id(shape, ecgs, monkeypatch):
    monkeypatch.setattr(attention, "ROWS", 16)
    lm = make_lm(SHAPES[shape])
    batch = batch_of(lm, ecgs, weights=True)
    assert batch.owner.shape[1] == batch.ids.shape[1] - min(ecgs)
    found = outcome(lm, batch)
    assert lm.takes_last_rows and lm.base.config._attn_implementation == attention.NAME
    assert_equal(found, outcome(dense(lm), batch))
    # what a question sees of others, or of ids behind it, would show in the loss of a reading alone
    whole = functional.pad(batch.owner, (min(ecgs), 0))
    for row in range(len(ecgs)):
        keep = (whole[row] == 0) | (whole[row] == 2)
        keep[ecgs[row] + (whole[row] > 0).sum() :] = False
        alone = lm.base(**lm.inputs(batch.ids[row, keep][None], batch.positions[row, keep][None])).logits[0]
        mine = whole[row][keep] == 2
        there = found["logits"][row][keep][mine]
        assert (alone[mine] - there).norm() <= 1e-5 * there.norm()


@pytest.mark.parametrize("shape", WINDOWS)
def test_other_attention_keeps_a_mask_for_every_id(shape):
    lm = make_lm(WINDOWS[shape])
    before = lm.base.config._attn_implementation
    batch = batch_of(lm, (12, 9))
    inputs = lm.inputs(batch.ids, batch.positions, batch.owner)
    assert not lm.takes_last_rows and lm.base.config._attn_implementation == before
    n = batch.ids.shape[1]
    assert inputs["attention_mask"].shape == (2, 1, n, n) and inputs["attention_mask"].dtype == torch.float32


@pytest.mark.parametrize("adapter", [False, True])
def test_layers_computed_again_in_the_backward_pass_give_the_same_gradients(adapter):
    lm = make_lm(SHAPES["llama"]).train()
    batch = batch_of(lm, (30, 25))
    if adapter:
        lm.base = base_model.add_adapter(lm.base, dropout=0.0, checkpointing=True)
    else:
        ecg_lm.checkpoint_layers(lm.base)
    found = outcome(lm, batch)
    assert lm.takes_last_rows
    assert_equal(found, outcome(dense(lm), batch))


def test_the_mask_is_in_the_type_that_the_model_computes_in():
    lm = make_lm(SHAPES["llama"])
    batch = batch_of(lm, (30, 25))
    with torch.autocast("cpu", torch.bfloat16):
        mask = lm.inputs(batch.ids, batch.positions, batch.owner)["attention_mask"]
        assert torch.isfinite(lm(*batch)).all()
    assert mask.dtype == torch.bfloat16 and mask.stride(2) % 8 == 0
    wanted = dense(make_lm(SHAPES["llama"])).bfloat16()(*batch)
    assert torch.allclose(lm.bfloat16()(*batch), wanted, rtol=0.02)


def test_answers_are_the_same_after_training_steps_as_before():
    lm = make_lm(SHAPES["llama"]).eval()
    random = np.random.default_rng(0)
    begin = [300, *(lm.layout.first + random.integers(0, TOKENIZER.vocab_size, 20)), 301]
    prompts = [np.array([*begin, *random.integers(3, 300, n)]) for n in (4, 7)] + [np.array([5, 6, 7])]
    answers = [[np.array([8, 9]), np.array([11])]] * 3
    before = lm.answer(prompts, {2}, 6), lm.answer(prompts[:2], {2}, 6), lm.weigh(prompts, answers)
    assert lm.base.config._attn_implementation == "sdpa" and lm.takes_last_rows
    assert lm.base.config._attn_implementation == attention.NAME
    after = lm.answer(prompts, {2}, 6), lm.answer(prompts[:2], {2}, 6), lm.weigh(prompts, answers)
    assert after[:2] == before[:2]
    for found, wanted in zip(after[2], before[2], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    del lm.beside
    assert lm.beside


def test_ids_behind_a_cache_see_all_of_it():
    lm = make_lm(SHAPES["qwen2"]).eval()
    batch = batch_of(lm, (30, 30))
    n, rows = batch.ids.shape[1], batch.owner.shape[1]
    with torch.no_grad():
        inputs = lm.inputs(batch.ids, batch.positions, batch.owner)
        wanted = lm.base(**inputs).logits[:, n - rows :]
        states = new_cache(lm.base)
        first = {"inputs_embeds": inputs["inputs_embeds"][:, : n - rows]}
        lm.base(**first, past_key_values=states, use_cache=True)
        rest = {key: inputs[key][:, n - rows :] for key in ("inputs_embeds", "position_ids")}
        rest["attention_mask"] = inputs["attention_mask"]
        found = lm.base(**rest, past_key_values=states, use_cache=True).logits
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_saved_model_does_not_name_the_attention(tmp_path):
    lm = make_lm(SHAPES["llama"])
    assert lm.takes_last_rows
    lm.base.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
