"""Run the command lines of the pages that take seconds, in a temporary folder with small data, and print a log.

    python docs/run_lines.py [PAGE]…           # such as README.md docs/scores.md  [default: all]

Language models of the Hub become `--model tiny`, and trainings have two steps. Lines that need a network, a GPU, a
cluster, a browser or hours are listed as skipped; tests/test_docs.py parses these too. Pages with a test that runs all
their lines are left out.
"""

import csv
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from click.testing import CliRunner
from command_lines import PAGES, ROOT, lines_of, split

from ecgbyte_cli.__main__ import main

# each has a test that runs its lines in their order
TESTED = {"docs/controls.md", "docs/python.md", "docs/your-hospital.md"}
SKIPPED = {  # what a line contains: why it is not run here
    r"serve\b": "a server",
    r"OWNER/NAME": "the Hub",
    r"--dask": "a cluster",
    r"\.edf": "EDF files",
    r"chat new/": "a conversation",
}
SMALLER = (  # what makes a line small enough
    (r'"\$record"', "record.hea"),
    (r'"\$folder"', "data"),
    (r"--model Qwen/\S+", "--model tiny"),
    (r" --(steps|records|batch) \d+", ""),
    (r"\bfinetune\b", "finetune --steps 2 --batch 2 --overwrite"),
    (r"\breinforce\b", "reinforce --steps 2 --answers 2 --overwrite"),
    (r"\bgenerate\b", "generate --limit 10 --overwrite"),
    (r"\bsymbolize\b", "symbolize --jobs 1 --overwrite"),
    (r"(?<![-\w])(learn|encode|questions|import-tokenizer)\b(?!\.)", r"\1 --overwrite"),
    (r"(?<![-\w])synth\b", "synth --records 40 --fs 250"),  # as they are already
    (r"(?<![-\w])draw\b", "draw --records 2"),
)


def run(line: str) -> tuple[int, str]:
    """Run a command of ecgbyte in this process. Returns the exit status and the last line of its messages."""
    result = CliRunner().invoke(main, split(line)[0][1:])
    return result.exit_code, next(iter(reversed(result.stderr.strip().splitlines())), "")


def write_table(path: Path, *rows: dict) -> None:
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def copy_record(name: str, to: Path, *comments: str) -> None:
    """Copy a synthetic record under another name."""
    to.parent.mkdir(parents=True, exist_ok=True)
    header = Path("data", f"{name}.hea").read_text().replace(name, to.name)
    to.with_suffix(".hea").write_text(header + "".join(f"# {comment}\n" for comment in comments))
    shutil.copy(Path("data", f"{name}.dat"), to.with_suffix(".dat"))


def write_data_sets() -> None:
    """Write PTB-XL, CODE-15 %, a Challenge database, ECG-QA and tables, each with a few synthetic recordings."""
    rows, codes = [], ["{'NORM': 100.0, 'SR': 0.0}", "{'AFIB': 0.0}", "{'CLBBB': 100.0, 'SR': 0.0}"]
    for i in range(1, 21):
        name = f"records500/00000/{i:05d}_hr"
        copy_record(f"synth{i:05d}", Path("ptb-xl", name))
        rows.append(
            {"ecg_id": i, "patient_id": f"{i}.0", "age": 60.0, "sex": i % 2, "scp_codes": codes[i % 3]}
            | {"strat_fold": i % 10 + 1, "filename_lr": name.replace("500", "100"), "filename_hr": name}
        )
        copy_record(
            f"synth{i:05d}", Path("WFDB_Ningbo", f"JS{i:05d}"), f"Dx: {[426783006, 164889003][i % 2]}"
        )
        copy_record(f"synth{i:05d}", Path("clinic", f"rec_{i}"))
    write_table(Path("ptb-xl/ptbxl_database.csv"), *rows)
    write_table(Path("clinic/patients.csv"), *({"record": f"rec_{i}", "patient": i} for i in range(1, 21)))
    write_table(
        Path("mine.csv"),
        *({"record": f"synth{i:05d}", "afib": "yes" if i % 2 else "no"} for i in range(1, 21)),
    )
    Path("code15").mkdir()
    findings = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")
    exams = (
        {"exam_id": i, "age": 50, "is_male": True, "patient_id": i, "trace_file": "a.hdf5"}
        for i in range(1, 21)
    )
    write_table(
        Path("code15/exams.csv"), *(exam | {f: exam["exam_id"] % 2 == 0 for f in findings} for exam in exams)
    )
    for side, ids in (("train", range(1, 9)), ("valid", (9,)), ("test", (10,))):
        path = Path("ecgqa/ptbxl/paraphrased", side, "00000.json")
        path.parent.mkdir(parents=True)
        asked = {"question": "Is this normal?", "answer": ["yes"], "question_type": "single-verify"}
        path.write_text(
            json.dumps([asked | {"ecg_id": [i], "template_id": 1, "question_id": i} for i in ids])
        )


def prepare() -> None:
    """Write into the current folder what the pages' lines read."""
    assert run("ecgbyte synth data --records 40 --fs 250")[0] == 0
    copy_record("synth00001", Path("record"))
    write_data_sets()
    assert run("ecgbyte questions ptb-xl --out own.jsonl")[0] == 0
    both = Path("own.jsonl").read_text() + Path("data/qa.jsonl").read_text()
    for name in ("questions", "qa", "own", "mine", "ecg-qa"):
        Path(f"{name}.jsonl").write_text(both)
    vocab = {i: chr(i) for i in range(256)} | {256: "nn", 257: "nnn"}
    Path("elm_10000.pkl").write_bytes(pickle.dumps((vocab, [([110, 110], 256), ([110, 110, 110], 257)])))
    for line in (
        "ecgbyte symbolize data --fs 100 --leads II,V1 --jobs 1 learn --vocab 100 encode",
        "ecgbyte finetune --qa data/qa.jsonl --model tiny --steps 2 --batch 2",
    ):
        status, message = run(line)
        assert status == 0, message


def run_page(page: str) -> int:
    """Run a page's lines in the current folder, print the log, and return how many failed."""
    lines, failed = list(lines_of((ROOT / page).read_text(encoding="utf-8"))), 0
    if any("symbolize" in line for line in lines):  # the page begins with recordings
        shutil.rmtree("ecgbyte-work")
    for line in lines:
        reason = next((why for what, why in SKIPPED.items() if re.search(what, line)), None)
        if not line.startswith("ecgbyte ") or reason:
            print(f"skipped  {line}  ({reason or 'not ecgbyte alone'})", flush=True)
            continue
        for what, instead in SMALLER:
            line = re.sub(what, instead, line)
        began = time.monotonic()
        status, message = run(line)
        failed += status != 0
        seconds = time.monotonic() - began
        print(
            f"{'FAILED' if status else 'ran'} {seconds:5.1f} s  {line}  {message if status else ''}",
            flush=True,
        )
    return failed


if __name__ == "__main__":
    wanted = sys.argv[1:] or [page for page in PAGES if page not in TESTED]
    with tempfile.TemporaryDirectory() as folder:
        prepared, failed = Path(folder, "prepared"), 0
        prepared.mkdir()
        os.chdir(prepared)
        prepare()
        for number, page in enumerate(wanted):
            shutil.copytree(prepared, Path(folder, f"page{number}"))
            os.chdir(Path(folder, f"page{number}"))
            print(f"\n{page}", flush=True)
            failed += run_page(page)
        os.chdir(ROOT)
    print(f"\n{failed} failed")
    raise SystemExit(failed > 0)
