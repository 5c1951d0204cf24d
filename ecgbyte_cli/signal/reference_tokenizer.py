"""Read the tokenizer files of ECG-Byte, ECG-Bench and ELM without running anything in them."""

import math
import pickletools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import read_json

LETTERS = 26  # letters of the reference: the bytes a to z
# The reference's 5,000 merges take 0.4 MB and 160,000 opcodes; all its tokens have 100,000 letters, the longest 512.
# The work grows with the square of some of these. With the limits below it takes seconds.
MOST_BYTES, MOST_OPCODES, MOST_LETTERS, MOST_STEPS = 2**25, 2**21, 2**21, 2**23


def merges_of(
    file: Path, bounds: tuple[float, float] | None
) -> tuple[list[bytes], list[list[int]], tuple[float, float] | None]:
    """Read the tokens of a file, the pairs that make them, and the range in mV (None if unknown).

    `bounds` takes precedence over the range in the file.

    Raises
    ------
    Failure
        If the file is not such a tokenizer, or reading it would run code.
    """
    if not file.is_file():
        raise Failure(f"{file} is no file")
    if file.stat().st_size > MOST_BYTES:
        raise Failure(f"{file} is too large for a tokenizer")
    if file.read_bytes()[:1] == b"{":
        listed, bounds = from_json(file, bounds)
    else:
        listed = from_pickle(file)
    tokens = check(file, listed)
    return tokens, pairs(file, tokens), bounds


def from_pickle(file: Path) -> Any:
    """Read the list of (bytes of the token, id) in the reference's pickle."""
    try:
        _, listed = plain(file.read_bytes())
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise Failure(
            f"{file} is no tokenizer of the reference, and nothing in it was run: {text}"
        ) from error
    return listed


def plain(content: bytes) -> Any:
    """Read a pickle of numbers, texts, lists, pairs and dicts, without Python's unpickler.

    The unpickler allocates memory for any number in a memo opcode, calls whatever a name stands for, and follows
    nested pairs to any depth. Here an unknown opcode ends the reading.

    Parameters
    ----------
    content : bytes

    Returns
    -------
    object
        Numbers, texts, lists (also for pairs), and None for a dict, whose content is not needed.

    Raises
    ------
    ValueError, TypeError, IndexError, KeyError or AttributeError
        If it is not such a pickle, or a very long one.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, value, _) in enumerate(pickletools.genops(content)):
        if count == MOST_OPCODES:
            raise ValueError(f"it has more than {MOST_OPCODES:,} opcodes")
        if opcode.name == "STOP":
            return stack.pop()
        _apply(opcode.name, value, stack, marks, memo)
    raise ValueError("it has no end")


def _apply(opcode: str, value: Any, stack: list[Any], marks: list[int], memo: dict[Any, Any]) -> None:
    """Apply an opcode of a pickle to its stack."""

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    match opcode:
        case "PROTO" | "FRAME":
            pass
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
            item = stack.pop()
            stack[-1].append(item)
        case "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
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
            name = (value or "").replace(" ", ".") or ".".join(part[:40] for part in stack[-2:])
            raise ValueError(f"it would run {name}")
        case _:
            raise ValueError(f"the opcode {opcode} has no place in one")


def from_json(
    file: Path, bounds: tuple[float, float] | None
) -> tuple[list[tuple[Any, Any]], tuple[float, float] | None]:
    """Read the list of (letters of the token, id) in a JSON object, and the range in mV."""
    about = read_json(file)
    try:
        listed = [(letters, number) for letters, number in about["merges"]]
        if bounds is None and "percentile_1" in about:
            bounds = float(about["percentile_1"]) - 0.5, float(about["percentile_99"]) + 0.5
            if not -math.inf < bounds[0] < bounds[1] < math.inf:
                raise ValueError("its percentiles are not a range")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Failure(f"{file} lists no merges as [letters, id] ({type(error).__name__}: {error})") from error
    return listed, bounds


def check(file: Path, listed: Any) -> list[bytes]:
    """Return the tokens as bytes of letters 0 to 25, in order of their ids. Reject anything else."""
    tokens, total = list[bytes](), 0
    try:
        for spelled, number in listed:
            if type(number) is not int or number != 256 + len(tokens):
                actual = f"id {number}" if type(number) is int else type(number).__name__
                raise ValueError(f"{actual} in the place of id {256 + len(tokens)}")
            if not isinstance(spelled, list | bytes | str):  # bytes(5) would be five letters
                raise TypeError(f"token {number} is not a list of letters")
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


def pairs(file: Path, tokens: Sequence[bytes]) -> list[list[int]]:
    """Return the [left, right] of each token: the merges before it reduce its letters to these two."""
    ids = {bytes([letter]): letter for letter in range(LETTERS)}
    lengths, budget, merges = {1}, [MOST_STEPS], list[list[int]]()
    ranks: dict[tuple[int, ...], int] = {}
    for k, token in enumerate(tokens):
        pair = merged(token, ranks, budget) if len(token) <= 2 * max(lengths) else ()
        if len(pair) != 2 or pair in ranks:
            splits = [i for i in sorted(lengths) if len(token) - i in lengths]
            halves = ((token[:i], token[i:]) for i in splits)
            known = ((ids[left], ids[right]) for left, right in halves if left in ids and right in ids)
            pair = next((p for p in known if p not in ranks), ())
        if budget[0] < 0:
            raise Failure(f"{file}: its tokens are too long to be taken apart")
        if not pair:
            raise Failure(f"{file}: token {256 + k} is not made of two tokens before it")
        ranks[pair] = k
        merges.append(list(pair))
        ids.setdefault(token, LETTERS + k)
        lengths.add(len(token))
    return merges


def merged(token: bytes, ranks: Mapping[tuple[int, ...], int], budget: list[int]) -> tuple[int, ...]:
    """Return the ids of a token's letters after the merges, each applied from left to right.

    Each look at a pair takes one from the single number in `budget`; below zero, merging stops.
    """
    ids = list(token)
    while len(ids) > 1 and budget[0] >= 0:
        budget[0] -= len(ids)
        rank, pair = min((ranks.get(pair, math.inf), pair) for pair in zip(ids, ids[1:], strict=False))
        if rank == math.inf:
            break
        left, shorter = 0, list[int]()
        while left < len(ids):
            both = (*ids[left : left + 2],) == pair
            shorter.append(LETTERS + int(rank) if both else ids[left])
            left += 2 if both else 1
        ids = shorter
    return tuple(ids)
