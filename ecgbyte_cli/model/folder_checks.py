"""Check a model folder and its base model before any weights are loaded.

A model folder may come from anywhere. Nothing in it runs: no Python that a configuration names, no pickle. Sizes in a
configuration are compared with the weights in the folder, and these with their checksums.
"""

import math
import os
import re
from pathlib import Path

from ecgbyte_cli.cli import spelling
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.layout import PROMPT_VERSION
from ecgbyte_cli.signal.tokenizer import SEGMENTERS
from ecgbyte_cli.storage.files import MOST_JSON, read_json, sha256_of

FORMAT_VERSION = 1
SHIPPED = Path(__file__).resolve().parent.parent / "models" / spelling.SHIPPED  # comes with the package
BUILT = ("tiny", "small")  # built on the spot: see `tiny`
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?", re.ASCII)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
MOST_ALIKE = 1024  # layers, experts, heads: each is an object that is created in a loop
MOST_NUMBER = 2**31
# The entries that a stored adapter may have: its numbers, and words without effect. All others must be unset.
ADAPTER = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "task_type"}
INFORMATIONAL = {"auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"}
INFORMATIONAL |= {"megatron_core", "qalora_group_size", "init_lora_weights", "fan_in_fan_out"}


def model_sha256(folder: Path) -> str:
    """Return the SHA-256 of a model's ecgbyte.json, which holds those of its other files."""
    return sha256_of(folder / "ecgbyte.json")


def read_about(folder: str | os.PathLike) -> dict:
    """Read the ecgbyte.json of a model folder, with defaults for the entries that older versions lack.

    Raises
    ------
    Failure
        If the folder is no model folder, is an export, or is of another version.
    """
    folder = Path(folder)
    path = folder / "ecgbyte.json"
    if not path.is_file():
        raise Failure(
            f"{folder} has no model: train one with `ecgbyte finetune`, or see `make quickstart`; "
            "--model names another folder"
        )
    about = read_json(path)
    if about.get("format") == "ecgbyte-export":
        raise Failure(
            f"{folder} is an export, which is for other programs (its README.md says how): with --model name "
            "the model folder that it was exported from"
        )
    if about.get("format") != "ecgbyte-model" or about.get("format_version") != FORMAT_VERSION:
        raise Failure(f"{path} is not an ecgbyte model of format {FORMAT_VERSION}")
    if about.get("prompt_version") not in range(1, PROMPT_VERSION + 1):
        raise Failure(
            f"{folder} was trained with prompt version {about.get('prompt_version')}, this ecgbyte knows those up "
            f"to {PROMPT_VERSION}: train again, or use ecgbyte {about.get('ecgbyte')}"
        )
    wrong = [key for key, fits in _FITS.items() if not fits(about.get(key))]
    if wrong:
        raise Failure(f"{path} is damaged: {', '.join(wrong)}")
    settings = about.get("settings") or {}
    return {
        **{"segmenter": "longest", "notice": "", "lead_marks": 0, "position_letters": 0, "draws": None},
        **{"writes": bool(settings.get("ecg_loss")), **about, "settings": settings},
    }


def answer_limit(about: dict, asked: int | None) -> int:
    """Return the longest answer in tokens: `asked`, or as many as a model's answers need."""
    return asked or (512 if about.get("think") else 64)


def is_ecgbyte_model(name: str | os.PathLike) -> bool:
    """Return whether a name is that of a folder that `ecgbyte finetune` or `ecgbyte export` wrote."""
    return (Path(name) / "ecgbyte.json").is_file()


def method_of(model: str | os.PathLike, method: str | None) -> str:
    """Return the method to train a model with: `method`, or the one that fits it.

    Parameters
    ----------
    model : str
        A base model, or a model folder to train further.
    method : {"full", "lora", "qlora"} or None

    Raises
    ------
    Failure
        If it cannot be trained with this method.
    """
    if model in BUILT and method not in (None, "full"):
        raise Failure(f"--model {model} is trained in full: leave out --method, or name another base model")
    had = read_about(model)["method"] if is_ecgbyte_model(model) else None
    if had in ("lora", "qlora") and method not in (None, had):
        raise Failure(f"{model} has an adapter trained with --method {had}, and keeps this method")
    return method or had or ("full" if model in BUILT else "qlora")


def _text(value: object) -> bool:
    return isinstance(value, str)


def _count(value: object) -> bool:
    return type(value) is int and 0 < value < MOST_NUMBER


_FITS = {
    "base": _text,
    "method": lambda value: value in ("full", "lora", "qlora"),
    "offset": _count,
    "ecg_tokenizer_sha256": _text,
    "text_tokenizer_sha256": _text,
    "base_revision": lambda value: value is None or _text(value),
    "base_sha256": lambda value: value is None or _text(value),
    "lead_marks": lambda value: value is None or value == 0 or (_count(value) and value <= 12),
    "position_letters": lambda value: value is None or value == 0 or _count(value),
    "segmenter": lambda value: value is None or (_text(value) and value in SEGMENTERS),
    "think": lambda value: (
        value is None
        or (isinstance(value, list) and len(value) == 2 and all(map(_text, value)) and all(value))
    ),
    "settings": lambda value: value is None or isinstance(value, dict),
    "draws": lambda value: value is None or (isinstance(value, list) and all(map(_text, value))),
    "prompt_tokens": lambda value: value is None or _count(value),
    "qa": lambda value: value is None or _text(value) or (isinstance(value, list) and all(map(_text, value))),
    "system": lambda value: value is None or _text(value),
    "measured": lambda value: value is None or isinstance(value, bool),
    "date": lambda value: value is None or (_text(value) and re.fullmatch(r"\d{4}-\d\d-\d\d", value)),
    "files": lambda value: value is None or (isinstance(value, dict) and all(map(_text, value.values()))),
}


def file_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a model: path in the folder to hex."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: sha256_of(p) for name, p in files.items() if name not in ("ecgbyte.json", "README.md")}


def files_needed(folder: Path, base: str | os.PathLike | None = None) -> list[Path]:
    """List the files that loading a model reads from its folder and from its base model's.

    It is empty for the included model, and for base models of the hub: each machine has its own.
    """
    name, _ = base_model_of(folder, read_about(folder), base)
    folders = {Path(folder), Path(name)} - {SHIPPED, SHIPPED / "base"}
    return sorted({path for one in folders for path in one.rglob("*") if path.is_file()})


def check_files(folder: Path, about: dict) -> None:
    """Compare the files of a model folder with their checksums in ecgbyte.json; older models have none.

    Raises
    ------
    Failure
        If a file is missing, changed, or too many.
    """
    known = about.get("files")
    if known is None:
        return
    for name, sha256 in known.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
            raise Failure(f"{path} is missing: copy the model folder again, or train again")
        if sha256_of(path) != sha256:
            raise Failure(
                f"{path} is damaged, or is not of this model: copy the model folder again, or train again"
            )
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if (
            name not in known
            and path.is_file()
            and (name.startswith("base/") or path.suffix == ".safetensors")
        ):
            raise Failure(f"{path} is not of this model: remove it")


def is_local_path(name: str) -> bool:
    """Return whether the name of a base model is that of a folder, or cannot be one of the hub."""
    return Path(name).is_dir() or not HUB_ID.fullmatch(name)


def base_model_of(folder: Path, about: dict, base: str | os.PathLike | None = None) -> tuple[str, str | None]:
    """Return the base model of a model folder: name or folder, and commit of the hub.

    Parameters
    ----------
    folder : Path
    about : dict
        From `read_about`.
    base : path or None
        Where the base model is now, if it has moved.

    Raises
    ------
    Failure
        If its folder is missing.
    """
    if about["method"] == "full":
        return str(folder / "base"), None
    if base is not None:
        return str(base), None
    name = about["base"]
    if is_local_path(name) and not Path(name).is_dir():
        raise Failure(
            f"{folder} was trained on the base model in {name}, which does not exist: give its path with "
            "--base FOLDER"
        )
    return name, about.get("base_revision")


def check_base(folder: Path) -> None:
    """Check the configuration of a base model.

    Parameters
    ----------
    folder : Path
        The folder of its config.json; the hub's cache may hold nothing else yet.

    Raises
    ------
    Failure
        If it would run code of its own, cannot be trained here, or names impossible sizes.
    """
    for path in folder.iterdir():
        if not path.is_file() and not path.is_dir():  # reading a pipe would block
            raise Failure(f"{path} is not a regular file")
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_size > MOST_JSON:
            raise Failure(f"{path} is too large for what it should be")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).exists():
            _check_settings(folder / name, read_json(folder / name))
    config = read_json(folder / "config.json")
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("hidden_size_per_layer_input"):
            raise Failure(
                f"{folder}: {config.get('model_type')} looks up further embeddings in every layer, by text ids, "
                "which an ECG token has none of: take another base model"
            )


def _check_settings(path: Path, settings: dict) -> None:
    """Check every entry of a configuration, at any depth."""
    stack = [("", settings)]
    while stack:
        key, value = stack.pop()
        if key == "auto_map" and value:
            raise Failure(
                f"{path} names Python code of its own (auto_map), and no model's code is run here: take a base "
                "model that Transformers knows without"
            )
        if "_implementation" in key and isinstance(value, str) and "/" in value:
            raise Failure(f"{path} names code of the hub ({key}), and no model's code is run here")
        if isinstance(value, dict):
            stack += [(str(k), v) for k, v in value.items()]
        elif isinstance(value, list):
            stack += [(key, v) for v in value]
        elif type(value) is int and path.name == "config.json":
            alike = re.search("layers?$|experts$|heads$|n_head$", key)
            if abs(value) > (MOST_ALIKE if alike else MOST_NUMBER):
                raise Failure(f"{path}: {key} {value} is more than any model has")


def count_weights(folder: Path) -> tuple[int, int]:
    """Return how many tensors, and how many numbers in them, the safetensors files of a folder hold.

    Raises
    ------
    Failure
        If there are only pickles, or a file is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not {*named.values()} <= {path.name for path in files}:
            raise Failure(f"{index} names files that are not there")
    if not files:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        raise Failure(
            f"{folder} has its weights in {', '.join(pickled[:3])} alone, which can run code: only safetensors "
            "are loaded"
            if pickled
            else f"{folder} has no weights: *.safetensors"
        )
    held = [shape for path in files for shape in tensor_shapes(path).values()]
    return len(held), sum(map(math.prod, held))


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor in a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise Failure(f"{path} is damaged or no safetensors file: {error}") from error


def read_adapter_config(folder: Path) -> dict:
    """Read the adapter configuration of a model folder: `r`, `lora_alpha`, `lora_dropout` and `target_modules`.

    peft itself would accept more: a module to import, or a pattern that takes hours to match.

    Raises
    ------
    Failure
        If it is not a LoRA of `ecgbyte finetune`, or its weights are missing or of other sizes.
    """
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not path.is_file() or not weights.is_file():
        raise Failure(f"{path if not path.is_file() else weights} is missing: copy the model folder again")
    config = read_json(path)
    rank, alpha, dropout = (config.get(key) for key in ("r", "lora_alpha", "lora_dropout"))
    modules = config.get("target_modules")
    fits = (
        (config.get("peft_type"), config.get("bias", "none")) == ("LORA", "none")
        and type(rank) is int
        and 0 < rank <= 4096
        and isinstance(alpha, int | float)
        and 0 < alpha <= 1e6
        and isinstance(dropout, int | float)
        and 0 <= dropout < 1
        and isinstance(modules, list)
        and 0 < len(modules) <= 4096
        and all(_text(name) and re.fullmatch(r"[\w.]+", name) for name in modules)
    )
    more = [key for key, value in config.items() if value and key not in ADAPTER | INFORMATIONAL]
    if not fits or more:
        raise Failure(
            f"{path} is not an adapter from `ecgbyte finetune`{': ' + ', '.join(more) if more else ''}"
        )
    for name, shape in tensor_shapes(weights).items():
        if name.endswith("lora_A.weight") and shape[0] != rank:
            raise Failure(f"{weights}: {name} has rank {shape[0]}, {path.name} says {rank}")
    return {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": modules}
