"""Files on disk: names, atomic writes, checksums and locks."""
