"""Short texts about a measurement: for the panel of chat, the header of a sheet and the picture of a beat."""

from ecgbyte_cli.readers.recording import Recording
from ecgbyte_cli.signal.measure import measure_stretch
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.signal.normal_limits import age_and_sex

INTERVALS = (("P", "p_ms"), ("PR", "pr_ms"), ("QRS", "qrs_ms"), ("QT", "qt_ms"))


def interval_facts(measurement: Measurement) -> dict[str, str]:
    """Return the intervals that were measured: name to text, such as `QRS` to `96 ms`."""
    facts = {
        name: f"{value:.0f} ms"
        for name, field in INTERVALS
        if (value := getattr(measurement, field)) is not None
    }
    if measurement.qtcb_ms is not None and measurement.qtcf_ms is not None:
        facts["QTc"] = f"{measurement.qtcb_ms:.0f} (Bazett), {measurement.qtcf_ms:.0f} ms (Fridericia)"
    return facts


def measured_facts(recording: Recording, measurement: Measurement) -> dict[str, str]:
    """Return the facts for the panel: name mapped to text. Missing values have a reason.

    Parameters
    ----------
    recording : Recording
        Its header may contain age and sex.
    measurement : Measurement

    Returns
    -------
    dict of str to str
        `heart rate`, and if known `intervals`, `axis`, `remarks` and `patient`.
    """
    patient = person_fact(recording)
    facts = {"patient": patient} if patient else {}
    if measurement.rate_bpm is None:
        return {"heart rate": f"not measurable: {measurement.quality.get('all', 'no beats')}", **facts}
    rhythm = ", irregular" if "irregular" in measurement.flags else ""
    rate = f"{measurement.rate_bpm:.0f} per minute (mean over {measurement.beats} beats{rhythm})"
    texts = [f"{name} {text}" for name, text in interval_facts(measurement).items() if name != "P"]
    texts += [
        f"no {name}: {measurement.quality[field]}"
        for name, field in (("PR", "pr_ms"), ("QT", "qt_ms"))
        if field in measurement.quality
    ]
    axis = {} if measurement.axis_qrs is None else {"axis": f"{measurement.axis_qrs:.0f} degrees (QRS)"}
    flags = [flag for flag in measurement.flags if flag != "irregular"]
    remarks = {"remarks": ", ".join(flags)} if flags else {}
    return {"heart rate": rate, "intervals": ", ".join(texts), **axis, **remarks, **facts}


def person_fact(recording: Recording) -> str:
    """Return age and sex from a header, such as `59 years, female`; empty if both are missing."""
    age, sex = age_and_sex(recording)
    return ", ".join([*([f"{age:g} years"] if age is not None else []), *([sex] if sex else [])])


def sheet_line(recording: Recording, start: float = 0.0, seconds: float = 10.0) -> str:
    """Return the line above a sheet: age, sex, rate, PR, QRS, QT, QTc and axis, if known.

    Parameters
    ----------
    recording : Recording
    start, seconds : float
        The part that is drawn and measured, in s.
    """
    measurement, parts = measure_stretch(recording, start, start + seconds), [person_fact(recording)]
    if measurement.rate_bpm is not None:
        parts.append(f"{measurement.rate_bpm:.0f}/min")
    parts += [f"{name} {text}" for name, text in interval_facts(measurement).items() if name != "P"]
    if measurement.axis_qrs is not None:
        parts.append(f"axis {measurement.axis_qrs:.0f}\N{DEGREE SIGN}")
    return " · ".join(filter(None, parts))
