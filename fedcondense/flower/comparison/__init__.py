"""Comparing strategies on one division of one data set, in one process: rows that describe themselves."""
