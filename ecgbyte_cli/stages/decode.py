"""ecgbyte decode: token ids to recordings, and how faithful they are."""

import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.console import Stage, note, progress, say, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal import fidelity, preprocess
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.workdir import finished, new_folder, read_array, read_json, read_table, write_json


@click.command(
    cls=Stage,
    short_help="Turn token ids back into recordings, and say how faithful they are.",
    epilog="Example: ecgbyte decode --limit 10",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="At most so many segments, drawn by seed.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw.")
@click.option(
    "--overwrite", is_flag=True, show_default=True, help="Replace recordings decoded with other settings."
)
@click.pass_obj
def command(work, **options):
    """Turn token ids back into letters and into mV, write them as WFDB records, and measure what was lost.

    The comparison is with the same recordings after filtering and resampling, which are read again from where
    `ecgbyte symbolize` found them.
    """
    result = decode(work, **options)
    say(
        f"{result['segments']} segments: RMSE {result['rmse_uv']:.1f} µV, PRD {result['prd_percent']:.1f} %, "
        f"SNR {result['snr_db']:.1f} dB, {100 * result['clipped_fraction']:.2f} % of the samples beyond the "
        f"letters' range; in {work.decoded}"
    )
    if result["beats"]:
        rows = [
            [
                name,
                *(
                    f"{result[key][column]:.{digits}f}"
                    for column in ("mean_absolute", "p95_absolute", "mean")
                ),
            ]
            for name, key, digits in (
                ("R amplitude, mV", "r_amplitude_mv", 3),
                ("R time, ms", "r_time_ms", 1),
                ("ST level at J + 60 ms, mV", "st_level_mv", 3),
            )
        ]
        title = f"Errors on {result['beats']} beats of lead II"
        table(rows, ("", "mean absolute", "95th percentile", "bias"), title)
    return result


def decode(work, *, limit=1000, seed=0, overwrite=False):
    """Turn token ids back into recordings.

    Parameters
    ----------
    work : WorkDir
    limit : int
        At most so many segments.
    seed : int
        Of the draw.
    overwrite : bool

    Returns
    -------
    dict
        segments; rmse_uv, the root of the mean squared difference over all samples, in µV; prd_percent and
        snr_db, means over segments (see `fidelity.differences`); clipped_fraction, the share of samples
        outside the range that the letters stand for; beats, how many of lead II were compared (0 without
        lead II, or below 100 Hz), and if there are any, r_amplitude_mv, r_time_ms and st_level_mv, each with
        the mean_absolute, p95_absolute and mean error (see `fidelity.beat_errors`); seconds.

    Raises
    ------
    Failure
        If there are no token ids, they do not give the letters they were made of, or no recording can be
        read again.
    """
    tokens = read_array(work.need(work.tokens, "encode"))
    places, about = read_table(work.token_segments), read_json(work.token_settings)
    segments, letters = read_table(work.symbol_segments), read_array(work.symbols)
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    if tokenizer.sha256 != about["tokenizer_sha256"]:
        raise Failure(
            f"{work.tokens} was encoded with another tokenizer than {work.ecg_tokenizer}: encode again"
        )
    settings = {"tokens": about["settings"], "limit": limit, "seed": seed}
    done = finished(work.decode_settings, settings, overwrite, "decoded recordings")
    if done:
        note(f"{work.decoded} is there already, made with these settings: nothing to do")
        return done

    start = time.perf_counter()
    count = len(places["offset"])
    chosen = np.sort(np.random.default_rng(seed).choice(count, min(limit, count), replace=False))
    each = len(tokenizer.signal["leads"]) * tokenizer.signal["samples"]
    original = Originals(tokenizer.signal)
    leads, fs = tokenizer.signal["leads"], tokenizer.signal["fs"]
    two = leads.index("II") if "II" in leads and fs >= fidelity.LEAST_FS else None
    measured, beats, clipped, unread = [], [np.zeros((0, 3))], 0, 0
    with new_folder(work.decoded) as folder, progress("decode", len(chosen), "segments") as bar:
        for i in chosen:
            first, lo, hi = places["offset"][i], segments["lo"][i], segments["hi"][i]
            made = tokenizer.decode(tokens[first : first + places["length"][i]])
            if not np.array_equal(made.ravel(), letters[segments["offset"][i] :][:each]):
                raise Failure(f"{work.tokens}: segment {i} does not decode to its letters; encode again")
            signal = tokenizer.to_mv(made, lo, hi)
            x, comments = original.of(segments["path"][i], segments["start"][i])
            write_record(folder, f"{segments['record'][i]}_{i:06d}", signal, tokenizer.signal, comments)
            if x is None:
                unread += 1
            else:
                measured.append(fidelity.differences(x, signal))
                if two is not None:
                    found = fidelity.beats(x[two], fs)
                    beats.append(fidelity.beat_errors(x[two], signal[two], fs, found))
                clipped += int(((x < lo) | (x > hi)).sum())
            bar.advance()
        if not measured:
            raise Failure(
                "no recording could be read again where `ecgbyte symbolize` found it: nothing to compare with"
            )
        if unread:
            note(f"{unread} recordings could not be read again: they are decoded, but not compared")
        squares, prds, snrs = zip(*measured, strict=True)
        result = {
            "segments": len(chosen),
            "rmse_uv": 1000 * float(np.sqrt(np.sum(squares) / (len(measured) * each))),
            # a flat segment has no difference in percent
            "prd_percent": mean(prds),
            "snr_db": mean(snrs),
            "clipped_fraction": clipped / (len(measured) * each),
            **summary(np.concatenate(beats)),
            "seconds": time.perf_counter() - start,
        }
        write_json(folder / work.decode_settings.name, {"settings": settings, "result": result}, indent=1)
    return result


def mean(values):
    """The mean of those that are there, or None."""
    values = [value for value in values if np.isfinite(value)]
    return float(np.mean(values)) if values else None


def summary(errors):
    """The errors of beats, (beats, 3), as results."""
    result = {"beats": len(errors)}
    if len(errors):
        for name, column in zip(("r_amplitude_mv", "r_time_ms", "st_level_mv"), errors.T, strict=True):
            result[name] = {
                "mean_absolute": float(np.abs(column).mean()),
                "p95_absolute": float(np.percentile(np.abs(column), 95)),
                "mean": float(column.mean()),
            }
    return result


class Originals:
    """Preprocessed segments of recordings, read again; the last recording is kept, for its next segment."""

    def __init__(self, settings):
        self.settings, self.path = settings, None

    def of(self, path, start):
        """Signal in mV, float32 (leads, samples), and header comments; (None, []) if it cannot be read."""
        if path != self.path:
            self.path = path
            try:
                recording = readers.read(path)
                self.parts, self.comments = (
                    dict(preprocess.segments(recording, self.settings)),
                    recording.comments,
                )
            except readers.Unusable:
                self.parts, self.comments = {}, []
        return self.parts.get(start), self.comments


def write_record(folder, name, signal, settings, comments):
    """Write a segment in mV as a WFDB record of format 16, 1 µV a step."""
    import wfdb

    wfdb.wrsamp(
        name,
        settings["fs"],
        units=["mV"] * len(signal),
        sig_name=list(settings["leads"]),
        d_signal=np.round(signal.T.astype(np.float64) * 1000).clip(-32767, 32767).astype(np.int64),
        fmt=["16"] * len(signal),
        adc_gain=[1000.0] * len(signal),
        baseline=[0] * len(signal),
        comments=[*comments, "Decoded from ECG tokens by ecgbyte"],
        write_dir=str(Path(folder)),
    )
