"""Time writing an ECG, with cached keys and values, and with everything read again for each token.

    OMP_NUM_THREADS=1 python examples/benchmarks/bench_draw.py --work ecgbyte-work

Uses the work folder's model, trained with `ecgbyte finetune --draw`, and the first words that it can draw. Loading is
not included. Medians of five runs (of one without the cache).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ecgbyte_cli.inference import ecg_generation
from ecgbyte_cli.model import kv_cache, model_folder
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.storage.workdir import WorkDir


def timed(runs, call):
    """The median of some runs in s, and what the last one gave."""
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        made = call()
        took.append(time.perf_counter() - start)
    return float(np.median(took)), made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("ecgbyte-work"))
    options = parser.parse_args()
    lm, text_tokenizer, tokenizer, about = model_folder.load_model(WorkDir(options.work).model, "cpu")
    head = Prompt(text_tokenizer, lm.layout, about.get("date")).drawing(about["draws"][0])

    def write(count):
        return list(
            ecg_generation.generate_ecgs(
                lm, tokenizer, head, range(count), ecg_generation.Sampling(top_p=0.9)
            )
        )

    write(1)
    one, made = timed(5, lambda: write(1))
    many, _ = timed(5, lambda: write(16))

    def read_anew(self, new, blocks):
        states = kv_cache.new_cache(self.lm.base)
        ids = torch.tensor([[*self.head, *block] for block in blocks])
        self.count = ids.shape[1]
        places = torch.stack(
            [ecg_generation._next_positions(self.lm.layout, self.head, block, self.count) for block in blocks]
        )
        return self.lm.following(ids, places, states, 0)

    keeping, ecg_generation.DecoderState.go_on = ecg_generation.DecoderState.go_on, read_anew
    anew, same = timed(1, lambda: write(1))
    ecg_generation.DecoderState.go_on = keeping
    assert np.array_equal(made[0], same[0]), "not the same ECG"
    leads, seconds = len(tokenizer.signal["leads"]), tokenizer.signal["segment_seconds"]
    print(f"{leads} leads of {seconds:g} s, {len(made[0])} tokens, {torch.get_num_threads()} threads")
    print("| | s |\n| --- | ---: |")
    print(f"| an ECG by itself | {one:.2f} |\n| each of sixteen side by side | {many / 16:.2f} |")
    print(f"| an ECG, all read anew for every token | {anew:.2f} |")


if __name__ == "__main__":
    main()
