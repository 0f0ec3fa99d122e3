/* Lets user-mode Linux 6.1 start on processors with AMX. Loaded into linux.uml by LD_PRELOAD.
 *
 * User-mode Linux keeps the extended registers of a process (XSAVE) in 2696 bytes, which suffice up to AVX-512 and protection
 * keys. Linux takes them back by PTRACE_SETREGSET only at their full size, about 11 KB with AMX, and otherwise answers EFAULT:
 * "ptrace set fp regs failed, errno = 14". So what is set here is what user-mode Linux knows, and zeros for the rest, which the
 * header of the area says is unused.
 * Source: linux arch/x86/um/user-offsets.c (HOST_XSTATE_SIZE), arch/x86/kernel/fpu/regset.c (xstateregs_set).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { LARGEST = 16384, XSTATE_BV = 512, TILES = 17 };

static long (*real)(int, pid_t, void *, void *);
static char registers[LARGEST] __attribute__((aligned(64)));

static size_t full_size(pid_t pid) {
    static size_t size;
    struct iovec all = {registers, sizeof registers};
    if (!size && real(PTRACE_GETREGSET, pid, (void *)NT_X86_XSTATE, &all) >= 0)
        size = all.iov_len;
    return size;
}

static long set_registers(pid_t pid, struct iovec *known) {
    struct iovec all = {registers, full_size(pid)};
    size_t size = known->iov_len < all.iov_len ? known->iov_len : all.iov_len;
    uint64_t used;
    memset(registers, 0, sizeof registers);
    memcpy(registers, known->iov_base, size);
    memcpy(&used, registers + XSTATE_BV, sizeof used);
    used &= ((uint64_t)1 << TILES) - 1;
    memcpy(registers + XSTATE_BV, &used, sizeof used);
    return real(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, &all);
}

long ptrace(enum __ptrace_request request, ...) {
    va_list rest;
    va_start(rest, request);
    pid_t pid = va_arg(rest, pid_t);
    void *address = va_arg(rest, void *), *data = va_arg(rest, void *);
    va_end(rest);
    if (!real)
        real = (long (*)(int, pid_t, void *, void *))dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && (intptr_t)address == NT_X86_XSTATE)
        return set_registers(pid, data);
    return real(request, pid, address, data);
}
