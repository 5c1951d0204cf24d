"""Bounds on files, for all formats. A file that promises more is refused before anything is allocated.

The bounds are far above the size of any surface ECG. No file under 64 MB takes more than 5 s or 1 GB to be refused.
"""

SAMPLES = 2**25  # samples of all leads together; half an hour of 12 leads at 1000 Hz is 2**24.4
LEADS = 512
NAME = 256  # characters of a name or a unit

# WFDB
HEADER_BYTES = 2**22
LINE_BYTES = 2**12  # a header line other than a comment
SEGMENTS = 2**14

# EDF and DICOM: 16 or 24 bits a sample, and the rest of the file
FILE_BYTES = 4 * SAMPLES
DICOM_ELEMENTS = 2**16  # a channel has about thirty
DICOM_VALUE_BYTES = 2**16  # any value that is read, except the samples

# CSV and TSV
TABLE_BYTES = 8 * SAMPLES
TABLE_CELLS = 5 * 2**22  # text is the slowest form of numbers to read
TABLE_LINE_BYTES = 2**16  # the first lines, by which a table is recognised
TABLE_HEAD_LINES = 128  # one of these must name the columns
TABLE_CELLS_ONE_BY_ONE = 2**23  # where a cell is no plain number
TABLE_CLOCKS = 2**21  # times such as 0:00.004

# NumPy
UNPACKED_BYTES = 8 * SAMPLES
ARCHIVE_DIRECTORY_BYTES = 2**16  # directory of an .npz file; an array takes about a hundred bytes
SMALL_ARRAY = 2**12  # numbers in arrays other than the signal: rates, names

# HDF5
ROWS = 2**22  # and no more than the stored bytes
CHUNK_BYTES = 2**27
CHUNKS_OF_A_ROW = 2**12

# Lists of recordings
RECORDS_BYTES = 2**28
