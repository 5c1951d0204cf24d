"""ecgbyte import-tokenizer: a tokenizer of the reference implementation as an ecg_tokenizer.json."""

import math
import pickle
from pathlib import Path

import click

from ecgbyte_cli.console import Stage, note, say
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.tokenizer import write_tokenizer
from ecgbyte_cli.workdir import finished, read_json, sha256_of

LETTERS = 26  # of the reference: the bytes a to z
MOST_BYTES, MOST_LETTERS = 2**28, 2**24  # of a file, and of all its tokens written out


@click.command(
    cls=Stage,
    short_help="Take over a tokenizer of the reference implementation.",
    epilog="Example: ecgbyte import-tokenizer tokenizer.pkl --overwrite",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--range",
    "bounds",
    type=(float, float),
    metavar="LO HI",
    show_default="as the file says; a pickle does not",
    help="Range of the letters in mV: the corpus' 1st percentile - 0.5 and 99th + 0.5.",
)
@click.option("--overwrite", is_flag=True, show_default=True, help="Replace another tokenizer.")
@click.pass_obj
def command(work, **options):
    """Take over a tokenizer of the reference implementation (ECG-Byte): its pickle, or merges in JSON.

    The pickle is read without running anything of it. Its ids 97 to 122 (a to z) become 0 to 25, and
    256 + k becomes 26 + k.
    """
    result = import_tokenizer(work, **options)
    say(f"{result['merges']} merges, vocabulary {result['vocab']}, in {work.ecg_tokenizer.parent}")
    return result


def import_tokenizer(work, file, *, bounds=None, overwrite=False):
    """Write a tokenizer of the reference implementation as ecg_tokenizer.json and tokenizer.json.

    The reference keeps the letters of each token and not the pair that made it. The pair is found by applying
    the merges before it to its letters; where that does not leave two tokens, any two that spell it are taken,
    which makes no difference to the segmenters `longest` (what the reference uses) and `fewest`.

    Parameters
    ----------
    work : WorkDir
    file : Path
        A pickle of (vocabulary, list of (bytes of the token, id)), or a JSON object whose `merges` are a list
        of [letters, id], with `percentile_1` and `percentile_99` (mV) if they are known.
    bounds : tuple of float or None
        Range of the letters in mV; None takes what the file says. Without a range letters can be encoded, but
        signals cannot.
    overwrite : bool

    Returns
    -------
    dict
        vocab, merges, longest (letters of the longest token).

    Raises
    ------
    Failure
        If the file is no such tokenizer, if reading it would run code, or another tokenizer is there.
    """
    file = Path(file)
    if bounds and not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise click.UsageError("--range needs two numbers, the smaller first")
    if not file.is_file():
        raise Failure(f"{file} is no file")
    if file.stat().st_size > MOST_BYTES:
        raise Failure(f"{file} is too large for a tokenizer")
    settings = {"imported": sha256_of(file), "range": bounds}
    done = finished(work.ecg_tokenizer, settings, overwrite, "a tokenizer")
    if done:
        note(f"{work.ecg_tokenizer} was imported from this file already: nothing to do")
        return done
    if file.read_bytes()[:1] == b"{":
        listed, bounds = from_json(file, bounds)
    else:
        listed = from_pickle(file)
    tokens = check(file, listed)
    merges = pairs(file, tokens)
    result = {
        "vocab": LETTERS + len(merges),
        "merges": len(merges),
        "longest": max(map(len, tokens), default=1),
    }
    lo, hi = bounds or (None, None)
    if bounds is None:
        note("the file does not say what range in mV the letters stand for; --range LO HI does")
    about = {
        "settings": settings,
        "result": result,
        # the reference's preprocessing: 250 Hz, 10 s, 12 leads one after the other
        "signal": {
            "fs": 250.0,
            "leads": preprocess.LEADS,
            "segment_seconds": 10.0,
            "samples": 2500,
            "profile": "paper",
            "fill_nan": None,
            "quantizer": {"name": "paper", "levels": LETTERS, "lo": lo, "hi": hi},
        },
        "boundary": "none",
        "max_token_length": 0,
        "merges": merges,
    }
    write_tokenizer(work, about)
    return result


class Plain(pickle.Unpickler):
    """Reads numbers, texts, lists, tuples and dicts; whatever would look up a name is refused.

    Without a name there is nothing that a pickle could call: every opcode that calls takes what it calls from
    `find_class`.
    """

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would run {module}.{name}")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to an object outside")


def from_pickle(file):
    """The list of (bytes of the token, id) in the reference's pickle."""
    try:
        with open(file, "rb") as opened:
            _, listed = Plain(opened).load()
    # a damaged pickle can make the unpickler raise nearly anything
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise Failure(
            f"{file} is no tokenizer of the reference, and nothing in it was run: {text}"
        ) from error
    return listed


def from_json(file, bounds):
    """The list of (letters as numbers, id) in a JSON object, and the range in mV."""
    about = read_json(file)
    try:
        listed = [([ord(letter) for letter in letters], number) for letters, number in about["merges"]]
        if bounds is None and "percentile_1" in about:
            bounds = float(about["percentile_1"]) - 0.5, float(about["percentile_99"]) + 0.5
    except (KeyError, TypeError, ValueError) as error:
        raise Failure(f"{file} lists no merges as [letters, id] ({type(error).__name__})") from error
    return listed, bounds


def check(file, listed):
    """The tokens as tuples of letters 0 to 25, in order of their ids; anything else is refused."""
    tokens, total = [], 0
    try:
        for spelled, number in listed:
            if number != 256 + len(tokens):
                raise ValueError(f"id {number} where {256 + len(tokens)} was to come")
            total += len(spelled)
            if total > MOST_LETTERS:
                raise ValueError("its tokens are too long")
            token = tuple(byte - ord("a") for byte in spelled)
            if len(token) < 2 or not all(type(b) is int and 0 <= b < LETTERS for b in token):
                raise ValueError(f"token {number} is not of letters a to z")
            tokens.append(token)
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise Failure(f"{file} is no tokenizer of the reference: {text}") from error
    return tokens


def pairs(file, tokens):
    """The [left, right] of each token: what the merges before it leave of its letters."""
    ids = {(letter,): letter for letter in range(LETTERS)}
    ranks, merges = {}, []
    for k, token in enumerate(tokens):
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(ids[left], ids[right]) for left, right in splits if left in ids and right in ids]
        found = [pair for pair in [merged(token, ranks), *known] if len(pair) == 2 and pair not in ranks]
        if not found:
            raise Failure(f"{file}: token {256 + k} is not made of two tokens before it")
        ranks[found[0]] = k
        merges.append(list(found[0]))
        ids.setdefault(token, LETTERS + k)
    return merges


def merged(token, ranks):
    """The ids that merges leave of a token's letters, each merge from left to right: a tuple."""
    ids = list(token)
    while len(ids) > 1:
        rank, pair = min((ranks.get(pair, math.inf), pair) for pair in zip(ids, ids[1:], strict=False))
        if rank == math.inf:
            break
        left, made = 0, []
        while left < len(ids):
            both = (*ids[left : left + 2],) == pair
            made.append(LETTERS + rank if both else ids[left])
            left += 2 if both else 1
        ids = made
    return tuple(ids)
