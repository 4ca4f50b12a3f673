"""UDP echo of a lab server: answers every datagram with the server's name, a space and what it got.

The answer leaves from the address the datagram was sent to (IP_PKTINFO), as DR and TUN need it.

    udp_echo.py NAME PORT
"""

import socket
import sys

IP_PKTINFO = 8


def main():
    name, port = sys.argv[1].encode(), int(sys.argv[2])
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    sock.bind(("0.0.0.0", port))
    while True:
        data, control, _, sender = sock.recvmsg(65535, socket.CMSG_SPACE(12))
        # struct in_pktinfo: interface index, local address, header destination. Reply from the destination.
        destination = control[0][2][8:12]
        reply_from = (socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + destination + bytes(4))
        sock.sendmsg([name + b" " + data], [reply_from], 0, sender)


main()
