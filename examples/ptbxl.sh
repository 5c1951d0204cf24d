#!/bin/sh
# Turn PTB-XL (PhysioNet, CC BY 4.0; 21,799 recordings of 18,869 patients, 10 s, 500 Hz) into tokens.
#
#   sh examples/ptbxl.sh FOLDER_OR_ZIP [WORK]
#
# The folder is the unpacked archive:
#   ptbxl_database.csv                    patients, and the folds that become the splits
#   records500/00000/00001_hr.hea .dat    a pair of files per recording
# (records100 holds the same recordings at 100 Hz and is not read.)
#
# Disk: 3 GB unpacked; 2.6 GB more while symbolizing (0.7 GB of letters remain); 0.1 GB of tokens.
# Time on two cores: 40 s to symbolize at 578 recordings a second (measured on 5,000 recordings, docs/benchmarks.md; 24 s
# of processor time per core, docs/scale.md), and about ten seconds to learn and encode (computed, docs/scale.md).
set -eu
data=${1:?"usage: sh examples/ptbxl.sh FOLDER_OR_ZIP [WORK]"}
work=${2:-ptbxl-work}

if [ -f "$data" ]; then
    echo "unpacking $data into $work/data" >&2
    mkdir -p "$work/data"
    unzip -qn "$data" -d "$work/data"
    data=$(dirname "$(find "$work/data" -name ptbxl_database.csv | head -n 1)")
fi
for needed in ptbxl_database.csv records500; do
    if [ ! -e "$data/$needed" ]; then
        echo "ptbxl.sh: $data/$needed is missing: get PTB-XL from https://physionet.org/content/ptb-xl/" >&2
        exit 1
    fi
done

ecgbyte --work "$work" symbolize "$data/records500" --patients "$data/ptbxl_database.csv" \
    learn --vocab 5000 encode
