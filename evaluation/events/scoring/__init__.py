"""Metrics of sound event detection, equal to sed_eval's: lists of events in, counts and rates out."""
