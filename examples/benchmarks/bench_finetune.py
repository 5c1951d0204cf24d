"""Time training steps: padded samples as in the reference, one sample per question, and one reading for all questions.

    python examples/benchmarks/bench_finetune.py   # the shape of Llama-3.2-1B on a GPU, a small one on a CPU

(a) padded     samples padded or cut to 1,024, logits at every position, bfloat16 LoRA, batch 2
(b) lora       batches by length, padded to their longest, logits only at labels, bfloat16 LoRA
(c) shared     as (b), with one reading of an ECG for all its questions
(d) qlora      as (c), with the base in 4-bit NF4 and gradient checkpointing

The three sets: `archive`, one question per ECG, with the lengths of real tokens (mode about 400, tail to 1,900);
`ecg-qa`, 19 questions of 20 tokens per ECG of 400 to 1,000 tokens; `quickstart`, 10 questions of 60 tokens (bytes) per
ECG of about 270. Weights are random. The figure is questions trained per second; ECGs that (a) cuts count as whole. On
a CPU everything is float32 except (d), which computes in bfloat16.
"""

import argparse
import json
import platform
import tempfile
import time

import numpy as np
import torch

from ecgbyte_cli.model import base_model, ecg_lm
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.training.batch import Reading, collate
from ecgbyte_cli.training.sampling import length_batches

LLAMA_1B = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}  # fmt: skip
SMALL = {"vocab_size": 32000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
         "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
ECG_VOCAB, PADDED = 5000, 1024


# questions about each ECG, ids of the text of each, of them the answer's
SETS = {"archive": (1, 30, 10), "ecg-qa": (19, 20, 4), "quickstart": (10, 60, 12)}


def lengths(name, count, random):
    """Lengths of ECGs in tokens."""
    if name == "archive":  # log-normal, mode 400, up to 1,900
        return np.clip(random.lognormal(np.log(400) + 0.25, 0.5, count), 60, 1900).astype(int)
    low, high = (400, 1000) if name == "ecg-qa" else (200, 340)
    return random.integers(low, high, count)


def reading(length, asked, text, answer, offset, random):
    """An ECG of so many tokens, and so many questions behind it."""
    parts = [
        (
            random.integers(offset + 2, offset + 2 + ECG_VOCAB, length),
            np.full(length, -100),
            np.arange(length),
        )
    ]
    for _ in range(asked):
        ids = random.integers(3, offset, text)
        parts.append((ids, np.where(np.arange(text) >= text - answer, ids, -100), length + np.arange(text)))
    owner = np.repeat(np.arange(asked + 1), [len(part[0]) for part in parts])
    return Reading(*map(np.concatenate, zip(*parts, strict=True)), owner)


def build(shape, method, device):
    """A model of random weights; adapters on it, unless the method is full."""
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    options = {"tie_word_embeddings": True, "max_position_embeddings": 4096} | shape
    config = AutoConfig.for_model(options.pop("model_type", "llama"), **options)
    torch.manual_seed(0)
    half = device == "cuda" and method != "full"
    dtype = torch.bfloat16 if half or method == "qlora" else torch.float32
    base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if method == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        with tempfile.TemporaryDirectory() as folder:  # weights become 4-bit when they are loaded
            base.save_pretrained(folder)
            base = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, device_map=device, quantization_config=quantization
            )
        base = base_model.add_adapter(base)
    elif method == "lora":
        from peft import LoraConfig, get_peft_model

        targets = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
        base = get_peft_model(base, targets)
    # 4-bit weights are already there
    return ecg_lm.ECGLM(base if method == "qlora" else base.to(device), ECG_VOCAB).train()


def padded_loss(lm, ids, labels):
    """The reference's way: a mask, and logits at every position."""
    mask = (torch.arange(PADDED, device=ids.device) < (ids != 0).sum(1, keepdim=True)).long()
    logits = lm.base(inputs_embeds=lm.embed(ids), attention_mask=mask, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())


def run(way, questions, shape, device, steps, batch, seed=0):
    """Questions trained a second, and peak memory, of one way."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    lm = build(shape, "qlora" if way == "qlora" else "lora", device)
    layout = Layout(lm.offset)
    trained = [p for p in lm.parameters() if p.requires_grad]
    if device == "cuda" and way == "qlora":
        import bitsandbytes

        optimizer = bitsandbytes.optim.PagedAdamW8bit(trained, lr=1e-4)
    else:
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
    random = np.random.default_rng(seed)
    asked, text, answer = SETS[questions]
    together = asked if way in ("shared", "qlora") else 1
    count = lengths(questions, 64 * batch, random)
    order = length_batches(count, 2 if way == "padded" else batch, seed)
    done = computed = 0
    for step in range(steps + 2):
        if step == 2:  # the first two warm up
            if device == "cuda":
                torch.cuda.synchronize()
            done, computed, start = 0, 0, time.perf_counter()
        made = [reading(count[i], together, text, answer, lm.offset, random) for _, i in next(order)]
        if way == "padded":
            made = [Reading(*(part[-PADDED:] for part in one[:4])) for one in made]
        batch_of_step = collate(made, layout).to(torch.device(device))
        ids, labels = batch_of_step[:2]
        if way == "padded":
            extra = PADDED - ids.shape[1]
            ids = torch.nn.functional.pad(ids, (0, extra))
            labels = torch.nn.functional.pad(labels, (0, extra), value=-100)
        done, computed = done + together * len(made), computed + ids.numel()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            if way == "padded":
                loss = padded_loss(lm, ids, labels)
            else:
                loss = lm(*batch_of_step)[0] / len(batch_of_step.text)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return done / seconds, computed / seconds, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each way")
    parser.add_argument("--batch", type=int, help="ECGs in a step of all but (a); default 8 on a GPU, else 2")
    parser.add_argument("--ways", default="padded,lora,shared,qlora", help="which of the four")
    parser.add_argument("--sets", default=",".join(SETS), help="which of the three")
    options = parser.parse_args()
    device = devices.choose_device()
    shape = LLAMA_1B if device == "cuda" else SMALL
    batch = options.batch or (8 if device == "cuda" else 2)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}, Python {platform.python_version()}; {json.dumps(shape)}")
    print(f"{'set':10} {'way':7} {'questions/s':>11} {'tokens/s':>9} {'peak GiB':>8} {'times (a)':>9}")
    with base_model.silence_libraries():
        for questions in options.sets.split(","):
            first = None
            for way in options.ways.split(","):
                asked, computed, peak = run(way, questions, shape, device, options.steps, batch)
                first = first or asked
                print(
                    f"{questions:10} {way:7} {asked:11.2f} {computed:9.0f} "
                    f"{'-' if peak is None else f'{peak:.2f}':>8} {asked / first:9.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
