#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Picks the inputs worth keeping: pick.py CONTROL_FILE LIMIT, names on stdout.

CONTROL_FILE is what libFuzzer's -merge_control_file writes: how many files, how many of them
are kept already, their names, then a line "FT i feature..." for each.  Each step takes the
file that adds most for its size (the greedy set cover; Chvatal 1979)."""
import os
import sys


def read(path):
    with open(path) as f:
        lines = f.read().splitlines()
    names = lines[2:2 + int(lines[0])]
    features = {}
    for line in lines[2 + len(names):]:
        words = line.split()
        if words and words[0] == "FT":
            features[int(words[1])] = set(words[2:])
    return [(n, os.path.getsize(n), features.get(i, set())) for i, n in enumerate(names)]


def main():
    left, limit = read(sys.argv[1]), int(sys.argv[2])
    covered = set()
    while left and limit:
        # A file of 4 KiB must add a good deal more than one of 40 bytes.
        best = max(left, key=lambda f: len(f[2] - covered) / (512 + f[1]))
        if not best[2] - covered:
            break
        print(best[0])
        covered |= best[2]
        left.remove(best)
        limit -= 1
    rest = set().union(*(f[2] for f in left)) - covered if left else set()
    print(f"{len(covered)} features, {len(rest)} left out", file=sys.stderr)


main()
