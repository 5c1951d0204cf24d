"""Model folders and base models from anywhere: nothing of them runs, and what they promise is checked first."""

import json
import os
import pickle
import shutil
import struct
import time

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import base_model, ecg_lm, folder_checks, model_folder, tiny
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.signal.tokenizer import ECGTokenizer

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}  # fmt: skip


def write_base(path, kind="llama", **numbers):
    """A small base model with a byte-level text tokenizer, as a folder."""
    _, text_tokenizer = tiny.build_tiny()
    config = transformers.AutoConfig.for_model(kind, **{"vocab_size": 259, **SHAPE, **numbers})
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    text_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def adapted(base, small, tmp_path_factory):
    """A model folder with an adapter."""
    made, text_tokenizer = base_model.load_base(str(base), "lora", "cpu")
    tokenizer = small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json"
    lm = ecg_lm.ECGLM(base_model.add_adapter(made), ECGTokenizer.from_file(tokenizer).vocab_size)
    path = tmp_path_factory.mktemp("adapted") / "model"
    path.mkdir()
    model_folder.save_model(path, lm, text_tokenizer, tokenizer, {"base": str(base), "method": "lora"})
    return path


@pytest.fixture(params=["full", "lora"])
def model(request, small, adapted, tmp_path):
    """A copy of a model folder of each kind."""
    source = small / "ecgbyte-work" / "model" if request.param == "full" else adapted
    return shutil.copytree(source, tmp_path / "model")


def edit(path, **values):
    about = json.loads(path.read_text())
    about.update(values)
    path.write_text(json.dumps(about))


def without_sums(model):
    """As an older version wrote it."""
    about = json.loads((model / "ecgbyte.json").read_text())
    del about["files"]
    (model / "ecgbyte.json").write_text(json.dumps(about))
    for name in ("certainty.json", "ecg_pairs.safetensors"):  # which older versions did not write
        (model / name).unlink(missing_ok=True)


def refused(path, said, load=model_folder.load_model):
    began = time.process_time()
    with pytest.raises(Failure, match=said) as error:
        load(path, "cpu")
    assert "\n" not in error.value.message and time.process_time() - began < 10


def load_base(path, device):
    return base_model.load_base(str(path), "lora", device)


# Checksums and names of weights ------------------------------------------------------------------------------


def weights_of(model):
    return sorted(model.rglob("*.safetensors"))


def test_the_checksums_are_of_all_that_a_model_is_made_of(model):
    files = json.loads((model / "ecgbyte.json").read_text())["files"]
    there = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
    assert files.keys() == there - {"ecgbyte.json", "README.md"}
    assert all(any(name.endswith(p.name) for name in files) for p in weights_of(model))
    (model / "notes.txt").write_text("of the user's own")
    model_folder.load_model(model, "cpu")


def test_every_file_that_is_another_missing_or_one_more_is_named(model):
    for name in json.loads((model / "ecgbyte.json").read_text())["files"]:
        if name == "ecg_tokenizer.json":
            continue  # known by what it says
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused(model, f"{name} is damaged")
        (model / name).unlink(missing_ok=True)
        refused(model, f"{name} is missing")
        (model / name).write_bytes(content)
    model_folder.load_model(model, "cpu")
    shutil.copy(weights_of(model)[0], model / "more.safetensors")
    refused(model, "more.safetensors is not of this model")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "base/../../outside"])
def test_checksums_name_nothing_outside(model, tmp_path, name):
    (tmp_path / "outside").write_text("")
    edit(model / "ecgbyte.json", files={name: ""})
    refused(model, "is missing")


@pytest.mark.parametrize(
    "change", ["missing", "renamed", "more", "other shape", "truncated", "long header", "empty"]
)
def test_weights_of_older_models_are_checked_by_their_names(model, change):
    without_sums(model)
    model_folder.load_model(model, "cpu")
    for path in weights_of(model):
        content, tensors = path.read_bytes(), load_file(path)
        changed = dict(tensors)
        name = sorted(changed)[-1]
        if change == "missing":
            del changed[name]
        elif change == "renamed":
            changed[name + "s"] = changed.pop(name)
        elif change == "more":
            changed["model.layers.7.input_layernorm.weight"] = torch.ones(4)
        elif change == "other shape":
            changed[name] = torch.zeros(3, 5)
        if change == "truncated":
            path.write_bytes(content[:-100])
        elif change == "long header":
            path.write_bytes(struct.pack("<Q", 2**60) + content[8:])
        elif change == "empty":
            path.write_bytes(b"")
        else:
            save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(Failure) as error:
            model_folder.load_model(model, "cpu")
        assert "\n" not in error.value.message, path
        path.write_bytes(content)


def test_pickles_are_not_loaded_even_if_they_are_harmless(model):
    without_sums(model)
    for path in weights_of(model):
        torch.save(load_file(path), path.with_suffix(".bin"))
        if path.name.startswith("model"):
            shutil.move(path.with_suffix(".bin"), path.with_name("pytorch_model.bin"))
        model_folder.load_model(model, "cpu")  # safetensors beside it are taken
        moved = path.rename(model.parent / path.name)
        refused(model, "alone, which can run code" if path.name.startswith("model") else "missing")
        moved.rename(path)


# Nothing runs ------------------------------------------------------------------------------------------------


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("inside", [False, True])
def test_code_that_a_configuration_names_is_refused_and_has_not_run(
    base, tmp_path, file, inside, monkeypatch
):
    path, ran = shutil.copytree(base, tmp_path / "base"), tmp_path / "ran"
    (path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to run code"))
    code = {"auto_map": {k: "evil.Evil" for k in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")}}
    edit(path / file, **({"text_config": [code]} if inside else code))
    refused(path, f"{file} names Python code", load_base)
    assert not ran.exists()


def test_no_file_of_a_base_model_runs_anything(base, tmp_path):
    path, ran = shutil.copytree(base, tmp_path / "base"), tmp_path / "ran"
    (path / "custom_generate").mkdir()
    for name in ("tokenizer.py", "modeling_llama.py", "custom_generate/generate.py", "__init__.py"):
        (path / name).write_text(f"open({str(ran)!r}, 'w')\ndef generate(*a, **k): pass\n")
    for name in ("pytorch_model.bin", "model.pkl", "tokenizer.model.pkl"):
        (path / name).write_bytes(pickle.dumps(Touch(ran)))
    ran.unlink(missing_ok=True)
    base_model.load_base(str(path), "lora", "cpu")
    assert not ran.exists()
    edit(path / "config.json", _attn_implementation="someone/kernel")
    refused(path, "names code of the hub", load_base)


@pytest.mark.parametrize(
    "entries",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"target_modules": "(a*)*b"},
        {"target_modules": ["(a*)*b"]},
        {"target_modules": []},
        {"layer_replication": [[0, 1_000_000]]},
        {"peft_type": "BOFT"},
        {"r": 10**9},
        {"r": 3},
        {"r": True},
        {"lora_alpha": 1e300},
        {"lora_alpha": "32"},
        {"lora_dropout": 2},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"use_rslora": True},
        {"trainable_token_indices": [1]},
        {"rank_pattern": {"q_proj": 10**9}},
        {"something_new": {"a": 1}},
    ],
)
def test_an_adapter_is_as_finetune_makes_it_or_refused(adapted, tmp_path, entries):
    path = shutil.copytree(adapted, tmp_path / "model")
    without_sums(path)
    edit(path / "adapter_config.json", **entries)
    refused(path, "not an adapter from|has rank")


# Sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers",
    [
        {"vocab_size": 10**12},
        {"vocab_size": 2**31 - 1},
        {"hidden_size": 10**9},
        {"intermediate_size": 10**9},
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": 1000},
        {"num_attention_heads": 10**9},
        {"head_dim": 10**9},
        {"max_position_embeddings": 10**12},
        {"vocab_size": -1},
        {"vocab_size": "259"},
        {"vocab_size": 1e12},
        {"hidden_size": None},
        {"num_hidden_layers": []},
        {"model_type": "nothing"},
        {"model_type": None},
        {"pad_token_id": 10**6},
        {"layer_types": ["full_attention"] * 1000},
    ],
)
def test_what_a_configuration_promises_is_refused_before_it_is_made(base, tmp_path, numbers):
    import resource

    path = shutil.copytree(base, tmp_path / "base")
    edit(path / "config.json", **numbers)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "config.json|cannot be loaded|weights of base model", load_base)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize(
    "content", ["", "[]", "{", "nul", '{"a": ' * 5000, '{"a": 1e999, "vocab_size": NaN}']
)
def test_damaged_json_is_one_line_or_does_no_harm(base, tmp_path, file, content):
    path = shutil.copytree(base, tmp_path / "base")
    (path / file).write_text(content)
    try:
        load_base(path, "cpu")
    except Failure as error:
        assert "\n" not in error.message
    else:
        assert file != "config.json"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(
        ["temperature", "eos_token_id", "max_length", "num_beams", "suppress_tokens", "cache_implementation"]
    ),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=3),
)
def test_how_others_would_draw_answers_changes_nothing(base, tmp_path_factory, key, value):
    path = shutil.copytree(base, tmp_path_factory.mktemp("base") / "base")
    edit(path / "generation_config.json", **{key: value})
    try:
        loaded, _ = load_base(path, "cpu")
    except Failure as error:
        assert "\n" not in error.message
        return
    kept = loaded.generation_config.to_diff_dict()
    assert {k: v for k, v in kept.items() if k != "transformers_version"} == {
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0
    }  # fmt: skip


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "more"])
def test_a_pipe_does_not_hang(base, tmp_path, name):
    path = shutil.copytree(base, tmp_path / "base")
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    refused(path, "not a regular file|has no config.json", load_base)


# Where a base model is ---------------------------------------------------------------------------------------


def test_a_base_model_that_has_moved_is_told_of_at_once_and_named_anew(adapted, base, tmp_path, monkeypatch):
    path = shutil.copytree(adapted, tmp_path / "model")
    said = json.loads((path / "ecgbyte.json").read_text())
    assert said["base"] == str(base.resolve())
    edit(path / "ecgbyte.json", base=str(tmp_path / "gone"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked the hub"))
    refused(path, r"gone, which does not exist: give its path with --base FOLDER")
    assert model_folder.load_model(path, "cpu", base)[0].offset == 259
    other = write_base(tmp_path / "other", hidden_size=64)
    for wrong in (other, tmp_path):
        with pytest.raises(Failure):
            model_folder.load_model(path, "cpu", wrong)


@pytest.mark.parametrize("name", ["/a/b", "./b", "../b", "~/b", "a/b/c", "a\\b", "", "a b", "b/"])
def test_a_path_is_never_sent_to_the_hub(name, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked the hub"))
    assert folder_checks.is_local_path(name)
    with pytest.raises(Failure, match="the folder does not exist|no config.json"):
        base_model.load_base(name, "lora", "cpu")


def test_the_hub_knows_what_is_no_path():
    assert not any(map(folder_checks.is_local_path, ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct", "a_b/c.d-e"]))


# Kinds of models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("mamba", {}),
        ("mamba2", {}),
        ("falcon_mamba", {}),
        ("jamba", {}),
        ("rwkv", {}),
        ("mpt", {}),
        ("gemma3n_text", {"hidden_size_per_layer_input": 256}),
        ("gemma4_text", {"hidden_size_per_layer_input": 256}),
        ("bart", {}),
        ("bert", {}),
        ("roberta", {}),
        ("whisper", {}),
    ],
)
def test_kinds_that_cannot_be_trained_are_refused_by_name_and_before_their_weights(
    tmp_path, base, kind, numbers
):
    path = shutil.copytree(base, tmp_path / "base")
    config = {"model_type": kind, "vocab_size": 259, **numbers}
    (path / "config.json").write_text(json.dumps(config))
    refused(path, kind, load_base)


EXPERTS = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": {"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                   "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                   "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_mixture_of_experts_is_adapted_on_its_attention_and_loads_again(small, tmp_path, kind):
    path = write_base(tmp_path / "base", kind, **EXPERTS[kind])
    made, text_tokenizer = load_base(path, "cpu")
    tokenizer = small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json"
    lm = ecg_lm.ECGLM(base_model.add_adapter(made), ECGTokenizer.from_file(tokenizer).vocab_size)
    trained = {name for name, p in lm.named_parameters() if p.requires_grad and "lora" in name}
    assert trained and all("attn" in name for name in trained)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    ids = torch.arange(40)[None] + 3
    lm.train()(ids, ids)[0].backward()
    assert all(p.grad is not None for name, p in lm.named_parameters() if name in trained)
    (tmp_path / "model").mkdir()
    model_folder.save_model(
        tmp_path / "model", lm, text_tokenizer, tokenizer, {"base": str(path), "method": "lora"}
    )
    again = model_folder.load_model(tmp_path / "model", "cpu")[0]
    with torch.no_grad():
        one, other = (m.base(inputs_embeds=m.embed(ids)).logits for m in (lm.eval(), again))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


# ecgbyte.json ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "lora2"),
        ("method", None),
        ("base", 5),
        ("offset", "259"),
        ("offset", 10**12),
        ("offset", None),
        ("segmenter", "shortest"),
        ("segmenter", ["longest"]),
        ("prompt_tokens", -1),
        ("prompt_tokens", "many"),
        ("date", "today"),
        ("date", 5),
        ("files", ["a"]),
        ("files", {"a": 5}),
        ("base_revision", 7),
    ],
)
def test_wrong_entries_are_named(model, key, value):
    edit(model / "ecgbyte.json", **{key: value})
    refused(model, f"damaged: .*{key}")


def test_models_older_than_an_entry_know_what_was_the_case_then(model):
    about = json.loads((model / "ecgbyte.json").read_text())
    for key in ("files", "prompt_tokens", "date", "segmenter"):
        about.pop(key, None)
    (model / "ecgbyte.json").write_text(json.dumps(about))
    assert model_folder.load_model(model, "cpu")[3]["segmenter"] == "longest"


def test_libraries_keep_off_standard_error(model, capfd):
    model_folder.load_model(model, "cpu")
    assert capfd.readouterr() == ("", "")


def test_weights_are_in_bfloat16_where_the_hardware_has_it(base, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "avx2": True})
    assert load_base(base, "cpu")[0].dtype == torch.float32
    for name in ("avx512_bf16", "amx_bf16", "bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert devices.half_type("cpu") == torch.bfloat16
    assert load_base(base, "cpu")[0].dtype == torch.bfloat16
    assert base_model.load_base(str(base), "full", "cpu")[0].dtype == torch.float32
