"""Train the quickstart's model with each `--ecg-rows` and `--ecg-init`, and print a table of its accuracy.

    sh examples/quickstart.sh                                 # creates quickstart/ with its data and tokens
    python examples/experiments/ablation_ecg_rows.py quickstart/ --steps 1500

The table has exact match on questions of the test split, with the signal and without it. Only the number of steps
differs from the quickstart. Finished trainings are not repeated.
"""

import argparse
import shutil
from pathlib import Path

from ecgbyte_cli.stages.finetune import FinetuneOptions, finetune
from ecgbyte_cli.stages.generate import GenerateOptions, generate
from ecgbyte_cli.storage.workdir import WorkDir


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds data/ and ecgbyte-work/ with tokens")
    parser.add_argument("--out", type=Path, help="where the models go; default FOLDER/ablation")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--questions", type=int, default=400, help="of the test split")
    options = parser.parse_args()
    out, rows = options.out or options.folder / "ablation", []
    for trained in ("train", "frozen"):
        for init in ("random", "mean", "signal"):
            root = out / f"{trained}-{init}"
            for part in ("symbols", "tokenizer", "tokens"):
                if not (root / part).exists():
                    shutil.copytree(options.folder / "ecgbyte-work" / part, root / part)
            work, qa = WorkDir(root), options.folder / "data" / "qa.jsonl"
            training = FinetuneOptions(
                qa=((qa, 1.0),),
                model="tiny",
                steps=options.steps,
                ecg_rows=trained,
                ecg_init=init,
                ecg_loss=0.0,
            )
            model = finetune(work, training)
            scores = generate(work, GenerateOptions(limit=options.questions))
            control = scores["control"]["no signal"]["exact_match"]
            rows.append(
                f"| {trained} | {init} | {model['val_loss']:.3f} | {scores['exact_match']:.1f} | {control:.1f} |"
            )
            print(rows[-1], flush=True)
    print(f"\n{options.steps} steps of 4, {options.questions} questions\n")
    print("| --ecg-rows | --ecg-init | validation loss | exact match, % | without the signal, % |")
    print("| --- | --- | --- | --- | --- |", *rows, sep="\n")


if __name__ == "__main__":
    main()
