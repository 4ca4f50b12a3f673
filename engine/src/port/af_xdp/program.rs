//! The XDP program: which frames go to the sockets and which pass to the kernel.
//!
//! It decides as [`crate::steer::RuleSet::takes`] does, which says it in Rust and is the better place to read first.
//! Lengths that reach beyond the frame are not its business: whoever receives the frame looks at them.

use super::asm::{Assembler, If, Instruction, Label, Op, Reg, Width};
use crate::steer::HEADERS_MAX;

/// What happens to a frame that matches but comes in by a queue without a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutSocket {
    /// It passes to the kernel. For interfaces.
    Pass = 2,
    /// It is sent back where it came from. For programs without an interface, run over a frame by
    /// [`super::Filter::test_run`]: with no socket in the map this is what tells a match from a pass.
    Bounce = 3,
}

/// Descriptors of the maps the program looks into.
#[derive(Clone, Copy, Debug)]
pub(super) struct MapFds {
    pub(super) macs: i32,
    pub(super) destinations: i32,
    pub(super) sources: i32,
    pub(super) port_sets: i32,
    pub(super) sockets: i32,
}

/// Key of the address tries: bits that count, then family, then address (IPv4 in its first four bytes).
pub(super) const KEY_LEN: usize = 24;
/// Bits of the key in front of the address.
pub(super) const FAMILY_BITS: u32 = 32;
pub(super) const FAMILY_IPV4: u32 = 4;
pub(super) const FAMILY_IPV6: u32 = 6;

/// A set of ports: one bit per TCP port, then one per UDP port.
pub(super) const PORT_SET_LEN: usize = 2 * UDP_BITS as usize;
/// Where the bits of UDP ports begin, in bytes.
pub(super) const UDP_BITS: i32 = 8192;

/// Protocol numbers of tunnels (RFC 2003, RFC 2473).
const IPIP: i32 = 4;
const IPV6: i32 = 41;

/// Bytes between an ICMP error's start and the packet it quotes.
const ICMP_HEADER: i32 = 8;

/// Numbers of IPv6 extension headers (RFC 8200 §4, RFC 4302).
const HOP_BY_HOP: i32 = 0;
const ROUTING: i32 = 43;
const FRAGMENT: i32 = 44;
const AUTHENTICATION: i32 = 51;
const DESTINATION: i32 = 60;
const EXTENSIONS: [i32; 5] = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION];

const PASS: i32 = WithoutSocket::Pass as i32;
const CALL_MAP_LOOKUP: i32 = 1;
const CALL_REDIRECT_MAP: i32 = 51;

const CONTEXT_DATA: i16 = 0;
const CONTEXT_DATA_END: i16 = 4;
const CONTEXT_RX_QUEUE: i16 = 16;

const STACK_MAC: i16 = -8;
const STACK_DESTINATION: i16 = -32;
const STACK_SOURCE: i16 = -56;
const STACK_INDEX: i16 = -64;
const STACK_CONTEXT: i16 = -72;
/// Offset of family and address in a key.
const KEY_FAMILY: i16 = 4;
const KEY_ADDRESS: i16 = 8;

/// Where the parts of the program meet.
struct Program {
    asm: Assembler,
    maps: MapFds,
    /// Not ours.
    pass: Label,
    /// Ours.
    redirect: Label,
    /// The addresses alone decide. Keys are on the stack.
    by_address: Label,
    /// Protocol in R1, layer-4 header at R7, end of frame in R8. Keys are on the stack.
    layer4: Label,
    /// The same for the packet that an ICMP error quotes; its destination is the source key.
    quoted: Label,
}

/// Writes the program.
pub(super) fn steering(maps: MapFds, without_socket: WithoutSocket) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    let [pass, redirect, by_address, layer4, quoted] = std::array::from_fn(|_| asm.label());
    let mut program = Program { asm, maps, pass, redirect, by_address, layer4, quoted };
    program.ethernet();
    program.ipv4();
    program.ipv6();
    program.layer4();
    program.by_address();
    program.finish(without_socket)
}

impl Program {
    /// Leaves the layer-3 header at R9, the ethertype in R1, the end of the frame in R8, and jumps to IPv6.
    fn ethernet(&mut self) {
        use Reg::*;
        let layer3 = self.asm.label();
        let asm = &mut self.asm;
        asm.store(Width::Double, Fp, STACK_CONTEXT, R1);
        asm.load(Width::Word, R7, R1, CONTEXT_DATA);
        asm.load(Width::Word, R8, R1, CONTEXT_DATA_END);
        self.need(R7, 14);
        let asm = &mut self.asm;
        asm.load(Width::Word, R1, R7, 0);
        asm.store(Width::Word, Fp, STACK_MAC, R1);
        asm.load(Width::Half, R1, R7, 4);
        asm.store(Width::Word, Fp, STACK_MAC + 4, R1);
        self.look_up(self.maps.macs, STACK_MAC);
        let asm = &mut self.asm;
        asm.jump_if(If::Equal, R0, 0, self.pass);
        asm.alu_reg(Op::Move, R9, R7);
        asm.alu(Op::Add, R9, 14);
        asm.load(Width::Half, R1, R7, 12);
        asm.jump_if(If::NotEqual, R1, network_half(0x8100), layer3);
        self.need(R7, 18);
        let asm = &mut self.asm;
        asm.load(Width::Half, R1, R7, 16);
        asm.alu(Op::Add, R9, 4);
        asm.bind(layer3);
    }

    fn ipv4(&mut self) {
        use Reg::*;
        let [ipv6, icmp, error, tunnel] = std::array::from_fn(|_| self.asm.label());
        self.asm.jump_if(If::NotEqual, R1, network_half(0x0800), ipv6);
        self.need(R9, 20);
        let asm = &mut self.asm;
        asm.load(Width::Byte, R1, R9, 0);
        asm.alu_reg(Op::Move, R2, R1);
        asm.alu(Op::ShiftRight, R2, 4);
        asm.jump_if(If::NotEqual, R2, 4, self.pass);
        asm.alu(Op::And, R1, 0x0f);
        asm.jump_if(If::Below, R1, 5, self.pass);
        asm.alu(Op::ShiftLeft, R1, 2);
        asm.alu_reg(Op::Move, R7, R9);
        asm.alu_reg(Op::Add, R7, R1);
        asm.jump_if_reg(If::Above, R7, R8, self.pass);
        for (key, address) in [(STACK_DESTINATION, 16), (STACK_SOURCE, 12)] {
            asm.store_value(Width::Word, Fp, key, FAMILY_BITS as i32 + 32);
            asm.store_value(Width::Word, Fp, key + KEY_FAMILY, FAMILY_IPV4 as i32);
            asm.load(Width::Word, R1, R9, address);
            asm.store(Width::Word, Fp, key + KEY_ADDRESS, R1);
            asm.store_value(Width::Word, Fp, key + KEY_ADDRESS + 4, 0);
            asm.store_value(Width::Double, Fp, key + KEY_ADDRESS + 8, 0);
        }
        asm.load(Width::Half, R1, R9, 6);
        asm.alu(Op::And, R1, network_half(0x1fff));
        asm.jump_if(If::NotEqual, R1, 0, self.by_address);
        asm.load(Width::Byte, R1, R9, 9);
        asm.jump_if(If::Equal, R1, 1, icmp);
        asm.jump(self.layer4);

        asm.bind(icmp);
        self.need(R7, 1);
        let asm = &mut self.asm;
        asm.load(Width::Byte, R1, R7, 0);
        for kind in [3, 4, 11, 12] {
            asm.jump_if(If::Equal, R1, kind, error);
        }
        asm.jump(self.pass);

        asm.bind(error);
        self.addresses();
        self.quoted_ipv4(ICMP_HEADER, &[(STACK_SOURCE, 16)]);
        self.asm.jump_if(If::Equal, R1, IPIP, tunnel);
        self.asm.jump(self.quoted);
        self.asm.bind(tunnel);
        self.quoted_ipv4(0, &[(STACK_DESTINATION, 16), (STACK_SOURCE, 12)]);
        self.asm.jump(self.layer4);
        self.asm.bind(ipv6);
    }

    /// Reads a quoted IPv4 header that begins `at` bytes behind R7: its addresses into keys, its protocol into R1. Leaves
    /// R7 behind it.
    fn quoted_ipv4(&mut self, at: i32, addresses: &[(i16, i16)]) {
        use Reg::*;
        self.need(R7, at + 20);
        let asm = &mut self.asm;
        asm.load(Width::Half, R2, R7, at as i16 + 6);
        asm.alu(Op::And, R2, network_half(0x1fff));
        asm.jump_if(If::NotEqual, R2, 0, self.pass);
        for &(key, address) in addresses {
            asm.load(Width::Word, R2, R7, at as i16 + address);
            asm.store(Width::Word, Fp, key + KEY_ADDRESS, R2);
        }
        asm.load(Width::Byte, R3, R7, at as i16);
        asm.load(Width::Byte, R1, R7, at as i16 + 9);
        asm.alu_reg(Op::Move, R2, R3);
        asm.alu(Op::ShiftRight, R2, 4);
        asm.jump_if(If::NotEqual, R2, 4, self.pass);
        asm.alu(Op::And, R3, 0x0f);
        asm.jump_if(If::Below, R3, 5, self.pass);
        asm.alu(Op::ShiftLeft, R3, 2);
        asm.alu(Op::Add, R7, at);
        asm.alu_reg(Op::Add, R7, R3);
    }

    fn ipv6(&mut self) {
        use Reg::*;
        let ([icmp, error, tunnel], pass) = (std::array::from_fn(|_| self.asm.label()), self.pass);
        self.asm.jump_if(If::NotEqual, R1, network_half(0x86dd), pass);
        self.need(R9, 40);
        let asm = &mut self.asm;
        asm.load(Width::Byte, R1, R9, 0);
        asm.alu(Op::ShiftRight, R1, 4);
        asm.jump_if(If::NotEqual, R1, 6, pass);
        for (key, address) in [(STACK_DESTINATION, 24), (STACK_SOURCE, 8)] {
            asm.store_value(Width::Word, Fp, key, FAMILY_BITS as i32 + 128);
            asm.store_value(Width::Word, Fp, key + KEY_FAMILY, FAMILY_IPV6 as i32);
            for part in [0, 8] {
                asm.load(Width::Double, R1, R9, address + part);
                asm.store(Width::Double, Fp, key + KEY_ADDRESS + part, R1);
            }
        }
        asm.alu_reg(Op::Move, R7, R9);
        asm.alu(Op::Add, R7, 40);
        asm.load(Width::Byte, R1, R9, 6);
        let behind = self.asm.label();
        for _ in 0..HEADERS_MAX {
            self.extension(behind);
        }
        let asm = &mut self.asm;
        for number in EXTENSIONS {
            asm.jump_if(If::Equal, R1, number, self.by_address);
        }
        asm.bind(behind);
        asm.jump_if(If::Equal, R1, 58, icmp);
        asm.jump(self.layer4);

        asm.bind(icmp);
        self.need(R7, 1);
        let asm = &mut self.asm;
        asm.load(Width::Byte, R1, R7, 0);
        asm.jump_if(If::Equal, R1, 0, pass);
        asm.jump_if(If::AtMost, R1, 4, error);
        asm.jump(pass);

        asm.bind(error);
        self.addresses();
        self.quoted_ipv6(ICMP_HEADER, &[(STACK_SOURCE, 24)]);
        self.asm.jump_if(If::Equal, R1, IPV6, tunnel);
        self.asm.jump(self.quoted);
        self.asm.bind(tunnel);
        self.quoted_ipv6(0, &[(STACK_DESTINATION, 24), (STACK_SOURCE, 8)]);
        self.asm.jump(self.layer4);
    }

    /// As [`Self::quoted_ipv4`], for IPv6.
    fn quoted_ipv6(&mut self, at: i32, addresses: &[(i16, i16)]) {
        use Reg::*;
        self.need(R7, at + 40);
        let asm = &mut self.asm;
        asm.load(Width::Byte, R1, R7, at as i16);
        asm.alu(Op::ShiftRight, R1, 4);
        asm.jump_if(If::NotEqual, R1, 6, self.pass);
        for &(key, address) in addresses {
            for part in [0, 8] {
                asm.load(Width::Double, R1, R7, at as i16 + address + part);
                asm.store(Width::Double, Fp, key + KEY_ADDRESS + part, R1);
            }
        }
        asm.load(Width::Byte, R1, R7, at as i16 + 6);
        asm.alu(Op::Add, R7, at + 40);
    }

    /// Steps over the extension header at R7, whose number is in R1, or jumps to `behind` when it is none.
    fn extension(&mut self, behind: Label) {
        use Reg::*;
        let [options, routing, fragment, authentication, step] = std::array::from_fn(|_| self.asm.label());
        let asm = &mut self.asm;
        asm.jump_if(If::Equal, R1, HOP_BY_HOP, options);
        asm.jump_if(If::Equal, R1, DESTINATION, options);
        asm.jump_if(If::Equal, R1, ROUTING, routing);
        asm.jump_if(If::Equal, R1, FRAGMENT, fragment);
        asm.jump_if(If::Equal, R1, AUTHENTICATION, authentication);
        asm.jump(behind);

        asm.bind(fragment);
        self.need(R7, 8);
        let asm = &mut self.asm;
        asm.load(Width::Half, R3, R7, 2);
        asm.alu(Op::And, R3, network_half(0xfff8));
        asm.jump_if(If::NotEqual, R3, 0, self.by_address);
        asm.alu(Op::Move, R3, 8);
        asm.jump(step);

        asm.bind(authentication);
        self.need(R7, 8);
        let asm = &mut self.asm;
        asm.load(Width::Byte, R3, R7, 1);
        asm.alu(Op::Add, R3, 2);
        asm.alu(Op::ShiftLeft, R3, 2);
        asm.jump(step);

        asm.bind(routing);
        self.need(R7, 8);
        let asm = &mut self.asm;
        // Segments left.
        asm.load(Width::Byte, R3, R7, 3);
        asm.jump_if(If::NotEqual, R3, 0, self.pass);
        asm.bind(options);
        self.need(R7, 8);
        let asm = &mut self.asm;
        asm.load(Width::Byte, R3, R7, 1);
        asm.alu(Op::Add, R3, 1);
        asm.alu(Op::ShiftLeft, R3, 3);

        asm.bind(step);
        asm.load(Width::Byte, R1, R7, 0);
        asm.alu_reg(Op::Add, R7, R3);
        asm.jump_if_reg(If::Above, R7, R8, self.pass);
    }

    /// TCP and UDP: the port's bit decides.
    fn layer4(&mut self) {
        use Reg::*;
        let by_source = self.asm.label();
        self.asm.bind(self.quoted);
        self.protocol();
        let asm = &mut self.asm;
        asm.load(Width::Half, R9, R7, 2);
        asm.swap_half(R9);
        asm.jump(by_source);
        asm.bind(self.layer4);
        self.protocol();
        let asm = &mut self.asm;
        asm.load(Width::Half, R9, R7, 0);
        asm.swap_half(R9);
        asm.load(Width::Half, R8, R7, 2);
        asm.swap_half(R8);
        self.look_up_port(self.maps.destinations, STACK_DESTINATION, R8, by_source);
        self.asm.bind(by_source);
        let pass = self.pass;
        self.look_up_port(self.maps.sources, STACK_SOURCE, R9, pass);
        self.asm.jump(pass);
    }

    /// Passes what is neither TCP nor UDP or has no ports, and leaves in R6 where the protocol's ports begin in a set.
    fn protocol(&mut self) {
        use Reg::*;
        let (udp, ports) = (self.asm.label(), self.asm.label());
        let asm = &mut self.asm;
        asm.jump_if(If::Equal, R1, 17, udp);
        asm.jump_if(If::NotEqual, R1, 6, self.pass);
        asm.alu(Op::Move, R6, 0);
        asm.jump(ports);
        asm.bind(udp);
        asm.alu(Op::Move, R6, UDP_BITS);
        asm.bind(ports);
        self.need(R7, 4);
    }

    /// Redirects when the bit of `port` is set in the port set of the address in `key`; jumps to `missing` when the
    /// address has none.
    fn look_up_port(&mut self, trie: i32, key: i16, port: Reg, missing: Label) {
        use Reg::*;
        self.look_up(trie, key);
        let asm = &mut self.asm;
        asm.jump_if(If::Equal, R0, 0, missing);
        asm.load(Width::Word, R1, R0, 0);
        asm.store(Width::Word, Fp, STACK_INDEX, R1);
        self.look_up(self.maps.port_sets, STACK_INDEX);
        let asm = &mut self.asm;
        asm.jump_if(If::Equal, R0, 0, missing);
        asm.alu_reg(Op::Move, R1, port);
        asm.alu(Op::ShiftRight, R1, 3);
        asm.alu_reg(Op::Add, R1, R6);
        asm.alu_reg(Op::Add, R0, R1);
        asm.load(Width::Byte, R1, R0, 0);
        asm.alu_reg(Op::Move, R2, port);
        asm.alu(Op::And, R2, 7);
        asm.alu_reg(Op::ShiftRight, R1, R2);
        asm.alu(Op::And, R1, 1);
        asm.jump_if(If::NotEqual, R1, 0, self.redirect);
    }

    /// Fragments: an address that any rule names is enough. Falls through to `pass`.
    fn by_address(&mut self) {
        self.asm.bind(self.by_address);
        self.addresses();
    }

    /// Redirects when any rule names an address.
    fn addresses(&mut self) {
        for (trie, key) in [(self.maps.destinations, STACK_DESTINATION), (self.maps.sources, STACK_SOURCE)] {
            self.look_up(trie, key);
            self.asm.jump_if(If::NotEqual, Reg::R0, 0, self.redirect);
        }
    }

    /// Falls through to `pass`.
    fn finish(mut self, without_socket: WithoutSocket) -> Vec<Instruction> {
        use Reg::*;
        let asm = &mut self.asm;
        asm.bind(self.pass);
        asm.alu(Op::Move, R0, PASS);
        asm.exit();
        asm.bind(self.redirect);
        asm.load(Width::Double, R1, Fp, STACK_CONTEXT);
        asm.load(Width::Word, R2, R1, CONTEXT_RX_QUEUE);
        asm.load_map(R1, self.maps.sockets);
        asm.alu(Op::Move, R3, without_socket as i32);
        asm.call(CALL_REDIRECT_MAP);
        asm.exit();
        self.asm.finish()
    }

    /// R0 = pointer to the value of the key on the stack, or 0.
    fn look_up(&mut self, map: i32, key: i16) {
        self.asm.load_map(Reg::R1, map);
        self.asm.alu_reg(Op::Move, Reg::R2, Reg::Fp);
        self.asm.alu(Op::Add, Reg::R2, i32::from(key));
        self.asm.call(CALL_MAP_LOOKUP);
    }

    /// Passes frames that end before `len` bytes from `at`.
    fn need(&mut self, at: Reg, len: i32) {
        self.asm.alu_reg(Op::Move, Reg::R2, at);
        self.asm.alu(Op::Add, Reg::R2, len);
        self.asm.jump_if_reg(If::Above, Reg::R2, Reg::R8, self.pass);
    }
}

/// A 16-bit value as a plain load from a packet shows it.
const fn network_half(value: u16) -> i32 {
    value.to_be() as i32
}
