/* SPDX-License-Identifier: Apache-2.0 */

/* Readers are an array: a thread gets one at its first call and gives it back when it ends (OVS
 * replaces its packet threads when its CPU mask changes).  Should there ever be more threads
 * than readers, the rest share the last one and count in it, with a full fence each time. */

#include "gate.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define READERS 256
#define SPINS 64 /* before the processor is offered to others */

const struct moat_engine_ops *gate_table;
__thread struct gate_reader *gate_self;

static struct gate_reader readers[READERS + 1] = {[READERS] = {.shared = 1}};
static const struct moat_engine_ops *closed_from;
static pthread_key_t key;
static bool has_key, can_close;

static int membarrier(int command)
{
    return (int)syscall(__NR_membarrier, command, 0, 0);
}

static void thread_ended(void *r_)
{
    struct gate_reader *r = r_;

    gate_self = NULL;
    __atomic_store_n(&r->in, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&r->used, 0, __ATOMIC_RELEASE);
}

bool gate_init(const struct moat_engine_ops *first)
{
    has_key = !pthread_key_create(&key, thread_ended);
    can_close = has_key && !membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
    __atomic_store_n(&gate_table, first, __ATOMIC_RELEASE);
    return can_close;
}

struct gate_reader *gate_reader_find(void)
{
    struct gate_reader *r = &readers[READERS];

    for (unsigned i = 0; has_key && i < READERS; i++) {
        uint32_t unused = 0;

        if (!__atomic_compare_exchange_n(&readers[i].used, &unused, 1, false, __ATOMIC_ACQ_REL,
                                         __ATOMIC_RELAXED))
            continue;
        if (!pthread_setspecific(key, &readers[i])) {
            r = &readers[i];
            break;
        }
        __atomic_store_n(&readers[i].used, 0, __ATOMIC_RELEASE);
        break;
    }
    gate_self = r;
    return r;
}

void gate_shared_in(struct gate_reader *r)
{
    __atomic_fetch_add(&r->in, 1, __ATOMIC_SEQ_CST);
}

void gate_shared_out(struct gate_reader *r)
{
    __atomic_fetch_sub(&r->in, 1, __ATOMIC_SEQ_CST);
}

void gate_wait(void)
{
    for (unsigned i = 0; !__atomic_load_n(&gate_table, __ATOMIC_ACQUIRE); i++) {
        if (i % SPINS == SPINS - 1)
            sched_yield();
        else
            __builtin_ia32_pause();
    }
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static bool anybody_in(void)
{
    for (unsigned i = 0; i <= READERS; i++)
        if (__atomic_load_n(&readers[i].in, __ATOMIC_ACQUIRE))
            return true;
    return false;
}

bool gate_close(uint32_t patience_us)
{
    uint64_t until = now_ns() + (uint64_t)patience_us * 1000;

    if (!can_close)
        return false;
    closed_from = __atomic_exchange_n(&gate_table, NULL, __ATOMIC_SEQ_CST);
    if (!membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)) {
        for (unsigned i = 0;; i++) {
            if (!anybody_in())
                return true;
            if (now_ns() >= until)
                break;
            if (i % SPINS == SPINS - 1)
                sched_yield(); /* the one who is in may want this processor */
            else
                __builtin_ia32_pause();
        }
    }
    gate_open(closed_from);
    return false;
}

void gate_open(const struct moat_engine_ops *table)
{
    __atomic_store_n(&gate_table, table, __ATOMIC_RELEASE);
}
