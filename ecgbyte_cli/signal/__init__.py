"""Convert between millivolts, letters and token ids, and measure the loss."""
