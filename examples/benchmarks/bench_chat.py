"""Time opening a recording in chat, and the answer to a second question.

    python examples/benchmarks/bench_chat.py [--tokens 2000] [--repeats 20]

1. Read, preprocess (profile paper) and encode a record of 12 leads, 10 s at 500 Hz, with compiled kernels and a warm
   disk cache.
2. In a conversation about an ECG of 2,000 tokens with the tiny model (random weights, CPU): the time from the second
   question to the first token of its answer, with and without the cache of the first question. Both answers must be
   equal.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ecgbyte_cli.inference.conversation import ECG
from ecgbyte_cli.inference.recording_loader import RecordingLoader
from ecgbyte_cli.inference.session import LoadedModel, Session
from ecgbyte_cli.model import ecg_lm, tiny
from ecgbyte_cli.model.kv_cache import PromptCache
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.stages.learn import LearnOptions, learn
from ecgbyte_cli.stages.symbolize import SymbolizeOptions, symbolize
from ecgbyte_cli.stages.synth import SynthOptions, synth
from ecgbyte_cli.storage.workdir import WorkDir

QUESTIONS = ("What is the rhythm?", "Is the heart rate above 100 beats per minute?")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--tokens", type=int, default=2000)
    arguments.add_argument("--repeats", type=int, default=20)
    arguments = arguments.parse_args()

    times, tokens = opening(arguments.repeats)
    rows = [(f"read, preprocess, encode ({tokens} tokens)", times)]
    without, kept = answering(arguments.tokens, arguments.repeats)
    rows.append(("second answer's first token, all read again", without))
    rows.append(("second answer's first token, prompt kept", kept))
    print(f"| {os.cpu_count()} cores, {arguments.repeats} repeats | median, ms | slowest, ms |")
    print("| --- | ---: | ---: |")
    for name, seconds in rows:
        print(f"| {name} | {1000 * statistics.median(seconds):.1f} | {1000 * max(seconds):.1f} |")
    print(f"\n{statistics.median(without) / statistics.median(kept):.1f} times sooner")


def opening(repeats):
    """Seconds to open a record of 10 s, and how many tokens it makes."""
    with tempfile.TemporaryDirectory() as folder:
        data, work = Path(folder) / "data", WorkDir(Path(folder) / "work")
        synth(data, SynthOptions(records=64))
        symbolize(work, str(data), SymbolizeOptions())
        learn(work, LearnOptions(vocab=5000))
        reader = RecordingLoader(ECGTokenizer.from_file(work.ecg_tokenizer), "longest")
        paths, times = sorted(data.glob("*.hea")), []
        for path in [paths[0], *paths[:repeats]]:
            start = time.perf_counter()
            ecg = reader.read(path)
            times.append(time.perf_counter() - start)
        return times[1:], len(ecg.tokens)


def answering(tokens, repeats):
    """Seconds to the first token of a second answer, with all of the prompt read, and with its start kept."""
    base, text_tokenizer = tiny.build_tiny()
    lm = ecg_lm.ECGLM(base, 5000).eval()
    signal = {"segment_seconds": 10.0, "samples": tokens}
    reader = SimpleNamespace(tokenizer=SimpleNamespace(lengths=np.ones(5000, np.int32), signal=signal))
    without, kept = [], []
    for seed in range(repeats):
        ids = np.random.default_rng(seed).integers(0, 5000, tokens)
        # the tiny model as if it knew conversations
        about = {"base": "tiny", "conversations": True}
        loaded = LoadedModel(lm, text_tokenizer, Prompt(text_tokenizer, lm.layout), None)
        session = Session(Path("model"), about, reader, loaded=loaded)
        conversation = session.conversation([ECG(None, [], 0, ids, signal)], max_new=16)
        conversation.ask(QUESTIONS[0])
        second = conversation.ask(QUESTIONS[1])
        del conversation.turns[1:]
        session.cache = PromptCache()
        again = conversation.ask(QUESTIONS[1])
        assert np.array_equal(second.prompt, again.prompt) and second.written == again.written
        kept.append(second.first)
        without.append(again.first)
    return without, kept


if __name__ == "__main__":
    main()
