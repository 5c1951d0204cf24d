"""The exported folder: plain Transformers, the same logits, and never an ECG token written."""

import json
import shutil

import numpy as np
import pytest
import torch
from test_ecg_lm import SHAPES
from test_folder import EXPERTS, write_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import base_model, ecg_lm, model_folder, tiny
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.stages import export
from ecgbyte_cli.storage.workdir import WorkDir


@pytest.mark.parametrize("shape", SHAPES)
def test_widened_models_read_the_same_and_write_no_ecg(shape, tmp_path):
    """Tied and untied, scaled and plain embeddings; the text columns of the logits do not change."""
    torch.manual_seed(1)
    lm = ecg_lm.ECGLM(SHAPES[shape](), ecg_vocab=40).eval()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, lm.offset + 42, (2, 30)))
    with torch.no_grad():
        before = lm.base(inputs_embeds=lm.embed(ids)).logits
    export.widen(lm.base, lm, never=7)
    lm.base.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        after = plain(ids).logits
    assert after.shape[-1] == lm.offset + 42
    torch.testing.assert_close(after[..., : lm.offset], before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[..., lm.offset :], before[..., 7:8].expand(-1, -1, 42))
    written = plain.generate(ids, max_new_tokens=20, do_sample=True, temperature=5.0)[:, 30:]
    assert written.shape[1] == 20 and written.max() < lm.offset


def test_ecg_tokens_have_their_ids_by_name():
    _, text_tokenizer = tiny.build_tiny()
    offset = len(text_tokenizer) + 5  # a base model with more rows than its tokenizer has tokens
    names = export.ecg_names(Layout(offset, 2), ["II", "V1"], 30)
    export.name_tokens(text_tokenizer, offset, names)
    ids = text_tokenizer.encode("a<sig_start><lead_V1><ecg_0><ecg_29><sig_end>b", add_special_tokens=False)
    assert ids[1:-1] == [offset, offset + 3, offset + 4, offset + 33, offset + 1]
    assert text_tokenizer.decode(ids, skip_special_tokens=True) == "ab"


@pytest.fixture(scope="module", params=["full", "lora", "qlora"])
def trained(request, small, tmp_path_factory):
    """A work folder with a model of each kind."""
    from click.testing import CliRunner

    from ecgbyte_cli.__main__ import main

    if request.param == "full":
        return small / "ecgbyte-work"
    folder = tmp_path_factory.mktemp("trained")
    base, text_tokenizer = tiny.build_tiny()
    base.config.hidden_size, base.config.head_dim = 128, 32  # 4-bit numbers come in blocks of 64
    type(base)(base.config).save_pretrained(folder / "base")
    text_tokenizer.save_pretrained(folder / "base")
    shutil.copytree(
        small / "ecgbyte-work", folder / "work", ignore=shutil.ignore_patterns("model", "training")
    )
    args = [
        "finetune",
        "--qa",
        small / "data" / "qa.jsonl",
        "--model",
        folder / "base",
        "--method",
        request.param,
    ]
    args += ["--steps", 5, "--lr", 0.01, "--batch", 1, "--max-length", 80]
    run = CliRunner().invoke(main, ["--work", str(folder / "work"), *map(str, args)])
    assert run.exit_code == 0, run.stderr
    return folder / "work"


def test_an_export_is_the_model(trained, tmp_path, ecgbyte):
    out = tmp_path / "exported"
    result = ecgbyte("export", out, "--json", work=trained)
    assert result.exit_code == 0, result.stderr
    numbers = json.loads(result.stdout)
    lm, text_tokenizer, ecg_tokenizer, _ = model_folder.load_model(trained / "model", "cpu")
    plain = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert plain.dtype == torch.bfloat16
    assert plain.get_input_embeddings().num_embeddings == numbers["vocab"] == len(tokenizer)
    ecg = np.random.default_rng(0).integers(0, ecg_tokenizer.vocab_size, 60)
    leads = np.repeat([0, 1], 30)
    ids, _ = Prompt(text_tokenizer, lm.layout).build([ecg], [("What is the rhythm?", None)], [leads])
    one, other = ("".join(f"<ecg_{k}>" for k in part) for part in (ecg[:30], ecg[30:]))
    text = f"<bos><sig_start><lead_II>{one}<lead_V1>{other}<sig_end>What is the rhythm?\n"
    assert tokenizer.encode(text, add_special_tokens=False) == ids.tolist()
    ids = torch.from_numpy(ids)[None]
    with torch.no_grad():
        wanted = lm.base(inputs_embeds=lm.embed(ids)).logits.float()
        got = plain.float()(ids).logits
    # bfloat16 has 8 bits: half a unit in the last place of the weights, through a few layers
    assert (got[..., : lm.offset] - wanted).abs().max() < 0.03 * wanted.abs().max()
    assert got.argmax(-1).max() < lm.offset
    assert json.loads((out / "ecgbyte.json").read_text())["notice"] == model_folder.NOTICE
    assert (out / "ecg_tokenizer.json").exists() and not list(out.glob("*.bin"))
    result = ecgbyte("export", tmp_path / "float32", "--dtype", "float32", work=trained)
    assert result.exit_code == 0, result.stderr
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "float32")
    assert plain.dtype == torch.float32
    if lm.base.dtype == torch.float32:  # a CPU with bfloat16 computes in it
        with torch.no_grad():
            got = plain(ids).logits[..., : lm.offset]
        assert torch.allclose(got, wanted, atol=1e-4 * wanted.abs().max().item())
    config = json.loads((tmp_path / "float32" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


# as Qwen3's, which writes an empty thought before the last answer; as Llama 2's, which knows no system message; and one
# that asks for the date
TEMPLATES = {
    None: None,
    "thought": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "no system": "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}",
    "date": "{% for m in messages %}<{{ m.role }}>{{ strftime_now('%d %B %Y') }}: {{ m.content }}{{ eos_token }}"
    "{% endfor %}",
}


def bytes_of_text(template):
    """A byte-level text tokenizer with a chat template."""
    _, text_tokenizer = tiny.build_tiny()
    text_tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    text_tokenizer.chat_template = template
    return text_tokenizer


def pieces_of_text(template, scheme="first"):
    """A text tokenizer as of SentencePiece: a space before a text, and bytes where a letter is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(i) for i in range(33, 127)]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *letters]
    joined = [("▁", letter) for letter in letters if letter.isalpha() or letter in "[<:"]
    vocabulary = {word: i for i, word in enumerate([*words, *(a + b for a, b in joined)])}
    text = Tokenizer(
        models.BPE(vocab=vocabulary, merges=joined, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    text.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    text.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=text,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )


def exported(tmp_path, small, kind, text_tokenizer, method, **numbers):
    """Write a base model with an adapter that is not zero, export it, and return what the prompt is in both."""
    base = write_base(tmp_path / "base", kind, vocab_size=len(text_tokenizer), **numbers)
    text_tokenizer.save_pretrained(base)
    made, text_tokenizer = base_model.load_base(str(base), method, "cpu")
    tokenizer = small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json"
    lm = ecg_lm.ECGLM(base_model.add_adapter(made), ECGTokenizer.from_file(tokenizer).vocab_size)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    (tmp_path / "model").mkdir()
    about = {"base": str(base), "method": method, "segmenter": "longest", "date": "2026-02-03"}
    model_folder.save_model(tmp_path / "model", lm.eval(), text_tokenizer, tokenizer, about)
    export.export(WorkDir(tmp_path / "work"), tmp_path / "out", export.ExportOptions(tmp_path / "model"))
    lm, text_tokenizer, _, _ = model_folder.load_model(tmp_path / "model", "cpu")
    return lm, Prompt(text_tokenizer, lm.layout, "2026-02-03"), tmp_path / "out"


def in_readme(out):
    """The text that the README of an export names."""
    (line,) = [line for line in (out / "README.md").read_text().splitlines() if line.startswith('"')]
    return json.loads(line)


@pytest.mark.parametrize("text", [bytes_of_text, pieces_of_text, lambda t: pieces_of_text(t, "always")])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_text_that_the_readme_names_gives_the_trained_ids(small, tmp_path, text, template):
    text_tokenizer = text(TEMPLATES[template])
    _, prompt, out = exported(tmp_path, small, "llama", text_tokenizer, "lora")
    named = in_readme(out)
    assert json.loads((out / "ecgbyte.json").read_text())["prompt"] == named
    assert ("<think>\n\n</think>" in named, "03 February 2026" in named) == (
        template == "thought",
        template == "date",
    )
    again = AutoTokenizer.from_pretrained(out)
    for question in ("What is the rhythm?", "is it [so]: <b>?", "  two  spaces\n\n", "é"):
        ids, _ = prompt.build([[4, 0, 7]], [(question, None)])
        asked = named.replace("ECG_TOKENS", "<ecg_4><ecg_0><ecg_7>").replace("What is the rhythm?", question)
        if template == "no system":
            question = question.strip()
        assert again.encode(asked, add_special_tokens=False) == ids.tolist(), question
    ends = AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else {*ends}
    assert ends == prompt.end_ids and again.eos_token_id in ends
    assert (again.convert_tokens_to_ids("<|im_end|>") in ends) == (
        template == "thought" and text is bytes_of_text
    )


@pytest.mark.parametrize(
    ("kind", "method", "numbers"),
    [
        ("gpt2", "lora", {"n_embd": 128, "n_head": 4, "n_layer": 2, "n_positions": 512}),
        ("gpt2", "qlora", {"n_embd": 128, "n_head": 4, "n_layer": 2, "n_positions": 512}),
        ("qwen3_moe", "lora", EXPERTS["qwen3_moe"]),
        ("mixtral", "qlora", {"hidden_size": 128, "head_dim": 32, **EXPERTS["mixtral"]}),
    ],
)
def test_layers_of_other_kinds_load_as_they_were_trained(small, tmp_path, kind, method, numbers):
    if kind == "gpt2":
        numbers["hidden_size"] = 128
    lm, prompt, out = exported(tmp_path, small, kind, bytes_of_text(None), method, **numbers)
    plain, loaded = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loaded.values())
    ids = torch.from_numpy(prompt.build([np.arange(30)], [("What is the rhythm?", None)])[0])[None]
    with torch.no_grad():
        wanted = lm.base(inputs_embeds=lm.embed(ids)).logits.float()
        got = plain.float()(ids).logits[..., : lm.offset]
    assert (got - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_a_tokenizer_that_makes_other_ids_of_a_whole_prompt_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "asked", lambda *_: ("<bos>ECG_TOKENS", "<bos>", [1, 2, 3]))
    with pytest.raises(Failure, match="cannot be exported"):
        export.export(WorkDir(small / "ecgbyte-work"), tmp_path / "out", export.ExportOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["chat", "plot", "explain", "generate", "export"])
def test_an_export_is_no_model_folder_and_says_so(small, tmp_path, ecgbyte, command):
    work, out = small / "ecgbyte-work", tmp_path / "out"
    assert ecgbyte("export", out, work=work).exit_code == 0
    record = small / "data" / "synth00001"
    args = {"chat": [record, "-q", "x"], "plot": ["attention", record], "export": [tmp_path / "again"]}
    result = ecgbyte(command, *args.get(command, []), "--model", out, work=work)
    assert result.exit_code == 1 and "is an export" in result.stderr and len(result.stderr.splitlines()) == 1


def test_what_is_there_is_not_overwritten(small, tmp_path, ecgbyte):
    work, out = small / "ecgbyte-work", tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused = ecgbyte("export", out, "--overwrite", work=work)
    assert refused.exit_code == 1 and "exists already" in refused.stderr and (out / "mine.txt").exists()
    (out / "mine.txt").unlink()
    assert ecgbyte("export", out, work=work).exit_code == 0
    again = ecgbyte("export", out, work=work)
    assert again.exit_code == 1 and "--overwrite" in again.stderr
    assert ecgbyte("export", out, "--overwrite", work=work).exit_code == 0


def test_without_a_model_it_is_one_line(tmp_path, ecgbyte):
    result = ecgbyte("export", tmp_path / "out", work=tmp_path)
    assert result.exit_code == 1 and "ecgbyte finetune" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
