"""The machine code of the guest's kernel module for watchers (guest.event_module), with its assembler text beside it,
since an image is built without a compiler. A test holds the one against the other.

It is one function, int set(const char *val, const struct kernel_param *kp), of linux/moduleparam.h. Its stack has two
struct path (mount, dentry) and a struct qstr (hash, length, name).
"""

from __future__ import annotations

from runvm.records import NamedTuple


class Code(NamedTuple):
    """For one architecture: its number in ELF files, the relocations for an address and for a call (elf(5), the
    processor's ELF supplement), what is added to a call's target, and bytes in hex with their text. *sections* are
    there for the kernel to fill."""

    machine: int
    address: int
    call: int
    addend: int
    lines: tuple[tuple[str, str], ...]
    sections: tuple[str, ...] = ()

    def assembled(self) -> tuple[bytes, list[tuple[int, str]]]:
        """The machine code, and where in it which functions are called."""
        text = bytearray()
        calls = []
        for code, source in self.lines:
            text += bytes.fromhex(code)
            if source.startswith(("call ", "bl ")):
                calls.append((len(text) - 4, source.split()[1]))
        return bytes(text), calls


AMD64 = Code(
    machine=62,
    address=1,  # R_X86_64_64
    call=4,  # R_X86_64_PLT32
    addend=-4,
    lines=(
        ("f30f1efa", "endbr64"),
        ("53", "push rbx"),
        ("4154", "push r12"),
        ("4155", "push r13"),
        ("4883ec38", "sub rsp, 56"),
        ("4889fb", "mov rbx, rdi"),
        ("31c0", "xor eax, eax"),
        ("48890424", "mov [rsp], rax"),
        ("4889442408", "mov [rsp+8], rax"),
        ("4889442410", "mov [rsp+16], rax"),
        ("4889442418", "mov [rsp+24], rax"),
        ("4531e4", "xor r12d, r12d"),
        ("4531ed", "xor r13d, r13d"),
        ("807b1000", "cmp byte ptr [rbx+16], 0"),
        ("7422", "je 1f"),
        ("488d7b10", "lea rdi, [rbx+16]"),
        ("be01000000", "mov esi, 1"),
        ("4889e2", "mov rdx, rsp"),
        ("e800000000", "call kern_path"),
        ("85c0", "test eax, eax"),
        ("0f858d000000", "jne 4f"),
        ("488b442408", "mov rax, [rsp+8]"),
        ("4c8b6030", "mov r12, [rax+48]"),
        ("807b3000", "1: cmp byte ptr [rbx+48], 0"),
        ("7420", "je 2f"),
        ("488d7b30", "lea rdi, [rbx+48]"),
        ("be01000000", "mov esi, 1"),
        ("488d542410", "lea rdx, [rsp+16]"),
        ("e800000000", "call kern_path"),
        ("85c0", "test eax, eax"),
        ("7567", "jne 4f"),
        ("488b442418", "mov rax, [rsp+24]"),
        ("4c8b6830", "mov r13, [rax+48]"),
        ("b8eaffffff", "2: mov eax, -22"),
        ("817b08ff000000", "cmp dword ptr [rbx+8], 255"),
        ("7750", "ja 4f"),
        ("488d4350", "lea rax, [rbx+80]"),
        ("4889442428", "mov [rsp+40], rax"),
        ("8b4308", "mov eax, [rbx+8]"),
        ("48c1e020", "shl rax, 32"),
        ("4889442420", "mov [rsp+32], rax"),
        ("4c8d442420", "lea r8, [rsp+32]"),
        ("7503", "jne 3f"),
        ("4531c0", "xor r8d, r8d"),
        ("4c89ee", "3: mov rsi, r13"),
        ("4885f6", "test rsi, rsi"),
        ("490f44f4", "cmove rsi, r12"),
        ("4885f6", "test rsi, rsi"),
        ("b8eaffffff", "mov eax, -22"),
        ("741d", "je 4f"),
        ("8b3b", "mov edi, [rbx]"),
        ("ba02000000", "mov edx, 2"),
        ("4c89e1", "mov rcx, r12"),
        ("4d89e9", "mov r9, r13"),
        ("8b4304", "mov eax, [rbx+4]"),
        ("50", "push rax"),
        ("50", "push rax"),
        ("e800000000", "call fsnotify"),
        ("4883c410", "add rsp, 16"),
        ("31c0", "xor eax, eax"),
        ("89c3", "4: mov ebx, eax"),
        ("4889e7", "mov rdi, rsp"),
        ("e800000000", "call path_put"),
        ("488d7c2410", "lea rdi, [rsp+16]"),
        ("e800000000", "call path_put"),
        ("89d8", "mov eax, ebx"),
        ("4883c438", "add rsp, 56"),
        ("415d", "pop r13"),
        ("415c", "pop r12"),
        ("5b", "pop rbx"),
        ("c3", "ret"),
    ),
)
ARM64 = Code(
    machine=183,
    address=257,  # R_AARCH64_ABS64
    call=283,  # R_AARCH64_CALL26
    addend=0,
    lines=(
        ("5f2403d5", "hint #34"),
        ("fd7bbaa9", "stp x29, x30, [sp, -96]!"),
        ("fd030091", "mov x29, sp"),
        ("f35301a9", "stp x19, x20, [sp, 16]"),
        ("f55b02a9", "stp x21, x22, [sp, 32]"),
        ("f30300aa", "mov x19, x0"),
        ("ff7f03a9", "stp xzr, xzr, [sp, 48]"),
        ("ff7f04a9", "stp xzr, xzr, [sp, 64]"),
        ("f4031faa", "mov x20, xzr"),
        ("f5031faa", "mov x21, xzr"),
        ("60424039", "ldrb w0, [x19, 16]"),
        ("00010034", "cbz w0, 1f"),
        ("60420091", "add x0, x19, 16"),
        ("21008052", "mov w1, 1"),
        ("e2c30091", "add x2, sp, 48"),
        ("00000094", "bl kern_path"),
        ("00040035", "cbnz w0, 4f"),
        ("e01f40f9", "ldr x0, [sp, 56]"),
        ("141840f9", "ldr x20, [x0, 48]"),
        ("60c24039", "1: ldrb w0, [x19, 48]"),
        ("00010034", "cbz w0, 2f"),
        ("60c20091", "add x0, x19, 48"),
        ("21008052", "mov w1, 1"),
        ("e2030191", "add x2, sp, 64"),
        ("00000094", "bl kern_path"),
        ("e0020035", "cbnz w0, 4f"),
        ("e02740f9", "ldr x0, [sp, 72]"),
        ("151840f9", "ldr x21, [x0, 48]"),
        ("a0028012", "2: mov w0, -22"),
        ("610a40b9", "ldr w1, [x19, 8]"),
        ("3ffc0371", "cmp w1, 255"),
        ("28020054", "b.hi 4f"),
        ("227c60d3", "lsl x2, x1, 32"),
        ("63420191", "add x3, x19, 80"),
        ("e20f05a9", "stp x2, x3, [sp, 80]"),
        ("e4430191", "add x4, sp, 80"),
        ("3f000071", "cmp w1, 0"),
        ("84109f9a", "csel x4, x4, xzr, ne"),
        ("bf0200f1", "cmp x21, 0"),
        ("a112949a", "csel x1, x21, x20, ne"),
        ("010100b4", "cbz x1, 4f"),
        ("600240b9", "ldr w0, [x19]"),
        ("42008052", "mov w2, 2"),
        ("e30314aa", "mov x3, x20"),
        ("e50315aa", "mov x5, x21"),
        ("660640b9", "ldr w6, [x19, 4]"),
        ("00000094", "bl fsnotify"),
        ("e0031f2a", "mov w0, wzr"),
        ("f603002a", "4: mov w22, w0"),
        ("e0c30091", "add x0, sp, 48"),
        ("00000094", "bl path_put"),
        ("e0030191", "add x0, sp, 64"),
        ("00000094", "bl path_put"),
        ("e003162a", "mov w0, w22"),
        ("f55b42a9", "ldp x21, x22, [sp, 32]"),
        ("f35341a9", "ldp x19, x20, [sp, 16]"),
        ("fd7bc6a8", "ldp x29, x30, [sp], 96"),
        ("c0035fd6", "ret"),
    ),
    # jumps to functions too far away for a call, and to tracers: module_frob_arch_sections(), module_finalize()
    sections=(".plt", ".init.plt", ".text.ftrace_trampoline", ".init.text.ftrace_trampoline"),
)
BY_MACHINE = {code.machine: code for code in (AMD64, ARM64)}
