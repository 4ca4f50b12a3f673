"""UDP echo of a lab server: answers every datagram with the server's name, a space and what it got.

One socket for both families; in it IPv4 addresses are IPv4-mapped. The answer leaves from the address the datagram was
sent to (IPV6_PKTINFO), as DR and TUN need it.

    udp_echo.py NAME PORT
"""

import socket
import sys


def main():
    name, port = sys.argv[1].encode(), int(sys.argv[2])
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.bind(("::", port))
    while True:
        data, control, _, sender = sock.recvmsg(65535, socket.CMSG_SPACE(20))
        # struct in6_pktinfo: address, interface index. Reply from the address, by whatever interface.
        reply_from = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, control[0][2][:16] + bytes(4))
        sock.sendmsg([name + b" " + data], [reply_from], 0, sender)


main()
