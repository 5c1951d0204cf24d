"""Write the diagnoses in the headers of LUDB as a table of labels for `ecgbyte findings --truth`.

    python examples/ludb_labels.py ludb/ ludb.csv

LUDB (Kalyakulina et al., IEEE Access 2020; PhysioNet, ODC-BY 1.0) lists all diagnoses of a recording, so that what is
not listed is absent. A cell is empty where the list leaves the finding open: a scar or ischemia that the cardiologists
could not tell apart, for one.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

Stated = Sequence[str]  # the diagnoses of a recording, in lower case


def any_of(*words: str) -> Callable[[Stated], bool]:
    """Return a function that tells whether one of some words begins a diagnosis."""
    return lambda stated: any(line.startswith(words) for line in stated)


SCAR, OPEN = ("scar formation", "stemi"), "undefined ischemia/scar"
ANTERIOR, INFERIOR = ("anterior wall", "septal", "apical"), ("inferior wall",)
PACED = any_of("unipolar", "bipolar", "biventricular")


def infarction(stated: Stated, walls: Sequence[str] = ()) -> bool | None:
    """Return whether there is an infarction, of these walls if any are named."""

    def of_walls(line: str) -> bool:
        return not walls or any(wall in line for wall in walls)

    if any(line.startswith(SCAR) and of_walls(line) for line in stated):
        return True
    return None if any(line.startswith(OPEN) and of_walls(line) for line in stated) else False


def st_t_changes(stated: Stated) -> bool | None:
    """Return whether there are ST-T changes; early repolarization and open cases are unknown."""
    if any_of("non-specific repolarization", "ischemia:")(stated):
        return True
    return None if any_of(OPEN, "early repolarization", "stemi")(stated) else False


def normal(stated: Stated) -> bool | None:
    """Return whether nothing but sinus rhythm and an axis without deviation is listed."""
    usual = ("rhythm: sinus rhythm", "electric axis of the heart: normal")
    between = ("electric axis of the heart: vertical", "electric axis of the heart: horizontal")
    if not all(line.startswith(usual + between) for line in stated):
        return False
    return True if all(line.startswith(usual) for line in stated) else None


FINDINGS: dict[str, Callable[[Stated], bool | None]] = {
    "normal": normal,
    "mi": infarction,
    "imi": lambda stated: infarction(stated, INFERIOR),
    "ami": lambda stated: infarction(stated, ANTERIOR),
    "sttc": st_t_changes,
    "lvh": any_of("left ventricular hypertrophy"),
    "lafb": any_of("left anterior hemiblock"),
    "irbbb": any_of("incomplete right bundle branch block"),
    "crbbb": any_of("complete right bundle branch block"),
    "clbbb": any_of("complete left bundle branch block"),
    "1avb": any_of("i degree av block", "i degree av-block"),
    "pvc": any_of("ventricular extrasystole"),
    "afib": any_of("rhythm: atrial fibrillation"),
    "stach": any_of("rhythm: sinus tachycardia"),
    "sbrad": any_of("rhythm: sinus bradycardia"),
    "pace": PACED,
    "lae": any_of("left atrial hypertrophy", "left atrial overload"),
    "ivcd": any_of("non-specific intravintricular conduction delay"),
}


def diagnoses(header: Path) -> list[str]:
    """Return the diagnoses in a header, in lower case."""
    comments = [
        line[1:].strip().lower() for line in header.read_text("utf-8").splitlines() if line[:1] == "#"
    ]
    return [line for line in comments if line and not line.startswith("<")]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="LUDB, or a part of it")
    parser.add_argument("out", type=Path, help="CSV file to write")
    options = parser.parse_args()
    said = {True: "yes", False: "no", None: ""}
    with open(options.out, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["record", *FINDINGS])
        for header in sorted(options.folder.rglob("*.hea")):
            stated = diagnoses(header)
            rows.writerow([header.stem, *(said[finding(stated)] for finding in FINDINGS.values())])


if __name__ == "__main__":
    main()
