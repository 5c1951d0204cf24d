#!/bin/sh
# Turn CODE-15 % (Zenodo 4916206, CC BY 4.0; 345,779 recordings of 233,770 patients, 7 or 10 s, 400 Hz) into tokens.
#
#   sh examples/code15.sh FOLDER [WORK]
#
# The folder, with one part, some or all of the eighteen:
#   exams.csv                                       recordings and patients
#   exams_part0.hdf5 … exams_part17.hdf5            or exams_part0.zip …, unpacked by this script
#
# Recordings of 7 s are shorter than a segment of 10 s: they are skipped and listed in skipped.parquet. To use all
# recordings, keep the first 7 s of each with `--segment 7`.
#
# Needs the extra `formats`. Disk: 68 GB unpacked; 42 GB more while symbolizing if all recordings are long enough
# (10 GB of letters remain); 1.2 GB of tokens.
# Time on two cores: 10 minutes to symbolize at 578 recordings a second (docs/benchmarks.md), ten seconds to learn merges
# from 20,000 recordings, and half a minute to encode (computed, docs/scale.md).
set -eu
data=${1:?"usage: sh examples/code15.sh FOLDER [WORK]"}
work=${2:-code15-work}

if [ ! -f "$data/exams.csv" ]; then
    echo "code15.sh: $data/exams.csv is missing: get CODE-15 % from https://zenodo.org/records/4916206" >&2
    exit 1
fi
for archive in "$data"/exams_part*.zip; do
    if [ -f "$archive" ] && [ ! -f "${archive%.zip}.hdf5" ]; then
        echo "unpacking $archive" >&2
        unzip -qn "$archive" -d "$data"
    fi
done
set -- "$data"/exams_part*.hdf5
if [ ! -f "$1" ]; then
    echo "code15.sh: $data/exams_part*.hdf5 are missing: get them from https://zenodo.org/records/4916206" >&2
    exit 1
fi

ecgbyte --work "$work" symbolize "$data/exams_part*.hdf5" --patients "$data/exams.csv" \
    learn --vocab 5000 --sample 20000 encode
