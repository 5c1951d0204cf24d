"""The chain on a pretended GPU: no tensors of two devices meet, nothing is float64, and the host hardly waits.

One process runs all of it (`on_device.py`): PyTorch cannot unregister a device.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Most waits of the host for the device, each time that a part runs. Without several questions behind a reading,
# Transformers waits once for each batch of a step, to look for texts end to end.
MOST = {"id": 1, "first id": 1, "weighing": 1, "drawn token": 1}
STEPS = {"finetune": 3, "finetune_lora": 1, "plan": 1, "step": 1}  # "finetune" accumulates two batches
STAGES = ("finetune", "finetune_lora", "plan", "generate", "write", "reinforce", "draw", "chat", "explain")
WRITTEN = 6  # ids of an answer of "reinforce"
PARTS = {
    "finetune": {"step", "first id", "weighing"},
    "plan": {"step"},
    "write": {"first id", "id"},
    "reinforce": {"step with its answers", "answers"},
    "draw": {"drawing", "drawn token"},
    "chat": {"first id", "id", "weighing"},
}


@pytest.fixture(scope="module")
def costs(small, tmp_path_factory):
    """What each stage, probe and mistake cost: {kind: {name: cost}}."""
    script, folder = Path(__file__).with_name("on_device.py"), tmp_path_factory.mktemp("on device")
    arguments = [sys.executable, script, small / "ecgbyte-work", small / "data", folder]
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kinds = {}
    for line in done.stdout.splitlines():
        cost = json.loads(line)
        kinds.setdefault(cost["kind"], {})[cost["name"]] = cost
    return kinds


def faults(cost):
    """Return what is wrong with a stage or a probe."""
    if "error" in cost:
        return [cost["error"]]
    name, waits = cost["name"], cost["waits"]
    most = MOST | {"step": STEPS.get(name, 0), "answers": WRITTEN + 1, "step with its answers": WRITTEN + 2}
    found = [f"sharing is off: {trial}" for trial, passed in cost["trials"].items() if not all(passed)]
    found += [
        f"{part}: {max(counts)} waits, {cost['lines'][part]}"
        for part, counts in waits.items()
        if max(counts) > most.get(part, max(counts))
    ]
    if sum(waits.get("drawing", ())) > len(waits.get("drawn token", ())):
        found.append(f"drawing waits more than once for each token: {cost['lines']['drawing']}")
    if name not in ("explain", "attribution") and cost["full products"]:
        found.append(f"layers in float32: {cost['full products']}")
    return found


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_stays_on_the_device_and_hardly_waits(costs, name):
    cost = costs["stage"][name]
    assert not faults(cost), cost.get("trace")
    assert PARTS.get(name, set()) <= cost["waits"].keys()
    if name in ("finetune", "finetune_lora", "generate", "chat"):
        assert cost["trials"]["takes_side_by_side"]
    if name in ("finetune", "finetune_lora", "plan", "reinforce"):
        assert cost["trials"]["take_last_rows"]


def test_planted_mistakes_show(costs):
    assert not [(name, faults(cost)) for name, cost in costs["probe"].items() if faults(cost)]
    assert len(costs["mistake"]) >= 10
    assert not [name for name, cost in costs["mistake"].items() if not faults(cost)]
