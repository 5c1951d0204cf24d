#!/bin/sh
# Train the included model: a small decoder that answers questions, on PTB-XL (CC BY 4.0) or a part of it.
#
#   sh examples/train_ptbxl.sh FOLDER [OUT]
#
# FOLDER is the unpacked archive: ptbxl_database.csv and records500/. OUT (ptbxl-model/) gets everything, with the
# finished model in OUT/ptbxl. A rerun resumes. Folds 1 to 8 are for training, fold 9 for choosing; fold 10 is scored
# once, at the end.
#
# Measured on the 2,980 recordings of the included model, on one thread of an AMD EPYC without AVX-512, shared with
# other work: 76, 12, 6, 57 and 14 minutes for the five trainings, 2.4 GB of memory, and two minutes for the rest. (That
# model was trained by these steps one by one, not by one run of this script: with the weights of the last step of the
# first training, and in bfloat16 before the fourth.) All of PTB-XL has seven times the recordings: raise
# STEPS_FINDINGS, STEPS_ALL, STEPS_RHYTHM, STEPS_LONG and STEPS_LAST, or use a GPU.
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
# one-letter questions and their wordings: see experiments/letters.py
ecgbyte questions "$data" --every-finding --cap 200 --out "$out/words.jsonl"
python "$here/experiments/letters.py" "$out/words.jsonl" "$out/letters.jsonl" "$out/rhythm.jsonl" "$out/long.jsonl" \
    "$out/asked.jsonl"

# train NAME OPTIONS: train once and keep the model, so that a rerun resumes
train() {
    name=$1
    shift
    [ -d "$out/$name" ] && return
    run finetune --batch 16 --augment 1 --dropout 0.1 "$@"
    mv "$out/work/model" "$out/$name"
}
# first the findings, then also the rhythm and a list of findings, then mostly the rhythm, then all from a high learning
# rate again, and the rhythm again
grep -v '"question": "[ST]"' "$out/letters.jsonl" >"$out/findings.jsonl"
train findings --qa "$out/findings.jsonl" --model tiny --steps "${STEPS_FINDINGS:-4200}" --every 420
train all --qa "$out/letters.jsonl" --model "$out/findings" --lr 7e-4 --steps "${STEPS_ALL:-600}" --every 100
train rhythm --qa "$out/rhythm.jsonl" --model "$out/all" --lr 7e-4 --steps "${STEPS_RHYTHM:-280}" --every 70
train long --qa "$out/long.jsonl" --model "$out/rhythm" --lr 1.5e-3 --steps "${STEPS_LONG:-3600}" --every 300
train last --qa "$out/rhythm.jsonl" --model "$out/long" --lr 7e-4 --steps "${STEPS_LAST:-350}" --every 70

# halve the bytes, add the wordings of the questions, then score the finished model
python "$here/experiments/ship_ptbxl.py" model "$out/last" "$out/ptbxl" "$out/words.jsonl"
run generate --model "$out/ptbxl" --qa "$out/asked.jsonl" --split test
python "$here/experiments/ship_ptbxl.py" card "$out/ptbxl" "$out/work/answers/metrics.json"
