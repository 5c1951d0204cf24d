#!/bin/sh
# The model that comes with ecgbyte: PTB-XL (CC BY 4.0), or a part of it, to a small decoder that answers questions.
#
#   sh examples/train_ptbxl.sh FOLDER [OUT]
#
# FOLDER as the archive unpacks: ptbxl_database.csv and records500/. Everything lies in OUT (ptbxl-model/), the model
# as it ships in OUT/ptbxl; run again, it goes on where it stopped. Folds 1 to 8 train, fold 9 chooses, fold 10 is
# scored once, at the end.
#
# Measured on the 2,980 recordings of the package's model, one thread of an AMD EPYC without AVX-512, which other work
# shared: 76, 12, 6, 57 and 14 minutes for the five trainings, 2.4 GB of memory; two minutes for the rest. (That model
# was made by these steps one by one, with the weights of the last step of the first training, and in bfloat16 before
# the fourth, not by one run of this script.) All of PTB-XL has seven times the recordings: give STEPS_FINDINGS,
# STEPS_ALL, STEPS_RHYTHM, STEPS_LONG and STEPS_LAST more steps, or a GPU.
set -eu
data=${1:?"usage: sh examples/train_ptbxl.sh FOLDER [OUT]"}
out=${2:-ptbxl-model}
here=$(dirname "$0")
mkdir -p "$out"
run() { ecgbyte --work "$out/work" "$@"; }

# three leads at 100 Hz are about 320 tokens
run symbolize "$data" --profile paper --fs 100 --leads II,V1,V5 --patients "$data/ptbxl_database.csv"
run learn --vocab 2000
run encode
# questions of a letter each, and what they are in words: see experiments/letters.py
ecgbyte questions "$data" --every-finding --cap 200 --out "$out/words.jsonl"
python "$here/experiments/letters.py" "$out/words.jsonl" "$out/letters.jsonl" "$out/rhythm.jsonl" "$out/long.jsonl" \
    "$out/asked.jsonl"

# a training whose model is kept, so that it goes on after a stop, and is not made twice: NAME, and what differs
train() {
    name=$1
    shift
    [ -d "$out/$name" ] && return
    run finetune --batch 16 --augment 1 --dropout 0.1 "$@"
    mv "$out/work/model" "$out/$name"
}
# first the findings alone, then the rhythm and a list of findings too, then the rhythm more than all else, then all of it
# once more from a high learning rate, and the rhythm once more
grep -v '"question": "[ST]"' "$out/letters.jsonl" >"$out/findings.jsonl"
train findings --qa "$out/findings.jsonl" --model tiny --steps "${STEPS_FINDINGS:-4200}" --every 420
train all --qa "$out/letters.jsonl" --model "$out/findings" --lr 7e-4 --steps "${STEPS_ALL:-600}" --every 100
train rhythm --qa "$out/rhythm.jsonl" --model "$out/all" --lr 7e-4 --steps "${STEPS_RHYTHM:-280}" --every 70
train long --qa "$out/long.jsonl" --model "$out/rhythm" --lr 1.5e-3 --steps "${STEPS_LONG:-3600}" --every 300
train last --qa "$out/rhythm.jsonl" --model "$out/long" --lr 7e-4 --steps "${STEPS_LAST:-350}" --every 70

# in half of the bytes, with its questions in words, then scored as it ships
python "$here/experiments/ship_ptbxl.py" model "$out/last" "$out/ptbxl" "$out/words.jsonl"
run generate --model "$out/ptbxl" --qa "$out/asked.jsonl" --split test
python "$here/experiments/ship_ptbxl.py" card "$out/ptbxl" "$out/work/answers/metrics.json"
