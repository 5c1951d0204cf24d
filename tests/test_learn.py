import hashlib
import json
import os
import signal

import numpy as np
import pytest
from click.testing import CliRunner

import naive
from ecgbyte_cli.__main__ import main
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import processes
from ecgbyte_cli.signal import corpus
from ecgbyte_cli.signal.tokenizer import character
from ecgbyte_cli.stages import learn as stage
from ecgbyte_cli.stages.learn import LearnOptions
from ecgbyte_cli.storage.files import array_writer, read_json, read_table, write_json, write_table
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_kernels import merges as kernels


def letters_of(root, segments, splits=None, levels=26):
    """A work folder as `ecgbyte symbolize` leaves it, from uint8 arrays of shape (leads, samples)."""
    work = WorkDir(root)
    sizes = np.array([segment.size for segment in segments], np.int64)
    with array_writer(work.symbols, np.uint8, int(sizes.sum())) as write:
        for segment in segments:
            write(segment)
    names = [f"r{i}" for i in range(len(segments))]
    write_table(
        work.symbol_segments,
        {
            "segment": np.arange(len(segments)),
            "record": names,
            "patient": names,
            "split": list(splits or ["train"] * len(segments)),
            "path": names,
            "start": np.zeros(len(segments)),
            "leads": np.array([len(segment) for segment in segments], np.int64),
            "samples": np.array([segment.shape[1] for segment in segments], np.int64),
            "offset": np.cumsum(sizes) - sizes,
            "lo": np.full(len(segments), -1.5),
            "hi": np.full(len(segments), 1.5),
        },
    )
    signal_settings = {
        "fs": 250.0,
        "leads": ["I", "II"],
        "segment_seconds": 4.0,
        "samples": 1000,
        "profile": "paper",
        "fill_nan": None,
        "quantizer": {"name": "paper", "levels": levels, "lo": -1.5, "hi": 1.5},
    }
    write_json(work.symbol_settings, {"settings": {}, "result": {}, "signal": signal_settings})
    return work


def walk(n=40, leads=2, samples=1000, seed=0):
    steps = np.random.default_rng(seed).choice([-1, 0, 0, 0, 0, 1], (n, leads, samples))
    return list(np.clip(13 + np.cumsum(steps, axis=2), 0, 25).astype(np.uint8))


def run(work, *args, code=0):
    result = CliRunner().invoke(main, ["--work", str(work.root), "learn", *map(str, args)])
    assert result.exit_code == code, result.stderr
    return result


def reason(work, *args):
    """The one line that a run ends with that cannot be done."""
    result = run(work, *args, code=1)
    assert result.stdout == ""
    assert not work.ecg_tokenizer.exists()
    return result.stderr.splitlines()[-1]


def test_what_is_written(tmp_path):
    segments = walk()
    work = letters_of(tmp_path / "work", segments)
    printed = json.loads(run(work, "--vocab", 300, "--json").stdout)
    pieces = [lead.tolist() for segment in segments for lead in segment]
    expected, left = naive.learn_merges(pieces, 26, 274, max_length=256)

    tokenizer = read_json(work.ecg_tokenizer)
    assert tokenizer["merges"] == [[a, b] for a, b, _ in expected]
    assert tokenizer["counts"] == [n for _, _, n in expected]
    assert tokenizer["format"] == "ecgbyte-tokenizer" and tokenizer["format_version"] == 1
    assert tokenizer["signal"] == read_json(work.symbol_settings)["signal"]
    assert tokenizer["boundary"] == "lead" and tokenizer["max_token_length"] == 256
    assert tokenizer["result"] == printed

    assert printed["symbols"] == 80_000 and printed["vocab"] == 300 and printed["merges"] == 274
    assert printed["tokens"] == sum(len(piece) for piece in left)
    assert printed["compression"] == 80_000 / printed["tokens"]
    pairs = np.array(tokenizer["merges"], "<i4").tobytes()
    assert printed["sha256"] == hashlib.sha256(pairs).hexdigest()
    assert printed["peak_rss_mb"] > 50 and printed["seconds"] > 0 and printed["compile_seconds"] > 0

    rows = read_table(work.merges)
    assert rows["count"].tolist() == tokenizer["counts"]
    assert rows["id"].tolist() == list(range(26, 300))
    assert [len(name) for name in rows["letters"]] == rows["length"].tolist()
    assert not work.half_learned.exists()


@pytest.mark.parametrize("levels", [26, 200])
def test_the_tokenizers_library_makes_the_same_tokens(tmp_path, levels):
    from tokenizers import Tokenizer

    segments = [(segment * 7 + 3) % levels for segment in walk(10)]
    work = letters_of(tmp_path, segments, levels=levels)
    run(work, "--vocab", levels + 150)
    tokenizer = Tokenizer.from_file(str(work.hf_tokenizer))
    merges = read_json(work.ecg_tokenizer)["merges"]
    for lead in segments[3]:
        text = "".join(character(letter) for letter in lead.tolist())
        ids = lead.tolist()
        for k, (a, b) in enumerate(merges):
            ids = naive.replace_pair(ids, a, b, levels + k)
        encoded = tokenizer.encode(text)
        assert encoded.ids == ids
        assert tokenizer.decode(encoded.ids) == text


def test_boundaries(tmp_path):
    segments = [np.random.default_rng(i).integers(0, 3, (3, 5), np.uint8) for i in range(4)]
    work = letters_of(tmp_path, segments, levels=3)
    flat = [segment.ravel().tolist() for segment in segments]
    pieces = {
        "lead": [lead.tolist() for segment in segments for lead in segment],
        "segment": flat,
        "none": [sum(flat, [])],
    }
    for boundary, parts in pieces.items():
        result = stage.learn(work, LearnOptions(merges=30, boundary=boundary, overwrite=True))
        expected, left = naive.learn_merges(parts, 3, 30)
        tokenizer = read_json(work.ecg_tokenizer)
        assert tokenizer["merges"] == [[a, b] for a, b, _ in expected]
        assert tokenizer["boundary"] == boundary
        assert result["tokens"] == sum(map(len, left))


def test_the_held_out_segments_are_left_out(tmp_path):
    segments = walk(10)
    splits = ["train", "val", "train", "test", "train"] * 2
    work = letters_of(tmp_path / "all", segments, splits)
    alone = letters_of(
        tmp_path / "train", [s for s, split in zip(segments, splits, strict=True) if split == "train"]
    )
    assert (
        stage.learn(work, LearnOptions(vocab=100))["sha256"]
        == stage.learn(alone, LearnOptions(vocab=100))["sha256"]
    )
    result = run(work, "--vocab", 100, "--split", "all", "--overwrite", "--json")
    assert "10 of 10 segments (split all)" in result.stderr
    assert json.loads(result.stdout)["symbols"] == 20_000


def test_sample(tmp_path):
    work = letters_of(tmp_path, walk())
    result = run(work, "--sample", 10, "--vocab", 100, "--json")
    assert "10 of 40 of 40 segments" in result.stderr
    ten = json.loads(result.stdout)
    assert ten["symbols"] == 20_000
    quarter = stage.learn(work, LearnOptions(vocab=100, sample=0.25, overwrite=True))
    assert quarter["sha256"] == ten["sha256"]
    other = stage.learn(work, LearnOptions(vocab=100, sample=10, seed=1, overwrite=True))
    assert other["symbols"] == 20_000 and other["sha256"] != ten["sha256"]
    everything = stage.learn(work, LearnOptions(vocab=100, overwrite=True))
    for sample in (1.0, 40, 99):
        assert (
            stage.learn(work, LearnOptions(vocab=100, sample=sample, overwrite=True))["sha256"]
            == everything["sha256"]
        )
    for wrong in ("0", "-3", "1.5", "x"):
        assert "neither a number" in run(work, "--sample", wrong, code=2).stderr


def test_the_same_at_any_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "LEAST_IN_SHARD", 1000)
    work = letters_of(tmp_path, walk(30))
    digests = {
        stage.learn(work, LearnOptions(vocab=900, threads=threads, overwrite=True))["sha256"]
        for threads in (1, 2, 8)
    }
    assert len(digests) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("save", [1, 9, 50])
def test_goes_on_after_a_kill(tmp_path, monkeypatch, save):
    """The process is killed right after a save; the second run ends as if nothing had happened."""
    monkeypatch.setattr(corpus, "LEAST_IN_SHARD", 1000)
    monkeypatch.setattr(stage, "SAVE_EVERY", 0)
    monkeypatch.setattr(kernels._learn, "__defaults__", (0, kernels.SCAN_SHARE))  # keep the shards apart
    options = {"vocab": 1200, "threads": 2}
    expected = stage.learn(letters_of(tmp_path / "whole", walk(30)), LearnOptions(**options))
    work = letters_of(tmp_path / "killed", walk(30))

    child = os.fork()
    if child == 0:
        saves = []

        def write_and_die(path, value):
            write_json(path, value)
            saves.append(path)
            if len(saves) == save:
                os.kill(os.getpid(), signal.SIGKILL)

        stage.write_json = write_and_die
        stage.learn(work, LearnOptions(**options))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    known = len(read_json(work.half_learned)["merges"])
    assert 0 < known < 1174
    assert not work.ecg_tokenizer.exists()

    saved = read_json(work.half_learned)
    left, right, count = saved["merges"][0]
    for merges in ([[left, right, count - 1], *saved["merges"][1:]], saved["merges"][:-1]):
        write_json(work.half_learned, saved | {"merges": merges})
        with pytest.raises(Failure, match="half_learned.json is damaged"):
            stage.learn(work, LearnOptions(**options))
    write_json(work.half_learned, saved)
    # a run with other settings is refused, not mixed in
    with pytest.raises(Failure, match="other settings"):
        stage.learn(work, LearnOptions(vocab=1000))
    result = run(work, "--vocab", 1200, "--threads", 2, "--json")
    assert f"resuming after {known} merges" in result.stderr
    assert json.loads(result.stdout)["sha256"] == expected["sha256"]
    assert (
        read_json(work.ecg_tokenizer)["counts"]
        == read_json(tmp_path / "whole/tokenizer/ecg_tokenizer.json")["counts"]
    )
    assert not work.half_learned.exists()


def test_a_finished_run_is_not_done_again(tmp_path):
    work = letters_of(tmp_path, walk(4))
    first = stage.learn(work, LearnOptions(vocab=60))
    before = work.ecg_tokenizer.stat().st_mtime_ns
    result = run(work, "--vocab", 60, "--threads", 1, "--json")
    assert "nothing to do" in result.stderr and json.loads(result.stdout) == first
    assert work.ecg_tokenizer.stat().st_mtime_ns == before
    refused = run(work, "--vocab", 61, code=1).stderr
    assert "other settings (merges)" in refused
    assert stage.learn(work, LearnOptions(vocab=61, overwrite=True))["vocab"] == 61
    letters_of(tmp_path, walk(4, seed=2), splits=["train", "train", "train", "val"])
    assert "other settings (symbols)" in run(work, "--vocab", 61, code=1).stderr


def test_a_flat_lead(tmp_path):
    work = letters_of(tmp_path, [np.full((1, 1000), 4, np.uint8)])
    result = run(work, "--json")
    # runs of 2, 4, … 128, 256: then 1000 letters are three tokens of 256 and the rest
    assert "no other pair occurs 2 times or more" in result.stderr
    tokenizer = read_json(work.ecg_tokenizer)
    expected, left = naive.learn_merges([[4] * 1000], 26, 5000, max_length=256)
    assert tokenizer["merges"] == [[a, b] for a, b, _ in expected]
    assert json.loads(result.stdout)["tokens"] == len(left[0])
    assert read_table(work.merges)["length"].max() == 256
    unlimited = stage.learn(work, LearnOptions(max_token_length=0, overwrite=True))
    assert unlimited["tokens"] == len(naive.learn_merges([[4] * 1000], 26, 5000)[1][0])


def test_the_ends_of_the_vocabulary(tmp_path):
    work = letters_of(tmp_path, walk(1, leads=1, samples=50))
    assert reason(work, "--vocab", 25) == (
        f"ecgbyte: --vocab 25 is smaller than the 26 letters of {work.symbols}"
    )
    nothing = stage.learn(work, LearnOptions(vocab=26))
    assert nothing["merges"] == 0 and nothing["tokens"] == 50 and nothing["compression"] == 1
    assert stage.learn(work, LearnOptions(merges=0, overwrite=True))["vocab"] == 26
    many = stage.learn(work, LearnOptions(vocab=100_000, min_count=1, max_token_length=0, overwrite=True))
    assert many["tokens"] == 1


def test_nothing_to_learn_from(tmp_path):
    work = letters_of(tmp_path / "none", [])
    assert "has no segments: run `ecgbyte symbolize`" in reason(work)
    work = letters_of(tmp_path / "held", walk(2), ["val", "test"])
    assert "none of the 2 segments" in reason(work) and "add --split all" in reason(work)
    assert "run `ecgbyte symbolize` first" in reason(WorkDir(tmp_path / "missing"))
    work = letters_of(tmp_path / "empty", [np.zeros((2, 0), np.uint8)])
    assert stage.learn(work, LearnOptions(vocab=30))["merges"] == 0


def test_letters_and_table_that_disagree(tmp_path):
    work = letters_of(tmp_path / "levels", walk(2), levels=12)
    assert "its settings have 12 levels" in reason(work)
    work = letters_of(tmp_path / "short", walk(2))
    with array_writer(work.symbols, np.uint8, 3999) as write:
        write(np.zeros(3999))
    assert "shorter than in its table" in reason(work)
    work.symbols.write_bytes(b"no array")
    assert "cannot be read as a .npy array" in reason(work)


def test_a_corpus_that_does_not_fit(tmp_path, monkeypatch):
    work = letters_of(tmp_path, walk(20))
    needed = stage.memory_needed(40_000)
    monkeypatch.setattr(stage, "free_memory", lambda: needed - 1)
    assert "--sample" in reason(work, "--vocab", 100)
    monkeypatch.undo()
    assert 1e8 < processes.free_memory() < 1e14
    monkeypatch.setattr(stage, "MOST_IN_ONE_PIECE", 20_000)
    line = reason(work, "--vocab", 100, "--boundary", "none")
    assert "--sample 9 would fit" in line
    run(work, "--vocab", 100, "--boundary", "none", "--sample", 9)


def test_options_that_contradict(tmp_path):
    work = letters_of(tmp_path, walk(1))
    assert "both" in run(work, "--vocab", 40, "--merges", 3, code=2).stderr


def test_help_ends_with_an_example():
    result = CliRunner().invoke(main, ["learn", "-h"])
    assert result.exit_code == 0 and "Example: ecgbyte learn --vocab 5000" in result.stdout
