"""How good the edits are: a benchmark, a judge that shares nothing with the guidance, figures, and their report.

What belongs here measures finished pictures. Making them does not.
"""
