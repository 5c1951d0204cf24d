#!/bin/sh
# Ask the included model about a real recording. Then run the whole pipeline on two CPU cores, without any download:
# synthetic records -> letters -> merges -> token ids -> a small language model trained from scratch -> answers, scored
# with and without the signal. It takes about three minutes and writes to quickstart/. A rerun resumes.
set -eu
cd "$(dirname "$0")/.."
mkdir -p quickstart
cd quickstart

# a 12-lead ECG from the test files of pydicom
real=$(python -c 'from pydicom.data import get_testdata_file; print(get_testdata_file("waveform_ecg.dcm"))')
echo "A real recording, $(basename "$real"): what the included model finds, and what was measured"
ecgbyte findings "$real" --model ptbxl
ecgbyte plot ecg "$real" --out real.png
echo "Its picture: $PWD/real.png"
echo

# 10 s, 12 leads: 5,616 records to train, 312 each to validate and to test
ecgbyte synth data --records 6240 --fs 250 --seed 1
# two leads at 100 Hz keep the sequences short (about 270 tokens), so a CPU can do many updates
ecgbyte symbolize data --profile resample --fs 100 --leads II,V1
ecgbyte learn --vocab 2000
ecgbyte encode
ecgbyte finetune --qa data/qa.jsonl --model tiny --steps 2400 --batch 4 --ecg-loss 0

# records that no stage has seen
ecgbyte synth new --records 8 --fs 500 --seed 2
record=new/synth00004
ecgbyte plot ecg $record --out ecg.png
ecgbyte plot tokens $record --out tokens.png
ecgbyte generate --split test
echo
echo "A record that no stage has seen, with its comments:"
grep '^#' $record.hea
echo "Question: What is the rhythm?"
printf 'Answer:   '
ecgbyte chat $record -q "What is the rhythm?"
echo
echo "Pictures: $PWD/ecg.png"
echo "          $PWD/tokens.png"
echo "The page: http://127.0.0.1:8765, after (cd quickstart && \"$(command -v ecgbyte)\" serve data/)"
