"""Use a trained model: open it, ask it, explain its answers."""
