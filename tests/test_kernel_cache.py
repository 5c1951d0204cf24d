"""The cache of compiled kernels, when two processes fill it at the same moment."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MODULE = """
    from ecgbyte_kernels import jit

    @jit
    def total(values):
        result = 0
        for value in values:
            result += value
        return result
"""

# Waits for the other process before it compiles, and between the steps of saving
COMPILE = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from numba.core.caching import IndexDataCacheFile as File
    from summing import total

    kind, *delays = sys.argv[1:]
    for name, delay in zip(("_save_index", "_save_data"), map(float, delays)):
        def late(self, *args, save=getattr(File, name), delay=delay):
            time.sleep(delay)
            save(self, *args)
        setattr(File, name, late)
    Path(kind + ".ready").touch()
    while delays and len(list(Path().glob("*.ready"))) < 2:
        time.sleep(0.01)
    values = np.arange(300).astype(kind)
    assert total(values) == values.sum(), kind
    print(sum(total.stats.cache_hits.values()))
"""


@pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled, so nothing cached"
)
def test_processes_that_compile_at_once_leave_a_cache_that_is_right(tmp_path):
    (tmp_path / "summing.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "once.py").write_text(textwrap.dedent(COMPILE))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "once.py", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # without a lock: both find no entry, the index of the first is saved last, its code first
    both = [start("uint8", "1", "0"), start("int64", "0.5", "1.5")]
    for process in both:
        assert process.wait() == 0, process.stderr.read()
    for kind in ("uint8", "int64"):
        said, error = (process := start(kind)).communicate()
        assert process.returncode == 0, error
        assert int(said) == 1  # from the cache


def test_a_change_in_another_file_of_the_kernels_is_noticed(tmp_path):
    """Numba itself compares the function's own file alone."""
    shutil.copytree(
        ROOT / "kernels", tmp_path / "ecgbyte_kernels", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = """
        import numpy as np
        import ecgbyte_kernels
        from ecgbyte_kernels.filters import _shrink
        _shrink(np.ones((4, 2)), np.full(2, 0.5))
        print(ecgbyte_kernels.__file__, sum(_shrink.stats.cache_hits.values()))
    """

    def hits():
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        env.pop("NUMBA_DISABLE_JIT", None)
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, check=True
        )
        file, count = ran.stdout.split()
        assert file.startswith(str(tmp_path))
        return int(count)

    assert [hits(), hits()] == [0, 1]
    with open(tmp_path / "ecgbyte_kernels" / "tokens.py", "a") as file:
        file.write("# changed\n")
    assert [hits(), hits()] == [0, 1]
