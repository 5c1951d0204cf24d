"""Time training steps on ECG tokens: the reference's way, and ecgbyte's.

    python examples/bench_finetune.py                # Llama-3.2-1B's shape on a GPU, a small one on a CPU

Sequences have the length distribution of real tokens (mode about 400, tail to 1,900), weights are random.

(a) padded     every sample padded or cut to 1,024, logits at every position, bfloat16 LoRA, batch 2
(b) lora       batches by length, padded to their longest, logits where there are labels, bfloat16 LoRA
(c) qlora      the same with the base in 4-bit NF4, and gradient checkpointing

Counted are tokens of data: neither padding nor what is computed twice. (a) is cut to 1,024, so that it does not
pay for what it throws away. On a CPU everything is float32 but (c), which computes in bfloat16.
"""

import argparse
import json
import platform
import tempfile
import time

import numpy as np
import torch

from ecgbyte_cli.model import ecg_lm
from ecgbyte_cli.model.samples import batches, collate

LLAMA_1B = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}  # fmt: skip
SMALL = {"vocab_size": 32000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
         "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
ECG_VOCAB, PADDED = 5000, 1024


def lengths(count, random):
    """Lengths of samples in tokens: log-normal, mode 400, up to 1,900."""
    sigma = 0.5
    drawn = random.lognormal(np.log(400) + sigma**2, sigma, count)
    return np.clip(drawn, 60, 1900).astype(int)


def sample(length, offset, random):
    """Ids and labels: ECG tokens, a question of 20 and an answer of 10."""
    ecg = random.integers(offset + 2, offset + 2 + ECG_VOCAB, length - 30)
    ids = np.concatenate([ecg, random.integers(3, offset, 30)])
    labels = np.where(np.arange(length) >= length - 10, ids, -100)
    return ids.astype(np.int64), labels.astype(np.int64)


def build(shape, method, device):
    """A model of random weights, adapters on it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

    config = LlamaConfig(**shape, tie_word_embeddings=True, max_position_embeddings=4096)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
        options = {"dtype": dtype, "device_map": device}
        if method == "qlora":
            options |= {
                "dtype": torch.bfloat16,
                "quantization_config": BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=torch.bfloat16,
                ),
            }
        base = AutoModelForCausalLM.from_pretrained(folder, **options)
    if method == "qlora":
        base = ecg_lm.add_adapter(base)
    else:
        from peft import LoraConfig, get_peft_model

        targets = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
        base = get_peft_model(base, targets)
    return ecg_lm.ECGLM(base, ECG_VOCAB).train()


def padded_loss(lm, ids, labels):
    """The reference's way: a mask, and logits at every position."""
    mask = (torch.arange(PADDED, device=ids.device) < (ids != 0).sum(1, keepdim=True)).long()
    logits = lm.base(inputs_embeds=lm.embed(ids), attention_mask=mask, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())


def run(name, shape, device, steps, batch, seed=0):
    """Tokens of data per second, and peak memory, of one way."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    lm = build(shape, "qlora" if name == "qlora" else "lora", device)
    trained = [p for p in lm.parameters() if p.requires_grad]
    if device == "cuda" and name == "qlora":
        import bitsandbytes

        optimizer = bitsandbytes.optim.PagedAdamW8bit(trained, lr=1e-4)
    else:
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
    random = np.random.default_rng(seed)
    count = lengths(64 * batch, random)
    order = batches(count, 2 if name == "padded" else batch, seed)
    data = computed = 0
    for step in range(steps + 2):
        if step == 2:  # the first two warm up
            if device == "cuda":
                torch.cuda.synchronize()
            data, computed, start = 0, 0, time.perf_counter()
        samples = [sample(count[i], lm.offset, random) for i in next(order)]
        if name == "padded":
            samples = [(ids[-PADDED:], labels[-PADDED:]) for ids, labels in samples]
        data += sum(len(ids) for ids, _ in samples)
        ids, labels = collate(samples)
        if name == "padded":
            extra = PADDED - ids.shape[1]
            ids = torch.nn.functional.pad(ids, (0, extra))
            labels = torch.nn.functional.pad(labels, (0, extra), value=-100)
        computed += ids.numel()
        ids, labels = ids.to(device), labels.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = padded_loss(lm, ids, labels) if name == "padded" else lm(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {
        "way": name,
        "batch": 2 if name == "padded" else batch,
        "tokens_per_second": data / seconds,
        "padding_percent": 100 * (1 - data / computed),
        "peak_gpu_gib": peak,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each way")
    parser.add_argument(
        "--batch", type=int, help="samples per step of (b) and (c); default 8 on a GPU, else 2"
    )
    parser.add_argument("--ways", default="padded,lora,qlora", help="which of the three")
    options = parser.parse_args()
    device = ecg_lm.best_device()
    shape = LLAMA_1B if device == "cuda" else SMALL
    batch = options.batch or (8 if device == "cuda" else 2)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}, Python {platform.python_version()}; {json.dumps(shape)}")
    print(f"{'way':8} {'batch':>5} {'tokens/s':>9} {'padding %':>9} {'peak GiB':>8} {'times (a)':>9}")
    first = None
    with ecg_lm.quiet():
        for way in options.ways.split(","):
            row = run(way, shape, device, options.steps, batch)
            first = first or row["tokens_per_second"]
            peak = "-" if row["peak_gpu_gib"] is None else f"{row['peak_gpu_gib']:.2f}"
            print(
                f"{way:8} {row['batch']:5} {row['tokens_per_second']:9.0f} {row['padding_percent']:9.1f} "
                f"{peak:>8} {row['tokens_per_second'] / first:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
