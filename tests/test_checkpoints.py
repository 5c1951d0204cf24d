"""The optimizer's state as safetensors and JSON: nothing is lost, however it is nested."""

import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_finetune import SETTINGS, begun

from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import checkpoint
from ecgbyte_cli.training import trainer as trainer_module
from ecgbyte_cli.training.plans import read_samples

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8")),
    st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.int64]).map(
        lambda kind: torch.arange(6, dtype=kind).reshape(2, 3).T  # not contiguous
    ),
    st.just(torch.tensor(3.0)),
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4) | st.sampled_from(
    ["a.b", "%2E", "step", "__bnb_optimizer_quant_state__"]
)
STATES = st.dictionaries(
    st.integers(0, 9),
    st.dictionaries(NAMES, st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3))),
    max_size=3,
)


def same(a, b):
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@settings(max_examples=60, deadline=None)
@given(STATES)
def test_what_was_taken_apart_is_put_together_again(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "optimizer.safetensors"
    tensors, values = checkpoint.flatten_state(state)
    save_file(tensors, path)
    assert same(checkpoint.unflatten_state(load_file(path) | json.loads(json.dumps(values))), state)


@pytest.mark.parametrize("entry", [{"a": [1]}, {"a": {1: 2}}, {"a": {"b": object()}}])
def test_what_json_cannot_hold_is_refused(entry):
    with pytest.raises(TypeError, match="state 0.a"):
        checkpoint.flatten_state({0: entry})


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit"])
def test_a_training_with_the_optimizer_of_a_gpu_goes_on_as_if_undisturbed(small, tmp_path, monkeypatch, name):
    """That of `--method qlora` on a GPU keeps its state in 8 bits, and bitsandbytes nests it."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    work, groups = WorkDir(small / "ecgbyte-work"), [[[(0, i)]] for i in range(6)]
    monkeypatch.setattr(
        trainer_module, "make_optimizer", lambda lm, _: getattr(bitsandbytes.optim, name)(lm.parameters())
    )
    given = {**SETTINGS, "batch": 1, "accumulate": 1, "without_ecg": 0.0, "qa": "…"}
    lm, samples = begun(work, 80)
    read = read_samples(work, small / "data" / "qa.jsonl", samples, 0, print)[:2]

    def trainer():
        lm, samples = begun(work, 80)
        return trainer_module.Trainer(WorkDir(tmp_path), lm, samples, given, 6, 9, *read, print)

    whole, before, after = trainer(), trainer(), trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [whole.update(group) for group in groups]
        made = [before.update(group) for group in groups[:3]]
        nested = before.optimizer.state_dict()["state"][0]
        assert any(isinstance(value, dict) for value in nested.values())
        before.save()
        (folder,) = tmp_path.glob("training/step-*")
        assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
        after.restore(folder)
        for one, other in zip(before.lm.parameters(), after.lm.parameters(), strict=True):
            assert same(before.optimizer.state[one], after.optimizer.state[other])
        made += [after.update(group) for group in groups[3:]]
    assert made == expected
    for one, other in zip(whole.lm.parameters(), after.lm.parameters(), strict=True):
        assert torch.equal(one, other)
