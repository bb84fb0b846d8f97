"""Measurements. Each prints its figures beside those of something else that is measured in the same run."""
