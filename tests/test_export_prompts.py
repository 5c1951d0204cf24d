"""What an export's README.md says to send has the ids of the training, whatever the text tokenizer."""

import json
import re

import gguf
import numpy as np
import pytest
import torch
from test_export import in_readme
from test_folder import write_base
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from ecgbyte_cli.model import base_model, ecg_lm, model_folder
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.stages import export
from ecgbyte_cli.storage.workdir import WorkDir

TEXTS = [
    "You read electrocardiograms. The ECG is given as tokens. Answer the question about it in few words.",
    "What is the rhythm? Is there atrial fibrillation? Is the heart rate above 100 beats per minute?",
    "sinus rhythm, left bundle branch block, normal ECG, yes, no. system user assistant model INST SYS",
]
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'assistant' %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def pieces(special, normalizer, pre_tokenizer, spaces):
    """As SentencePiece has it: spaces written as ▁, and bytes where a letter is unknown."""
    text = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    text.normalizer, text.pre_tokenizer = normalizer, pre_tokenizer
    text.train_from_iterator(
        TEXTS, BpeTrainer(vocab_size=600, special_tokens=[*special, *BYTES], show_progress=False)
    )
    made = json.loads(text.to_str())
    made["added_tokens"] = []  # bytes are no words that a text is split at
    text = Tokenizer.from_str(json.dumps(made))
    text.add_special_tokens([AddedToken(word, normalized=False) for word in special])
    text.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *spaces]
    )
    return text


def begun_with(text, bos):
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, text.token_to_id(bos))]
    )


def byte_level(special, digits, normalizer, ignore_merges):
    text = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    text.normalizer = normalizer
    text.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS.replace("DIGITS", digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text.train_from_iterator(
        TEXTS, BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    text.add_special_tokens(special)
    text.decoder = decoders.ByteLevel()
    return text


def llama_2(metaspace=False):
    """With a normalizer, a space is put before every stretch of text; with Metaspace, before the first alone."""
    special = ["<unk>", "<s>", "</s>"]
    if metaspace:
        how = None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        how = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None
    text = pieces(special, *how, [decoders.Strip(" ", 1, 0)])
    text.post_processor = begun_with(text, "<s>")
    return text, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": LLAMA_2}


def llama_3():
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    text = byte_level(special, "{1,3}", None, True)
    text.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), begun_with(text, special[0])]
    )
    return text, {"bos_token": special[0], "eos_token": "<|eot_id|>", "chat_template": LLAMA_3}


def qwen():
    text = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "", normalizers.NFC(), False)
    text.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return text, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": QWEN}


def gemma():
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    text = pieces(special, normalizers.Replace(" ", "▁"), split, [])
    text.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(1, 4)])
    text.post_processor = begun_with(text, "<bos>")
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    return text, {**names, "chat_template": GEMMA}


# a tokenizer, and what is to be left out of a prompt where special tokens are added: None where nothing helps
FAMILIES = {
    "Llama 2": (llama_2, "<s>"),
    "Llama 2, Metaspace": (lambda: llama_2(metaspace=True), None),
    "Llama 3": (llama_3, "<|begin_of_text|>"),
    "Qwen": (qwen, ""),
    "Gemma": (gemma, "<bos>"),
}
QUESTIONS = ("What is the rhythm?", "is it [so]: <b>?", "two  spaces\n\nand e\u0301", "I'VE 1234 <0x41>")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, small, tmp_path_factory):
    """A model with a tokenizer of a family, what a prompt is in it, and its export."""
    folder = tmp_path_factory.mktemp("family")
    made, doubled = FAMILIES[request.param]
    text, names = made()
    text_tokenizer = PreTrainedTokenizerFast(tokenizer_object=text, **names)
    rows = len(text_tokenizer) + 3  # a base model may have more rows than its tokenizer has tokens
    base = write_base(folder / "base", vocab_size=rows, initializer_range=0.3)
    text_tokenizer.save_pretrained(base)
    base, text_tokenizer = base_model.load_base(str(base), "full", "cpu")
    tokenizer = small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json"
    ecg_tokenizer = ECGTokenizer.from_file(tokenizer)
    layout = Layout(rows, 2, ecg_tokenizer.lengths, ecg_tokenizer.signal["samples"])
    lm = ecg_lm.ECGLM(base, ecg_tokenizer.vocab_size, layout=layout)
    lm.to(
        torch.bfloat16
    ).float()  # what an export keeps of the weights: the answers are the same to the last bit
    (folder / "model").mkdir()
    about = {"base": "none", "method": "full", "segmenter": "longest"}
    model_folder.save_model(folder / "model", lm, text_tokenizer, tokenizer, about)
    export.export(WorkDir(folder / "work"), folder / "out", export.ExportOptions(folder / "model"))
    lm, text_tokenizer, _, _ = model_folder.load_model(folder / "model", "cpu")
    return lm, Prompt(text_tokenizer, lm.layout), folder / "out", doubled


def asked(out, question):
    """The text of a question about an ECG, as the README of an export has it."""
    ecg = "<lead_II><ecg_4><ecg_0><lead_V1><ecg_7>"
    return in_readme(out).replace("ECG_TOKENS", ecg).replace("What is the rhythm?", question)


def trained(prompt, question):
    return prompt.build([[4, 0, 7]], [(question, None)], [np.array([0, 0, 1])])[0].tolist()


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_text_has_the_trained_ids(family, question):
    _, prompt, out, doubled = family
    tokenizer, text, ids = AutoTokenizer.from_pretrained(out), asked(out, question), trained(prompt, question)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    bos = tokenizer.bos_token or ""
    assert (tokenizer.encode(text) == ids, tokenizer.encode(text.removeprefix(bos)) == ids) == (
        doubled == "",
        doubled is not None,
    )


def test_the_readme_says_what_a_tokenizer_adds(family):
    _, _, out, doubled = family
    said = (out / "README.md").read_text()
    assert ("the default gives the same ids" in said) == (doubled == "")
    assert ("send the ids" in said) == (doubled is None)
    assert re.findall(r"leave out the first `(.+?)`", said) == ([doubled] if doubled else [])
    # what llama.cpp's converter writes of it, by its own reading
    assert gguf.SpecialVocab(out).add_special_token.get("bos", False) == (doubled != "")


def test_transformers_answers_alike(family):
    lm, prompt, out, _ = family
    tokenizer = AutoTokenizer.from_pretrained(out)
    plain = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    serve = pipeline("text-generation", model=plain, tokenizer=tokenizer)
    answers = set()
    for question in QUESTIONS:
        ids, text = trained(prompt, question), asked(out, question)
        (answer,) = lm.answer([np.array(ids)], prompt.end_ids, 12)
        greedy = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        given = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        written = plain.generate(**given, **greedy)[0].tolist()
        (served,) = serve(text, add_special_tokens=False, return_tensors=True, **greedy)
        assert written[: len(ids)] == ids and written == served["generated_token_ids"]
        assert [i for i in written[len(ids) :] if i not in prompt.end_ids] == answer
        answers.add(tuple(answer))
    assert len(answers) > 1
