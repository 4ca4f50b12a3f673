"""HTTP connections through a service of shunt in FULLNAT or NAT, with TCP at both ends (ASTF): for connections per second.

How to wire it, what to start first and how to read the result: docs/benchmarking.md.

    trex>start -f bench/trex/connections.py -m 1000 -d 60 -t --mode fullnat --size 1024

One connection, one request, one answer. -m multiplies one connection per second. In DR and TUN answers do not pass the
director, and with two cables there is no other way for them: use requests.py there.
"""
import argparse

from trex.astf.api import (
    ASTFAssociationRule, ASTFIPGen, ASTFIPGenDist, ASTFIPGenGlobal, ASTFProfile, ASTFProgram, ASTFTCPClientTemplate,
    ASTFTCPServerTemplate, ASTFTemplate,
)

# As in configs/benchmark.toml.
VIPS = {"fullnat": "203.0.113.10", "nat": "203.0.113.20"}
SERVICE_PORT = 80
CLIENT_FIRST = "198.18.0.1"
CLIENT_LAST = "198.18.255.254"


class Connections:
    def get_profile(self, tunables, **kwargs):
        parser = argparse.ArgumentParser(description="HTTP connections through shunt")
        parser.add_argument("--mode", choices=sorted(VIPS), default="fullnat", help="which service is called")
        parser.add_argument("--size", type=int, default=128, help="bytes of the answer's body")
        args = parser.parse_args(tunables)
        vip = VIPS[args.mode]
        request = "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n".format(vip)
        head = "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n".format(args.size)
        answer = head + "x" * args.size
        client = ASTFProgram()
        client.send(request)
        client.recv(len(answer))
        server = ASTFProgram()
        server.recv(len(request))
        server.send(answer)
        # The two ends of a connection do not see the same addresses: each is a party of its own, and the generator
        # takes any server address that arrives at the service's port.
        addresses = ASTFIPGen(
            glob=ASTFIPGenGlobal(ip_offset="0.0.0.0"),
            dist_client=ASTFIPGenDist(ip_range=[CLIENT_FIRST, CLIENT_LAST], distribution="seq"),
            dist_server=ASTFIPGenDist(ip_range=[vip, vip], distribution="seq"),
        )
        template = ASTFTemplate(
            client_template=ASTFTCPClientTemplate(program=client, ip_gen=addresses, port=SERVICE_PORT, cps=1),
            server_template=ASTFTCPServerTemplate(program=server, assoc=ASTFAssociationRule(port=SERVICE_PORT)),
        )
        return ASTFProfile(default_ip_gen=addresses, templates=template)


def register():
    return Connections()
