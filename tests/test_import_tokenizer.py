"""Tokenizers of the reference implementation: taken over to the id, and run nothing."""

import itertools
import json
import pickle
import pickletools
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal.reference_tokenizer import plain
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_array, read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_kernels.bpe import bpe, bpe_tables

SPELLED = ["nn", "nnn", "no", "nnnn", "nnno"]  # "nnn" is nn + n, "nnnn" nn + nn, "nnno" nnn + o


def saved(path, spelled=SPELLED, first=256):
    """A pickle as the reference writes it."""
    vocab = {i: chr(i) for i in range(256)} | {first + k: text for k, text in enumerate(spelled)}
    path.write_bytes(
        pickle.dumps((vocab, [(list(text.encode()), first + k) for k, text in enumerate(spelled)]))
    )
    return path


@pytest.fixture
def work(tmp_path):
    return WorkDir(tmp_path / "work")


def test_a_small_one_by_hand(ecgbyte, work, tmp_path):
    result = ecgbyte("import-tokenizer", saved(tmp_path / "t.pkl"), "--range", -1.5, 1.25, "--json")
    assert json.loads(result.stdout) == {"vocab": 31, "merges": 5, "longest": 4}
    about = read_json(work.ecg_tokenizer)
    n, o = 13, 14
    assert about["merges"] == [[n, n], [26, n], [n, o], [26, 26], [27, o]]
    assert about["boundary"] == "none"
    assert about["signal"]["quantizer"] == {"name": "paper", "levels": 26, "lo": -1.5, "hi": 1.25}
    assert read_table(work.merges)["letters"] == SPELLED
    again = ecgbyte("import-tokenizer", tmp_path / "t.pkl", "--range", -1.5, 1.25)
    assert again.exit_code == 0 and "nothing to do" in again.stderr
    other = ecgbyte("import-tokenizer", saved(tmp_path / "u.pkl", SPELLED[:2]))
    assert other.exit_code == 1 and "--overwrite" in other.stderr


def test_what_symbolize_made_is_encoded_with_it(ecgbyte, work, tmp_path):
    saved(tmp_path / "t.pkl", ["".join(chr(97 + i) for _ in range(2)) for i in range(26)])
    chain = [
        "synth",
        tmp_path / "data",
        "--records",
        8,
        "symbolize",
        tmp_path / "data",
        "--range",
        -1.5,
        1.25,
    ]
    chain += ["import-tokenizer", tmp_path / "t.pkl", "--range", -1.5, 1.25, "encode", "--json"]
    result = ecgbyte(*chain)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["encode"]["compression"] > 1.2


def test_without_a_range_letters_are_encoded_and_signals_refused(ecgbyte, work, tmp_path):
    assert "--range" in ecgbyte("import-tokenizer", saved(tmp_path / "t.pkl")).stderr
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    letters = np.random.default_rng(0).integers(0, 26, (12, 2500), np.uint8)
    assert np.array_equal(tokenizer.decode(tokenizer.encode(letters)), letters)
    for work_on_mv in (lambda: tokenizer.encode(np.zeros((12, 2500))), lambda: tokenizer.to_mv(letters)):
        with pytest.raises(Failure, match="--range LO HI"):
            work_on_mv()


def test_the_references_pickle_comes_back_to_every_letter(real_data, golden, ecgbyte, work):
    path = real_data / "reference-tokenizers" / "tokenizer_5000_300000.pkl"
    assert ecgbyte("import-tokenizer", path).exit_code == 0
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    assert tokenizer.vocab_size == 5026
    symbols = np.load(golden / "symbols.npz")
    assert len(symbols.files) == 25
    for name, segmenter in itertools.product(symbols.files, ("longest", "bpe", "fewest")):
        ids = tokenizer.encode(symbols[name], segmenter)
        assert len(ids) < 5000 and np.array_equal(tokenizer.decode(ids), symbols[name])


def test_the_references_ids_are_given_to_every_recording(golden, ecgbyte, work):
    assert ecgbyte("import-tokenizer", golden / "tokenizer.json").exit_code == 0
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    symbols, encoded = np.load(golden / "symbols.npz"), json.loads((golden / "encoded.json").read_text())
    assert len(encoded) == 25
    for name, wanted in encoded.items():
        ids = tokenizer.encode(symbols[name])
        assert np.where(ids < 26, ids + 97, ids - 26 + 256).tolist() == wanted, name
    # the pairs are those that the reference merged: they leave as many tokens of its corpus as it says
    about = json.loads((golden / "tokenizer.json").read_text())
    corpus = np.concatenate([symbols[name].ravel() for name in about["order"]])
    ids, _ = bpe(corpus, [0, corpus.size], bpe_tables(tokenizer.merges, 26))
    assert len(ids) == about["trained_length"]
    assert tokenizer.signal["quantizer"]["lo"] == about["percentile_1"] - 0.5


def ids_of_the_file(ids):
    """Ids as the pickle has them: letters are bytes."""
    return np.where(ids < 26, ids + 97, ids.astype(int) - 26 + 256).tolist()


def test_elms_letters_and_ids_come_out_with_no_further_options(real_data, golden_elm, ecgbyte, work):
    path = real_data / "reference-tokenizers" / "elm_10000.pkl"
    result = ecgbyte("import-tokenizer", path, "--like", "elm")
    assert result.exit_code == 0 and "range" not in result.stderr
    result = ecgbyte("symbolize", real_data / "cinc2021", "--jobs", 1, "encode")
    assert result.exit_code == 0 and "profile elm, quantizer minmax" in result.stderr, result.stderr
    theirs, encoded = (
        np.load(golden_elm / "symbols.npz"),
        json.loads((golden_elm / "encoded.json").read_text()),
    )
    ranges = json.loads((golden_elm / "ranges.json").read_text())
    letters, segments = read_array(work.symbols), read_table(work.symbol_segments)
    tokens, places = read_array(work.tokens), read_table(work.token_segments)
    equal = 0
    for i, name in enumerate(segments["record"]):
        mine = letters[segments["offset"][i] :][:30_000].reshape(12, 2500)
        equal += (mine == theirs[name]).sum()
        assert np.allclose([segments["lo"][i], segments["hi"][i]], ranges[name], atol=1e-6)
        if np.array_equal(mine, theirs[name]):
            ids = tokens[places["offset"][i] :][: places["length"][i]]
            assert ids_of_the_file(ids) == encoded[name]
    assert len(encoded) == len(segments["record"]) == 25 and equal >= 0.999 * letters.size
    result = ecgbyte("decode", "--limit", 2, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["compared"] == 2 and told["clipped_fraction"] == 0
    assert told["rmse_uv"] < 1000 * max(high - low for low, high in ranges.values()) / 26 / 2


def test_ecg_benchs_pickle_is_read_like_elms(real_data, golden_elm, ecgbyte, work):
    path = real_data / "reference-tokenizers" / "tokenizer_5000_300000.pkl"
    assert ecgbyte("import-tokenizer", path, "--like", "elm").exit_code == 0
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    assert (tokenizer.vocab_size, tokenizer.boundary) == (5026, "none")
    with np.load(golden_elm / "symbols.npz") as symbols:
        for name in symbols.files[:3]:
            ids = tokenizer.encode(symbols[name])
            assert len(ids) < 5000 and np.array_equal(tokenizer.decode(ids), symbols[name])


def test_the_leads_are_in_the_order_asked_for(ecgbyte, work, tmp_path):
    order = "I,II,III,avl,AVR,aVF,V1,V2,V3,V4,V5,V6"
    path = saved(tmp_path / "t.pkl", [2 * chr(97 + i) for i in range(26)])
    ecgbyte("synth", tmp_path / "data", "--records", 8)
    result = ecgbyte("import-tokenizer", path, "--like", "elm", "--leads", order)
    assert result.exit_code == 0, result.stderr
    result = ecgbyte("symbolize", tmp_path / "data", "--jobs", 1, "encode")
    assert result.exit_code == 0, result.stderr
    signal = read_json(work.symbol_settings)["signal"]
    assert signal == ECGTokenizer.from_file(work.ecg_tokenizer).signal
    assert signal["leads"][3:5] == ["aVL", "aVR"]
    usual = WorkDir(tmp_path / "usual")
    assert ecgbyte("symbolize", tmp_path / "data", "--profile", "elm", work=usual.root).exit_code == 0
    mine, theirs = (read_array(one.symbols)[:30_000].reshape(12, 2500) for one in (work, usual))
    assert np.array_equal(mine, theirs[[0, 1, 2, 4, 3, *range(5, 12)]])
    again = ecgbyte("import-tokenizer", path, "--like", "elm", "--leads", order)
    assert again.exit_code == 0 and "nothing to do" in again.stderr
    other = ecgbyte("import-tokenizer", path, "--like", "elm")
    assert other.exit_code == 1 and "other settings (leads)" in other.stderr


def test_symbolize_does_as_the_imported_tokenizer_says_unless_told_otherwise(ecgbyte, work, tmp_path):
    path = saved(tmp_path / "t.pkl")
    ecgbyte("synth", tmp_path / "data", "--records", 8)
    # one without a range does not say what the letters are
    assert "--like elm" in ecgbyte("import-tokenizer", path).stderr
    result = ecgbyte("symbolize", tmp_path / "data", "--jobs", 1, "encode")
    assert result.exit_code == 1 and "(quantizer): it has no range in mV" in result.stderr
    assert read_json(work.symbol_settings)["signal"]["profile"] == "paper"
    again = ("symbolize", tmp_path / "data", "--jobs", 1, "--overwrite", "encode", "--overwrite")
    for options, quantizer in (
        (("--range", -1.5, 1.25), {"name": "paper", "levels": 26, "lo": -1.5, "hi": 1.25}),
        (("--like", "elm"), {"name": "minmax", "levels": 26, "lo": None, "hi": None, "margin": 1e-6}),
    ):
        assert ecgbyte("import-tokenizer", path, *options, "--overwrite").exit_code == 0
        result = ecgbyte(*again)
        assert result.exit_code == 0, result.stderr
        assert read_json(work.symbol_settings)["signal"]["quantizer"] == quantizer
    result = ecgbyte(*again[:-2], "--profile", "resample", "encode")
    assert result.exit_code == 1
    assert f"(profile, quantizer): learn again, or `ecgbyte symbolize DATA --like {work.ecg_tokenizer}" in (
        result.stderr
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--like", "elm", "--range", -1, 1),
        ("--like", "other"),
        ("--leads", ""),
        ("--leads", "I,I"),
        ("--leads", "I,X"),
    ],
)
def test_a_wrong_command_line(ecgbyte, work, tmp_path, options):
    result = ecgbyte("import-tokenizer", saved(tmp_path / "t.pkl"), *options)
    assert result.exit_code == 2 and not work.ecg_tokenizer.exists()


def test_the_libraries_read_what_is_beside_it(real_data, golden, ecgbyte, work):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    ecgbyte("import-tokenizer", real_data / "reference-tokenizers" / "tokenizer_5000_300000.pkl")
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    library = Tokenizer.from_file(str(work.hf_tokenizer))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(work.hf_tokenizer))
    letters = np.load(golden / "symbols.npz")["HR06002"]
    text = (letters.ravel() + 97).tobytes().decode()
    ids = tokenizer.encode(letters, "bpe").tolist()
    assert library.encode(text).ids == ids and fast(text)["input_ids"] == ids
    assert fast.decode(ids) == library.decode(ids) == text


class Call:
    """Pickled as a call of `function`, by one of the opcodes that call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Maker:
    """Pickled by the opcode NEWOBJ; writes a file whenever it is made."""

    def __new__(cls, path):
        open(path, "w").close()
        made = super().__new__(cls)
        made.path = path
        return made

    def __getnewargs__(self):
        return (self.path,)


class MakerByName(Maker):
    """Pickled by the opcode NEWOBJ_EX."""

    def __new__(cls, *, path):
        return super().__new__(cls, path)

    def __getnewargs_ex__(self):
        return (), {"path": self.path}


def touch(path):
    """Pickles, by the name of the opcode, that write a file at `path` when they are loaded."""
    text = str(path)
    call = Call(open, text, "w")
    inner = f"(S'{text}'\nS'w'\n"
    return {
        "REDUCE": pickle.dumps(call, 0),
        "STACK_GLOBAL": pickle.dumps(call, 4),
        "INST": f"{inner}iio\nopen\n.".encode(),
        "OBJ": f"(cio\nopen\nS'{text}'\nS'w'\no.".encode(),
        "NEWOBJ": pickle.dumps(Maker(text), 2),
        "NEWOBJ_EX": pickle.dumps(MakerByName(path=text), 4),
        "inside": pickle.dumps(({0: "a"}, [([110, 110], 256), call])),
    }


@pytest.mark.parametrize("opcode", ["REDUCE", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "inside"])
def test_a_pickle_that_calls_is_refused_and_has_not_run(ecgbyte, work, tmp_path, opcode):
    made = tmp_path / "made"
    bad = touch(made)[opcode]
    made.unlink(missing_ok=True)
    if opcode != "inside":
        assert opcode in {op.name for op, _, _ in pickletools.genops(bad)}
    pickle.loads(bad)  # it does what it is for
    assert made.exists()
    made.unlink()
    (tmp_path / "bad.pkl").write_bytes(bad)
    result = ecgbyte("import-tokenizer", tmp_path / "bad.pkl")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "nothing in it was run: " in result.stderr
    if opcode not in ("INST", "OBJ"):  # their texts come first, in an opcode that has no place either
        assert f"it would run {'test_import_tokenizer.Maker' if 'NEWOBJ' in opcode else ''}" in result.stderr
    assert not made.exists() and not work.ecg_tokenizer.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no tokenizer"),
        (b"\x80\x04K\x01.", "no tokenizer"),
        (b"Pabc\n.", "PERSID"),
        (b"\x80\x04\x82\x01.", "nothing in it was run"),  # EXT1
        (pickle.dumps(({}, 5)), "no tokenizer"),
        (pickle.dumps(({}, [([110, 110], 300)])), "id 300"),
        (pickle.dumps(({}, [([110, 10], 256)])), "letters a to z"),
        (pickle.dumps(({}, [([110], 256)])), "letters a to z"),
        (pickle.dumps(({}, [(["n", "n"], 256)])), "no tokenizer"),
        (pickle.dumps(({}, [([97, 97, 98], 256)])), "two tokens before it"),
        (pickle.dumps(({}, [([97, 97], 256), ([97, 97], 257)])), "two tokens before it"),
        (b'{"merges": [["nn"]]}', "no merges"),
        (b'{"merges": [["nn", 256]], "percentile_1": "x"}', "no merges"),
    ],
)
def test_what_is_no_tokenizer_is_one_line(ecgbyte, work, tmp_path, content, said):
    (tmp_path / "t.pkl").write_bytes(content)
    result = ecgbyte("import-tokenizer", tmp_path / "t.pkl")
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1
    assert not work.ecg_tokenizer.exists()


def test_a_spelling_that_two_merges_make(ecgbyte, work, tmp_path):
    ecgbyte("import-tokenizer", saved(tmp_path / "t.pkl", ["ab", "bc", "abc", "abc"]))
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    assert len(np.unique(tokenizer.merges, axis=0)) == 4 and tokenizer.lengths[-2:].tolist() == [3, 3]
    letters = np.zeros((12, 2500), np.uint8)
    letters[0, :3] = 0, 1, 2
    assert tokenizer.encode(letters)[0] == 28  # the first of the two


BOMBS = {
    # a memo of 2^28 and of 2^30 entries, for ten bytes
    "LONG_BINPUT": [b"\x80\x02Nr" + struct.pack("<I", n) + b"." for n in (2**28, 2**30, 2**32 - 1)],
    # pairs within pairs, as the key of a dict that has to be hashed, and by themselves
    "depth": [
        b"\x80\x02}" + b"K\x01" + b"K\x01\x86" * 200_000 + b"K\x01s.",
        b"\x80\x02" + b"](" * 500_000 + b".",
    ],
    # lengths far beyond the file's end
    "length": [b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.", b"X\xff\xff\xff\x7fa."],
    "opcodes": [b"\x80\x02(" + b"K\x01" * 3_000_000 + b"t."],
    # a list in itself, and one list of a million letters as a thousand tokens
    "alias": [
        b"\x80\x02]q\x00h\x00a.",
        pickle.dumps(({}, [(letters, 256 + k) for letters in [[97] * 100_000] for k in range(1000)])),
    ],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_promises_much_is_refused_at_once(ecgbyte, work, tmp_path, kind):
    import resource

    for content in BOMBS[kind]:
        (tmp_path / "bomb.pkl").write_bytes(content)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        result = ecgbyte("import-tokenizer", tmp_path / "bomb.pkl")
        assert (
            result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and "--debug" not in result.stderr
        )
        assert time.process_time() - began < 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize(
    "spelled",
    [
        ["a" * 60_000],
        ["a" * k for k in range(2, 2000)],
        ["a" * 2**k for k in range(1, 20)],
        ["ab", *("ab" * k for k in range(2, 1000))],
        ["ab" * 300 + "c" * k for k in range(1, 600)],
    ],
)
@pytest.mark.parametrize("kind", ["pkl", "json"])
def test_long_tokens_are_taken_apart_or_refused_in_seconds(ecgbyte, work, tmp_path, spelled, kind):
    path = tmp_path / f"t.{kind}"
    if kind == "pkl":
        saved(path, spelled)
    else:
        path.write_text(json.dumps({"merges": [[text, 256 + k] for k, text in enumerate(spelled)]}))
    began = time.process_time()
    result = ecgbyte("import-tokenizer", path)
    assert time.process_time() - began < 20
    assert result.exit_code == 0 or (result.exit_code == 1 and "--debug" not in result.stderr)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(st.integers(0, 2**31 - 1) | st.text(), lambda inner: st.lists(inner, max_size=5)),
    st.integers(2, 5),
)
def test_what_is_read_is_what_python_reads(value, protocol):
    assert plain(pickle.dumps(value, protocol)) == value


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_damaged_pickles_are_refused_or_read(at, change):
    content = pickle.dumps(({0: "a"}, [(list(text.encode()), 256 + k) for k, text in enumerate(SPELLED)]))
    at %= len(content)
    try:
        plain(content[:at] + change + content[at + len(change) :])
    except (ValueError, TypeError, IndexError, KeyError, AttributeError):
        pass
