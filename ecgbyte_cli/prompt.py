"""Where version 0.1.0 had the prompt; it is in `ecgbyte_cli.model.prompt`."""

from ecgbyte_cli.model.prompt import Prompt

__all__ = ["Prompt"]
