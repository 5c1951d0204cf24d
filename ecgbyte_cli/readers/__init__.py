"""Find recordings and read them in millivolts. Each format has its own file."""

from ecgbyte_cli.readers.data_sets import DataSet, find_data_sets
from ecgbyte_cli.readers.find import files_of, find, fingerprint
from ecgbyte_cli.readers.formats import read_recording
from ecgbyte_cli.readers.patients import (
    find_listed,
    is_placeholder,
    on_two_sides,
    patient_and_split,
    patient_key,
    patient_of,
    pseudonym,
    read_patients,
    side_of,
    split_of,
    stated_patient,
    stated_side,
)
from ecgbyte_cli.readers.recording import Recording, Unusable, lead_name

__all__ = [
    "DataSet",
    "Recording",
    "Unusable",
    "files_of",
    "find",
    "find_data_sets",
    "fingerprint",
    "is_placeholder",
    "lead_name",
    "find_listed",
    "on_two_sides",
    "patient_and_split",
    "patient_key",
    "patient_of",
    "pseudonym",
    "read_recording",
    "read_patients",
    "side_of",
    "split_of",
    "stated_patient",
    "stated_side",
]
