"""Checkpoints of a training run: weights, optimizer state and progress, as safetensors and JSON."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgbyte_cli.runtime.ranks import process_rank
from ecgbyte_cli.storage.files import atomic_folder, read_json, write_json
from ecgbyte_cli.storage.manifest import completed_result, used_settings
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.sharding import divided_like, whole

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ecgbyte_cli.inference.certainty import Certainty
    from ecgbyte_cli.model.ecg_lm import ECGLM


def unfinished_checkpoint(work: WorkDir, settings: dict[str, Any], overwrite: bool) -> Path | None:
    """Return the newest checkpoint of an unfinished run with these settings, or None.

    Raises
    ------
    Failure
        If the only checkpoint has other settings, there is no finished model, and `overwrite` is false.
    """
    checkpoints = work.checkpoints("step")
    if overwrite or not checkpoints:
        return None
    state = checkpoints[-1] / "state.json"
    if used_settings(read_json(state)["settings"]) == used_settings(settings):
        return checkpoints[-1]
    if not work.model_settings.exists():
        completed_result(state, settings, overwrite, "an unfinished training run")  # names the differences
    return None


def save_checkpoint(
    folder: Path,
    lm: "ECGLM",
    optimizer: "torch.optim.Optimizer",
    settings: dict[str, Any],
    progress: dict[str, Any],
) -> None:
    """Write a checkpoint from which the run can resume. All processes of a sharded model must call it together."""
    from safetensors.torch import save_file

    is_first = process_rank()[0] == 0
    weights = trained_weights(lm, is_first)
    tensors, values = flatten_state(optimizer.state_dict()["state"], is_first)
    if not is_first:
        return
    with atomic_folder(folder) as beside:
        save_weights(beside, weights)
        save_file(tensors, beside / "optimizer.safetensors")
        result = progress | {"optimizer": values}
        write_json(beside / "state.json", {"settings": settings, "result": result})


def update_progress(folder: Path, progress: dict[str, Any]) -> None:
    """Replace the progress in a checkpoint."""
    path = folder / "state.json"
    state = read_json(path)
    write_json(path, state | {"result": state["result"] | progress})


def load_checkpoint(folder: Path, lm: "ECGLM", optimizer: "torch.optim.Optimizer") -> dict[str, Any]:
    """Load the weights and the optimizer state of a checkpoint, and return its progress."""
    from safetensors import safe_open

    load_weights(folder, lm)
    progress = read_json(folder / "state.json")["result"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with safe_open(folder / "optimizer.safetensors", "pt") as file:
        tensors = {
            key: divided_like(file.get_tensor(key), parameters[int(key.partition(".")[0])])
            for key in file.keys()  # noqa: SIM118 (it is no dict)
        }
    state = unflatten_state(tensors | progress.pop("optimizer"))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def save_best(folder: Path, lm: "ECGLM") -> None:
    """Write the trained weights to a new folder. All processes of a sharded model must call it together."""
    is_first = process_rank()[0] == 0
    weights = trained_weights(lm, is_first)
    if is_first:
        with atomic_folder(folder) as beside:
            save_weights(beside, weights)


def trained_weights(lm: "ECGLM", keep: bool) -> "dict[str, torch.Tensor]":
    """Return the trained weights by name, unsharded, on the CPU; an empty dict unless `keep`.

    All processes of a sharded model must call it together.
    """
    weights = {}
    for name, p in lm.named_parameters():
        if p.requires_grad:
            tensor = whole(p.detach())
            if keep:
                weights[name] = tensor.cpu().contiguous()
    return weights


def save_weights(folder: Path, weights: "dict[str, torch.Tensor]") -> None:
    """Write trained weights."""
    from safetensors.torch import save_file

    save_file(weights, folder / "weights.safetensors")


def load_weights(folder: Path, lm: "ECGLM") -> None:
    """Load the trained weights."""
    import torch
    from safetensors import safe_open

    with torch.no_grad(), safe_open(folder / "weights.safetensors", "pt") as file:
        for name, p in lm.named_parameters():
            if p.requires_grad:
                p.copy_(divided_like(file.get_tensor(name), p))


def remove_old_checkpoints(work: WorkDir, best_step: int | None) -> None:
    """Remove all checkpoints except the newest and the one with the best weights."""
    best = None if best_step is None else work.checkpoint("best", best_step)
    old = [path for path in work.checkpoints("best") if path != best]
    for path in (*work.checkpoints("step")[:-1], *old):
        shutil.rmtree(path)


def write_model(
    work: WorkDir,
    lm: "ECGLM",
    text_tokenizer: "PreTrainedTokenizerBase",
    certainty: "Certainty | None",
    about: dict[str, Any],
) -> None:
    """Write the model folder of a finished run, and remove its checkpoints."""
    from ecgbyte_cli.model.model_folder import save_model

    with work.making("model"), atomic_folder(work.model) as folder:
        if certainty:
            certainty.write(folder)
        save_model(folder, lm, text_tokenizer, work.ecg_tokenizer, about)
    for path in (*work.checkpoints("step"), *work.checkpoints("best")):
        shutil.rmtree(path)


def flatten_state(
    state: dict[int, dict[str, Any]], keep: bool = True
) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    """Flatten the nested state of an optimizer.

    All processes of a sharded model must call it together.

    Parameters
    ----------
    state : dict
        `optimizer.state_dict()["state"]`: the index of a parameter mapped to its tensors and values by name. A name may
        hold a nested dict, as in bitsandbytes.
    keep : bool
        Whether to return the tensors; processes without it only take part in gathering them.

    Returns
    -------
    (dict of str to torch.Tensor, dict of str to object)
        Tensors on the CPU that share no memory, and values for JSON. A key joins the index and the names with dots; a
        dot in a name becomes `%2E`, a percent sign `%25`.

    Raises
    ------
    TypeError
        If a value is not a tensor, number, string, bool or None.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, part in value.items():
                if not isinstance(name, str):
                    raise TypeError(f"the optimizer's state {key} has a key that is not a string: {name!r}")
                add(f"{key}.{name.replace('%', '%25').replace('.', '%2E')}", part)
        elif hasattr(value, "detach"):
            tensor = whole(value.detach())
            if keep:
                tensors[key] = tensor.cpu().clone().contiguous()
        elif value is None or value == {} or isinstance(value, (bool, int, float, str)):
            values[key] = value
        else:
            raise TypeError(f"the optimizer's state {key} cannot be saved: {type(value).__name__}")

    for number, entries in state.items():
        add(str(number), entries)
    return tensors, values


def unflatten_state(flat: "dict[str, torch.Tensor | Any]") -> dict[int, dict[str, Any]]:
    """Rebuild the state of an optimizer: the inverse of `flatten_state`, from tensors and values in one dict."""
    state: dict[Any, Any] = {}
    for key, value in flat.items():
        number, *names = key.split(".")
        path = [int(number), *(re.sub("%2E|%25", lambda m: {"%2E": ".", "%25": "%"}[m[0]], n) for n in names)]
        parent = state
        for name in path[:-1]:
            parent = parent.setdefault(name, {})
        parent[path[-1]] = value
    return state
