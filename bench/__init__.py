"""Measures of Twinlock and of its peers, side by side: `python -m bench [--quick] [scenario ...]`."""
