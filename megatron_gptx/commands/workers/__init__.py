"""What the launcher runs on each rank of an installed package, one script a command.

Python puts a script's folder first among those it imports from, so nothing else may lie here.
"""
