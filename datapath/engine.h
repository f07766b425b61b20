/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_ENGINE_H
#define MOAT_DP_ENGINE_H 1

/* The filter core as one object: mapping, session table, slots, events.
 *
 * It knows nothing of vhost, mbufs or sockets: the hook (hook.c), the control
 * socket (ctl.c), the tests and the offline replay all drive it through these
 * calls.
 *
 * Threads: packet threads call moat_thread_self(), moat_pipe_burst() and
 * moat_port_holds().  The life-cycle calls of slot.h may come from any other
 * thread; they are serialised by the engine's lock.  moat_engine_turn() belongs to
 * the control thread. */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "moat/counters.h"
#include "moat/ctl.h"

#include "event.h"
#include "mapping.h"
#include "qsbr.h"
#include "session.h"

struct moat_fragments;
struct moat_port;
struct moat_slot;
struct moat_trace;

/* Sends a frame beside the burst: an answer to a refused packet, or a fragment that waited for
 * the first one.  MOAT_TO_VM: the VM behind the port gets it, past its slot.
 * MOAT_FROM_VM: the switch gets it, as if the VM had sent it.  Copies; may drop it when there is no
 * room.  Packet threads, within a burst. */
typedef void moat_inject_fn(struct moat_port *, enum moat_dir, const uint8_t *frame, uint32_t len);

struct moat_engine_conf {
    const char *mapping;      /* file on a hugetlbfs; NULL: private memory (tests) */
    uint32_t n_slots;         /* 0: 128 */
    uint32_t n_sessions;      /* 0: 262144; from 64 on */
    uint32_t n_sessions6;     /* of these, how many may be IPv6 ones; 0: half of them.  The price of
                               * one is 32 bytes more; IPv4 sessions take them too, last */
    uint8_t unclaimed;        /* enum moat_fail: what a port without slot gets: block or allow */
    uint8_t on_damaged;       /* the same, if the mapping's record of a slot is damaged */
    uint64_t (*now_ms)(void); /* monotonic, survives the process; NULL: CLOCK_MONOTONIC_COARSE */
    const uint64_t *seed;     /* 4 words; NULL: random (an existing mapping keeps its own) */
    moat_inject_fn *inject;   /* NULL: nobody is told, held fragments are lost */
    const struct moat_handover
        *before;     /* of the engine whose place this one will take (handover.h) */
    bool by_records; /* even if the mapping could be shared (tests) */
};

struct moat_engine {
    struct moat_engine_conf conf;
    struct moat_mapping *map;
    struct moat_session_table *sessions;
    struct moat_fragments *fragments;
    struct moat_trace *traces; /* atomic; NULL: nobody traces (trace.c) */
    struct moat_slot *slots;   /* conf.n_slots */
    struct moat_port **ports;  /* n_ports; under lock */
    uint32_t n_ports;
    struct moat_thread *threads; /* list; pushed, never removed while the engine lives */
    struct moat_qsbr qsbr;
    struct moat_events events;
    pthread_mutex_t lock; /* life cycle of slots and ports */
    pthread_cond_t handed_over;
    pthread_key_t thread_key; /* gives a thread's context back when the thread ends */
    uint32_t recovered_slots, recovered_sessions;
    uint32_t n_damaged; /* slots whose record or ruleset in the mapping was damaged: */
    char damage[192];   /* the first of them, for people */
    uint64_t started_s;
    struct moat_session_watch *watch; /* a successor copies the sessions */
    struct moat_takeover *takeover;   /* takeover.c; NULL: this engine serves */
    uint32_t replacements;            /* engines that served before, since the switch started */
    uint32_t gate_us;                 /* how long packets had to wait for it to take over */
    char file[MOAT_FILE_MAX];         /* that it was loaded from; for people */
    bool has_key;
    uint32_t age_next;               /* control thread: next session to look at */
    uint32_t age_used;               /* sessions that there were at the last turn */
    bool age_rests;                  /* few have begun or ended since */
    uint32_t sweep_next, sweep_left; /* sweep.c; under lock, `left` is atomic */
    uint64_t id; /* of this engine object: a thread's cached context belongs to it */
};

/* Session entries that a thread has at hand. */
#define MOAT_SESSION_STOCK 256 /* of a table that is large enough */
#define MOAT_SESSION_CACHE (MOAT_SESSION_STOCK + 64)

struct moat_session_cache {
    uint32_t n;
    uint32_t index[MOAT_SESSION_CACHE];
};

/* What one packet thread owns. */
struct moat_thread {
    struct moat_engine *engine;
    struct moat_qsbr_reader *reader;
    struct moat_thread *next;
    uint32_t in_use;    /* 0: its thread has ended, another may take it over */
    uint64_t *counters; /* n_slots x MOAT_COUNTERS_STRIDE; written by this thread alone */
    uint32_t now_s;     /* engine clock of the burst */
    bool opens;         /* the last burst that had to ask the rules opened sessions */
    struct moat_session_cache free[2]; /* without, with room for IPv6 addresses */
};

/* Counters of one slot start on a cache line. */
#define MOAT_COUNTERS_STRIDE ((MOAT_N_COUNTERS + 7) & ~7u)

/* Maps or creates the mapping, recovers slots and sessions.  NULL with the reason in
 * err: the caller must then refuse or pass all packets as the host's default says.  With
 * conf.before it is no engine yet: moat_handover_take() makes it one. */
struct moat_engine *moat_engine_create(const struct moat_engine_conf *, char *err, size_t err_size);

/* No packet thread may be inside.  The mapping stays as it is for the next engine. */
void moat_engine_destroy(struct moat_engine *);

/* The calling thread's context, made at its first call.  NULL if there is no memory or
 * too many threads: the caller refuses the burst. */
struct moat_thread *moat_thread_self(struct moat_engine *);

/* A context that no thread has: for one that will come, or (not free) for its counters alone. NULL:
 * no memory. */
struct moat_thread *moat_thread_spare(struct moat_engine *, bool free);

/* Sees to it that there are n contexts for threads.  False: no memory. */
bool moat_thread_spares(struct moat_engine *, uint32_t n);

/* Housekeeping: ages a slice of the sessions, ends holds that took too long.  To be
 * called about every 50 ms from one thread. */
void moat_engine_turn(struct moat_engine *);

uint64_t moat_engine_now_ms(const struct moat_engine *);

static inline uint64_t *moat_thread_counters(struct moat_thread *t, uint32_t slot)
{
    return t->counters + (uint64_t)slot * MOAT_COUNTERS_STRIDE;
}

static inline void moat_count(uint64_t *counters, unsigned which, uint64_t n)
{
    /* One writer; the control thread reads. */
    __atomic_store_n(&counters[which], counters[which] + n, __ATOMIC_RELAXED);
}

/* Sum over all threads; out has MOAT_N_COUNTERS words. */
void moat_engine_counters(struct moat_engine *, uint32_t slot, uint64_t *out);

#endif /* datapath/engine.h */
