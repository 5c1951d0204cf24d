"""The table of statements about ECGs with their codes, and the findings by which models are compared.

examples/findings.csv is written from it, by

    python -m ecgbyte_cli.questions.findings > examples/findings.csv
"""

import csv
import io
from typing import NamedTuple


class Statement(NamedTuple):
    """A statement about an ECG that data sets have a code for."""

    words: str
    topic: str
    scp: tuple[str, ...]
    snomed: tuple[str, ...]


class Finding(NamedTuple):
    """A finding, which is present if one of its statements is."""

    words: str
    statements: tuple[str, ...]


# Name, words, topic, SCP-ECG codes of PTB-XL, SNOMED CT codes of the PhysioNet Challenge 2021. Codes that the Challenge
# scores as one diagnosis are in one row (CRBBB and RBBB, CLBBB and LBBB, PAC and SVPB, PVC and VPB). Topics in capitals
# are PTB-XL's diagnostic classes. Words have no commas, which separate the labels of an answer.
TABLE = """
SR     | sinus rhythm                                        | rhythm | SR      | 426783006
SBRAD  | sinus bradycardia                                   | rhythm | SBRAD   | 426177001
STACH  | sinus tachycardia                                   | rhythm | STACH   | 427084000
SARRH  | sinus arrhythmia                                    | rhythm | SARRH   | 427393009
AFIB   | atrial fibrillation                                 | rhythm | AFIB    | 164889003
AFLT   | atrial flutter                                      | rhythm | AFLT    | 164890007
SVTAC  | supraventricular tachycardia                        | rhythm | SVTAC   | 426761007
PSVT   | paroxysmal supraventricular tachycardia             | rhythm | PSVT    | 67198005
ATACH  | atrial tachycardia                                  | rhythm |         | 713422000
SVARR  | supraventricular arrhythmia                         | rhythm | SVARR   |
BIGU   | bigeminy                                            | rhythm | BIGU    | 11157007
TRIGU  | trigeminy                                           | rhythm | TRIGU   | 251180001
BRADY  | bradycardia                                         | rhythm |         | 426627000
PACE   | pacemaker rhythm                                    | rhythm | PACE    | 10370003 251268003 251266004
NORM   | normal ECG                                          | NORM   | NORM    |
MI     | myocardial infarction                               | MI     |         | 164865005 57054005 164867002
IMI    | inferior myocardial infarction                      | MI     | IMI     |
ILMI   | inferolateral myocardial infarction                 | MI     | ILMI    |
IPLMI  | inferoposterolateral myocardial infarction          | MI     | IPLMI   |
IPMI   | inferoposterior myocardial infarction               | MI     | IPMI    |
AMI    | anterior myocardial infarction                      | MI     | AMI     | 54329005
ASMI   | anteroseptal myocardial infarction                  | MI     | ASMI    |
ALMI   | anterolateral myocardial infarction                 | MI     | ALMI    |
LMI    | lateral myocardial infarction                       | MI     | LMI     |
PMI    | posterior myocardial infarction                     | MI     | PMI     |
INJAS  | subendocardial injury in the anteroseptal leads     | MI     | INJAS   |
INJAL  | subendocardial injury in the anterolateral leads    | MI     | INJAL   |
INJLA  | subendocardial injury in the lateral leads          | MI     | INJLA   |
INJIN  | subendocardial injury in the inferior leads         | MI     | INJIN   |
INJIL  | subendocardial injury in the inferolateral leads    | MI     | INJIL   |
STTC   | ST-T changes                                        | STTC   |         |
NDT    | non-diagnostic T-wave abnormalities                 | STTC   | NDT     |
TWA    | T-wave abnormality                                  | STTC   |         | 164934002
NST    | non-specific ST changes                             | STTC   | NST_    | 428750005 55930002 164930006
DIG    | digitalis effect                                    | STTC   | DIG     |
LNGQT  | long QT interval                                    | STTC   | LNGQT   | 111975006
ISC    | ischemic ST-T changes                               | STTC   | ISC_    | 164861001
ISCAN  | ischemic ST-T changes in the anterior leads         | STTC   | ISCAN   | 426434006
ISCAS  | ischemic ST-T changes in the anteroseptal leads     | STTC   | ISCAS   |
ISCAL  | ischemic ST-T changes in the anterolateral leads    | STTC   | ISCAL   |
ISCLA  | ischemic ST-T changes in the lateral leads          | STTC   | ISCLA   | 425623009
ISCIN  | ischemic ST-T changes in the inferior leads         | STTC   | ISCIN   | 425419005
ISCIL  | ischemic ST-T changes in the inferolateral leads    | STTC   | ISCIL   |
ANEUR  | ST-T changes as in ventricular aneurysm             | STTC   | ANEUR   |
EL     | ST-T changes as in electrolyte disturbance          | STTC   | EL      |
1AVB   | first degree AV block                               | CD     | 1AVB    | 270492004
2AVB   | second degree AV block                              | CD     | 2AVB    | 195042002
3AVB   | third degree AV block                               | CD     | 3AVB    | 27885002
LAFB   | left anterior fascicular block                      | CD     | LAFB    | 445118002
LPFB   | left posterior fascicular block                     | CD     | LPFB    | 445211001
IRBBB  | incomplete right bundle branch block                | CD     | IRBBB   | 713426002
CRBBB  | complete right bundle branch block                  | CD     | CRBBB   | 713427006 59118001
ILBBB  | incomplete left bundle branch block                 | CD     | ILBBB   | 251120003
CLBBB  | complete left bundle branch block                   | CD     | CLBBB   | 733534002 164909002
BBB    | bundle branch block                                 | CD     |         | 6374002
IVCD   | non-specific intraventricular conduction disturbance| CD     | IVCD    | 698252002
WPW    | Wolff-Parkinson-White pattern                       | CD     | WPW     | 74390002
LVH    | left ventricular hypertrophy                        | HYP    | LVH     | 164873001
RVH    | right ventricular hypertrophy                       | HYP    | RVH     | 89792004
SEHYP  | septal hypertrophy                                  | HYP    | SEHYP   |
LAE    | left atrial enlargement                             | HYP    | LAO/LAE | 67741000119109 253352002 446813000
RAE    | right atrial enlargement                            | HYP    | RAO/RAE | 446358003 253339007
VCLVH  | voltage criteria for left ventricular hypertrophy   | form   | VCLVH   | 55827005
ABQRS  | abnormal QRS                                        | form   | ABQRS   | 164951009
QWAVE  | Q waves                                             | form   | QWAVE   | 164917005
LVOLT  | low QRS voltages                                    | form   | LVOLT   | 251146004
HVOLT  | high QRS voltages                                   | form   | HVOLT   |
PRWP   | poor R wave progression                             | form   |         | 365413008
STD    | ST depression                                       | form   | STD_    | 429622005
STE    | ST elevation                                        | form   | STE_    | 164931005
LOWT   | low amplitude T waves                               | form   | LOWT    |
INVT   | inverted T waves                                    | form   | INVT    | 59931005
NT     | non-specific T-wave changes                         | form   | NT_     |
TAB    | abnormal T waves                                    | form   | TAB_    |
LPR    | prolonged PR interval                               | form   | LPR     | 164947007
PVC    | ventricular premature complexes                     | beats  | PVC     | 427172004 17338001 164884008
PAC    | supraventricular premature complexes                | beats  | PAC     | 284470004 63593006
PRC    | premature complexes of unstated origin              | beats  | PRC(S)  |
NAX    | normal axis                                         | axis   |         |
LAD    | left axis deviation                                 | axis   |         | 39732003
RAD    | right axis deviation                                | axis   |         | 47665007
DRIFT  | baseline drift                                      | noise  |         |
STATIC | static noise                                        | noise  |         |
BURST  | burst noise                                         | noise  |         |
ELEC   | electrode problems                                  | noise  |         |
"""


def _statements() -> dict[str, Statement]:
    """Parse the table."""
    rows = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
    return {
        name: Statement(words, topic, tuple(scp.split()), tuple(snomed.split()))
        for name, words, topic, scp, snomed in rows
    }


STATEMENTS: dict[str, Statement] = _statements()
OF_SCP = {code: name for name, statement in STATEMENTS.items() for code in statement.scp}
OF_SNOMED = {code: name for name, statement in STATEMENTS.items() for code in statement.snomed}

CLASSES = {
    "NORM": "normal ECG",
    "MI": "myocardial infarction",
    "STTC": "ST-T changes",
    "CD": "conduction disturbance",
    "HYP": "hypertrophy",
}

_ISCHEMIA = ("ISC", "ISCAN", "ISCAS", "ISCAL", "ISCLA", "ISCIN", "ISCIL")
# The eighteen findings by which models are compared, in the order of examples/findings.csv. (The rare injury of the
# inferior leads, INJIN and INJIL, does not count as infarction.)
FINDINGS: dict[str, Finding] = {
    name: Finding(words, statements)
    for name, words, statements in (
        ("normal", "normal ECG", ("NORM",)),
        (
            "mi",
            "myocardial infarction",
            (
                *("MI", "IMI", "ILMI", "IPLMI", "IPMI", "AMI", "ASMI", "ALMI", "LMI", "PMI"),
                *("INJAS", "INJAL", "INJLA"),
            ),
        ),
        ("imi", "inferior myocardial infarction", ("IMI", "ILMI", "IPLMI", "IPMI")),
        ("ami", "anterior myocardial infarction", ("AMI", "ASMI", "ALMI", "INJAS", "INJAL")),
        ("sttc", "ST-T changes", ("STTC", "NDT", "TWA", "NST", "DIG", "LNGQT", *_ISCHEMIA, "ANEUR", "EL")),
        ("lvh", "left ventricular hypertrophy", ("LVH", "VCLVH")),
        ("lafb", "left anterior fascicular block", ("LAFB",)),
        ("irbbb", "incomplete right bundle branch block", ("IRBBB",)),
        ("crbbb", "complete right bundle branch block", ("CRBBB",)),
        ("clbbb", "complete left bundle branch block", ("CLBBB",)),
        ("1avb", "first degree AV block", ("1AVB", "LPR")),
        ("pvc", "ventricular premature complexes", ("PVC",)),
        ("afib", "atrial fibrillation", ("AFIB",)),
        ("stach", "sinus tachycardia", ("STACH",)),
        ("sbrad", "sinus bradycardia", ("SBRAD",)),
        ("pace", "pacemaker rhythm", ("PACE",)),
        ("lae", "left atrial enlargement", ("LAE",)),
        ("ivcd", "non-specific intraventricular conduction disturbance", ("IVCD",)),
    )
}


def _of_topic(topic: str) -> tuple[str, ...]:
    """Return the statements of a topic."""
    return tuple(name for name, statement in STATEMENTS.items() if statement.topic == topic)


# Other findings of several statements: sinus bradycardia is also sinus rhythm.
BROAD: dict[str, Finding] = {
    "sr": Finding("sinus rhythm", ("SR", "SBRAD", "STACH", "SARRH")),
    "svtac": Finding("supraventricular tachycardia", ("SVTAC", "PSVT", "ATACH")),
    "brady": Finding("bradycardia", ("BRADY", "SBRAD")),
    "lmi": Finding("lateral myocardial infarction", ("LMI", "ILMI", "IPLMI", "ALMI")),
    "pmi": Finding("posterior myocardial infarction", ("PMI", "IPMI", "IPLMI")),
    "isc": Finding("ischemic ST-T changes", _ISCHEMIA),
    "isca": Finding("anterior or lateral ischemic ST-T changes", ("ISCAN", "ISCAS", "ISCAL", "ISCLA")),
    "isci": Finding("inferior ischemic ST-T changes", ("ISCIN", "ISCIL")),
    "twa": Finding("T-wave abnormality", ("TWA", "NDT", "LOWT", "INVT", "NT", "TAB")),
    "avb": Finding("AV block", ("1AVB", "2AVB", "3AVB")),
    "fb": Finding("left fascicular block", ("LAFB", "LPFB")),
    "bbb": Finding("bundle branch block", ("BBB", "IRBBB", "CRBBB", "ILBBB", "CLBBB")),
    "lpr": Finding("prolonged PR interval", ("LPR", "1AVB")),
    "cd": Finding(CLASSES["CD"], (*_of_topic("CD"), "LPR")),
    "hyp": Finding(CLASSES["HYP"], (*_of_topic("HYP"), "VCLVH")),
    "beats": Finding("premature beats", (*_of_topic("beats"), "BIGU", "TRIGU")),
}
ALL_FINDINGS = FINDINGS | BROAD
# Findings whose words cover every member: a source that denies "bundle branch block" denies each kind of it. Other
# words may stand for a single member ("sinus rhythm" often excludes sinus bradycardia).
GENERIC = ("mi", "brady", "twa", "bbb", "cd", "hyp", "beats")
SINUS = BROAD["sr"].statements
OTHER_RHYTHMS = ("AFIB", "AFLT", "SVTAC", "PSVT", "ATACH")  # these exclude sinus rhythm


def as_csv() -> str:
    """Return the eighteen findings as a CSV table: finding, words, SCP codes, SNOMED CT codes."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["finding", "words", "scp", "snomed"])
    for name, (words, members) in FINDINGS.items():
        statements = [STATEMENTS[member] for member in members]
        rows.writerow(
            [
                name,
                words,
                " ".join(code for statement in statements for code in statement.scp),
                " ".join(code for statement in statements for code in statement.snomed),
            ]
        )
    return text.getvalue()


if __name__ == "__main__":
    print(as_csv(), end="")
