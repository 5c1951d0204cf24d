"""Work on a Dask cluster: the same as on one machine, whatever the number of workers, and when one is lost."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import cluster, worker_groups
from ecgbyte_cli.signal import distributed_bpe
from ecgbyte_cli.storage.files import read_json, read_table
from ecgbyte_cli.storage.stamps import file_stamps
from ecgbyte_kernels import merges as kernels

dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")

SIGNAL = ("--fs", 100, "--leads", "II,V1", "--profile", "resample")


@pytest.fixture(scope="module")
def two():
    """A cluster of two worker processes; a worker that is killed is replaced."""
    with dask.config.set(cluster.PATIENT), started(2) as made:
        yield made


def started(workers):
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
        protocol="tcp",
    )


@pytest.fixture
def kill(two, monkeypatch):
    """Kill a worker when it has come to a point, `kill(owner, name, after)`: behind so many results of a generator,
    or calls of a function."""
    killed = []

    def now(wanted=()):
        """Kill one of the workers at some addresses, or another; one that has started, or Dask starts no other."""
        until, up = time.monotonic() + 300, []
        while not up:
            assert time.monotonic() < until, "there is no worker to kill"
            time.sleep(0.05)
            nannies = [two.workers[number] for number in sorted(two.workers)]
            up = [
                nanny
                for nanny in nannies
                if nanny.process is not None
                and nanny.process.status == distributed.Status.running
                and nanny.worker_address in two.scheduler.workers
                and nanny.process.pid not in killed
            ]
        up.sort(key=lambda nanny: nanny.worker_address not in wanted)
        killed.append(up[0].process.pid)
        os.kill(killed[-1], signal.SIGKILL)

    def generator(owner, name, after):
        before = getattr(owner, name)

        def made(*arguments):
            for number, result in enumerate(before(*arguments)):
                if number == after:
                    now()
                yield result

        monkeypatch.setattr(owner, name, made)

    def calls(owner, name, *after):
        before, count = getattr(owner, name), [0]

        def called(*arguments):
            count[0] += 1
            if count[0] in after:
                now(arguments[0].workers)
            return before(*arguments)

        monkeypatch.setattr(owner, name, called)

    now.generator, now.calls, now.killed = generator, calls, killed
    return now


def done(ecgbyte, *args, **options):
    result = ecgbyte(*args, **options)
    assert result.exit_code == 0, result.stderr
    return result


def same(one, other):
    """Whether two work folders hold the same letters, merges and ids."""
    for name in ("symbols/symbols.npy", "tokens/tokens.npy"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("symbols/segments.parquet", "tokens/segments.parquet"):
        a, b = read_table(one / name), read_table(other / name)
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a), name
    a, b = (read_json(work / "tokenizer" / "ecg_tokenizer.json") for work in (one, other))
    assert (a["merges"], a["counts"], a["result"]["tokens"]) == (
        b["merges"],
        b["counts"],
        b["result"]["tokens"],
    )
    return True


def chain(data, *more):
    """All three stages on the data, in small parts."""
    return [
        ["symbolize", data, *SIGNAL, *more],
        ["learn", "--vocab", 200, *more],
        ["encode", *more],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_on_any_number_of_workers(ecgbyte, small, tmp_path, workers):
    """On one cluster for all stages, or first on one of two processes that the stage starts itself."""
    with started(workers) as running:
        for stage, *words in chain(small / "data"):
            own = workers > 1 and stage == "symbolize"
            done(ecgbyte, stage, *words, "--dask", "local:2" if own else running.scheduler_address)
    assert same(tmp_path / "work", small / "ecgbyte-work")


@pytest.mark.slow
def test_a_worker_lost_while_symbolizing_and_encoding(ecgbyte, small, tmp_path, two, kill, monkeypatch):
    from ecgbyte_cli.stages import encode, symbolize

    monkeypatch.setattr(symbolize, "PART", 8)
    monkeypatch.setattr(encode, "LETTERS", 16000)
    kill.generator(cluster, "map_tasks", 1)
    address = ["--dask", two.scheduler_address]
    for stage in chain(small / "data"):
        done(ecgbyte, *stage, *([] if stage[0] == "learn" else address))
    assert len(kill.killed) == 2
    assert same(tmp_path / "work", small / "ecgbyte-work")


@pytest.mark.slow
def test_decoded_and_answered_alike(ecgbyte, small, tmp_path, two, monkeypatch):
    from ecgbyte_cli.stages import decode

    monkeypatch.setattr(decode, "PART", 5)
    address, work = ["--dask", two.scheduler_address], tmp_path / "work"
    for folder in (work, tmp_path / "alone"):
        shutil.copytree(small / "ecgbyte-work", folder)
        more = address if folder == work else []
        done(ecgbyte, "decode", "--limit", 24, *more, work=folder)
        asked = ["generate", "--limit", 12, "--max-new", 8, "--batch", 4, "--overwrite", *more]
        done(ecgbyte, *asked, work=folder)
        done(ecgbyte, *asked, "--temperature", 0.7, "--split", "train", work=folder)
    for name in ("decoded/decode.json", "answers/metrics.json"):
        one, other = (read_json(folder / name)["result"] for folder in (work, tmp_path / "alone"))
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    names = sorted(path.name for path in (work / "decoded").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "alone" / "decoded").iterdir())
    lines = [
        (folder / "answers" / "answers.jsonl").read_text().splitlines()
        for folder in (work, tmp_path / "alone")
    ]
    assert all(json.loads(a)["answer"] == json.loads(b)["answer"] for a, b in zip(*lines, strict=True))


@pytest.mark.slow
def test_a_worker_lost_while_learning(ecgbyte, small, tmp_path, two, kill, monkeypatch):
    monkeypatch.setattr(distributed_bpe, "GATHERED", 0)
    monkeypatch.setattr(distributed_bpe.learn, "__defaults__", (distributed_bpe.NO_ROWS, 0))
    kill.calls(worker_groups.Groups, "call", 4, 30)
    for stage in chain(small / "data"):
        done(ecgbyte, *stage, *(["--dask", two.scheduler_address] if stage[0] == "learn" else []))
    assert len(kill.killed) == 2
    assert same(tmp_path / "work", small / "ecgbyte-work")
    spent = read_json(tmp_path / "work" / "tokenizer" / "ecg_tokenizer.json")["result"]["cluster"]
    assert spent["calls"] > 30 and spent["received"] > 0


@pytest.mark.slow
def test_workers_lost_while_reading_and_one_after_the_other(ecgbyte, small, tmp_path, two, kill, monkeypatch):
    for stage in chain(small / "data")[:1]:
        done(ecgbyte, *stage)
    kill.calls(worker_groups.Groups, "_wait_for", 1, 2)
    result = done(ecgbyte, "learn", "--vocab", 200, "--dask", two.scheduler_address)
    assert kill.killed and "other workers take over" in result.stderr
    rows = [
        read_json(work / "tokenizer" / "ecg_tokenizer.json")["merges"]
        for work in (tmp_path / "work", small / "ecgbyte-work")
    ]
    assert rows[0] == rows[1]
    monkeypatch.undo()
    monkeypatch.setattr(worker_groups, "LOSSES", 2)
    kill.calls(worker_groups.Groups, "call", *range(100))
    monkeypatch.setattr(distributed_bpe.learn, "__defaults__", (distributed_bpe.NO_ROWS, 0))
    result = ecgbyte("learn", "--vocab", 200, "--dask", two.scheduler_address, "--overwrite")
    assert result.exit_code == 1 and "lost 2 workers in a row" in result.stderr.splitlines()[-1], (
        result.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["learn", "encode"])
def test_a_scheduler_that_dies_is_one_line(ecgbyte, small, tmp_path, stage, monkeypatch):
    shutil.copytree(
        small / "ecgbyte-work", tmp_path / "work", ignore=shutil.ignore_patterns(stage + "*", "tokens")
    )
    monkeypatch.setattr(cluster, "LOOK", 2)
    made = started(1)
    before, closed = worker_groups.Groups.call, []

    def call(self, name, *arguments):
        if name == "scan" and not closed:
            closed.append(made.close())
        return before(self, name, *arguments)

    def submit(self, function, folder, version, run, *task, **options):
        closed.append(made.close())
        return submitted(self, function, folder, version, run, *task, **options)

    submitted = distributed.Client.submit
    if stage == "learn":
        monkeypatch.setattr(worker_groups.Groups, "call", call)
    else:
        monkeypatch.setattr(distributed.Client, "submit", submit)
    more = ["--overwrite", "--vocab", 150] if stage == "learn" else []
    result = ecgbyte(stage, *more, "--dask", made.scheduler_address)
    assert closed and result.exit_code == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ecgbyte: ") and "Dask" in last and "Traceback" not in result.stderr, result.stderr


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_leaves_no_process(small, tmp_path):
    code = """from ecgbyte_cli.stages import symbolize
symbolize.PART = 1
from ecgbyte_cli.__main__ import main
main()"""
    command = [
        sys.executable,
        "-c",
        code,
        "--work",
        tmp_path / "work",
        "symbolize",
        small / "data",
        "--dask",
        "local:2",
    ]
    with subprocess.Popen(
        [*map(str, command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        while not list(tmp_path.rglob("*.part")):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.communicate(timeout=300)[1]
    assert process.returncode not in (0, None) and "Traceback" not in said and "stopped" in said, said
    with pytest.raises(ProcessLookupError):
        for _ in range(1200):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_what_stands_in_the_way_is_one_line(ecgbyte, small, tmp_path, monkeypatch, two):
    def refused(*args):
        result = ecgbyte(*args)
        assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1, result.stderr
        return result.stderr

    monkeypatch.setattr(cluster, "CONNECT", 1)
    stage = ["symbolize", small / "data", *SIGNAL, "--dask"]
    assert "no Dask scheduler answers" in refused(*stage, "tcp://127.0.0.1:9")
    monkeypatch.undo()
    assert "no such scheduler file" in refused(*stage, tmp_path / "none.json")
    assert "as in local:4" in refused(*stage, "local:many")
    monkeypatch.setattr(cluster, "__version__", "9.9")
    assert "but this machine has 9.9" in refused(*stage, two.scheduler_address)
    monkeypatch.undo()
    monkeypatch.setattr(cluster.os, "urandom", lambda n: b"\0" * n)
    monkeypatch.setattr(cluster.Path, "touch", lambda self: None)
    monkeypatch.setattr(cluster.Path, "unlink", lambda self: None)
    assert "does not see" in refused(*stage, two.scheduler_address)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install ecgbyte[cluster]" in refused(*stage, two.scheduler_address)


STAGES = {  # the files that a worker must see of each stage's input
    "symbolize": ["data/*.hea", "data/*.dat"],
    "learn": ["ecgbyte-work/symbols/symbols.npy"],
    "encode": ["ecgbyte-work/symbols/symbols.npy", "ecgbyte-work/tokenizer/ecg_tokenizer.json"],
    "decode": [
        "data/*.hea",
        "data/*.dat",
        "ecgbyte-work/symbols/symbols.npy",
        "ecgbyte-work/tokens/tokens.npy",
    ]
    + ["ecgbyte-work/tokenizer/ecg_tokenizer.json"],
    "generate": ["ecgbyte-work/model/ecgbyte.json", "ecgbyte-work/model/base/*.safetensors"],
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_that_does_not_see_the_input_is_refused_before_anything_begins(
    ecgbyte, small, tmp_path, two, monkeypatch, stage
):
    work, asked = tmp_path / "work", []
    shutil.copytree(small / "ecgbyte-work", work)
    inputs = {"symbolize": [small / "data", *SIGNAL], "learn": ["--vocab", 150]}.get(stage, [])
    for hidden in STAGES[stage]:
        there = work / hidden.removeprefix("ecgbyte-work/") if "work" in hidden else small / hidden
        path = str(sorted(there.parent.rglob(there.name))[0])

        def stamped(files, path=path):
            asked.append(made := file_stamps(files))
            return made | {path: (0, 0)} if path in made else made

        with monkeypatch.context() as patched:
            patched.setattr(cluster, "file_stamps", stamped)
            result = ecgbyte(stage, *inputs, "--overwrite", "--dask", two.scheduler_address)
        assert result.exit_code == 1 and path in asked[0], result.stderr
        last = result.stderr.splitlines()[-1]
        assert (
            "the Dask worker tcp://" in last and f" on {socket.gethostname()} sees a different {path}" in last
        )
        assert f"the folder {Path(path).parent} must be on storage shared by all workers" in last
    assert not list(work.rglob("*.part"))


def test_a_worker_that_joins_late_is_refused_at_its_first_part(ecgbyte, small, tmp_path, two, monkeypatch):
    monkeypatch.setattr(cluster, "_check", lambda *_: None)  # as if it had not been there
    gone = str(tmp_path / "data" / "gone.hea")
    monkeypatch.setattr(cluster, "file_stamps", lambda files: {gone: (1, 1)})
    result = ecgbyte("symbolize", small / "data", *SIGNAL, "--dask", two.scheduler_address)
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and f"a Dask worker on {socket.gethostname()} does not see {gone}" in last


def test_the_sample_has_the_first_the_last_and_some_between():
    paths = [f"{i}" for i in range(1000)]
    some = cluster.sample(paths)
    assert (some[0], some[-1], len(some)) == ("0", "999", cluster.SAMPLED) and len(set(some)) == len(some)
    assert cluster.sample(paths[:5]) == paths[:5] and cluster.sample([]) == []


def test_a_lost_worker_has_time_to_start_again(monkeypatch):
    monkeypatch.setattr(distributed, "LocalCluster", lambda **_: contextlib.nullcontext())
    with cluster._processes(1):
        told = dask.config.get("distributed.deploy.lost-worker-timeout")
    assert dask.utils.parse_timedelta(told) > cluster.START


def test_what_a_task_raises_ends_the_run(two, tmp_path):
    with (
        pytest.raises(Failure, match="of no use"),
        contextlib.closing(
            cluster.map_tasks(two.scheduler_address, tmp_path, fail, [("of no use",)])
        ) as results,
    ):
        list(results)


def fail(what):
    raise Failure(what)


def test_without_a_cluster_nothing_of_dask_is_imported():
    code = "import sys; from ecgbyte_cli.stages import encode, learn, symbolize; print('dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# Without Dask: groups of shards in this process -----------------------------------------------------------


class Here:
    """Groups of shards in this process, of which some are lost at some calls."""

    def __init__(self, make, count, lose=()):
        self.make, self.lose, self.calls = make, lose, 0
        self.all = [make(number) for number in range(count)]

    def call(self, name, *arguments):
        self.calls += 1
        lost = self.calls % len(self.all) if self.calls in self.lose else None
        made = [group.do(name, *arguments)[0] for number, group in enumerate(self.all) if number != lost]
        if lost is not None:
            self.all[lost] = self.make(lost)
            raise distributed_bpe.LostError
        return made


def texts(letters, levels):
    """One text of some pieces."""
    text = np.empty(letters.size + len(letters) + 1, kernels.text_type(levels))
    starts = np.arange(len(letters)) * letters.shape[1]
    kernels.cut_pieces(letters.ravel(), starts, np.full(len(letters), letters.shape[1]), text, 0)
    return [text]


def compared(levels, merges, min_count, longest, count, gathered, lose, pieces=60, samples=400):
    """Learn in one place and in groups, from the beginning and from known merges: all must be equal."""
    random = np.random.default_rng(levels)
    letters = (np.cumsum(random.integers(-1, 2, (pieces, samples)), 1) // 2 % levels).astype(np.uint8)
    steps = list(kernels.learn_merges(texts(letters, levels), levels, merges, min_count, longest))
    wanted = np.concatenate([rows for rows, _ in steps])
    parts = np.array_split(letters, count)

    def learned(known=distributed_bpe.NO_ROWS):
        groups = Here(lambda i: distributed_bpe.Shards(texts(parts[i], levels), levels, merges), count, lose)
        made = list(distributed_bpe.learn(groups, levels, merges, min_count, longest, known, gathered))
        return np.concatenate([known, *(rows for rows, _ in made)]), made[-1][1]

    rows, tokens = learned()
    np.testing.assert_array_equal(rows, wanted)
    assert tokens == steps[-1][1] and len(wanted) > merges // 3
    np.testing.assert_array_equal(learned(wanted[: len(wanted) // 3])[0], wanted)


@pytest.mark.parametrize(
    "levels, merges, min_count, longest",
    [(26, 300, 2, 0), (3, 150, 2, 40), (200, 120, 3, 0), (256, 60, 2, 0), (5, 500, 1, 0)],
)
@pytest.mark.parametrize(
    "count, gathered, lose",
    [(1, 0, ()), (3, 0, ()), (3, 9000, ()), (3, 0, (2, 5, 6, 15, 30)), (2, 20000, (1, 4, 12))],
)
def test_merges_are_those_of_one_machine(levels, merges, min_count, longest, count, gathered, lose):
    compared(levels, merges, min_count, longest, count, gathered, lose)


@pytest.mark.kernels
def test_merges_of_a_small_text_are_those_of_one_machine():
    compared(5, 40, 2, 0, 2, 0, (3, 7), pieces=8, samples=60)
