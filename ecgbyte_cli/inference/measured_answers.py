"""Answer questions about rate, intervals, axes, voltage, ST level and regularity from a measurement.

The model is not involved. The wordings are in `measured_wordings`, the limits in `signal.normal_limits`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ecgbyte_cli.inference.measured_wordings import MeasuredQuestion, match_measured
from ecgbyte_cli.signal.measure import IRREGULAR
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.signal.normal_limits import (
    ADULT,
    RAUTAHARJU,
    WIDE_QRS,
    NormalLimits,
    limits_for,
    verdict_of,
)

LABELS = {  # value: its label in answers, unit, digits
    "rate_bpm": ("heart rate", "per minute", 0),
    "rr_ms": ("RR", "ms", 0),
    "rr_sd_ms": ("standard deviation of RR", "ms", 0),
    "p_ms": ("P", "ms", 0),
    "pr_ms": ("PR", "ms", 0),
    "qrs_ms": ("QRS", "ms", 0),
    "qt_ms": ("QT", "ms", 0),
    "qtcb_ms": ("QTc (Bazett)", "ms", 0),
    "qtcf_ms": ("QTc (Fridericia)", "ms", 0),
    "axis_p": ("P axis", "degrees", 0),
    "axis_qrs": ("QRS axis", "degrees", 0),
    "axis_t": ("T axis", "degrees", 0),
    "sokolow_mv": ("Sokolow-Lyon voltage", "mV", 2),
    "cornell_mv": ("Cornell voltage", "mV", 2),
    "st": ("ST", "mV", 2),
}
OUTSIDE = {"low": "below the normal limit", "high": "above the normal limit"}
AXIS_SIDES = {"low": "left axis deviation", "high": "right axis deviation"}
ST_LATER = "ST is measured 60 ms after the end of QRS, the limit applies to the J point"


@dataclass(frozen=True)
class MeasuredValue:
    """One measured value in an answer.

    Attributes
    ----------
    name : str
        See `Measurement`; `LEAD_st_mv` for the ST level of a lead.
    value : float or None
        Rounded as in the text; None if it was not measured.
    unit : str
    low, high : float or None
        Normal limits; None if there is none, or if it depends on an unknown age or sex.
    verdict : str or None
        `low`, `normal` or `high`; None if undecided.
    source : str or None
        Source of the limits.
    reason : str or None
        Why the value was not measured.
    """

    name: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    verdict: str | None = None
    source: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class MeasuredAnswer:
    """An answer from a measurement.

    Attributes
    ----------
    text : str
        The answer in words, with units, limits and their source.
    values : tuple of MeasuredValue
        At least one.
    """

    text: str
    values: tuple[MeasuredValue, ...]

    @property
    def value(self) -> float | None:
        """The first value."""
        return self.values[0].value

    @property
    def unit(self) -> str:
        """The unit of the first value."""
        return self.values[0].unit

    @property
    def source(self) -> str | None:
        """The source of the first limits."""
        return next((one.source for one in self.values if one.source), None)

    def as_json(self) -> list[dict[str, str | float | None]]:
        """Return the values for --json."""
        return [asdict(one) for one in self.values]


def answer_measured(
    question: str, measurement: Measurement, age: float | None = None, sex: str | None = None
) -> MeasuredAnswer | None:
    """Answer a question from a measurement.

    Parameters
    ----------
    question : str
    measurement : Measurement
        The result of `measure`.
    age : float or None
        Years. None means an adult of unknown age.
    sex : str or None
        `male`, `female`, or None if unknown.

    Returns
    -------
    MeasuredAnswer or None
        None if the question asks for something else.
    """
    asked = match_measured(question)
    if asked is None:
        return None
    if asked.names == ("regular",):
        return _regularity(asked, measurement)
    if asked.names == ("st",):
        return _st(asked, measurement, age, sex)
    names = asked.names
    if names == ("qt_ms",):  # the normal QT depends on the rate, so QTc is added
        names = ("qt_ms", "qtcb_ms", "qtcf_ms")
    values = tuple(measured_value(name, measurement, age, sex) for name in names)
    word = _yes_or_no(asked, values, age)
    notes = _limits_text(values, age, sex)
    if word and _asks_about_width(asked, age):
        notes.append(f"wide: from {WIDE_QRS:g} ms")
    text = "; ".join([*map(describe_value, values), *notes])
    return MeasuredAnswer(f"{word}: {text}" if word else text, values)


def measured_value(
    name: str, measurement: Measurement, age: float | None = None, sex: str | None = None
) -> MeasuredValue:
    """Return a value of a measurement with its normal limits, or the reason why it was not measured.

    Parameters
    ----------
    name : str
        See `Measurement`.
    measurement : Measurement
    age, sex
        See `answer_measured`.
    """
    _, unit, digits = LABELS[name]
    value = getattr(measurement, name)
    if value is None:
        return MeasuredValue(name, None, unit, reason=_reason(name, measurement))
    return _compared(name, round(value, digits) + 0.0, unit, limits_for(name, age, sex))


def _compared(name: str, value: float, unit: str, limits: Sequence[NormalLimits]) -> MeasuredValue:
    lows, highs = {one.low for one in limits}, {one.high for one in limits}
    return MeasuredValue(
        name,
        value,
        unit,
        lows.pop() if len(lows) == 1 else None,
        highs.pop() if len(highs) == 1 else None,
        verdict_of(value, limits),
        limits[0].source if limits else None,
    )


def _reason(name: str, measurement: Measurement) -> str:
    quality = measurement.quality
    if name in ("qtcb_ms", "qtcf_ms") and name not in quality:
        name = "qt_ms"
    return quality.get("all") or quality.get(name) or "not measured"


def describe_value(one: MeasuredValue) -> str:
    """Return a measured value in words, with its verdict, or the reason why it was not measured."""
    label = LABELS[one.name][0]
    if one.value is None:
        return f"{label} cannot be measured: {one.reason}"
    text = f"{label} {_number(one.name, one.value)} {one.unit}"
    if one.verdict is None:
        return text
    sides = AXIS_SIDES if one.name == "axis_qrs" else OUTSIDE
    return f"{text}, {sides.get(one.verdict, 'normal')}"


def _number(name: str, value: float) -> str:
    return f"{value:.{LABELS[name][2]}f}"


def _limits_text(values: Sequence[MeasuredValue], age: float | None, sex: str | None) -> list[str]:
    """Describe the limits of measured values, without repetition."""
    texts: dict[str, None] = {}
    for one in values:
        limits = limits_for(one.name, age, sex) if one.value is not None else []
        if limits:
            label = "QTc" if one.name in ("qtcb_ms", "qtcf_ms") else LABELS[one.name][0]
            texts[f"normal {label}: {_ranges(one.name, limits, age)} ({limits[0].source})"] = None
        elif one.value is not None and one.name.startswith("qtc") and age is not None and age < ADULT:
            texts[f"{RAUTAHARJU} gives no QTc limits for children"] = None
    return list(texts)


def _ranges(name: str, limits: Sequence[NormalLimits], age: float | None) -> str:
    """Describe one or several limits: "120 to 200 ms", "below 2.8 (male), 2 (female) mV"."""
    unit = LABELS[name][1]

    def each(end: str) -> str:
        values = [getattr(one, end) for one in limits]
        groups = [f" ({_group(one)})" if len(set(values)) > 1 else "" for one in limits]
        return ", ".join(dict.fromkeys(f"{v:g}{group}" for v, group in zip(values, groups, strict=True)))

    high = each("high")
    if limits[0].open:
        text = f"above {each('low')} and below {high}" if limits[0].low is not None else f"below {high}"
    else:
        text = f"{each('low')} to {high}" if limits[0].low is not None else f"up to {high}"
    return f"{text} {unit}" + (" in adults" if age is None and limits[0].from_age >= ADULT else "")


def _group(limits: NormalLimits) -> str:
    if limits.sex is None:
        return "both"
    if limits.to_age < 200:
        return f"{limits.sex} under {limits.to_age:g} years"
    return f"{limits.sex} from {limits.from_age:g} years" if limits.from_age > ADULT else limits.sex


def _yes_or_no(asked: MeasuredQuestion, values: Sequence[MeasuredValue], age: float | None) -> str:
    """Return the first word of an answer, such as `yes` or `no`; empty if the question asks for a value."""
    judged = [one for one in values if one.value is not None and limits_for(one.name)]
    if not asked.closed or not judged:
        return ""
    if _asks_about_width(asked, age):
        wide = (judged[0].value or 0.0) >= WIDE_QRS  # a complex that is not wide is narrow
        return "yes" if wide == (asked.judgement == "high") else "no"
    verdicts = [one.verdict for one in judged]
    holds = [None if verdict is None else _holds(asked.judgement, verdict) for verdict in verdicts]
    if asked.names == ("sokolow_mv", "cornell_mv") and True in holds:
        return "yes"  # one criterion is enough
    if None in holds:
        return "that depends on age or sex, which is unknown"
    if len(set(holds)) > 1:
        return "that depends on the formula"
    return "yes" if holds[0] else "no"


def _asks_about_width(asked: MeasuredQuestion, age: float | None) -> bool:
    """Return whether the question is if an adult's QRS complex is wide or narrow."""
    return asked.names == ("qrs_ms",) and asked.judgement in ("high", "low") and (age is None or age >= ADULT)


def _holds(judgement: str | None, verdict: str) -> bool:
    """Return whether a judgement agrees with a verdict."""
    side = {"left": "low", "right": "high", "elevation": "high", "depression": "low"}.get(
        judgement or "", judgement
    )
    return verdict != "normal" if side == "abnormal" else verdict == side


def _regularity(asked: MeasuredQuestion, measurement: Measurement) -> MeasuredAnswer:
    """Answer whether the rhythm is regular."""
    values = tuple(measured_value(name, measurement) for name in ("rr_ms", "rr_sd_ms"))
    mean, scatter = values
    if mean.value is None or scatter.value is None:
        return MeasuredAnswer(f"the rhythm cannot be measured: {mean.reason}", values)
    regular = "irregular" not in measurement.flags
    word = "regular" if regular else "irregular"
    if asked.closed:
        word = f"{'yes' if regular == (asked.judgement == 'regular') else 'no'}: {word}"
    text = (
        f"{word}; RR {mean.value:.0f} ms, standard deviation {scatter.value:.0f} ms; irregular: the RR intervals "
        f"between beats of the main shape vary by more than {100 * IRREGULAR:.0f} % (ecgbyte's own limit)"
    )
    return MeasuredAnswer(text, values)


def _st(
    asked: MeasuredQuestion, measurement: Measurement, age: float | None, sex: str | None
) -> MeasuredAnswer:
    """Answer about the ST level of some leads or of all leads."""
    values = [_st_value(lead, measurement, age, sex) for lead in asked.leads or measurement.leads]
    if not values:
        values = [MeasuredValue("st", None, "mV", reason=_reason("st", measurement))]
        return MeasuredAnswer(f"ST cannot be measured: {values[0].reason}", tuple(values))
    texts, listed = [], not asked.leads and asked.judgement is not None
    for one in values:
        lead = one.name.removesuffix("_st_mv")
        verdict = {"low": ", depression", "high": ", elevation", "normal": ", normal"}.get(
            one.verdict or "", ""
        )
        if one.value is None:
            texts.append(f"ST in {lead} cannot be measured: {one.reason}")
        elif not listed or (one.verdict is not None and _holds(asked.judgement, one.verdict)):
            texts.append(f"ST in {lead} {one.value:+.2f} mV{verdict}")
    if listed:
        texts = texts or [f"no lead with ST {asked.judgement}"]
    groups = dict.fromkeys(
        f"normal ST in {where}: {_ranges('st', limits_for(name, age, sex), age)}"
        for name, where in (("st_v2_v3", "V2 and V3"), ("st_other", "other leads"))
        if any(_st_group(one.name) == name and one.value is not None for one in values)
    )
    word = ""
    if asked.closed:
        decided = [one for one in values if one.value is not None]
        holds = {None if one.verdict is None else _holds(asked.judgement, one.verdict) for one in decided}
        if True in holds and asked.judgement != "normal":
            word = "yes: "
        elif None in holds:
            word = "that depends on age or sex, which is unknown: "
        elif holds:
            word = "yes: " if holds == {True} else "no: "
    source = [next((one.source for one in values if one.source), None)] if groups else []
    notes = [f"{text} ({source[0]})" for text in groups] + ([ST_LATER] if groups else [])
    return MeasuredAnswer(word + "; ".join(texts + notes), tuple(values))


def _st_value(lead: str, measurement: Measurement, age: float | None, sex: str | None) -> MeasuredValue:
    name, part = f"{lead}_st_mv", measurement.leads.get(lead)
    if part is None or part.st_mv is None:
        flagged = [flag for flag in measurement.flags if flag.split()[-1:] == [lead]]
        reason = measurement.quality.get("all") or measurement.quality.get(lead)
        return MeasuredValue(
            name, None, "mV", reason=reason or (flagged[0] if flagged else f"no lead {lead}")
        )
    return _compared(name, round(part.st_mv, 2) + 0.0, "mV", limits_for(_st_group(name), age, sex))


def _st_group(name: str) -> str:
    return "st_v2_v3" if name in ("V2_st_mv", "V3_st_mv") else "st_other"
