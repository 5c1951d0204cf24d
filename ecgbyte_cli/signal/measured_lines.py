"""The measured values of an ECG as a line of text before its tokens, for models trained with `--measured`."""

from collections.abc import Iterable

from ecgbyte_cli.signal.measurement import Measurement

SHOWN = {
    "rate_bpm": "rate",
    "rr_sd_ms": "RR SD",
    "pr_ms": "PR",
    "qrs_ms": "QRS",
    "qt_ms": "QT",
    "qtcb_ms": "QTcB",
    "qtcf_ms": "QTcF",
    "axis_qrs": "axis",
}
NOTHING = "Measured: none"


def measured_line(measurement: Measurement) -> str:
    """Return the values of a measurement as a line: beats per minute, ms and degrees, without decimals.

    A value that was not measured is `none`; if none was measured, the line is `NOTHING`.
    """
    values = {label: getattr(measurement, name) for name, label in SHOWN.items()}
    if all(value is None for value in values.values()):
        return NOTHING
    parts = (f"{label} {'none' if value is None else round(value)}" for label, value in values.items())
    return f"Measured: {', '.join(parts)}"


def joined_lines(lines: Iterable[str]) -> str:
    """Return the text before the ECGs of a prompt, with one line for each ECG."""
    return "".join(f"{line}\n" for line in lines)
