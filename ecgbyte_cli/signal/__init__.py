"""Millivolts, letters and token ids: from one to the other, and what is lost."""
