/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_BENCH_RIG_H
#define TESTS_BENCH_RIG_H 1

/* A filter core to be measured: an engine with the slots of VM a (10.0.0.1) and VM b (10.0.0.2),
 * and the bursts that threads put through it.  Only calls that the hook and the control thread
 * make too.  Whatever cannot be set up ends the program with a reason.
 *
 * MOAT_BENCH_MAPPING names a file on a hugetlbfs for the tables, to be removed by the caller;
 * without it the tables are private memory. */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "datapath/engine.h"
#include "datapath/pipe.h"
#include "datapath/slot.h"

#include "frames.h"

#define RIG_A 0
#define RIG_B 1

struct rig_conf {
    uint32_t n_sessions;      /* one slot may have them all */
    uint32_t n_sessions6;     /* of these, how many may be IPv6 ones; 0: half of them */
    uint32_t max_half_open;   /* a slot's quota; 0: as many as there are sessions */
    uint32_t udp_s;           /* idle timers of UDP sessions; 0: long ones */
    unsigned n_rules;         /* 0: one rule, from a to b; else rig_rule_flow()'s */
    uint64_t (*now_ms)(void); /* NULL: the real clock */
};

struct rig {
    struct moat_engine *engine;
    struct moat_port *port[2];
};

/* One packet thread with the burst that it judges. */
struct rig_thread {
    struct rig *rig;
    struct moat_thread *self;
    uint64_t random;
    uint64_t refused; /* packets, so far */
    uint16_t len;     /* of the frames */
    uint8_t frame[FRAME_BURST][FRAME_ROOM];
    struct moat_pkt pkts[FRAME_BURST];
};

__attribute__((noreturn)) void rig_die(const char *what);

void rig_start(struct rig *, const struct rig_conf *);
void rig_stop(struct rig *);

/* Between two rigs: the tables of the next begin empty. */
void rig_forget_tables(void);

/* To be called on the thread itself; `id` makes its random numbers its own. */
void rig_thread_init(struct rig_thread *, struct rig *, unsigned id);

/* The calling thread on one core from now on; a thread that never runs on another (real-time
 * threads that spin would keep each other from getting there). */
void rig_pin(unsigned core);
void rig_thread_create(pthread_t *, unsigned core, void *(*main)(void *), void *aux);

/* Judge the first n frames at one slot, or at the sender's and the receiver's as for a packet
 * from a to b (back: from b to a).  Return how many cycles it took. */
uint64_t rig_judge(struct rig_thread *, int vm, enum moat_dir, unsigned n);
uint64_t rig_judge_both(struct rig_thread *, int back, unsigned n);

/* Opens connections [from, to) of frame_make() and answers them: at b's slot, or at both. */
void rig_open(struct rig_thread *, int tcp, uint32_t from, uint32_t to, bool both);

/* Text of a policy of n rules; rule r permits one remote address and one port to b.  The caller
 * frees it. */
char *rig_many_rules(unsigned n);

/* A flow to b that rule c % n_rules (an even one: UDP, an odd one: TCP) permits; c names it, below
 * RIG_MAX_RULE_FLOWS. */
#define RIG_RULES 1000
#define RIG_MAX_RULE_FLOWS 30000000u
void rig_rule_flow(uint32_t c, int tcp, struct frame_flow *);

/* Live sessions of a VM's slot.  rig_want() ends the program if something was refused or the
 * sessions are not so many. */
uint32_t rig_sessions(const struct rig *, int vm);
void rig_want(const struct rig_thread *, int vm, uint32_t sessions);

/* Sum of a counter of the VM's slot over all threads. */
uint64_t rig_counter(const struct rig *, int vm, unsigned which);

/* The smallest table with room for so many sessions. */
uint32_t rig_room(uint64_t sessions);

#endif /* tests/bench/rig.h */
