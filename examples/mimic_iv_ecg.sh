#!/bin/sh
# Turn MIMIC-IV-ECG (PhysioNet, ODbL; 800,035 recordings of about 161,000 patients, 10 s, 500 Hz) into tokens.
#
#   sh examples/mimic_iv_ecg.sh FOLDER [WORK]
#
# The folder is the unpacked archive (unpack it yourself: it is large):
#   record_list.csv                                        recordings and patients
#   files/p1000/p10000032/s40689238/40689238.hea .dat      a pair of files per recording
#
# The range of the letters comes from a hundredth of the recordings. With a known range all letters are written at once,
# without storing 96 GB of filtered signals first.
#
# Disk: 90 GB unpacked; 24 GB of letters (48 GB while they are joined), 3 GB of tokens.
# Time on two cores: 23 minutes to symbolize at 578 recordings a second (docs/benchmarks.md), ten seconds to learn merges
# from 20,000 recordings, and a minute to encode (computed, docs/scale.md).
set -eu
data=${1:?"usage: sh examples/mimic_iv_ecg.sh FOLDER [WORK]"}
work=${2:-mimic-iv-ecg-work}

for needed in record_list.csv files; do
    if [ ! -e "$data/$needed" ]; then
        echo "mimic_iv_ecg.sh: $data/$needed is missing: get it from" \
            "https://physionet.org/content/mimic-iv-ecg/, and unpack it" >&2
        exit 1
    fi
done

# ten of the thousand folders
ecgbyte --work "$work/range" symbolize "$data/files/p1[0-9]00"
range=$(python3 -c '
import json, sys
quantizer = json.load(open(sys.argv[1]))["signal"]["quantizer"]
print(quantizer["lo"], quantizer["hi"])' "$work/range/symbols/settings.json")
echo "range of the letters: $range mV"

# $range is two numbers
# shellcheck disable=SC2086
ecgbyte --work "$work" symbolize "$data/files" --patients "$data/record_list.csv" --range $range \
    learn --vocab 5000 --sample 20000 encode
