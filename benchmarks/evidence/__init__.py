"""The study behind docs/evidence.md: does bad data make a better model?"""
