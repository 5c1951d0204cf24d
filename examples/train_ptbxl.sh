#!/bin/sh
# Train the included model: a small decoder that answers 95 questions about ECGs of any leads, on PTB-XL (CC BY 4.0).
#
#   sh examples/train_ptbxl.sh FOLDER [OUT]
#
# FOLDER is the unpacked archive: ptbxl_database.csv, scp_statements.csv and records100/ or records500/. OUT
# (ptbxl-model/) gets everything, with the finished model in OUT/ptbxl. A rerun resumes. Folds 1 to 8 are for training,
# fold 9 for choosing and calibrating; fold 10 is scored once, at the end.
#
# Measured on all 21,799 recordings, on one thread of an AMD EPYC without AVX-512, the other one busy: letters and tokens
# 4 minutes, training 2 to 2.5 s a step (6.4 hours with the default numbers of steps), calibration and scores half an
# hour; 4.8 GB of memory. The included model was trained in five runs of 1,491, 2,300, 2,700, 2,400 and 1,800 steps; what
# changed between them is in experiments/LOG.md.
set -eu
data=${1:?"usage: sh examples/train_ptbxl.sh FOLDER [OUT]"}
out=${2:-ptbxl-model}
here=$(dirname "$0")/experiments
mkdir -p "$out"
run() { ecgbyte --work "$out/work" "$@"; }

records=$data/records100
[ -d "$records" ] || records=$data/records500
run symbolize "$records" --profile monitor --fs 100 --leads I,II,V1,V2,V3,V4,V5,V6 --any-leads --keep-signal \
    --quantizer mulaw --levels 17 --patients "$data/ptbxl_database.csv"
run learn --vocab 2000
run encode
[ -f "$out/asked.jsonl" ] || python "$here/ptbxl_questions.py" "$data/ptbxl_database.csv" "$out/asked.jsonl"

# train NAME OPTIONS: train once and keep the model, so that a rerun resumes
train() {
    name=$1
    shift
    [ -d "$out/$name" ] && return
    run finetune --qa "$out/asked.jsonl" --batch 16 --augment 1 --ask 24 --ecg-loss 0.05 --without-ecg 0.05 "$@"
    mv "$out/work/model" "$out/$name"
}
# first with few leads most of the time, then three times more from a high learning rate, with all leads more often
train first --model small --positions time --vary-leads 0.7 --lr 2e-3 --steps "${STEPS_FIRST:-3800}" --every 400
train second --model "$out/first" --vary-leads 0.5 --lr 1.5e-3 --seed 3 --steps "${STEPS_SECOND:-2700}" --every 900
train third --model "$out/second" --vary-leads 0.4 --lr 1.5e-3 --seed 4 --steps "${STEPS_THIRD:-2400}" --every 800
train last --model "$out/third" --vary-leads 0.4 --lr 1.5e-3 --seed 5 --steps "${STEPS_LAST:-1800}" --every 600

# calibrate, halve the bytes, add the wordings of the questions, then score the finished model
[ -d "$out/ptbxl" ] || python "$here/ship_ptbxl.py" model "$out/work" "$out/last" "$out/ptbxl"
eighteen=$(python -c 'from ecgbyte_cli.questions.findings import FINDINGS; print(*FINDINGS, sep=",")')
run generate --model "$out/ptbxl" --qa "$out/asked.jsonl" --split test --types "$eighteen,rhythm" --out "$out/fold10"
python "$here/ptbxl_benchmark.py" "$data" --model "$out/ptbxl" --fold 10 --out "$out/benchmark.json"
python "$here/ptbxl_leads.py" leads "$data" --qa "$out/asked.jsonl" --model "$out/ptbxl" --fold 10 --out "$out/leads.json"
echo "finished: $out/ptbxl; its scores are in $out/fold10/metrics.md, $out/benchmark.json and $out/leads.json"
