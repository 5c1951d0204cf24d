"""ecgbyte import-tokenizer: a tokenizer of ECG-Byte, ECG-Bench or ELM as an ecg_tokenizer.json."""

import math
import pickletools
from pathlib import Path

import click

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import note, print_result
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal import preprocess, quantizers
from ecgbyte_cli.signal.tokenizer import check_signal, write_tokenizer
from ecgbyte_cli.storage.files import read_json, sha256_of
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_cli.storage.workdir import WorkDir

LIKE = {"ecg-byte": "paper", "elm": "elm"}  # the profile, whose default quantizer made the letters
LETTERS = 26  # of the reference: the bytes a to z
# The reference's 5,000 merges make 0.4 MB, 0.16 million opcodes, and 0.1 million letters in all tokens, 512 in the
# longest. The work grows with the square of some of these: all together it stays at seconds.
MOST_BYTES, MOST_OPCODES, MOST_LETTERS, MOST_STEPS = 2**25, 2**21, 2**21, 2**23


@click.command(
    cls=Stage,
    short_help="Import a tokenizer of ECG-Byte, ECG-Bench or ELM.",
    epilog="Example: ecgbyte import-tokenizer tokenizer.pkl --overwrite",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--like",
    type=click.Choice(list(LIKE)),
    default="ecg-byte",
    show_default=True,
    help="Whose letters: `ecg-byte` for the paper's code (filters, one range for all recordings), `elm` for ECG-Bench "
    "and ELM (no filters, each segment's own range).",
)
@click.option(
    "--leads",
    default=",".join(preprocess.LEADS),
    show_default=True,
    help="Order of the leads. ECG-Bench and ELM put aVL before aVR for MIMIC-IV, CODE-15 and EchoNext.",
)
@click.option(
    "--range",
    "bounds",
    type=(float, float),
    metavar="LO HI",
    show_default="as the file says; a pickle does not",
    help="Range of the letters in mV: the corpus' 1st percentile - 0.5 and 99th + 0.5. Not with --like elm.",
)
@click.option("--overwrite", is_flag=True, show_default=True, help="Replace another tokenizer.")
@click.pass_obj
def command(work, **options):
    """Import a tokenizer of ECG-Byte, ECG-Bench or ELM: its pickle, or merges in JSON.

    The pickle is read without running anything in it, by a reader of numbers, texts and lists. Ids 97 to 122 (a to z)
    become 0 to 25, and 256 + k becomes 26 + k. `ecgbyte symbolize DATA` then makes the letters it needs.
    """
    result = import_tokenizer(work, **options)
    print_result(f"{result['merges']} merges, vocabulary {result['vocab']}, in {work.ecg_tokenizer.parent}")
    return result


def import_tokenizer(
    work: WorkDir,
    file: Path,
    *,
    like: str = "ecg-byte",
    leads: str = ",".join(preprocess.LEADS),
    bounds: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> dict:
    """Write a tokenizer of ECG-Byte, ECG-Bench or ELM as ecg_tokenizer.json and tokenizer.json.

    The reference keeps the letters of each token and not the pair that made it. The pair is found by applying
    the merges before it to its letters; where that does not leave two tokens, any two that spell it are taken,
    which makes no difference to the segmenters `longest` (what the reference uses) and `fewest`.

    Parameters
    ----------
    work : WorkDir
    file : Path
        A pickle of (vocabulary, list of (bytes of the token, id)), or a JSON object whose `merges` are a list
        of [letters, id], with `percentile_1` and `percentile_99` (mV) if they are known.
    like : {"ecg-byte", "elm"}
        Whose preprocessing and quantizer made the letters.
    leads : str
        Order of the leads, commas between them.
    bounds : tuple of float or None
        Range of the letters in mV, with `like="ecg-byte"`; None takes what the file says. Without a range letters
        can be encoded, but signals cannot.
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
    signal = signal_like(like, leads, bounds)
    if not file.is_file():
        raise Failure(f"{file} is no file")
    if file.stat().st_size > MOST_BYTES:
        raise Failure(f"{file} is too large for a tokenizer")
    settings = {"imported": sha256_of(file), "range": bounds}
    # as before, where there were no such options
    settings["like"] = None if like == "ecg-byte" else like
    settings["leads"] = None if signal["leads"] == preprocess.LEADS else signal["leads"]
    done = completed_result(work.ecg_tokenizer, settings, overwrite, "a tokenizer")
    if done:
        note(f"{work.ecg_tokenizer} was imported from this file already: nothing to do")
        return done
    tokens, merges, bounds = merges_of(file, bounds)
    result = {
        "vocab": LETTERS + len(merges),
        "merges": len(merges),
        "longest": max(map(len, tokens), default=1),
    }
    if like == "ecg-byte":
        lo, hi = bounds or (None, None)
        signal["quantizer"] |= {"lo": lo, "hi": hi}
        if bounds is None:
            note(
                "the file does not say what range in mV the letters stand for: give --range LO HI, or --like elm for a "
                "tokenizer of ECG-Bench or ELM"
            )
    about = {
        "settings": settings,
        "result": result,
        "signal": signal,
        "boundary": "none",
        "max_token_length": 0,
        "merges": merges,
    }
    write_tokenizer(work, about)
    return result


def signal_like(like: str, leads: str, bounds: tuple[float, float] | None) -> dict:
    """Describe the letters of an implementation, as `signal` of an ecg_tokenizer.json: 250 Hz, 10 s, lead by lead.

    Raises
    ------
    click.UsageError
        If the options do not fit together.
    """
    if bounds and not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise click.UsageError("--range needs two numbers, the smaller first")
    if bounds and like == "elm":
        raise click.UsageError("--range does not go with --like elm: each segment has its own range")
    signal = {
        "fs": 250.0,
        "leads": [readers.lead_name(lead) for lead in leads.split(",") if lead.strip()],
        "segment_seconds": 10.0,
        "samples": 2500,
        "profile": LIKE[like],
        "fill_nan": None,
        "quantizer": quantizers.describe(None, LETTERS, profile=LIKE[like]),
    }
    try:
        check_signal(signal)
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"--leads: {error}") from error
    return signal


def merges_of(
    file: Path, bounds: tuple[float, float] | None
) -> tuple[list[bytes], list[list[int]], tuple[float, float] | None]:
    """Read the tokens of a file, the pairs that make them, and the range in mV where the file or `bounds` has it."""
    if file.read_bytes()[:1] == b"{":
        listed, bounds = from_json(file, bounds)
    else:
        listed = from_pickle(file)
    tokens = check(file, listed)
    return tokens, pairs(file, tokens), bounds


def from_pickle(file):
    """The list of (bytes of the token, id) in the reference's pickle."""
    try:
        _, listed = plain(file.read_bytes())
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise Failure(
            f"{file} is no tokenizer of the reference, and nothing in it was run: {text}"
        ) from error
    return listed


def plain(content):
    """What a pickle of numbers, texts, lists, pairs and dicts holds, read without Python's unpickler.

    That one makes room for any number that a memo's opcode names, calls whatever a name stands for, and follows
    pairs within pairs as deep as they go. Here an opcode that is not listed ends the reading.

    Parameters
    ----------
    content : bytes

    Returns
    -------
    object
        Numbers, texts, lists (pairs too), and None for a dict: what the reference has in one is not needed.

    Raises
    ------
    ValueError, TypeError, IndexError, KeyError or AttributeError
        If it is no such pickle, or a very long one.
    """
    stack, marks, memo = [], [], {}

    def since_mark():
        at = marks.pop()
        taken = stack[at:]
        del stack[at:]
        return taken

    for count, (opcode, value, _) in enumerate(pickletools.genops(content)):
        if count == MOST_OPCODES:
            raise ValueError(f"it has more than {MOST_OPCODES:,} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case (
                "BININT"
                | "BININT1"
                | "BININT2"
                | "SHORT_BINUNICODE"
                | "BINUNICODE"
                | "SHORT_BINBYTES"
                | "BINBYTES"
            ):
                stack.append(value)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append(None)
            case "APPEND":
                made = stack.pop()
                stack[-1].append(made)
            case "APPENDS":
                made = since_mark()
                stack[-1].extend(made)
            case "TUPLE2":
                right, left = stack.pop(), stack.pop()
                stack.append([left, right])
            case "TUPLE":
                stack.append(since_mark())
            case "SETITEM":
                del stack[-2:]
            case "SETITEMS":
                since_mark()
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL" | "INST" | "STACK_GLOBAL":
                called = (value or "").replace(" ", ".") or ".".join(part[:40] for part in stack[-2:])
                raise ValueError(f"it would run {called}")
            case name:
                raise ValueError(f"the opcode {name} has no place in one")
    raise ValueError("it has no end")


def from_json(file, bounds):
    """The list of (letters of the token, id) in a JSON object, and the range in mV."""
    about = read_json(file)
    try:
        listed = [(letters, number) for letters, number in about["merges"]]
        if bounds is None and "percentile_1" in about:
            bounds = float(about["percentile_1"]) - 0.5, float(about["percentile_99"]) + 0.5
            if not -math.inf < bounds[0] < bounds[1] < math.inf:
                raise ValueError("percentiles that are no range")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Failure(f"{file} lists no merges as [letters, id] ({type(error).__name__}: {error})") from error
    return listed, bounds


def check(file, listed):
    """The tokens as bytes of letters 0 to 25, in order of their ids; anything else is refused."""
    tokens, total = [], 0
    try:
        for spelled, number in listed:
            if type(number) is not int or number != 256 + len(tokens):
                found = f"id {number}" if type(number) is int else type(number).__name__
                raise ValueError(f"{found} where id {256 + len(tokens)} was to come")
            if not isinstance(spelled, list | bytes | str):  # bytes(5) would be five letters
                raise TypeError(f"token {number} is no list of letters")
            total += len(spelled)
            if total > MOST_LETTERS:
                raise ValueError(f"its tokens have more than {MOST_LETTERS:,} letters")
            spelled = spelled.encode() if isinstance(spelled, str) else bytes(spelled)
            if len(spelled) < 2 or not (min(spelled) >= ord("a") and max(spelled) <= ord("z")):
                raise ValueError(f"token {number} is not of letters a to z")
            tokens.append(bytes(letter - ord("a") for letter in spelled))
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise Failure(f"{file} is no tokenizer of the reference: {text}") from error
    return tokens


def pairs(file, tokens):
    """The [left, right] of each token: what the merges before it leave of its letters."""
    ids = {bytes([letter]): letter for letter in range(LETTERS)}
    lengths, ranks, merges, budget = {1}, {}, [], [MOST_STEPS]
    for k, token in enumerate(tokens):
        pair = merged(token, ranks, budget) if len(token) <= 2 * max(lengths) else ()
        if len(pair) != 2 or pair in ranks:
            splits = [i for i in sorted(lengths) if len(token) - i in lengths]
            known = ((ids.get(token[:i]), ids.get(token[i:])) for i in splits)
            pair = next((p for p in known if None not in p and p not in ranks), None)
        if budget[0] < 0:
            raise Failure(f"{file}: its tokens are too long to be taken apart")
        if pair is None:
            raise Failure(f"{file}: token {256 + k} is not made of two tokens before it")
        ranks[pair] = k
        merges.append(list(pair))
        ids.setdefault(token, LETTERS + k)
        lengths.add(len(token))
    return merges


def merged(token, ranks, budget):
    """The ids that merges leave of a token's letters, each merge from left to right: a tuple.

    `budget` is a list of one number, from which each look at a pair is taken; below zero it gives up.
    """
    ids = list(token)
    while len(ids) > 1 and budget[0] >= 0:
        budget[0] -= len(ids)
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
