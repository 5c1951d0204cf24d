"""Where version 0.1.0 had the tokenizer; it is in `ecgbyte_cli.signal.tokenizer`."""

from ecgbyte_cli.signal.tokenizer import ECGTokenizer

__all__ = ["ECGTokenizer"]
