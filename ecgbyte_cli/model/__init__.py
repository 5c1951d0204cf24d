"""The language model over ECG tokens and text."""
