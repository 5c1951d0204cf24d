"""Normal limits of measured values by age and sex, each with its source."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ecgbyte_cli.readers.recording import Recording

ADULT = 16.0  # years
SURAWICZ = "Surawicz et al. 2009, AHA/ACCF/HRS part III"
RAUTAHARJU = "Rautaharju et al. 2009, AHA/ACCF/HRS part IV"
SUBAHI = "Subahi et al. 2020, Cleve Clin J Med 87:398"
SOKOLOW = "Sokolow and Lyon 1949"
CASALE = "Casale et al. 1985"
ARIYARAJAH = "Ariyarajah et al. 2006, Ann Noninvasive Electrocardiol 11:259"
SPODICK = "Spodick et al. 1992, the usual limits"
PAGE = "Page et al. 2016, ACC/AHA/HRS supraventricular tachycardia guideline"
OLDROYD = "Oldroyd et al., First-degree heart block, StatPearls"
KUSUMOTO = "Kusumoto et al. 2019, ACC/AHA/HRS bradycardia guideline"
THYGESEN = "Thygesen et al. 2018, Fourth Universal Definition of Myocardial Infarction"
HINDRICKS = "Hindricks et al. 2021, ESC atrial fibrillation guideline"


@dataclass(frozen=True)
class NormalLimits:
    """Limits of one value for a group of people.

    Attributes
    ----------
    name : str
        See `Measurement`; `st_v2_v3` and `st_other` are ST levels.
    low, high : float or None
        None means no limit.
    source : str
    open : bool
        Whether the limits themselves are abnormal.
    sex : str or None
        `male`, `female`, or None for both.
    from_age, to_age : float
        Years; `to_age` is not included.
    """

    name: str
    low: float | None
    high: float | None
    source: str
    open: bool = False
    sex: str | None = None
    from_age: float = ADULT
    to_age: float = 200.0

    def verdict(self, value: float) -> str:
        """Return `low`, `normal` or `high`."""
        if self.low is not None and (value < self.low or (self.open and value == self.low)):
            return "low"
        if self.high is not None and (value > self.high or (self.open and value == self.high)):
            return "high"
        return "normal"


LIMITS = (
    NormalLimits("rate_bpm", 60, 100, SPODICK),
    NormalLimits("rr_ms", 600, 1000, SPODICK),
    NormalLimits("p_ms", None, 120, ARIYARAJAH, open=True),
    NormalLimits("pr_ms", 120, 200, f"{KUSUMOTO}; {OLDROYD}"),
    NormalLimits("qrs_ms", None, 110, SURAWICZ),
    NormalLimits("qrs_ms", None, 100, SURAWICZ, open=True, from_age=4, to_age=16),
    NormalLimits("qrs_ms", None, 90, SURAWICZ, open=True, from_age=0, to_age=4),
    *(
        NormalLimits(name, low, high, f"{RAUTAHARJU}; short: {SUBAHI}", open=True, sex=sex)
        for name in ("qtcb_ms", "qtcf_ms")
        for sex, low, high in (("male", 350, 450), ("female", 360, 460))
    ),
    NormalLimits("axis_qrs", -30, 90, SURAWICZ),
    NormalLimits("sokolow_mv", None, 3.5, SOKOLOW, open=True),
    NormalLimits("cornell_mv", None, 2.8, CASALE, sex="male"),
    NormalLimits("cornell_mv", None, 2.0, CASALE, sex="female"),
    NormalLimits("st_v2_v3", -0.05, 0.25, THYGESEN, open=True, sex="male", to_age=40),
    NormalLimits("st_v2_v3", -0.05, 0.2, THYGESEN, open=True, sex="male", from_age=40),
    NormalLimits("st_v2_v3", -0.05, 0.15, THYGESEN, open=True, sex="female"),
    NormalLimits("st_other", -0.05, 0.1, THYGESEN, open=True),
)
WIDE_QRS = 120.0  # ms, of adults: a wide complex, as in complete bundle branch block (SURAWICZ)


def limits_for(name: str, age: float | None = None, sex: str | None = None) -> list[NormalLimits]:
    """Return the limits of a value that apply to a person; several if they depend on an unknown age or sex.

    Parameters
    ----------
    name : str
    age : float or None
        Years; None means an adult of unknown age.
    sex : str or None
        `male` or `female`.
    """
    return [
        limits
        for limits in LIMITS
        if limits.name == name
        and (limits.sex is None or sex is None or limits.sex == sex)
        and (limits.to_age > ADULT if age is None else limits.from_age <= age < limits.to_age)
    ]


def verdict_of(value: float, limits: Sequence[NormalLimits]) -> str | None:
    """Return `low`, `normal` or `high`; None if there are no limits, or if the limits disagree."""
    verdicts = {one.verdict(value) for one in limits}
    return verdicts.pop() if len(verdicts) == 1 else None


def age_and_sex(recording: Recording) -> tuple[float | None, str | None]:
    """Return the age in years and the sex (`male` or `female`) in a recording's header, None if it has none."""
    ages, sexes = (
        [text for key in (name, f"<{name}>") for text in recording.all_comments(key)]
        for name in ("age", "sex")
    )
    match = (
        re.match(r"(\d{1,3}(?:\.\d+)?)\s*(?:y(?:ears?|rs?)?)?$", ages[0].strip(), re.IGNORECASE)
        if ages
        else None
    )
    age = float(match[1]) if match and float(match[1]) <= 120 else None
    letter = sexes[0].strip().lower() if sexes else ""
    sex = {"m": "male", "male": "male", "man": "male", "f": "female", "female": "female", "woman": "female"}
    return age, sex.get(letter)
