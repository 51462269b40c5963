/* A plug-in for qemu-user that counts the instructions and system calls of each thread of a program. The counts are in
 * a file, for others to map and read at any time: 256 threads, two numbers each.
 *
 * A block of code is counted when it is entered; only a signal or a fault leaves it early.
 * Debian 12 has no qemu-plugin.h, therefore the functions used are declared here. */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint64_t u64;
typedef struct qemu_plugin_tb block;

size_t qemu_plugin_tb_n_insns(const block *);
void qemu_plugin_register_vcpu_tb_trans_cb(u64 id, void (*)(u64 id, block *));
void qemu_plugin_register_vcpu_tb_exec_cb(block *, void (*)(unsigned thread, void *), int flags, void *);
void qemu_plugin_register_vcpu_syscall_cb(
    u64 id, void (*)(u64 id, unsigned thread, int64_t number, u64, u64, u64, u64, u64, u64, u64, u64));

int qemu_plugin_version = 1;

static struct { u64 instructions, calls; } *counts;
enum { THREADS = 256, CLOCK_GETTIME = 113 }; /* of arm64, where a kernel answers it without a call */

static void executed(unsigned thread, void *instructions)
{
    counts[thread % THREADS].instructions += (uintptr_t)instructions;
}

static void called(u64 id, unsigned thread, int64_t number, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f, u64 g, u64 h)
{
    counts[thread % THREADS].calls += number != CLOCK_GETTIME;
}

static void translated(u64 id, block *block)
{
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)qemu_plugin_tb_n_insns(block));
}

int qemu_plugin_install(u64 id, const void *about, int words, char **word)
{
    if (words != 1 || strncmp(word[0], "counts=", 7))
        return 1;
    int file = open(word[0] + 7, O_RDWR);
    counts = mmap(NULL, THREADS * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (counts == MAP_FAILED)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
