"""The exported folder: plain Transformers, the same logits, and never an ECG token written."""

import json
import shutil

import numpy as np
import pytest
import torch
from test_ecg_lm import SHAPES
from transformers import AutoModelForCausalLM, AutoTokenizer

from ecgbyte_cli.model import ecg_lm
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.stages import export


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
    _, text_tokenizer = ecg_lm.tiny()
    offset = len(text_tokenizer) + 5  # a base model with more rows than its tokenizer has tokens
    export.name_tokens(text_tokenizer, offset, 30)
    ids = text_tokenizer.encode("a<sig_start><ecg_0><ecg_29><sig_end>b", add_special_tokens=False)
    assert ids[1:-1] == [offset, offset + 2, offset + 31, offset + 1]
    assert text_tokenizer.decode(ids, skip_special_tokens=True) == "ab"


@pytest.fixture(scope="module", params=["full", "lora", "qlora"])
def trained(request, small, tmp_path_factory):
    """A work folder with a model of each kind."""
    from click.testing import CliRunner

    from ecgbyte_cli.__main__ import main

    if request.param == "full":
        return small / "ecgbyte-work"
    folder = tmp_path_factory.mktemp("trained")
    base, text_tokenizer = ecg_lm.tiny()
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
    lm, text_tokenizer, ecg_tokenizer, _ = ecg_lm.load(trained / "model", "cpu")
    plain = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert plain.dtype == torch.bfloat16
    assert plain.get_input_embeddings().num_embeddings == numbers["vocab"] == len(tokenizer)
    ecg = np.random.default_rng(0).integers(0, ecg_tokenizer.vocab_size, 60)
    ids, _ = Prompt(text_tokenizer, lm.offset).build([ecg], [("What is the rhythm?", None)])
    text = "<bos><sig_start>" + "".join(f"<ecg_{k}>" for k in ecg) + "<sig_end>What is the rhythm?\n"
    assert tokenizer.encode(text, add_special_tokens=False) == ids.tolist()
    ids = torch.from_numpy(ids)[None]
    with torch.no_grad():
        wanted = lm.base(inputs_embeds=lm.embed(ids)).logits.float()
        got = plain.float()(ids).logits
    # bfloat16 has 8 bits: half a unit in the last place of the weights, through a few layers
    assert (got[..., : lm.offset] - wanted).abs().max() < 0.03 * wanted.abs().max()
    assert got.argmax(-1).max() < lm.offset
    assert json.loads((out / "ecgbyte.json").read_text())["notice"] == ecg_lm.NOTICE
    assert (out / "ecg_tokenizer.json").exists() and not list(out.glob("*.bin"))


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
