/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_QSBR_H
#define MOAT_DP_QSBR_H 1

/* Quiescent-state based reclamation for threads that are not ours.
 *
 * Packet threads bracket each burst with enter and leave; whoever wants to free
 * something that a packet thread may still hold unlinks it, takes a token and frees
 * it once the token has passed.  Packet threads never wait.  Tracked per operating
 * system thread, never by lcore id: OVS's own threads send to VMs too.
 * (Desnoyers et al., "User-Level Implementations of Read-Copy Update", 2012.) */

#include <stdbool.h>
#include <stdint.h>

#define MOAT_QSBR_MAX_THREADS 256

struct moat_qsbr_reader {
    uint64_t epoch; /* 0: outside of a burst */
    uint32_t used;
    uint8_t pad[52];
} __attribute__((aligned(64)));

struct moat_qsbr {
    uint64_t epoch __attribute__((aligned(64)));
    struct moat_qsbr_reader readers[MOAT_QSBR_MAX_THREADS];
};

void moat_qsbr_init(struct moat_qsbr *);

/* A reader for the calling thread, or NULL if there are too many. */
struct moat_qsbr_reader *moat_qsbr_attach(struct moat_qsbr *);
void moat_qsbr_detach(struct moat_qsbr_reader *);

static inline void moat_qsbr_enter(struct moat_qsbr *q, struct moat_qsbr_reader *r)
{
    /* The exchange is the full fence between "I am in" and the first pointer read. */
    __atomic_exchange_n(&r->epoch, __atomic_load_n(&q->epoch, __ATOMIC_ACQUIRE), __ATOMIC_SEQ_CST);
}

static inline void moat_qsbr_leave(struct moat_qsbr_reader *r)
{
    __atomic_store_n(&r->epoch, 0, __ATOMIC_RELEASE);
}

/* Everything unlinked before this call may be freed when the token has passed. */
uint64_t moat_qsbr_token(struct moat_qsbr *);
bool moat_qsbr_passed(struct moat_qsbr *, uint64_t token);

/* Waits until all readers have left what they were in.  Never from a reader. */
void moat_qsbr_synchronize(struct moat_qsbr *);

#endif /* datapath/qsbr.h */
