"""Datasets: uploaded problems, validated row by row and stored byte for byte."""
