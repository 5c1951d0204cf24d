"""ECG-Byte as a command-line toolkit: ECGs to tokens, and a language model over tokens and text."""

__version__ = "0.1.0"
