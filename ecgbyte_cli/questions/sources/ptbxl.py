"""PTB-XL's ptbxl_database.csv (Wagner et al., Scientific Data 7:154, 2020).

Likelihoods are in percent; 0 means that there is none, as for rhythm and form. So a likelihood of 0 or of 50 and more
states the code, and any other is uncertain.
"""

import json
import os
import re

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.findings import ALL_FINDINGS, OF_SCP, OTHER_RHYTHMS, SINUS, STATEMENTS
from ecgbyte_cli.questions.sources.base import (
    CELL,
    RecordFacts,
    Source,
    age_label,
    drop_unknown,
    record_name,
    table_rows,
)
from ecgbyte_cli.readers.patients import patient_and_split, read_patients
from ecgbyte_cli.readers.recording import STANDARD

COLUMNS = [{"scp_codes", "filename_hr", "strat_fold"}]
STATED = 50  # percent

LEADS = tuple(STANDARD.values())
TOPICS = frozenset(STATEMENTS[name].topic for name in OF_SCP.values())
# Findings with statements that have no SCP-ECG code: the other statements' codes together deny them. Except
# bradycardia: only sinus bradycardia has a code, and nothing denies a slow atrial fibrillation.
CODED = {
    name: [member for member in finding.statements if STATEMENTS[member].scp]
    for name, finding in ALL_FINDINGS.items()
    if name != "brady" and not all(STATEMENTS[member].scp for member in finding.statements)
}
NOISE = {
    "DRIFT": "baseline_drift",
    "STATIC": "static_noise",
    "BURST": "burst_noise",
    "ELEC": "electrodes_problems",
}
# Extreme deviations (ALAD, ARAD) count as deviations. The horizontal and vertical types (AXL, AXR) are normal to some
# authors, and SAG is not a deviation: these are skipped.
AXES = {"MID": "NAX", "LAD": "LAD", "ALAD": "LAD", "RAD": "RAD", "ARAD": "RAD"}
STAGES = {
    "Stadium I": "early",
    "Stadium I-II": "early",
    "Stadium II": "middle",
    "Stadium II-III": "middle",
    "Stadium III": "old",
}
LEAD = re.compile(r"(?:(AVR|AVL|AVF|III|II|I|V ?[1-6])|([1-6]))\s*(-?)[\s,.]*")


def read_ptbxl(path: str | os.PathLike) -> Source:
    """Read ptbxl_database.csv.

    Raises
    ------
    Failure
        If it cannot be read, or a cell is not as PTB-XL has it.
    """
    patients = read_patients(path)
    facts = []
    for line, row in table_rows(path, COLUMNS):
        record = record_name(row["filename_hr"])
        if not record:
            raise Failure(f"{path}, line {line}: filename_hr is empty")
        patient, split = patient_and_split(record, record, None, patients)
        try:
            known = _statements(row["scp_codes"])
        except (ValueError, RecursionError) as error:
            raise Failure(
                f"{path}, line {line}: scp_codes are not as PTB-XL writes them ({error})"
            ) from error
        answers = {
            "age": age_label(row.get("age")),
            "sex": {"0": ["male"], "1": ["female"]}.get(row.get("sex", "").removesuffix(".0")),
            "stage": _stage(row),
        }
        _beats(known, row.get("extra_beats"))
        if "?" in row.get("pacemaker", "") and not known.get("PACE"):
            known["PACE"] = None
        axis = AXES.get(row.get("heart_axis", ""))
        if axis:
            known |= {name: name == axis for name in ("NAX", "LAD", "RAD")}
        for kind, column in NOISE.items():
            if column in row:
                _noise(kind, row[column], known, answers)
        facts.append(RecordFacts(record, patient, split, known, drop_unknown(answers), True, TOPICS))
    noisy = {f"{kind}-{lead}": f"{STATEMENTS[kind].words} in lead {lead}" for kind in NOISE for lead in LEADS}
    return Source(facts, noisy)


def _statements(text: str) -> dict[str, bool | None]:
    """Return the statements that the codes make or deny; the text is a Python dict of code to likelihood."""
    if len(text) > CELL:
        raise ValueError(f"{len(text)} characters")
    codes = json.loads(text.replace("'", '"'))  # codes have no quotes, so this is JSON
    if not isinstance(codes, dict) or not all(
        type(v) in (int, float) and 0 <= v <= 100 for v in codes.values()
    ):
        raise ValueError("no dictionary of code to likelihood")
    unknown = codes.keys() - OF_SCP
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))[:80]}")
    known: dict[str, bool | None] = dict.fromkeys(OF_SCP.values(), False)
    for code, likelihood in codes.items():
        known[OF_SCP[code]] = True if likelihood == 0 or likelihood >= STATED else None
    for finding, members in CODED.items():
        if all(known.get(member) is False for member in members):
            known[finding] = False
    # a rhythm that is not stated may be sinus rhythm
    if not any(known.get(rhythm) for rhythm in (*SINUS, *OTHER_RHYTHMS)) and known.get("SR") is False:
        del known["SR"]
    return known


def _beats(known: dict[str, bool | None], text: str | None) -> None:
    """Add the column of extra beats: VES is ventricular, SVES supraventricular, ES or a number either.

    PVC follows only the codes, as in the eighteen findings; it is uncertain if only this column has it. Without the
    column, a missing code denies nothing.
    """
    if text is None:
        for name in ("PVC", "PAC", "PRC"):
            if known.get(name) is False:
                del known[name]
        return
    ventricular = re.search(r"(?<!S)VES", text) is not None
    if "SVES" in text:
        known["PAC"] = True
    if ventricular and not known.get("PVC"):
        known["PVC"] = None
    if text and not ventricular and not (known.get("PVC") or known.get("PAC")):
        known |= {"PVC": None, "PAC": None, "PRC": True}


def _stage(row: dict[str, str]) -> list[str] | None:
    """Return the stages of the infarctions, if all are known."""
    cells = [row.get(f"infarction_stadium{i}") for i in (1, 2)]
    stages = [STAGES.get(text) if text is not None else None for text in cells if text != ""]
    return (
        [stage for stage in ("early", "middle", "old") if stage in stages] if all(stages) and stages else None
    )


def _noise(kind: str, text: str, known: dict[str, bool | None], answers: dict[str, list[str] | None]) -> None:
    """Add the column of a kind of noise: whether it is present, and in which leads."""
    text = text.strip(" ,")
    if "?" in text:
        known[kind] = None
        return
    known[kind] = bool(text)
    leads = leads_of(text) if text else ()
    if leads is not None:
        known |= {f"{kind}-{lead}": lead in leads for lead in LEADS}
        if text:
            answers[f"leads of {STATEMENTS[kind].words}"] = list(leads)


def leads_of(text: str) -> tuple[str, ...] | None:
    """Return the leads in a cell of noise, in the standard order; None if they are unclear.

    Examples: `I-AVF,V5`, `v4-6`, `V1,2`, `alles`.
    """
    text = text[:CELL].upper()
    if "ALLES" in text:
        return LEADS
    text = re.sub(r"NOISY RECORDING|STARK|MITTEL|LEICHT", "", text).strip(" ,.")
    places: set[int] = set()
    at, last, ranged = 0, None, False
    while at < len(text):
        match = LEAD.match(text, at)
        # a bare number is a chest lead after another one
        if match is None or (match[2] and (last is None or last < 6)):
            return None
        name = match[1].replace(" ", "") if match[1] else f"V{match[2]}"
        place = LEADS.index(STANDARD[name.lower()])
        places.update(range(last, place + 1) if ranged and last is not None else [place])
        last, ranged, at = place, bool(match[3]), match.end()
    return tuple(LEADS[place] for place in sorted(places)) or None
