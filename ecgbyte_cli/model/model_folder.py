"""Write a trained model to a folder, and load it again."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ecgbyte_cli import __version__
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.base_model import (
    base_model_sha256,
    load_adapter,
    load_base,
    silence_libraries,
    text_tokenizer_sha256,
)
from ecgbyte_cli.model.ecg_lm import ECGLM
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.runtime.memory import reporting_out_of_memory
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOTICE = "Research use only: this is not a medical device, and its answers are not diagnoses."


def save_model(
    folder: Path,
    model: ECGLM,
    text_tokenizer: "PreTrainedTokenizerBase",
    ecg_tokenizer: Path,
    about: dict[str, Any],
) -> None:
    """Write a model folder.

    It holds the PEFT adapter (or, trained in full, the base model and text tokenizer under base/),
    ecg_rows.safetensors, ecg_tokenizer.json and ecgbyte.json.

    Parameters
    ----------
    folder : Path
        An existing, empty folder.
    model : ECGLM
    text_tokenizer : transformers.PreTrainedTokenizerBase
    ecg_tokenizer : Path
        The ecg_tokenizer.json that made the model's ECG ids.
    about : dict
        Further entries of ecgbyte.json: `base`, `method`, `settings`, `result`, ….
    """
    from safetensors.torch import save_file

    with silence_libraries():
        if about["method"] == "full":
            model.base.save_pretrained(folder / "base")
            # a chat template goes into the JSON: a model folder is safetensors, JSON and its card
            text_tokenizer.save_pretrained(folder / "base", save_jinja_files=False)
        else:
            # peft would ask the hub whether the embedding grew: it never does here
            model.base.save_pretrained(folder, save_embedding_layers=False)
    save_file({"weight": model.ecg_rows.weight.detach().cpu().contiguous()}, folder / "ecg_rows.safetensors")
    shutil.copyfile(ecg_tokenizer, folder / "ecg_tokenizer.json")
    (folder / "README.md").write_text(
        f"# An ECG language model made by ecgbyte {__version__}\n\n{NOTICE}\n\nBase model: {about['base']}. "
        "Use it with `ecgbyte chat RECORD --model THIS_FOLDER`.\n"
    )
    if about["method"] != "full" and Path(about["base"]).is_dir():
        about = {**about, "base": str(Path(about["base"]).resolve())}
    fixed = {
        "format": "ecgbyte-model",
        "format_version": folder_checks.FORMAT_VERSION,
        "ecgbyte": __version__,
        "notice": NOTICE,
        "prompt_version": model.layout.version,
        "offset": model.offset,
        "lead_marks": model.layout.marks,
        "position_letters": model.layout.unit,
        "ecg_tokenizer_sha256": ECGTokenizer.from_file(ecg_tokenizer).sha256,
        "text_tokenizer_sha256": text_tokenizer_sha256(text_tokenizer),
        "base_revision": getattr(model.base.config, "_commit_hash", None),
        "base_sha256": None if about["method"] == "full" else base_model_sha256(model.base),
        "files": folder_checks.file_checksums(folder),
    }
    write_json(folder / "ecgbyte.json", {**fixed, **about}, indent=1)


@reporting_out_of_memory("for the model", "close other programs, or use a machine with more memory")
def load_model(
    folder: str | os.PathLike,
    device: str | None = None,
    base: str | os.PathLike | None = None,
    method: str | None = None,
    trainable: bool = False,
    place: str | None = None,
) -> "tuple[ECGLM, PreTrainedTokenizerBase, ECGTokenizer, dict]":
    """Load a model folder.

    Parameters
    ----------
    folder : Path
    device : str or None
        See `devices.choose_device`; None takes a GPU if there is one.
    base : path or None
        A local folder in the place of the base model, if that has moved.
    method : str or None
        How to load the base model, if not as it was trained: a model trained in full can get an adapter.
    trainable : bool
        Whether it is trained further; then it need not have learned to answer yet.
    place : str or None
        See `base_model.load_base`.

    Returns
    -------
    (ECGLM, text tokenizer, ECGTokenizer, dict)
        The model in evaluation mode, and what ecgbyte.json says.

    Raises
    ------
    Failure
        If the folder is no model folder, its parts are damaged or do not belong together, its base model is not
        there, or memory does not suffice.
    """
    folder, about = Path(folder), folder_checks.read_about(folder)
    method = method or about["method"]
    device = devices.choose_device(device, method)
    if not (trainable or about.get("qa", True)):
        raise Failure(
            f"{folder} has learned ECGs alone and answers nothing yet: train it with `ecgbyte finetune --model "
            f"{folder} --qa QUESTIONS`"
        )
    ecg_tokenizer = ECGTokenizer.from_file(folder / "ecg_tokenizer.json")
    if ecg_tokenizer.sha256 != about["ecg_tokenizer_sha256"]:
        path = folder / "ecg_tokenizer.json"
        raise Failure(f"{path} is not the tokenizer that this model was trained with")
    loaded, text_tokenizer = _load_own_base(folder, about, method, device, base, place)
    if about["method"] != "full":
        with silence_libraries():
            loaded = load_adapter(loaded, folder, trainable)
            # Exact in float32 alone: rounded to 16 bits, merged weights would answer differently.
            if not trainable and method == "lora" and loaded.dtype == torch.float32:
                loaded = loaded.merge_and_unload()
    model = ECGLM(loaded, ecg_tokenizer.vocab_size, layout=Layout.of_model(about, ecg_tokenizer))
    with torch.no_grad():
        model.ecg_rows.weight.copy_(_read_rows(folder / "ecg_rows.safetensors", model.ecg_rows.weight.shape))
    return model.eval(), text_tokenizer, ecg_tokenizer, about


def _load_own_base(
    folder: Path,
    about: dict[str, Any],
    method: str,
    device: str,
    base: str | os.PathLike | None,
    place: str | None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Check the files of a model folder, and load the base model that it was trained on."""
    name, revision = folder_checks.base_model_of(folder, about, base)
    folder_checks.check_files(folder, about)
    loaded, text_tokenizer = load_base(name, method, device, revision, place=place)
    vocabulary = loaded.get_input_embeddings().num_embeddings, text_tokenizer_sha256(text_tokenizer)
    if vocabulary != (about["offset"], about["text_tokenizer_sha256"]):
        raise Failure(f"{folder} was trained on another version of {name}: its text vocabulary differs")
    stored = about.get("base_sha256") if about["method"] != "full" else None
    held = base_model_sha256(loaded) if stored else None
    if held and held != stored:
        raise Failure(f"{folder} was trained on another base model than {name} is now")
    return loaded, text_tokenizer


def _read_rows(path: Path, shape: torch.Size) -> torch.Tensor:
    """Read the ECG rows from a file, if it holds exactly those."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise Failure(f"{path} is missing: copy the model folder again, or train again")
    shapes = folder_checks.tensor_shapes(path)
    if {*shapes} != {"weight"} or tuple(shapes["weight"]) != tuple(shape):
        raise Failure(
            f"{path} holds {str(shapes)[:100]}, and its model needs {shape[0]} rows of {shape[1]} in `weight`"
        )
    return load_file(path)["weight"]
