"""The benchmark for a GPU, tried on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "gpu.sh"


def test_every_part_runs_on_a_small_model(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        ["sh", SCRIPT, "--tiny"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert "failed" not in found.stdout, result
    assert {*result["steps"]} == {"tiny qlora", "tiny lora", "tiny full"}
    assert all(step["tokens_per_second"] > 0 and step["mfu"] > 0 for step in result["steps"].values())
    assert result["answers"]["tiny"]["answers_per_second"] > 0
    assert result["resumed"]["tiny qlora"]["largest_difference"] == 0
    assert {*result["attention"]} == {"tiny dense", "tiny rows"}
    assert not [*tmp_path.iterdir()]


def test_without_a_gpu_it_says_so(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(["sh", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1 and found.stderr.strip().endswith("--tiny tries the script on the CPU")
