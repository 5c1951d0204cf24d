"""The state of an optimizer as safetensors and JSON."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def flatten_state(state: dict[int, dict[str, Any]]) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    """Take the state of an optimizer apart.

    Parameters
    ----------
    state : dict
        `optimizer.state_dict()["state"]`: by the number of a parameter, tensors and values by name. A name may hold a
        dict of more of them, to any depth, as those of bitsandbytes do.

    Returns
    -------
    (dict of str to torch.Tensor, dict of str to object)
        Tensors on the CPU that share no memory, and values for JSON. A key is the number and the names, joined by
        dots; a dot in a name is written `%2E`, a percent sign `%25`.

    Raises
    ------
    TypeError
        If a value is neither a tensor nor a number, a text, a truth value or None.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}

    def take(key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, part in value.items():
                if not isinstance(name, str):
                    raise TypeError(f"the optimizer's state {key} has a key that is no text: {name!r}")
                take(f"{key}.{name.replace('%', '%25').replace('.', '%2E')}", part)
        elif hasattr(value, "detach"):
            tensors[key] = value.detach().cpu().clone().contiguous()
        elif value is None or value == {} or isinstance(value, (bool, int, float, str)):
            values[key] = value
        else:
            raise TypeError(f"the optimizer's state {key} cannot be kept: {type(value).__name__}")

    for number, entries in state.items():
        take(str(number), entries)
    return tensors, values


def unflatten_state(flat: "dict[str, torch.Tensor | Any]") -> dict[int, dict[str, Any]]:
    """Put the state of an optimizer together again: the inverse of `flatten`, from tensors and values in one dict."""
    state: dict[Any, Any] = {}
    for key, value in flat.items():
        number, *names = key.split(".")
        path = [int(number), *(re.sub("%2E|%25", lambda m: {"%2E": ".", "%25": "%"}[m[0]], n) for n in names)]
        at = state
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = value
    return state
