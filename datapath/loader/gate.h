/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_LOADER_GATE_H
#define MOAT_LOADER_GATE_H 1

/* Which table of functions packets go to, and how it is changed while they do.
 *
 * A packet thread says "I am in", reads the table's address, calls, and says that it has left: two
 * stores to a line of its own, no fence.  Who changes the table closes the gate (the address is
 * none), makes all other processors of this process pass a full barrier, membarrier(2), and
 * then waits until nobody is in:
 *
 *   packet thread                 exchange
 *   in = 1                        table = NULL
 *   (compiler's order)            membarrier
 *   read table                    read in
 *
 * Whoever's "in" the exchange does not see has yet to read the table, and finds the gate closed.
 * (The scheme is that of liburcu's membarrier flavour; Desnoyers et al., "User-Level
 * Implementations of Read-Copy Update", 2012.)
 *
 * Threads: enter, leave and wait by any, also such as come and go; close and open by one at a
 * time. */

#include <stdbool.h>
#include <stdint.h>

struct moat_engine_ops;

struct gate_reader {
    uint32_t in;     /* atomic; written by the reader's thread alone */
    uint32_t used;   /* atomic: belongs to a thread */
    uint32_t shared; /* belongs to all that found no other: `in` is their number */
    uint8_t pad[52];
} __attribute__((aligned(64)));

extern const struct moat_engine_ops *gate_table; /* atomic; NULL: closed */

/* Can the gate be closed at all?  False: this kernel has no membarrier(2). */
bool gate_init(const struct moat_engine_ops *first);

/* The calling thread's reader, found or made. */
struct gate_reader *gate_reader_find(void);
void gate_shared_in(struct gate_reader *);
void gate_shared_out(struct gate_reader *);

extern __thread struct gate_reader *gate_self __attribute__((tls_model("initial-exec")));

/* The table, or NULL: closed just now, do not stay.  Then gate_leave() in any case. */
static inline const struct moat_engine_ops *gate_enter(struct gate_reader **r)
{
    *r = gate_self;
    if (__builtin_expect(!*r, 0))
        *r = gate_reader_find();
    if (__builtin_expect((*r)->shared, 0))
        gate_shared_in(*r);
    else
        __atomic_store_n(&(*r)->in, 1, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&gate_table, __ATOMIC_ACQUIRE);
}

static inline void gate_leave(struct gate_reader *r)
{
    if (__builtin_expect(r->shared, 0))
        gate_shared_out(r);
    else
        __atomic_store_n(&r->in, 0, __ATOMIC_RELEASE);
}

/* Outside: until it is open again.  Gives the processor away meanwhile, if somebody wants it. */
void gate_wait(void);

/* Closes, and waits for those who are in, no longer than patience_us.  False: one of them did not
 * come out (it was not running, most likely), and the gate is open again as before. */
bool gate_close(uint32_t patience_us);

/* Opens it to this table. */
void gate_open(const struct moat_engine_ops *);

#endif /* datapath/loader/gate.h */
