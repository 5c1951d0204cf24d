"""Pictures of ECGs: figures, SVG sheets, the terminal."""
