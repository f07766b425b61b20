/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/lib/stores.h"

#include <check.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define TRAP_FLAG 0x100
#define AROUND 64 /* bytes that one instruction may store to either side of where it faults */
#define LOG_MAX 65536

static uint8_t *range, *shadow;
static size_t range_size, faulted;
static struct store *all;
static size_t n_all;
static struct sigaction old_segv, old_trap;

static void on_store(int sig, siginfo_t *info, void *context)
{
    uint8_t *at = info->si_addr;
    ucontext_t *u = context;

    (void)sig;
    if (at < range || at >= range + range_size) { /* a crash of another kind: once more, for good */
        sigaction(SIGSEGV, &old_segv, NULL);
        return;
    }
    faulted = (size_t)(at - range);
    mprotect(range, range_size, PROT_READ | PROT_WRITE);
    u->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
}

static void on_stored(int sig, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    size_t from = faulted < AROUND ? 0 : faulted - AROUND;
    size_t to = faulted + 2 * AROUND < range_size ? faulted + 2 * AROUND : range_size;

    (void)sig;
    (void)info;
    u->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)TRAP_FLAG;
    mprotect(range, range_size, PROT_READ);
    while (from < to && range[from] == shadow[from])
        from++;
    while (from < to && range[to - 1] == shadow[to - 1])
        to--;
    if (from == to)
        return;
    if (n_all == LOG_MAX)
        abort();
    all[n_all].off = from;
    all[n_all].len = (uint32_t)(to - from);
    memcpy(all[n_all++].bytes, range + from, to - from);
    memcpy(shadow + from, range + from, to - from);
}

void stores_begin(void *base, size_t size)
{
    struct sigaction segv = {.sa_sigaction = on_store, .sa_flags = SA_SIGINFO};
    struct sigaction trap = {.sa_sigaction = on_stored, .sa_flags = SA_SIGINFO};

    if (!all)
        all = malloc(LOG_MAX * sizeof *all);
    shadow = malloc(size);
    ck_assert(all && shadow);
    memcpy(shadow, base, size);
    range = base;
    range_size = size;
    n_all = 0;
    sigaction(SIGSEGV, &segv, &old_segv);
    sigaction(SIGTRAP, &trap, &old_trap);
    ck_assert_int_eq(mprotect(range, range_size, PROT_READ), 0);
}

size_t stores_end(const struct store **log)
{
    ck_assert_int_eq(mprotect(range, range_size, PROT_READ | PROT_WRITE), 0);
    sigaction(SIGSEGV, &old_segv, NULL);
    sigaction(SIGTRAP, &old_trap, NULL);
    ck_assert_mem_eq(range, shadow, range_size); /* none was missed */
    free(shadow);
    *log = all;
    return n_all;
}
