"""The model: ECG rows beside the base's embedding, answers alone and together, folders that load again."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import base_model, ecg_lm, kv_cache, model_folder, tiny
from ecgbyte_cli.signal.tokenizer import ECGTokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 259, "max_position_embeddings": 512}  # fmt: skip
SHAPES = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL)),
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**SMALL)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=259, n_positions=1024)
    ),
}


@pytest.fixture(params=SHAPES)
def lm(request):
    torch.manual_seed(0)
    return ecg_lm.ECGLM(SHAPES[request.param](), ecg_vocab=40).eval()


def sample(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 259 + 42, n) for n in lengths]


def test_embed_looks_up_text_in_the_base_and_ecg_in_the_rows(lm):
    ids = torch.tensor([[5, lm.offset, lm.offset + 41]])
    embedded = lm.embed(ids)[0]
    assert torch.equal(embedded[0], lm.base.get_input_embeddings()(torch.tensor(5)))
    assert torch.equal(embedded[1:], lm.ecg_rows.weight[[0, 41]])


def test_loss_is_that_of_the_full_logits(lm):
    ids = torch.tensor(np.stack(sample([30, 30])))
    labels = torch.full_like(ids, -100)
    labels[0, 20:] = ids[0, 20:] % 259
    labels[1, 27:29] = ids[1, 27:29] % 259
    logits = lm.base(inputs_embeds=lm.embed(ids)).logits[:, :-1]
    wanted = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    text, ecg = lm(ids, labels)
    assert torch.allclose(text / 12, wanted, atol=1e-5) and ecg == 0


def test_padding_on_the_right_changes_nothing(lm):
    ids = torch.tensor(np.stack(sample([30])))
    labels = torch.full_like(ids, -100)
    labels[0, 20:] = ids[0, 20:] % 259
    padded = functional.pad(ids, (0, 9)), functional.pad(labels, (0, 9), value=-100)
    assert torch.allclose(lm(ids, labels), lm(*padded), atol=1e-4)


def test_answers_together_equal_answers_alone(lm):
    prompts = sample([5, 50, 17])
    together = lm.answer(prompts, end_ids={7, 8}, max_new=12)
    assert together == [lm.answer([p], end_ids={7, 8}, max_new=12)[0] for p in prompts]
    assert max(i for answer in together for i in answer) < lm.offset


def test_an_answer_equals_the_one_without_a_cache(lm):
    (prompt,) = sample([20])
    ids = torch.tensor(prompt)[None]
    with torch.no_grad():
        for _ in range(6):
            logits = lm.base(inputs_embeds=lm.embed(ids), use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    assert lm.answer([prompt], end_ids=set(), max_new=6)[0] == ids[0, 20:].tolist()


def test_an_answer_ends_before_its_end_token(lm):
    (prompt,) = sample([20])
    answer = lm.answer([prompt], end_ids=set(), max_new=6)[0]
    end = answer[3]
    assert lm.answer([prompt], end_ids={end}, max_new=6)[0] == answer[: answer.index(end)]


def test_answers_with_a_prompt_cache_equal_those_without(lm, monkeypatch):
    (start,) = sample([40])
    # the third is how the others begin
    prompts = [np.concatenate([start, tail]) for tail in sample([6, 9, 0, 14], seed=1)]
    # the same again, and one that shares nothing
    prompts += [prompts[-1], sample([25], seed=2)[0]]
    read, embed, cache = [], lm.embed, kv_cache.PromptCache()
    monkeypatch.setattr(lm, "embed", lambda ids: read.append(ids.shape[1]) or embed(ids))
    lengths = []
    for prompt in prompts:
        read.clear()
        cached = [i for (i,) in lm.stream([prompt], {7, 8}, 10, cache)]
        lengths.append(read[0])
        assert cached == lm.answer([prompt], {7, 8}, 10)[0]
    assert lengths == [46, 9, 1, 14, 1, 25]


def test_a_prompt_cache_outlives_an_interrupted_answer(lm):
    one, other = (np.concatenate([*sample([40]), *sample([6], seed)]) for seed in (1, 2))
    layers = next(m for m in lm.modules() if isinstance(m, torch.nn.ModuleList))
    cache = kv_cache.PromptCache()
    list(lm.stream([one], set(), 4, cache))

    def interrupt(*_):
        raise KeyboardInterrupt

    # when the first layer has read the prompt, and the second has not
    hook = layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(lm.stream([other], set(), 4, cache))
    hook.remove()
    for prompt in (one, other):
        assert [i for (i,) in lm.stream([prompt], set(), 6, cache)] == lm.answer([prompt], set(), 6)[0]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_saved_model_loads_again(small, tmp_path, method):
    base, text_tokenizer = tiny.build_tiny(seed=3)
    name = "tiny"
    if method == "lora":
        name = str(tmp_path / "base")
        base.save_pretrained(name), text_tokenizer.save_pretrained(name)
        base = base_model.add_adapter(base)
    tokenizer = small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json"
    vocab = len(json.loads(tokenizer.read_text())["merges"]) + 26
    lm = ecg_lm.ECGLM(base, vocab, seed=5)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter += 0.01 * torch.randn_like(parameter)  # as if trained, the adapter's zeros too
    if method == "lora":
        with torch.no_grad():  # but not the base's own weights
            saved = transformers.AutoModelForCausalLM.from_pretrained(name).state_dict()
            for key, value in base.base_model.model.state_dict().items():
                if "lora" not in key:
                    value.copy_(saved[key.replace(".base_layer", "")])
    lm.eval()
    (tmp_path / "model").mkdir()
    model_folder.save_model(
        tmp_path / "model", lm, text_tokenizer, tokenizer, {"base": name, "method": method}
    )
    again, _, ecg_tokenizer, about = model_folder.load_model(tmp_path / "model", "cpu")
    ids = torch.tensor(np.stack(sample([40])))
    written, loaded = (one.base(inputs_embeds=one.embed(ids)).logits for one in (lm, again))
    # an adapter's base model is loaded in bfloat16 where the CPU has it
    exact = loaded.dtype == torch.float32
    assert torch.allclose(written, loaded.float(), atol=1e-5 if exact else 0.03 * float(written.abs().max()))
    assert ecg_tokenizer.vocab_size == vocab and "not a medical device" in about["notice"]
    assert not [p for p in (tmp_path / "model").rglob("*") if p.suffix in (".bin", ".pkl", ".pt")]


@pytest.fixture
def merges():
    """A tokenizer of 4 letters: aa, bb, aaaa, bbbb, ab."""
    signal = {"fs": 5.0, "leads": ["II"], "segment_seconds": 2.0, "samples": 10, "profile": "resample"}
    signal |= {"fill_nan": None, "quantizer": {"name": "minmax", "levels": 4}}
    about = {"format": "ecgbyte-tokenizer", "format_version": 1, "signal": signal, "boundary": "lead"}
    return ECGTokenizer.from_dict(about | {"merges": [[0, 0], [1, 1], [4, 4], [5, 5], [0, 1]]})


def test_waveforms_of_tokens_that_look_alike_are_alike(merges):
    features = ecg_lm.waveforms(merges)
    assert features.shape == (9, 18)
    a, b, aa, bb, aaaa, bbbb, ab = features[[0, 1, 4, 5, 6, 7, 8]]
    near, far = np.linalg.norm(aa - aaaa), np.linalg.norm(aa - bbbb)
    assert near < far and np.linalg.norm(aa - bb) < np.linalg.norm(a - features[3])
    assert np.allclose(aa[:16], 0) and (np.diff(ab[:16]) > 0).all()  # flat, and rising
    parts = features[:, :16], features[:, 16:17], features[:, 17:]
    assert all(np.isclose((part**2).sum(1).mean(), 1) for part in parts)
    assert len(np.unique(features.round(9), axis=0)) == 9


@pytest.mark.parametrize("how", ["random", "mean", "signal"])
def test_first_values_of_the_rows(lm, merges, how):
    lm = ecg_lm.ECGLM(lm.base, merges.vocab_size, seed=1)
    random = lm.ecg_rows.weight.detach().clone()
    lm.init_rows(how, merges, seed=1)
    rows = lm.ecg_rows.weight.detach()
    text = lm.base.get_input_embeddings()(torch.arange(lm.offset)).detach()
    assert torch.equal(rows[:2], random[:2]) or how == "mean"
    assert len(torch.unique(rows, dim=0)) == len(rows)
    if how == "mean":
        assert (rows - text.mean(0)).std() < 0.2 * text.std()
    else:
        assert 0.5 < rows.std() / text.std() < 2
    if how == "signal":
        aa, aaaa, bbbb = rows[2 + 4], rows[2 + 6], rows[2 + 7]
        assert (aa - aaaa).norm() < (aa - bbbb).norm()


def in_4_bit(folder, vocab):
    """A small model in 4 bits with an adapter that is not zero, and the text tokenizer."""
    base, text_tokenizer = tiny.build_tiny()
    base.config.hidden_size, base.config.head_dim = 128, 32  # 4-bit numbers come in blocks of 64
    torch.manual_seed(0)
    type(base)(base.config).save_pretrained(folder)
    text_tokenizer.save_pretrained(folder)
    base, _ = base_model.load_base(str(folder), "qlora", "cpu")
    lm = ecg_lm.ECGLM(base_model.add_adapter(base, dropout=0.0), vocab)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return lm, text_tokenizer


def test_a_4_bit_model_loads_as_it_was_trained(small, tmp_path):
    tokenizer = small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json"
    lm, text_tokenizer = in_4_bit(tmp_path / "base", ECGTokenizer.from_file(tokenizer).vocab_size)
    (tmp_path / "model").mkdir()
    about = {"base": str(tmp_path / "base"), "method": "qlora"}
    model_folder.save_model(tmp_path / "model", lm, text_tokenizer, tokenizer, about)
    again = model_folder.load_model(tmp_path / "model", "cpu")[0]
    ids = torch.tensor(np.stack(sample([40])))
    with torch.no_grad():
        logits = [m.base(inputs_embeds=m.embed(ids)).logits.float() for m in (lm.eval(), again)]
    torch.testing.assert_close(*logits, atol=1e-3, rtol=0)


def test_a_validation_does_not_change_the_gradients_in_4_bit(tmp_path):
    lm, _ = in_4_bit(tmp_path, 40)
    ids = torch.tensor(np.stack(sample([30])))
    labels = torch.where(torch.arange(30) >= 20, ids % 259, -100)
    ids = torch.where(labels >= 0, labels, ids)
    gradients = []
    for _ in range(2):
        lm.train().zero_grad()
        lm(ids, labels)[0].backward()
        gradients.append({n: p.grad.clone() for n, p in lm.named_parameters() if p.grad is not None})
        with torch.no_grad():
            lm.eval()(ids, labels)
    first, second = gradients
    assert first.keys() == second.keys() and "ecg_rows.weight" in first
    for name in first:
        assert first[name].abs().max() > 0, name
        torch.testing.assert_close(first[name], second[name], atol=0, rtol=0)


def test_another_base_with_the_same_vocabulary_is_refused(small, tmp_path):
    name = tmp_path / "base"
    base, text_tokenizer = tiny.build_tiny(seed=3)
    base.save_pretrained(name), text_tokenizer.save_pretrained(name)
    tokenizer = small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json"
    lm = ecg_lm.ECGLM(base_model.add_adapter(base), ECGTokenizer.from_file(tokenizer).vocab_size)
    (tmp_path / "model").mkdir()
    about = {"base": str(name), "method": "lora"}
    model_folder.save_model(tmp_path / "model", lm, text_tokenizer, tokenizer, about)
    assert model_folder.load_model(tmp_path / "model", "cpu")[3]["base_sha256"]
    tiny.build_tiny(seed=4)[0].save_pretrained(name)
    with pytest.raises(Failure, match="trained on another base model"):
        model_folder.load_model(tmp_path / "model", "cpu")


def broken_folder(small, tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(small / "ecgbyte-work" / "model", folder)
    change(folder)
    return folder


def edit(name, **values):
    def change(folder):
        about = json.loads((folder / name).read_text())
        about.update(values)
        (folder / name).write_text(json.dumps(about))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("ecg_tokenizer.json", merges=[[0, 1]], counts=[2]), "not the tokenizer that this model"),
        (edit("ecgbyte.json", prompt_version=0), "prompt version 0"),
        (edit("ecgbyte.json", format_version=99), "not an ecgbyte model of format"),
        (edit("ecgbyte.json", offset=7), "text vocabulary differs"),
        (edit("ecgbyte.json", text_tokenizer_sha256=""), "text vocabulary differs"),
        (lambda folder: (folder / "ecgbyte.json").unlink(), "ecgbyte finetune"),
        (lambda folder: (folder / "ecgbyte.json").write_text("{"), "not valid JSON"),
        (lambda folder: shutil.rmtree(folder / "base"), "is missing: copy"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_in_one_line(small, tmp_path, change, said):
    with pytest.raises(Failure, match=said) as error:
        model_folder.load_model(broken_folder(small, tmp_path, change), "cpu")
    assert "\n" not in error.value.message
