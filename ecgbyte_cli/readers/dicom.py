"""DICOM waveforms."""

import os

import numpy as np

from ecgbyte_cli.readers.recording import MILLIVOLTS, MOST_SAMPLES, Recording, Unusable, check_promise, stem


def read(path, fs, lead_names):
    """DICOM waveforms (PS3.3 C.10.9) through pydicom; of several groups the longest, in the time it covers."""
    import pydicom

    if os.path.getsize(path) > 4 * MOST_SAMPLES:
        raise Unusable(f"too large: {os.path.getsize(path)} bytes")
    syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID", "")
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        raise Unusable("not a known format: deflated DICOM")  # its size is not known beforehand
    data = pydicom.dcmread(path)
    groups = data.get("WaveformSequence") or []
    if not groups:
        raise Unusable("not an ECG: the DICOM file holds no waveform")
    seconds = [g.NumberOfWaveformSamples / g.SamplingFrequency for g in groups]
    index = int(np.argmax(seconds))
    group = groups[index]
    check_promise(group.NumberOfWaveformChannels, group.NumberOfWaveformSamples)
    raw = pydicom.waveforms.multiplex_array(data, index, as_raw=True)
    padding = group.get("WaveformPaddingValue")
    rows, leads = [], []
    for values, channel in zip(raw.T, group.ChannelDefinitionSequence, strict=True):
        units = channel.get("ChannelSensitivityUnitsSequence")
        scale = MILLIVOLTS.get(units[0].CodeValue.strip().lower()) if units else None
        if scale is None:
            continue
        step = float(channel.get("ChannelSensitivity", 1)) * float(
            channel.get("ChannelSensitivityCorrectionFactor", 1)
        )
        row = ((values * step + float(channel.get("ChannelBaseline", 0))) * scale).astype(np.float32)
        if padding is not None:
            row[values == np.frombuffer(padding, raw.dtype)[0]] = np.nan
        rows.append(row)
        leads.append(str(channel.ChannelSourceSequence[0].CodeMeaning))
    comments = [f"Patient: {data.PatientID}"] if data.get("PatientID") else []
    signal = np.array(rows, np.float32).reshape(len(rows), raw.shape[0])
    return Recording(signal, float(group.SamplingFrequency), leads, stem(path), path, comments)
