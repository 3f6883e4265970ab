"""Run folders in, one HTML page with results, curves and episodes out."""
