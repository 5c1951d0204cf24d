"""Measure whether attributions point at the place that a cardiologist would look at, with an open delineator.

    pip install neurokit2
    OMP_NUM_THREADS=1 python examples/experiments/places_ptbxl.py ptb-xl/ --results evidence/

For findings with a known place, the included model reads recordings of folds 9 and 10 that have the finding. Every
method attributes the answer "yes" to "Is there …?" to samples. The place comes from the waves that NeuroKit2 (Makowski
et al., Behavior Research Methods 53, 2021; discrete wavelet transform, after Martinez et al., IEEE Trans. Biomed. Eng.
51, 2004) finds in lead II at 500 Hz; they were not checked by hand. The score is the share of the attribution on the
place over the share of the signal that it covers; `random` scores tokens by chance. Finished rows in
RESULTS/places.jsonl are not repeated.
"""

import argparse
import json
import warnings
from pathlib import Path

import neurokit2
import numpy as np

from ecgbyte_cli import Session
from ecgbyte_cli.cli.output import progress
from ecgbyte_cli.inference import attribution
from ecgbyte_cli.questions import findings
from ecgbyte_cli.questions.sources import ptbxl

RANDOM = "random"
QRS, BEAT = (
    (0.06, 0.08),
    (0.15, 0.45),
)  # s around an R peak: where the delineator finds no QRS; a premature beat
EARLY, ALIKE = 0.85, 0.9  # of the median interval, and of correlation with the median beat


def waves(lead, fs):
    """R peaks and onsets and offsets of P, QRS and T of each beat, in seconds; NaN where there are none.

    None if the recording cannot be delineated.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            clean = neurokit2.ecg_clean(lead, fs)
            peaks = neurokit2.ecg_peaks(clean, fs)[1]["ECG_R_Peaks"]
            found = neurokit2.ecg_delineate(clean, peaks, fs, method="dwt")[1]
        except (ValueError, IndexError):  # too few beats found to delineate any
            return None
    names = {
        "p_on": "P_Onsets",
        "p_off": "P_Offsets",
        "q_on": "R_Onsets",
        "q_off": "R_Offsets",
        "t_off": "T_Offsets",
    }
    made = {key: np.array(found[f"ECG_{name}"], float) / fs for key, name in names.items()}
    made["r"] = np.array(peaks, float) / fs
    for key, moved in (("q_on", -QRS[0]), ("q_off", QRS[1])):
        made[key] = np.where(np.isnan(made[key]), made["r"] + moved, made[key])
    return made


def premature(signal, fs, r):
    """Which beats come early and look unlike the others."""
    around = (np.arange(-0.08, 0.12, 1 / fs) * fs).astype(int)
    at = (r * fs).astype(int)[:, None] + around
    beats = signal[:, np.clip(at, 0, signal.shape[1] - 1)].transpose(1, 0, 2).reshape(len(r), -1)
    like = np.array([np.corrcoef(beat, np.median(beats, axis=0))[0, 1] for beat in beats])
    before = np.diff(r, prepend=np.nan)
    return (before < EARLY * np.nanmedian(before)) & (like < ALIKE)


def spans(name, w, early):
    """(leads, from, to) of what shows a finding, of each beat; the leads are those of the model."""
    every = ("II", "V1", "V5")
    next_q = np.append(w["q_on"][1:], np.nan)
    return {
        "pvc": [(every, w["r"][early] - BEAT[0], w["r"][early] + BEAT[1])],
        "clbbb": [(("V1", "V5"), w["q_on"], w["q_off"])],
        "crbbb": [(("V1", "V5"), w["q_on"], w["q_off"])],
        "imi": [(("II",), w["q_on"], w["t_off"])],
        "ami": [(("V1",), w["q_on"], w["t_off"])],
        "sttc": [(every, w["q_off"], w["t_off"])],
        "1avb": [(every, w["p_on"], w["q_on"])],
        "lae": [(("II", "V1"), w["p_on"], w["p_off"])],
        "afib": [(every, w["t_off"], next_q)],
    }[name]


PLACES = {
    "pvc": "the premature beat, all leads",
    "clbbb": "QRS in V1 and V5",
    "crbbb": "QRS in V1 and V5",
    "imi": "QRS to the end of T in II",
    "ami": "QRS to the end of T in V1",
    "sttc": "ST and T, all leads",
    "1avb": "begin of P to begin of QRS, all leads",
    "lae": "P in II and V1",
    "afib": "end of T to the next QRS (no P), all leads",
}


def place_of(name, recording, signal):
    """Where a finding shows: bool (leads, samples) of the tokenizer's signal."""
    ecg = recording.signal[[recording.leads.index(lead) for lead in signal["leads"]]]
    w = waves(ecg[signal["leads"].index("II")], recording.fs)
    place = np.zeros((len(signal["leads"]), signal["samples"]), bool)
    if w is None or len(w["r"]) < 3:
        return place
    for leads, begin, end in spans(name, w, premature(ecg, recording.fs, w["r"])):
        for a, b in zip(begin * signal["fs"], end * signal["fs"], strict=True):
            if np.isfinite(a) and np.isfinite(b) and b > a:
                for lead in leads:
                    place[signal["leads"].index(lead), max(0, round(a)) : round(b)] = True
    return place


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="PTB-XL's folder, or a part of it")
    parser.add_argument("--results", type=Path, default=Path("evidence"), help="where the rows go")
    parser.add_argument(
        "--model", default="ptbxl", help="a model that answers yes or no about these findings"
    )
    parser.add_argument("--records", type=int, default=16, help="of each finding")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    session = Session.open(options.model, device="cpu")
    tokenizer, explainer = session.tokenizer, session.explainer()
    path = options.results / "places.jsonl"
    done = (
        {(row["finding"], row["record"]) for row in map(json.loads, path.open())} if path.exists() else set()
    )
    facts = [of for of in ptbxl.read_ptbxl(options.data / "ptbxl_database.csv").facts if of.split != "train"]
    names = {file.stem: file for file in options.data.rglob("*.hea")}
    random = np.random.default_rng(0)
    with progress("places", len(PLACES) * options.records, "recordings") as bar:
        for finding in PLACES:
            words, statements = findings.FINDINGS[finding]
            have = [of.record for of in facts if any(of.known.get(code) for code in statements)]
            question = session.match(f"Is there {words}?").text  # as chat asks it
            for record in [
                have[i] for i in np.random.default_rng(0).permutation(len(have))[: options.records]
            ]:
                bar.advance()
                if (finding, record) in done:
                    continue
                ecg = session.read(names[record])
                recording = ecg.recording
                place = place_of(finding, recording, tokenizer.signal)
                row = {"finding": finding, "record": record, "covered": float(place.mean())}
                if place.any():  # the delineator found the waves
                    letters = tokenizer.letters(ecg.segments[0][1])
                    row["answer"] = session.ask(ecg, question).answer
                    row["share"] = {}
                    for method in (*attribution.METHODS, RANDOM):
                        case = explainer.case(letters, question, "yes")
                        if method == RANDOM:
                            density = explainer.spread(case, random.random(case.at[0]))
                        else:
                            density = explainer.density_of(case, letters, question, "yes", method)
                        row["share"][method] = float(density[place].sum())
                with open(path, "a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
