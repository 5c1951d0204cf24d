"""Bounds on what is read: one table for all formats. What promises more is refused before it is believed.

They are far above what recordings of the surface ECG need, and such that no file of less than 64 MB takes more
than 5 s or 1 GB before it is refused.
"""

SAMPLES = 2**25  # of all leads together; half an hour of 12 leads at 1000 Hz is 2**24.4
LEADS = 512
NAME = 256  # characters of a name or unit that a file gives

# WFDB
HEADER_BYTES = 2**22
LINE_BYTES = 2**12  # of a header's line that is no comment
SEGMENTS = 2**14

# EDF and DICOM: 16 or 24 bits a sample, and what stands beside them
FILE_BYTES = 4 * SAMPLES
DICOM_ELEMENTS = 2**16  # a channel has some thirty
DICOM_VALUE_BYTES = 2**16  # of every value that is looked at but the samples

# CSV and TSV
TABLE_BYTES = 8 * SAMPLES
TABLE_CELLS = 5 * 2**22  # numbers written out take longer to read than any others
TABLE_LINE_BYTES = 2**16  # of the first lines, by which a table is recognised
TABLE_HEAD_LINES = 128  # of which one must name the columns
TABLE_CELLS_ONE_BY_ONE = 2**23  # where one is no plain number, to find it
TABLE_CLOCKS = 2**21  # times such as 0:00.004

# NumPy
UNPACKED_BYTES = 8 * SAMPLES
ARCHIVE_DIRECTORY_BYTES = 2**16  # of an .npz file; an array takes some hundred
SMALL_ARRAY = 2**12  # numbers in what is not the signal: rates, names

# HDF5
ROWS = 2**22  # and no more than the bytes that are stored
CHUNK_BYTES = 2**27
CHUNKS_OF_A_ROW = 2**12

# Lists of recordings
RECORDS_BYTES = 2**28
