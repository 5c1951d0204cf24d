"""Processes, signals and the Dask cluster."""
