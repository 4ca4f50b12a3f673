"""Calls greeters, one after the other, and prints who answered each call; `-` for nobody.

    caller.py hang-up|stay <CALLS

A line of CALLS is `SOURCE PORT DESTINATION PORT`. A caller that hangs up does so by a reset, so that the same source
can call again at once; one that stays keeps every connection until the last call is made.
"""

import socket
import struct
import sys

LINGER = struct.pack("ii", 1, 0)


def call(source, source_port, destination, port):
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    caller = socket.socket(family, socket.SOCK_STREAM)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    caller.settimeout(3)
    caller.bind((source, int(source_port)))
    try:
        caller.connect((destination, int(port)))
        return caller, caller.makefile().readline().strip() or "-"
    except OSError:
        return caller, "-"


def main():
    stays = {"stay": True, "hang-up": False}[sys.argv[1]]
    callers = []
    for line in sys.stdin:
        caller, name = call(*line.split())
        print(name, flush=True)
        if stays:
            callers.append(caller)
        else:
            caller.close()


main()
