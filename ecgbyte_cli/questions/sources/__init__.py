"""Data sets that questions are generated from, a file each."""
