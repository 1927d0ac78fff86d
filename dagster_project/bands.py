"""The noise bands that people are shown, of one octave or a little more."""

BANDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
