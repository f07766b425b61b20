#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""moatctl replay says of a capture what the live slot said.

    test_live_verdicts.py MOATCTL CASES

Captures that moatctl capture made on a live switch (real-*/capture.pcapng in CASES) have the
slot's verdict on each packet as comment. Replayed under the same policy, each packet must get
the same one, for the same reason.
"""
import glob
import json
import os
import struct
import subprocess
import sys

ENHANCED_PACKET = 6
COMMENT = 1


def comments(path):
    """Of each packet of a pcapng file, in the byte order of this machine."""
    with open(path, "rb") as f:
        data = f.read()
    found, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind == ENHANCED_PACKET:
            captured, = struct.unpack_from("<I", data, at + 20)
            option, comment = at + 28 + (captured + 3 & ~3), None
            while option < at + length - 4:
                code, n = struct.unpack_from("<HH", data, option)
                if code == COMMENT:
                    comment = data[option + 4:option + 4 + n].decode()
                option += 4 + (n + 3 & ~3)
            found.append(comment)
        at += length
    return found


def replayed(moatctl, folder):
    with open(os.path.join(folder, "args")) as f:
        args = f.read().split()
    run = subprocess.run([moatctl, "--format", "json", "replay", "policy", "capture.pcapng", *args],
                         cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()][:-1]


def said(packet):
    """How a comment begins that says the same."""
    if packet["verdict"] == "allow":
        return f"allow {packet['direction']} by {packet['by']};"
    return f"{packet['verdict']} {packet['direction']}: {packet['reason']}:"


def main(moatctl, cases):
    packets, differ, captures = 0, 0, sorted(glob.glob(os.path.join(cases, "real-*/capture.pcapng")))
    for capture in captures:
        folder = os.path.dirname(capture)
        live, offline = comments(capture), replayed(moatctl, folder)
        if len(live) != len(offline):
            sys.exit(f"{folder}: {len(live)} packets with comments, {len(offline)} replayed")
        for packet, comment in zip(offline, live):
            packets += 1
            if not (comment or "").startswith(said(packet)):
                differ += 1
                print(f"{folder}, packet {packet['number']}: live \"{comment}\", replayed \"{said(packet)}\"")
    print(f"{packets} packets of {len(captures)} captures, {differ} differ")
    return 0 if captures and not differ else 1


if __name__ == "__main__":
    sys.exit(main(os.path.realpath(sys.argv[1]), sys.argv[2]))
