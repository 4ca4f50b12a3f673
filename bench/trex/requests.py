"""Requests of many UDP clients to a service of shunt in one mode, stateless (STL): for packet rates.

How to wire it, what to start first and how to read the result: docs/benchmarking.md.

    trex>start -f bench/trex/requests.py -p 0 -m 1mpps -t --mode dr --flows 10000

Port 0 sends the requests, port 1 counts what arrives. In NAT port 1 can send the answers, too (-p 0 1): where they go
follows from the requests, as the service has one server. In FULLNAT nobody knows, for shunt chooses a local port for every
flow; in DR and TUN answers do not pass the director.
"""
import argparse

from trex_stl_lib.api import (
    IP, UDP, Ether, STLPktBuilder, STLScVmRaw, STLStream, STLTXCont, STLVmFixIpv4, STLVmTupleGen, STLVmWrFlowVar,
)

# As in configs/benchmark.toml.
VIPS = {"fullnat": "203.0.113.10", "nat": "203.0.113.20", "dr": "203.0.113.30", "tun": "203.0.113.40"}
SERVICE_PORT = 9000
SERVER = "198.19.0.11"
CLIENT_FIRST = "198.18.0.1"
CLIENT_LAST = "198.18.255.254"
CLIENT_PORT_FIRST = 1024
CLIENT_PORT_LAST = 65535


class Requests:
    def get_streams(self, direction, tunables, **kwargs):
        parser = argparse.ArgumentParser(description="Requests to shunt")
        parser.add_argument("--mode", choices=sorted(VIPS), default="fullnat", help="which service is called")
        parser.add_argument("--flows", type=int, default=10_000, help="so many pairs of client address and port")
        parser.add_argument("--size", type=int, default=64, help="bytes of a frame, with the 4 of the FCS")
        args = parser.parse_args(tunables)
        if direction == 1 and args.mode != "nat":
            raise ValueError("port 1 has something to send in NAT only: there it knows where the answers go")
        return [self.stream(args, answers=direction == 1)]

    def stream(self, args, answers):
        if answers:
            addresses = IP(src=SERVER, dst=CLIENT_FIRST)
            ports = UDP(sport=SERVICE_PORT, dport=CLIENT_PORT_FIRST, chksum=0)
            client = {"tuple.ip": "IP.dst", "tuple.port": "UDP.dport"}
        else:
            addresses = IP(src=CLIENT_FIRST, dst=VIPS[args.mode])
            ports = UDP(sport=CLIENT_PORT_FIRST, dport=SERVICE_PORT, chksum=0)
            client = {"tuple.ip": "IP.src", "tuple.port": "UDP.sport"}
        # A UDP checksum of 0 says that there is none: the generator has less to do, and shunt keeps it.
        packet = Ether() / addresses / ports
        packet = packet / ("x" * max(0, args.size - 4 - len(packet)))
        flows = STLVmTupleGen(
            name="tuple",
            ip_min=CLIENT_FIRST,
            ip_max=CLIENT_LAST,
            port_min=CLIENT_PORT_FIRST,
            port_max=CLIENT_PORT_LAST,
            limit_flows=args.flows,
        )
        writes = [STLVmWrFlowVar(fv_name=name, pkt_offset=field) for name, field in client.items()]
        vm = STLScVmRaw([flows, *writes, STLVmFixIpv4(offset="IP")])
        return STLStream(packet=STLPktBuilder(pkt=packet, vm=vm), mode=STLTXCont(pps=1))


def register():
    return Requests()
