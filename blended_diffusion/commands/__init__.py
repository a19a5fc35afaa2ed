"""The commands of the command line, one file each, and what they share.

What belongs here parses flags, calls and shows. No algorithm, no tensor arithmetic; whatever imports torch is imported
inside a command, so that `--help` is quick.
"""
