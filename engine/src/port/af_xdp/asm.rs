//! A small assembler for eBPF with labels (instruction set: kernel `Documentation/bpf/standardization`).

/// A register. `R0` is a call's result, `R1`–`R5` its arguments (lost by it), `R6`–`R9` survive calls, `FP` points
/// behind the stack.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reg {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R6 = 6,
    R7 = 7,
    R8 = 8,
    R9 = 9,
    Fp = 10,
}

/// Width of a memory access.
#[derive(Clone, Copy, Debug)]
pub(super) enum Width {
    Byte = 0x10,
    Half = 0x08,
    Word = 0x00,
    Double = 0x18,
}

/// 64-bit arithmetic.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Add = 0x00,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Move = 0xb0,
}

/// Unsigned 64-bit comparison.
#[derive(Clone, Copy, Debug)]
pub(super) enum If {
    Equal = 0x10,
    Above = 0x20,
    NotEqual = 0x50,
    Below = 0xa0,
    AtMost = 0xb0,
}

/// A place in the program, jumped to before or after it is bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label(usize);

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A program being written.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    instructions: Vec<Instruction>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

const CLASS_LOAD: u8 = 0x61;
const CLASS_STORE_IMMEDIATE: u8 = 0x62;
const CLASS_STORE: u8 = 0x63;
const CLASS_ALU64: u8 = 0x07;
const CLASS_JUMP: u8 = 0x05;
const SOURCE_REGISTER: u8 = 0x08;
const LOAD_DOUBLE_IMMEDIATE: u8 = 0x18;
const PSEUDO_MAP_FD: u8 = 1;
const TO_BIG_ENDIAN: u8 = 0xdc;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

impl Assembler {
    /// A label without a place yet.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label means the next instruction.
    pub(super) fn bind(&mut self, label: Label) {
        let place = self.labels[label.0].replace(self.instructions.len());
        assert!(place.is_none(), "a label is bound once");
    }

    /// `target = target op value`.
    pub(super) fn alu(&mut self, op: Op, target: Reg, value: i32) {
        self.push(CLASS_ALU64 | op as u8, target as u8, 0, value);
    }

    /// `target = target op source`.
    pub(super) fn alu_reg(&mut self, op: Op, target: Reg, source: Reg) {
        self.push(CLASS_ALU64 | SOURCE_REGISTER | op as u8, pair(target, source), 0, 0);
    }

    /// Turns the low 16 bits of `target` from the network's byte order to the machine's, and clears the rest.
    pub(super) fn swap_half(&mut self, target: Reg) {
        self.push(TO_BIG_ENDIAN, target as u8, 0, 16);
        // The verifier forgets the range at the swap.
        self.alu(Op::And, target, 0xffff);
    }

    /// `target = *(base + offset)`, zero-extended.
    pub(super) fn load(&mut self, width: Width, target: Reg, base: Reg, offset: i16) {
        self.push(CLASS_LOAD | width as u8, pair(target, base), offset, 0);
    }

    /// `*(base + offset) = source`.
    pub(super) fn store(&mut self, width: Width, base: Reg, offset: i16, source: Reg) {
        self.push(CLASS_STORE | width as u8, pair(base, source), offset, 0);
    }

    /// `*(base + offset) = value`, sign-extended.
    pub(super) fn store_value(&mut self, width: Width, base: Reg, offset: i16, value: i32) {
        self.push(CLASS_STORE_IMMEDIATE | width as u8, base as u8, offset, value);
    }

    /// `target` = the map with this descriptor.
    pub(super) fn load_map(&mut self, target: Reg, map: i32) {
        self.push(LOAD_DOUBLE_IMMEDIATE, target as u8 | PSEUDO_MAP_FD << 4, 0, map);
        self.push(0, 0, 0, 0);
    }

    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(CLASS_JUMP, 0, 0, 0);
    }

    pub(super) fn jump_if(&mut self, condition: If, left: Reg, right: i32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(CLASS_JUMP | condition as u8, left as u8, 0, right);
    }

    pub(super) fn jump_if_reg(&mut self, condition: If, left: Reg, right: Reg, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(CLASS_JUMP | SOURCE_REGISTER | condition as u8, pair(left, right), 0, 0);
    }

    /// Calls a kernel helper by its number in `linux/bpf.h`.
    pub(super) fn call(&mut self, helper: i32) {
        self.push(CALL, 0, 0, helper);
    }

    pub(super) fn exit(&mut self) {
        self.push(EXIT, 0, 0, 0);
    }

    /// The program with its jumps resolved. Panics on a label that was never bound.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        for (from, label) in self.jumps {
            let to = self.labels[label.0].expect("every label jumped to is bound");
            let distance = to as isize - from as isize - 1;
            self.instructions[from].offset = i16::try_from(distance).expect("a program is short");
        }
        self.instructions
    }

    fn push(&mut self, code: u8, registers: u8, offset: i16, immediate: i32) {
        self.instructions.push(Instruction { code, registers, offset, immediate });
    }
}

fn pair(target: Reg, source: Reg) -> u8 {
    target as u8 | (source as u8) << 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_resolve_forward_and_backward_and_encoding_is_the_kernels() {
        let mut asm = Assembler::default();
        let (start, end) = (asm.label(), asm.label());
        asm.bind(start);
        asm.jump_if(If::Equal, Reg::R1, 7, end);
        asm.load(Width::Half, Reg::R2, Reg::R7, 12);
        asm.store_value(Width::Double, Reg::Fp, -8, 3);
        asm.jump(start);
        asm.bind(end);
        asm.alu_reg(Op::Move, Reg::R1, Reg::R6);
        asm.exit();
        let bytes = |i: Instruction| (i.code, i.registers, i.offset, i.immediate);
        let program: Vec<_> = asm.finish().into_iter().map(bytes).collect();
        assert_eq!(
            program,
            [
                (0x15, 0x01, 3, 7),
                (0x69, 0x72, 12, 0),
                (0x7a, 0x0a, -8, 3),
                (0x05, 0x00, -4, 0),
                (0xbf, 0x61, 0, 0),
                (0x95, 0x00, 0, 0),
            ]
        );
    }

    #[test]
    #[should_panic(expected = "every label jumped to is bound")]
    fn a_jump_to_nowhere_is_refused() {
        let mut asm = Assembler::default();
        let nowhere = asm.label();
        asm.jump(nowhere);
        asm.finish();
    }
}
